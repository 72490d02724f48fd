"""VLMs made here, written for transformers: the same numbers there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from harness import assert_same, run

from vlm_jax.convert import load_hf, run_hf_inputs, save_hf
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.parallel import abstract_params

IMAGE = 96

DECODER = DecoderConfig(97, width=36, layers=3, heads=6, key_value_heads=2, head_size=10, mlp_width=52, context=64)
PLAIN = ViTConfig((28, 28), PatchStem(7), width=24, layers=2, heads=3, mlp_width=40)
DINOV2 = dataclasses.replace(
    PLAIN, class_token=True, layer_scale=True, activation="gelu", position_grid=(5, 5), position_resampling="bicubic"
)
CLIP = dataclasses.replace(
    PLAIN, stem=PatchStem(7, bias=False), class_token=True, stem_norm=True, activation="quick_gelu", final_norm="none"
)
TWO, ONE = MLPAdapterConfig(layers=2), MLPAdapterConfig(layers=1, pixel_shuffle=2, bias=False)


def model(encoder: ViTConfig, adapter: MLPAdapterConfig = TWO, decoder: DecoderConfig = DECODER) -> VLMConfig:
    return VLMConfig(decoder, encoder, adapter, layout=PromptLayout(IMAGE))


CASES = {
    "vit_trained_here": (model(PLAIN), "Llava"),
    "vit_without_final_norm": (model(dataclasses.replace(PLAIN, final_norm="none")), "Llava"),
    "dinov2": (model(DINOV2), "Llava"),
    "dinov2_without_final_norm": (model(dataclasses.replace(DINOV2, final_norm="none", mlp_width=48)), "Llava"),
    "clip": (model(CLIP), "Llava"),
    "qwen3": (model(PLAIN, decoder=dataclasses.replace(DECODER, query_key_norm=True)), "Llava"),
    "pixel_shuffle": (model(PLAIN, ONE), "Idefics3"),
}


def random_params(config: VLMConfig):
    """Parameters that leave no part without effect."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.3 if len(leaf.shape) < 3 else 0.5 * leaf.shape[1] ** -0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(draw, abstract_params(boxed_params(build_model(config))))


def inputs_for(config: VLMConfig, nested: bool):
    """Two rows of two pictures each."""
    rng = np.random.default_rng(1)
    block = [IMAGE] * config.prompt_tokens
    ids = np.array([[*rng.integers(3, 90, 3), *block, *rng.integers(3, 90, 2), *block, 5, 6] for _ in range(2)])
    pixels = rng.standard_normal((4, 3, 28, 28), np.float32)
    return {"input_ids": ids, "pixel_values": pixels.reshape(2, 2, 3, 28, 28) if nested else pixels}


@pytest.mark.parametrize("name", CASES)
def test_an_exported_model_gives_the_same_logits(name, tmp_path):
    config, architecture = CASES[name]
    params = random_params(config)
    save_hf(config, params, tmp_path / "out")
    cls = getattr(transformers, f"{architecture}ForConditionalGeneration")
    theirs, info = cls.from_pretrained(
        tmp_path / "out", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not {key: value for key, value in info.items() if value}
    inputs = inputs_for(config, architecture == "Idefics3")
    assert_same(run_hf_inputs(config, params, inputs), run(theirs.eval(), inputs), inputs)
    _, same = load_hf(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, same, params)
