"""Idefics 2's config and tensors in and out; numbers are compared with transformers' in tests/parity."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.convert import load_hf, run_hf_inputs, save_hf
from vlm_jax.convert.families import find_family
from vlm_jax.convert.hf import find_writer
from vlm_jax.convert.image_processors import read_image_processor
from vlm_jax.convert.tilings import quarters_tiling
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import ResamplerConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.parallel import abstract_params

PUBLISHED = {
    "model_type": "idefics2",
    "image_token_id": 32001,
    "perceiver_config": {"model_type": "idefics2"},
    "text_config": {
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "rms_norm_eps": 1e-05,
        "sliding_window": 4096,
        "vocab_size": 32003,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "model_type": "idefics2",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}

CONFIG = VLMConfig(
    DecoderConfig(50, width=12, layers=2, heads=4, key_value_heads=2, head_size=6, mlp_width=16, context=64),
    ViTConfig((8, 8), PatchStem(4), width=8, layers=2, heads=2, mlp_width=8, position_resampling="fractional"),
    ResamplerConfig("idefics2", 3, layers=2, heads=4, key_value_heads=2, head_size=5, projection_width=16),
    layout=PromptLayout(49),
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = abstract_params(boxed_params(build_model(CONFIG)))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes)


def test_the_published_model_is_as_large_as_it_is():
    config = find_family(PUBLISHED).read_config(PUBLISHED)
    assert (config.prompt_tokens, config.encoder.grid, config.layout.image_token) == (64, (70, 70), 32001)
    leaves = jax.tree.leaves(abstract_params(boxed_params(build_model(config))))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == pytest.approx(8.40e9, rel=1e-3)
    _, written = find_writer(config)
    assert find_family(written).read_config(written) == config
    names = [row.theirs for row in find_family(PUBLISHED).rows(config)]
    assert len(names) == len({*names})


def test_epsilon_is_the_decoders_where_the_perceiver_says_nothing():
    text = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "rms_norm_eps": 1e-3}

    def epsilon(perceiver):
        hf = {"model_type": "idefics2", "text_config": text, "perceiver_config": perceiver}
        return find_family(hf).read_config(hf).adapter.norm_epsilon

    assert epsilon({}) == epsilon({"rms_norm_eps": 1e-2}) == 1e-3
    assert epsilon({"hidden_size": 64}) == 1e-6
    assert epsilon({"hidden_size": 64, "rms_norm_eps": 1e-2}) == 1e-2


def test_it_comes_back_bit_for_bit(params, tmp_path):
    save_hf(CONFIG, params, tmp_path / "out")
    config, same = load_hf(tmp_path / "out")
    assert config == dataclasses.replace(CONFIG, adapter=dataclasses.replace(CONFIG.adapter, activation="silu"))
    jax.tree.map(np.testing.assert_array_equal, same, params)


def change(part, **fields):
    return dataclasses.replace(CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **fields)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (change("adapter", width=16), "latents of width 16 beside a decoder's of 12"),
        (change("adapter", mlp_width=20), "a resampler's mlp_width of 20; it is 48"),
        (change("adapter", projection_width=0), "projection_width other than the decoder's mlp_width, 16"),
        (change("adapter", projection_activation="gelu"), "projection_activation other than the decoder's, silu"),
        (change("encoder", class_token=True), "an encoder with a class token"),
        (change("encoder", position_grid=(3, 3), position_resampling="bicubic"), "Idefics 2 resamples positions by"),
        (change("layout", bidirectional="images"), "see each other in both directions"),
        (dataclasses.replace(CONFIG, tiling=dataclasses.replace(quarters_tiling(), tile_mark="")), "other tiles than"),
        (dataclasses.replace(CONFIG, layout=None), "which token stands for pictures"),
        (change("adapter", form="flamingo", projection_width=0), "ViTConfig and ResamplerConfig together"),
    ],
)
def test_what_it_does_not_have_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        find_writer(config)


def test_positions_that_another_way_leaves_in_place_go_out():
    assert find_writer(change("encoder", position_resampling="bicubic"))[1]["model_type"] == "idefics2"
    odd = change("encoder", image_size=(100, 100), position_resampling="bicubic")  # 25 patches a side
    with pytest.raises(UserError, match="resamples positions by fractional"):
        find_writer(odd)


def inputs(height=8, width=8):
    pixels = np.random.default_rng(1).standard_normal((2, 2, 3, height, width), np.float32)
    pixels[1, 1] = 0
    ids = np.full((2, 6), 5)
    ids[0], ids[1, :3] = 49, 49
    return {"input_ids": ids, "pixel_values": pixels, "pixel_attention_mask": np.ones((2, 2, height, width), int)}


def test_a_whole_mask_is_none_and_pixels_that_fill_no_patch_do_not_count(params):
    given = inputs(8, 8)
    plain = run_hf_inputs(CONFIG, params, {k: v for k, v in given.items() if k != "pixel_attention_mask"})
    np.testing.assert_allclose(run_hf_inputs(CONFIG, params, given)["logits"], plain["logits"], atol=1e-5)
    wide = {name: np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, 3), (0, 1)]) for name, x in given.items() if "pixel" in name}
    wide["pixel_values"][..., 8:, :] = 7.0
    wide["pixel_values"][1, 1] = 0
    found = run_hf_inputs(CONFIG, params, {**given, **wide})
    np.testing.assert_allclose(found["logits"], plain["logits"], atol=1e-5)


def test_what_padding_holds_makes_no_difference_and_the_mask_does(params):
    given = inputs(12, 12)
    given["pixel_attention_mask"][0, 0, :, 7:] = 0  # a patch of which one column is hidden is hidden
    hidden = run_hf_inputs(CONFIG, params, given)
    assert hidden["image_hidden_states"].shape == (3, 3, 12)
    given["pixel_values"][0, 0, :, :, 4:] += 3
    again = run_hf_inputs(CONFIG, params, given)
    np.testing.assert_allclose(again["logits"], hidden["logits"], atol=1e-5)
    given["pixel_values"][0, 0, :, :, :4] += 3
    assert np.abs(run_hf_inputs(CONFIG, params, given)["logits"][0] - hidden["logits"][0]).max() > 1e-3


def test_inputs_that_do_not_fit_are_refused(params):
    given = inputs()
    with pytest.raises(UserError, match=r"pixel_attention_mask is \[2, 2, 8, 7\], but pixel_values \[2, 2, 3, 8, 8\]"):
        run_hf_inputs(CONFIG, params, {**given, "pixel_attention_mask": given["pixel_attention_mask"][..., :7]})
    with pytest.raises(UserError, match="which is too small for a patch"):
        run_hf_inputs(CONFIG, params, inputs(3, 8))
    given["input_ids"][1, 0] = 5
    with pytest.raises(UserError, match="3 pictures make 9 visual tokens, but input_ids holds 8"):
        run_hf_inputs(CONFIG, params, given)


def test_the_image_processor_is_read_as_one_square():
    plain = {"image_processor_type": "Idefics2ImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    found = read_image_processor(plain)
    assert (found.image_size, found.preprocessing.resize, found.tiling) == ((980, 980), "squash", None)
    assert found.preprocessing.interpolation == "pillow_bilinear"
    assert read_image_processor({**plain, "do_image_splitting": True}).tiling == quarters_tiling()
    for size in ({"shortest_edge": 9, "longest_edge": 8}, {"height": 9, "width": 9}, 5):
        with pytest.raises(UserError, match="it must have a shortest_edge and a longest_edge"):
            read_image_processor({**plain, "size": size})
