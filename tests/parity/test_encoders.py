"""Every image encoder against transformers: numbers, the way out and back in, and from a picture's file on."""

import re

import jax
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from cases_encoders import CASES, CLIP, VIT, dinov2, pictures
from harness import Case, assert_same, build, load, run
from safetensors.numpy import load_file
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from data_pipelines.examples import Image
from data_pipelines.images import decode, resize
from vlm_jax.convert import load_hf, run_hf_inputs, save_hf
from vlm_jax.convert.families import find_family
from vlm_jax.convert.hf_config import read_hf_config
from vlm_jax.convert.image_processors import read_image_processor
from vlm_jax.models.encoders import normalise

SIZES = [(11, 11), (31, 47), (90, 61), (13, 70), (64, 9), (21, 19), (300, 201)]
"""(height, width) of pictures: smaller, larger, exactly and nearly of the model's size, oblong both ways."""


@pytest.fixture(autouse=True)
def quick_compilation():
    """Most of the time of these tests is XLA's; they do not measure how well it optimises."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", CASES)
def test_every_hidden_state(name, built):
    directory, theirs = built(name, CASES[name])
    inputs = CASES[name].inputs()
    ours = run_hf_inputs(*load_hf(directory), inputs)
    expected = run(theirs, inputs)
    assert_same(ours, expected, inputs)
    assert ours.keys() == expected.keys()


@pytest.mark.parametrize("name", CASES)
def test_out_and_in_again(name, built, tmp_path):
    directory, theirs = built(name, CASES[name])
    config, params = load_hf(directory)
    save_hf(config, params, tmp_path / "out")
    again, same = load_hf(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    before, after = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "out"))
    dropped = find_family(read_hf_config(directory)).DROPPED
    assert after.keys() == {tensor for tensor in before if not any(re.match(pattern, tensor) for pattern in dropped)}
    for tensor, array in after.items():
        np.testing.assert_array_equal(array, before[tensor])
    inputs = CASES[name].inputs()
    exported = run(load(tmp_path / "out", "AutoModel"), inputs)
    np.testing.assert_array_equal(exported["last_hidden_state"], run(theirs, inputs)["last_hidden_state"])


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
@pytest.mark.parametrize("inside", [True, False])
def test_an_encoder_that_is_part_of_more(kind, inside, tmp_path):
    """Text, projections and pooling heads are left out."""
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    parts = {"text_config": {**text, "vocab_size": 20}, "vision_config": CLIP} if inside else CLIP
    config = getattr(transformers, f"{kind}{'' if inside else 'Vision'}Config")
    model = f"{kind}Model" if inside else f"{kind}VisionModel"
    model = "CLIPVisionModelWithProjection" if (kind, inside) == ("CLIP", False) else model
    theirs = build(Case(model, lambda: config(**parts), pictures), tmp_path)
    theirs = getattr(theirs, "vision_model", theirs)
    inputs = pictures()
    expected = run(theirs, inputs)
    if kind == "Siglip":
        del expected["pooler_output"]
    assert_same(run_hf_inputs(*load_hf(tmp_path), inputs), expected, inputs)


def test_a_classifier_is_left_out(tmp_path):
    config = dinov2().config
    theirs = build(Case("Dinov2ForImageClassification", config, pictures), tmp_path)
    assert_same(run_hf_inputs(*load_hf(tmp_path), pictures()), run(theirs.dinov2, pictures()), {})


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("size", [(35, 45), (10, 15)])
def test_positions_are_resampled_where_transformers_is_asked_to(name, size, built):
    directory, theirs = built(name, CASES[name])
    inputs = pictures(*size)
    with torch.no_grad():
        found = theirs(torch.from_numpy(inputs["pixel_values"]), interpolate_pos_encoding=True).last_hidden_state
    ours = run_hf_inputs(*load_hf(directory), inputs)["last_hidden_state"]
    np.testing.assert_allclose(ours, found.numpy(), atol=1e-4)


PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=20),
    "siglip": SiglipImageProcessorPil(size={"height": 20, "width": 20}),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 25}, crop_size={"height": 20, "width": 20}),
    "dinov2_larger": BitImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 25, "width": 40}),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 37}),
    "convnext_oblong": ConvNextImageProcessorPil(size={"shortest_edge": 384}, resample=2, crop_pct=0.9),
}
"""By the case that encodes the pictures; DINOv2 at another size than its positions are for."""


def picture_file(tmp_path, height, width):
    """A PNG with structure at all scales, so that filters tell."""
    rng = np.random.default_rng(height)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / k) * np.cos(columns / (k + 1)) for k in (1, 3, 11)], -1)
    pixels = np.clip(127 + 90 * waves + 30 * rng.standard_normal((height, width, 3)), 0, 255).astype(np.uint8)
    path = tmp_path / f"{height}x{width}.png"
    PIL.Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", PROCESSORS)
def test_from_a_file_to_hidden_states(name, built, tmp_path):
    directory, theirs = built(name, CASES[name])
    PROCESSORS[name].save_pretrained(tmp_path / "model")
    for file in directory.iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    config, params = load_hf(tmp_path / "model")
    processor = read_image_processor(PROCESSORS[name].to_dict())
    assert config.image_size == processor.image_size
    worst = []
    for size in SIZES:
        path = picture_file(tmp_path, *size)
        expected = PROCESSORS[name](PIL.Image.open(path), return_tensors="np")
        pixels = resize(decode(Image(path=str(path))), processor.image_size, processor.preprocessing)
        found = np.asarray(normalise(pixels, config)).transpose(2, 0, 1)[None]
        np.testing.assert_allclose(found, expected["pixel_values"], atol=1e-5)
        ours = run_hf_inputs(config, params, {"pixel_values": found})["last_hidden_state"]
        with torch.no_grad():
            reference = theirs(torch.from_numpy(expected["pixel_values"])).last_hidden_state.numpy()
        worst.append(np.abs(ours - reference).max())
    assert max(worst) < 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_idefics3_without_tiles(size, tmp_path):
    theirs = Idefics3ImageProcessorPil(
        size={"longest_edge": 75}, max_image_size={"longest_edge": 20}, do_image_splitting=False
    )
    processor = read_image_processor(theirs.to_dict())
    path = picture_file(tmp_path, *size)
    expected = theirs(PIL.Image.open(path), return_tensors="np")["pixel_values"][0, 0]
    pixels = resize(decode(Image(path=str(path))), processor.image_size, processor.preprocessing)
    np.testing.assert_allclose((pixels / 255.0 - 0.5).transpose(2, 0, 1) / 0.5, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2_larger", "convnext"])
def test_an_exported_image_processor_does_the_same(name, built, tmp_path):
    directory, _ = built(name, CASES[name])
    config, params = load_hf(directory)
    save_hf(config, params, tmp_path / "out")
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    processor = read_image_processor(theirs.to_dict())
    assert (processor.image_size, processor.mean, processor.std) == (config.image_size, config.mean, config.std)
    path = picture_file(tmp_path, 45, 33)
    expected = theirs(PIL.Image.open(path), return_tensors="np")["pixel_values"]
    pixels = resize(decode(Image(path=str(path))), processor.image_size, processor.preprocessing)
    np.testing.assert_allclose(np.asarray(normalise(pixels, config)).transpose(2, 0, 1)[None], expected, atol=1e-5)


def test_a_vit_trained_here_is_written_as_siglip(tmp_path):
    from vlm_jax.models.abstract import build_model, initialise
    from vlm_jax.models.vit import PatchStem, ViTConfig

    config = ViTConfig((20, 20), PatchStem(5), width=18, layers=2, heads=3, mlp_width=31)
    params = jax.tree.map(
        lambda x: x.value, initialise(build_model(config), jax.random.key(0)), is_leaf=lambda x: hasattr(x, "value")
    )
    save_hf(config, params, tmp_path / "out")
    inputs = pictures()
    theirs = run(load(tmp_path / "out", "AutoModel"), inputs)
    assert_same(run_hf_inputs(config, params, inputs), theirs, inputs)
    assert VIT["patch_size"] == config.stem.patch
