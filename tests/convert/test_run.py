"""Inputs as transformers takes them: padding on either side changes nothing; what does not fit is refused."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.convert import run_hf_inputs
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import ModelConfig, boxed_params, build_model
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.decoder import DecoderConfig, SelfAttentionBlock
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.parallel import abstract_params

DECODER = DecoderConfig(
    vocabulary_size=50,
    width=12,
    layers=2,
    heads=4,
    key_value_heads=2,
    head_size=6,
    mlp_width=16,
    pattern=(SelfAttentionBlock(window=3), SelfAttentionBlock()),
)
VIT = ViTConfig(image_size=(8, 8), stem=PatchStem(4), width=8, layers=2, heads=2, mlp_width=8, class_token=True)
IMAGE = 49
VLM = VLMConfig(DECODER, VIT, MLPAdapterConfig(), layout=PromptLayout(IMAGE))
RNG = np.random.default_rng(0)


def random_params(config: ModelConfig) -> Any:
    rng = np.random.default_rng(1)
    shapes = abstract_params(boxed_params(build_model(config)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) * 0.3, jnp.float32), shapes)


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(VLM)


def ids(*rows: int) -> np.ndarray:
    return RNG.integers(0, 40, rows)


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_nothing_for_the_other_positions(params: Any, left: bool) -> None:
    tokens = ids(1, 7)
    alone = run_hf_inputs(DECODER, params["decoder"], {"input_ids": tokens})
    real = slice(4, 11) if left else slice(0, 7)
    padded, mask = np.full((1, 11), 3), np.zeros((1, 11), int)
    padded[:, real], mask[:, real] = tokens, 1
    found = run_hf_inputs(DECODER, params["decoder"], {"input_ids": padded, "attention_mask": mask})
    assert found["logits"].dtype == np.float32
    for name, array in alone.items():  # rotation depends on distances only, so shifted positions give the same
        close(found[name][:, real], array)
    other = run_hf_inputs(DECODER, params["decoder"], {"input_ids": np.where(mask, padded, 9), "attention_mask": mask})
    close(other["logits"][:, real], found["logits"][:, real])


def test_there_is_a_hidden_state_before_every_layer_and_at_the_end(params: Any) -> None:
    found = run_hf_inputs(DECODER, params["decoder"], {"input_ids": ids(2, 5)})
    assert sorted(found) == ["hidden_states.0", "hidden_states.1", "hidden_states.2", "last_hidden_state", "logits"]
    np.testing.assert_array_equal(found["hidden_states.2"], found["last_hidden_state"])


def test_nothing_sees_what_comes_later_or_lies_behind_the_window(params: Any) -> None:
    windowed = dataclasses.replace(DECODER, layers=1, pattern=(SelfAttentionBlock(window=3),))
    weights = {**params["decoder"], "layers": {"block_0": params["decoder"]["layers"]["block_0"]}}
    tokens = ids(1, 8)
    changed = tokens.copy()
    changed[0, 3] = (changed[0, 3] + 1) % 40
    a, b = (run_hf_inputs(windowed, weights, {"input_ids": t})["logits"][0] for t in (tokens, changed))
    differs = np.abs(a - b).max(-1) > 1e-6
    assert differs.tolist() == [False, False, False, True, True, True, False, False]


def test_given_positions_are_used(params: Any) -> None:
    tokens = ids(1, 5)
    base = run_hf_inputs(DECODER, params["decoder"], {"input_ids": tokens})["logits"]
    given = {"input_ids": tokens, "position_ids": np.arange(5)[None]}
    close(run_hf_inputs(DECODER, params["decoder"], given)["logits"], base)
    given["position_ids"] = 3 * given["position_ids"]
    assert np.abs(run_hf_inputs(DECODER, params["decoder"], given)["logits"] - base).max() > 1e-3


def test_an_encoder_gives_all_tokens(params: Any) -> None:
    pixels = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    found = run_hf_inputs(VIT, params["encoder"], {"pixel_values": pixels})
    assert found["last_hidden_state"].shape == (2, 5, 8)
    np.testing.assert_array_equal(found["pooler_output"], found["last_hidden_state"][:, 0])
    assert {f"hidden_states.{i}" for i in range(3)} <= found.keys()


def test_a_convolutional_encoder_has_channels_first() -> None:
    config = ConvNeXtConfig(image_size=(16, 24), patch=4, depths=(1, 1), widths=(4, 6))
    pixels = RNG.standard_normal((2, 3, 16, 24)).astype(np.float32)
    found = run_hf_inputs(config, random_params(config), {"pixel_values": pixels})
    assert found["last_hidden_state"].shape == (2, 6, 2, 3)
    assert found["hidden_states.0"].shape == (2, 4, 4, 6)
    assert found["pooler_output"].shape == (2, 6)


def prompt(pictures: int) -> np.ndarray:
    return np.concatenate([ids(1, 2), np.full((1, 4 * pictures), IMAGE), ids(1, 3)], axis=1)


def test_pictures_fill_the_image_tokens_in_order(params: Any) -> None:
    tokens = prompt(2)
    pixels = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    found = run_hf_inputs(VLM, params, {"input_ids": tokens, "pixel_values": pixels})
    visual = found["image_hidden_states"]
    assert visual.shape == (2, 4, 12)
    close(found["hidden_states.0"][0, 2:10], visual.reshape(8, 12))
    swapped = run_hf_inputs(VLM, params, {"input_ids": tokens, "pixel_values": pixels[::-1]})
    assert np.abs(swapped["logits"] - found["logits"])[0, -1].max() > 1e-4
    tiles = np.concatenate([pixels, np.zeros_like(pixels)]).reshape(1, 4, 3, 8, 8)  # absent pictures are zero
    close(run_hf_inputs(VLM, params, {"input_ids": tokens, "pixel_values": tiles})["logits"], found["logits"])


@pytest.mark.parametrize(("bidirectional", "first"), [("none", 5), ("images", 2), ("prompt", 0)])
def test_who_sees_the_last_token_of_the_prompt(params: Any, bidirectional: Any, first: int) -> None:
    config = dataclasses.replace(VLM, layout=PromptLayout(IMAGE, bidirectional))
    tokens, types = prompt(1), np.array([[0] * 7 + [1] * 2])
    inputs = {"input_ids": tokens, "pixel_values": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    inputs |= {"token_type_ids": types}
    base = run_hf_inputs(config, params, inputs)["hidden_states.1"][0]
    visual_changed = {**inputs, "pixel_values": inputs["pixel_values"].copy()}
    visual_changed["pixel_values"][0, :, 4:, 4:] += 1  # the last patch, at position 5
    moved = np.abs(run_hf_inputs(config, params, visual_changed)["hidden_states.1"][0] - base).max(-1) > 1e-6
    if bidirectional == "none":
        moved[2:5] = False  # other patches see it within the encoder
    assert np.flatnonzero(moved)[0] == first


def test_positions_may_begin_at_another_number(params: Any) -> None:
    tokens = prompt(0)
    config = dataclasses.replace(VLM, layout=PromptLayout(IMAGE, first_position=1))
    shifted = {"input_ids": tokens, "position_ids": 1 + np.arange(tokens.shape[1])[None]}
    close(run_hf_inputs(config, params, {"input_ids": tokens})["logits"], run_hf_inputs(VLM, params, shifted)["logits"])


@pytest.mark.parametrize(
    ("config", "inputs", "said"),
    [
        (DECODER, {}, "input_ids is missing"),
        (DECODER, {"input_ids": np.zeros((1, 3))}, "give whole numbers"),
        (DECODER, {"input_ids": np.zeros(3, int)}, "give whole numbers"),
        (DECODER, {"input_ids": np.array([[50]])}, "the model embeds 0 to 49"),
        (DECODER, {"input_ids": np.zeros((1, 3), int), "attention_mask": np.ones((1, 4))}, "attention_mask is"),
        (DECODER, {"input_ids": np.zeros((2, 3), int), "position_ids": np.ones((3, 3))}, "position_ids is"),
        (DECODER, {"input_ids": np.zeros((1, 3), int), "pixel_values": 0}, "pixel_values cannot be given"),
        (VIT, {}, "pixel_values is missing"),
        (VIT, {"pixel_values": np.zeros((8, 8, 3))}, "give \\[pictures, 3, height, width\\]"),
        (VLM, {}, "input_ids is missing"),
        (VLM, {"input_ids": np.full((1, 3), IMAGE), "pixel_values": np.zeros((1, 3, 8, 8))}, "4 visual tokens"),
    ],
)
def test_inputs_that_do_not_fit(params: Any, config: Any, inputs: Any, said: str) -> None:
    part = {DecoderConfig: params["decoder"], ViTConfig: params["encoder"], VLMConfig: params}[type(config)]
    with pytest.raises(UserError, match=said) as error:
        run_hf_inputs(config, part, inputs)
    assert "\n" not in str(error.value)
