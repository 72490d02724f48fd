"""Configs and tensors of whole VLMs in and out; numbers are compared with transformers' in tests/parity."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vlm_jax.convert import load_hf, save_hf
from vlm_jax.convert.families import find_family
from vlm_jax.convert.hf import find_writer
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vit import ConvStem, PatchStem, ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.parallel import abstract_params

LLAVA_7B = {
    "model_type": "llava",
    "ignore_index": -100,
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "text_config": {
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
PALIGEMMA_3B = {
    "model_type": "paligemma",
    "hidden_size": 2048,
    "image_token_index": 257152,
    "projection_dim": 2048,
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "model_type": "gemma",
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_image_tokens": 256,
        "num_key_value_heads": 1,
        "vocab_size": 257216,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "num_image_tokens": 256,
        "patch_size": 14,
        "projection_dim": 2048,
        "vision_use_head": False,
    },
}
SMOLVLM = {
    "model_type": "idefics3",
    "image_token_id": 49190,
    "scale_factor": 4,
    "text_config": {
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "vocab_size": 49280,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 768,
        "image_size": 512,
        "intermediate_size": 3072,
        "model_type": "idefics3",
        "num_attention_heads": 12,
        "patch_size": 16,
    },
}

DECODER = DecoderConfig(40, width=16, layers=2, heads=4, key_value_heads=2, head_size=6, mlp_width=20, context=64)
SIGLIP = ViTConfig((16, 16), PatchStem(4), width=12, layers=2, heads=2, mlp_width=20)
CLIP = dataclasses.replace(
    SIGLIP, stem=PatchStem(4, bias=False), class_token=True, stem_norm=True, activation="quick_gelu", final_norm="none"
)
TWO = MLPAdapterConfig(layers=2)
MODEL = VLMConfig(DECODER, CLIP, TWO, layout=PromptLayout(39))


def read(hf: dict[str, Any]) -> VLMConfig:
    return find_family(hf).read_config(hf)


def random_params(config: VLMConfig) -> Any:
    rng = np.random.default_rng(0)
    shapes = abstract_params(boxed_params(build_model(config)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)


def test_llava_7b() -> None:
    config = read(LLAVA_7B)
    assert config.layout == PromptLayout(32000)
    assert config.prompt_tokens == 576
    assert (config.decoder.layers, config.decoder.width, config.decoder.mlp_width) == (32, 4096, 11008)
    assert (config.encoder.layers, config.encoder.final_norm, config.encoder.keep_class_token) == (23, "none", False)
    assert config.adapter == MLPAdapterConfig(layers=2, activation="gelu")
    # the 7,063,427,072 numbers of the checkpoint but for the last encoder layer and the norm above it
    layer = 4 * (1024**2 + 1024) + 2 * 4096 * 1024 + 4096 + 1024 + 4 * 1024
    leaves = jax.tree.leaves(abstract_params(boxed_params(build_model(config))))
    assert sum(leaf.size for leaf in leaves) == 7_063_427_072 - layer - 2 * 1024


def test_paligemma_3b() -> None:
    config = read(PALIGEMMA_3B)
    assert config.layout == PromptLayout(257152, "prompt", 1)
    assert config.prompt_tokens == 256
    assert (config.decoder.head_size, config.decoder.norm_offset) == (256, 1.0)
    assert (config.encoder.final_norm, config.encoder.layers) == ("features", 27)
    leaves = jax.tree.leaves(abstract_params(boxed_params(build_model(config))))
    assert sum(leaf.size for leaf in leaves) == 2_923_466_480


def test_smolvlm_256m() -> None:
    config = read(SMOLVLM)
    assert config.layout == PromptLayout(49190)
    assert config.prompt_tokens == 64
    assert config.adapter == MLPAdapterConfig(layers=1, pixel_shuffle=4, bias=False)
    assert not config.decoder.tied_embeddings
    assert (config.encoder.layers, config.encoder.stem) == (12, PatchStem(16))


@pytest.mark.parametrize(
    ("encoder", "strategy", "tokens"),
    [
        (CLIP, "default", 16),
        (dataclasses.replace(CLIP, keep_class_token=True), "full", 17),
        (dataclasses.replace(SIGLIP, final_norm="none"), "full", 16),
        (SIGLIP, "full", 16),
    ],
)
def test_the_encoder_of_a_llava_comes_back_as_it_was(encoder, strategy, tokens, tmp_path: Path) -> None:
    config = dataclasses.replace(MODEL, encoder=encoder)
    params = random_params(config)
    save_hf(config, params, tmp_path / "out")
    hf = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (hf["vision_feature_layer"], hf["vision_feature_select_strategy"]) == (-1, strategy)
    assert hf["image_seq_length"] == config.prompt_tokens == tokens
    again, same = load_hf(tmp_path / "out")
    assert dataclasses.replace(again, encoder=encoder) == config
    changed = {"mean", "std", "position_resampling"}  # these are not in config.json
    left = {field.name for field in dataclasses.fields(encoder)} - changed
    assert {name: getattr(again.encoder, name) for name in left} == {name: getattr(encoder, name) for name in left}
    jax.tree.map(np.testing.assert_array_equal, same, params)


def published(name: str) -> str:
    return name


def new_transformers(name: str) -> str:
    name = name.removeprefix("language_model.") if "lm_head" in name else "model." + name
    return name.replace("language_model.model.", "language_model.").replace("vision_model.", "")


def without_inner_level(name: str) -> str:
    return name.replace("vision_tower.vision_model.", "vision_tower.")


@pytest.mark.parametrize("layout", [published, new_transformers, without_inner_level])
def test_every_layout_on_disk_is_read_and_what_lies_above_the_features_is_left(layout, tmp_path: Path) -> None:
    config = dataclasses.replace(MODEL, decoder=dataclasses.replace(DECODER, tied_embeddings=False))
    params = random_params(config)
    save_hf(config, params, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    last = {re.sub(r"layers\.1", "layers.2", name): array for name, array in tensors.items() if "r.layers.1" in name}
    assert len(last) == 16
    tensors |= last | {"vision_tower.vision_model.embeddings.position_ids": np.arange(17.0)}
    save_file({layout(name): array for name, array in tensors.items()}, tmp_path / "out" / "model.safetensors")
    hf = json.loads((tmp_path / "out" / "config.json").read_text())
    hf |= {"vision_feature_layer": -2, "vision_config": {**hf["vision_config"], "num_hidden_layers": 3}}
    (tmp_path / "out" / "config.json").write_text(json.dumps(hf))
    _, same = load_hf(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vision_feature_layer": [-2, -5]}, "features of one layer only"),
        ({"vision_feature_layer": -40}, "the encoder has 24 layers"),
        ({"vision_feature_select_strategy": "cls"}, "known are default and full"),
        ({"image_token_index": "<image>"}, "must be the id of a token"),
        ({"projector_hidden_act": "mish"}, "projector_hidden_act is 'mish'"),
        ({"text_config": {"model_type": "rwkv"}}, "text_config: model_type is 'rwkv'"),
        ({"text_config": {"model_type": "dinov2"}}, "text_config is a dinov2, which is no decoder"),
        ({"vision_config": {"model_type": "llama"}}, "vision_config is a llama"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "without a class token"),
    ],
)
def test_configs_that_cannot_be_read(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read({**LLAVA_7B, **changes})
    with pytest.raises(UserError, match="projection_dim is 7"):
        read({**PALIGEMMA_3B, "projection_dim": 7})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layout": None}, "does not say which token stands for pictures"),
        ({"layout": PromptLayout(39, "images")}, "bidirectional_images"),
        ({"adapter": MLPAdapterConfig(layers=3)}, "LLaVA has an adapter with layers 2.*this one has layers 3"),
        ({"adapter": MLPAdapterConfig(layers=2, hidden=7)}, "hidden 7"),
        ({"encoder": SIGLIP, "adapter": MLPAdapterConfig(pixel_shuffle=2)}, "Idefics 3 has an adapter with layers 1"),
        ({"encoder": dataclasses.replace(SIGLIP, stem=ConvStem((4, 8), (2, 2)))}, "needs a PatchStem"),
        ({"encoder": dataclasses.replace(SIGLIP, position_grid=(8, 8))}, r"positions are for \(8, 8\)"),
        (
            {"encoder": dataclasses.replace(SIGLIP, class_token=True, layer_scale=True, registers=2)},
            "registers",
        ),
        ({"decoder": dataclasses.replace(DECODER, logit_softcap=3.0)}, "logit_softcap"),
        ({"encoder": CLIP, "adapter": MLPAdapterConfig(layers=1, bias=False)}, "an encoder with a class token"),
    ],
)
def test_models_that_cannot_be_written(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        find_writer(dataclasses.replace(MODEL, **changes))
    assert "\n" not in str(error.value)


def test_a_kept_class_token_does_not_go_with_pixel_shuffle() -> None:
    with pytest.raises(ValueError, match="keep_class_token"):
        dataclasses.replace(
            MODEL, encoder=dataclasses.replace(CLIP, keep_class_token=True), adapter=MLPAdapterConfig(pixel_shuffle=2)
        )
