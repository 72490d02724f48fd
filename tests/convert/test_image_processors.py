"""preprocessor_config.json in and out; that pixels agree with transformers' is shown in tests/parity."""

import pytest

from data_pipelines.images import ImagePreprocessing
from vlm_jax.convert.image_processors import (
    ImageProcessor,
    read_image_processor,
    usual_preprocessing,
    write_image_processor,
)
from vlm_jax.errors import UserError
from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.presets import dinov2_small
from vlm_jax.models.vit import ViTConfig

NUMBERS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 9}, "crop_size": 7, **NUMBERS}


@pytest.mark.parametrize(
    ("plain", "size", "preprocessing"),
    [
        (CLIP, (7, 7), ImagePreprocessing("shortest", "pillow_bicubic", 9)),
        ({**CLIP, "size": 9, "crop_size": {"height": 6, "width": 8}}, (6, 8), None),
        (
            {"size": {"height": 6, "width": 8}, "resample": 2, **NUMBERS},
            (6, 8),
            ImagePreprocessing("squash", "pillow_bilinear"),
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, **NUMBERS},
            (224, 224),
            ImagePreprocessing("shortest", "pillow_bicubic", 256),
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, **NUMBERS},
            (384, 384),
            ImagePreprocessing("squash", "pillow_bicubic"),
        ),
        (
            {"size": {"longest_edge": 40}, "max_image_size": {"longest_edge": 10}, "resample": 1, **NUMBERS},
            (10, 10),
            ImagePreprocessing("squash", "pillow_lanczos", longest_edge=40),
        ),
    ],
)
def test_what_processors_do_is_read_from_their_fields(plain, size, preprocessing):
    found = read_image_processor(plain)
    assert found.image_size == size
    assert preprocessing in (None, found.preprocessing)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    "preprocessing",
    [
        ImagePreprocessing("squash", "pillow_bilinear"),
        ImagePreprocessing("shortest", "pillow_bicubic", 11),
        ImagePreprocessing("squash", "pillow_lanczos", longest_edge=50),
    ],
)
def test_what_pillow_does_comes_back_as_it_was(preprocessing):
    processor = ImageProcessor((8, 8), preprocessing, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert read_image_processor(write_image_processor(processor)) == processor


def test_opencv_is_written_as_its_nearest_in_pillow():
    written = write_image_processor(ImageProcessor((8, 6), ImagePreprocessing(), (0, 0, 0), (1, 1, 1)))
    assert written["resample"] == 3
    assert written["size"] == {"height": 8, "width": 6}
    cropped = write_image_processor(ImageProcessor((8, 8), ImagePreprocessing("crop", "area"), (0, 0, 0), (1, 1, 1)))
    assert (cropped["resample"], cropped["size"]) == (4, {"shortest_edge": 8})
    with pytest.raises(UserError, match="'pad' to 8 x 8"):
        write_image_processor(ImageProcessor((8, 8), ImagePreprocessing("pad"), (0, 0, 0), (1, 1, 1)))


def test_pictures_that_are_not_normalised_stay_between_0_and_1():
    found = read_image_processor({**CLIP, "do_normalize": False})
    assert (found.mean, found.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"do_resize": False}, "not resized"),
        ({"rescale_factor": 1}, "rescale_factor is 1"),
        ({"resample": 0}, "resample is 0"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"size": {"longest_edge": 9}}, "shortest_edge, or height and width"),
        ({"crop_size": {"height": "9"}}, "no size in pixels"),
        ({"do_center_crop": False}, "not cropped"),
        ({"size": {"height": 9, "width": 9}}, "squashed and then cropped"),
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": True}, "do_pad"),
        ({"max_image_size": {"longest_edge": 5000}}, "longest_edge"),
    ],
)
def test_what_cannot_be_done_is_the_users_error(change, said):
    with pytest.raises(UserError, match=rf"^p\.json: .*{said}"):
        read_image_processor({**CLIP, **change}, "p.json")


def test_encoders_have_the_preprocessing_that_was_published_with_their_kind():
    assert usual_preprocessing(dinov2_small()) == ImagePreprocessing("shortest", "pillow_bicubic", 256)
    assert usual_preprocessing(ConvNeXtConfig()) == ImagePreprocessing("shortest", "pillow_bicubic", 256)
    assert usual_preprocessing(ViTConfig()) == ImagePreprocessing("squash", "pillow_bicubic")
    clip = ViTConfig(class_token=True, stem_norm=True, final_norm="pooled")
    assert usual_preprocessing(clip) == ImagePreprocessing("shortest", "pillow_bicubic")
