"""How image processors cut pictures, in and out; that grids, ids and pixels agree is shown in tests/parity."""

import dataclasses

import pytest

from data_pipelines.images import ImagePreprocessing
from vlm_jax.convert.families.llava_next import write_config
from vlm_jax.convert.hf import find_writer
from vlm_jax.convert.image_processors import (
    ImageProcessor,
    covering_processor,
    read_image_processor,
    write_image_processor,
)
from vlm_jax.convert.tilings import any_resolution, aspect_tiling, canvas_tiling, cover_tiling
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.pictures import Tiling, grids_up_to

NUMBERS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
TILE = (28, 28)
IDEFICS3 = cover_tiling(TILE, 84, "here")


@pytest.mark.parametrize(
    ("tiling", "longest", "kind"),
    [
        (any_resolution([[28, 56], [56, 28]], TILE, "here"), 0, "LlavaNextImageProcessor"),
        (aspect_tiling(2, 6), 0, "GotOcr2ImageProcessor"),
        (IDEFICS3, 84, "Idefics3ImageProcessor"),
        (canvas_tiling(4), 0, "MllamaImageProcessor"),
    ],
)
def test_what_is_written_comes_back_as_it_was(tiling, longest, kind):
    how = ImagePreprocessing("squash", "pillow_bicubic", longest_edge=longest)
    processor = ImageProcessor(TILE, how, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), tiling)
    plain = write_image_processor(processor)
    assert plain["image_processor_type"] == kind
    assert read_image_processor(plain) == processor


def test_only_known_tilings_are_written():
    for other in (Tiling(grids_up_to(3)), Tiling(((1, 2),), "cover"), dataclasses.replace(canvas_tiling(4), slots=5)):
        with pytest.raises(UserError, match="no image processor of transformers cuts pictures into tiles by this"):
            write_image_processor(ImageProcessor(TILE, ImagePreprocessing(), (0, 0, 0), (1, 1, 1), other))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_grid_pinpoints": [[28, 30]]}, "28 x 30, which is no number of the encoder's tiles of 28 x 28"),
        ({"image_grid_pinpoints": []}, "image_grid_pinpoints is"),
        ({"image_grid_pinpoints": [[28]]}, "each must be a height and a width"),
        ({"image_grid_pinpoints": [[56, 28]], "crop_size": 14}, "crop_size is 14, but tiles are brought to"),
    ],
)
def test_pinpoints_that_cannot_be_cut_are_named(fields, message):
    plain = {"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 28}, "crop_size": 28}
    with pytest.raises(UserError, match=message) as raised:
        read_image_processor({**plain, **NUMBERS, **fields}, "a.json")
    assert str(raised.value).startswith("a.json: ")


def test_idefics3_is_cut_only_where_its_file_says_so():
    plain = {"size": {"longest_edge": 84}, "max_image_size": {"longest_edge": 28}, **NUMBERS}
    assert read_image_processor(plain).tiling == IDEFICS3
    assert read_image_processor({**plain, "do_image_splitting": False}).tiling is None
    assert read_image_processor({**plain, "size": {"longest_edge": 28}}).tiling is None
    with pytest.raises(UserError, match="is 20 tiles of max_image_size 28; at most 16 are cut"):
        read_image_processor({**plain, "size": {"longest_edge": 560}})


def vlm(tiling, **adapter):
    return VLMConfig(
        DecoderConfig(64, 32, 2, 4, 4, 8, 32),
        ViTConfig(TILE, PatchStem(7), 24, 2, 3, 40),
        MLPAdapterConfig(**adapter),
        tiling,
        layout=PromptLayout(5),
    )


def test_a_tiled_model_goes_out_as_the_architecture_that_cuts_like_it():
    rows = vlm(any_resolution([[28, 56], [56, 28]], TILE, "here"))
    _, plain = find_writer(rows)
    assert (plain["model_type"], plain["image_grid_pinpoints"]) == ("llava_next", [[28, 56], [56, 28]])
    covered = vlm(IDEFICS3, layers=1, bias=False, pixel_shuffle=2)
    assert find_writer(covered)[1]["model_type"] == "idefics3"
    found = covering_processor(covered)
    assert found is not None
    assert (found.tiling, found.preprocessing.longest_edge) == (IDEFICS3, 84)
    assert write_config(vlm(aspect_tiling(1, 4))) is None
    with pytest.raises(UserError, match="LLaVA-NeXT cuts pictures by a Tiling with choose 'area'"):
        find_writer(vlm(Tiling(grids_up_to(4), separator=True)))
    with pytest.raises(UserError, match="cut into tiles"):
        find_writer(vlm(aspect_tiling(1, 4)))
