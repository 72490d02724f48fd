"""Llama 3.2 Vision: published configs, every layout on disk, and what cannot be read, run or written."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vlm_jax.convert import load_hf, run_hf_inputs, save_hf
from vlm_jax.convert.families import find_family, mllama
from vlm_jax.convert.hf import find_writer
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import CrossAttentionConfig, MLPAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.parallel import abstract_params
from vlm_jax.pictures import Tiling

GRIDS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
LLAMA_11B: dict[str, Any] = {
    "model_type": "mllama",
    "image_token_index": 128256,
    "text_config": {
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "dropout": 0,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "model_type": "mllama_text_model",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "vision_config": {
        "attention_heads": 16,
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "image_size": 560,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
        "intermediate_size": 5120,
        "max_num_tiles": 4,
        "model_type": "mllama_vision_model",
        "norm_eps": 1e-05,
        "num_channels": 3,
        "num_global_layers": 8,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "supported_aspect_ratios": GRIDS,
        "vision_output_dim": 7680,
    },
}

ENCODER = TileViTConfig((8, 8), 4, ((1, 1), (2, 1)), 2, 12, 3, 1, 3, 20, (0, 1))
DECODER = DecoderConfig(30, 16, 3, 4, 2, 4, 20, context=64, rope_base=500.0, tied_embeddings=False, input_only_tokens=8)
ADAPTER = CrossAttentionConfig("llama", layers=(0, 2, 3), memory=MLPAdapterConfig(layers=1))
MODEL = VLMConfig(DECODER, ENCODER, ADAPTER, tiling=mllama.tiling(ENCODER), layout=PromptLayout(30))


def read(hf: dict[str, Any]) -> VLMConfig:
    return find_family(hf).read_config(hf)


def changed(part: str, **fields: Any) -> dict[str, Any]:
    return {**LLAMA_11B, part: {**LLAMA_11B[part], **fields}}


def random_params(config: VLMConfig) -> Any:
    rng = np.random.default_rng(0)
    shapes = abstract_params(boxed_params(build_model(config)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


def test_llama_3_2_11b() -> None:
    config = read(LLAMA_11B)
    assert config.layout == PromptLayout(128256)
    assert (config.decoder.layers, config.decoder.embedded_tokens, config.decoder.context) == (32, 128264, 131072)
    assert config.adapter.places(config.decoder) == (3, 7, 11, 15, 19, 23, 27, 31)
    assert (config.prompt_tokens, config.memory_tokens, config.pictures.visible) == (0, 1601, "group")
    grids = tuple((rows, columns) for rows, columns in GRIDS)
    assert config.encoder == TileViTConfig(grids=grids)
    assert config.tiling == Tiling(grids, choose="canvas", fit="pad", thumbnail="none", slots=4)
    leaves = jax.tree.leaves(abstract_params(boxed_params(build_model(config))))
    assert sum(leaf.size for leaf in leaves) == 10_670_220_835


def test_what_config_json_leaves_out_is_transformers_own() -> None:
    config = read({"model_type": "mllama"})
    assert config.decoder.rope_base == 500_000.0
    assert config.adapter.places(config.decoder) == (3, 7, 11, 15, 19, 23, 27, 31)
    assert config.encoder == TileViTConfig(image_size=(448, 448))


def published(name: str) -> str:
    return name


def new_transformers(name: str) -> str:
    name = name.removeprefix("language_model.") if "lm_head" in name else f"model.{name}"
    return name.replace("language_model.model.", "language_model.")


@pytest.mark.parametrize("layout", [published, new_transformers])
def test_every_layout_on_disk_is_read(layout, tmp_path, params) -> None:
    save_hf(MODEL, params, tmp_path / "out")
    hf = json.loads((tmp_path / "out" / "config.json").read_text())
    assert hf["text_config"]["cross_attention_layers"] == [0, 3, 5]
    assert hf["text_config"]["num_hidden_layers"] == 6
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["language_model.model.embed_tokens.weight"].shape == (38, 16)
    assert tensors["language_model.lm_head.weight"].shape == (30, 16)
    assert "language_model.model.layers.3.cross_attn.q_norm.weight" in tensors
    save_file({layout(name): array for name, array in tensors.items()}, tmp_path / "out" / "model.safetensors")
    again, same = load_hf(tmp_path / "out")
    assert again == MODEL
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("hf", "says"),
    [
        (
            changed("text_config", cross_attention_layers=[3, 40]),
            "has 40, but .* 40 layers, 0 to 39",
        ),
        (changed("text_config", cross_attention_layers=[-1]), "cross_attention_layers has -1"),
        (changed("text_config", cross_attention_layers=["3"]), "cross_attention_layers has '3'"),
        (changed("text_config", cross_attention_layers=[]), "0 of 40 layers are cross_attention_layers"),
        (changed("text_config", cross_attention_layers=list(range(40))), "40 of 40 layers"),
        (changed("text_config", num_hidden_layers=0), "num_hidden_layers is 0"),
        (changed("text_config", num_attention_heads=48), "hidden_size 4096 does not divide by 48"),
        (changed("vision_config", max_num_tiles=3), "supported_aspect_ratios has 1 x 4 tiles, but max_num_tiles is 3"),
        (changed("vision_config", supported_aspect_ratios=[[1, 1], [1, 1]]), "must be different pairs"),
        (changed("vision_config", supported_aspect_ratios=[[1, 1, 1]]), "supported_aspect_ratios is"),
        (changed("vision_config", intermediate_layers_indices=[3, 32]), "has 32, but there are 32 layers"),
        (changed("vision_config", intermediate_layers_indices=[3]), "vision_output_dim is 7680, but .* make 2560"),
        (changed("vision_config", image_size=[560, 448]), "only square tiles"),
        (changed("vision_config", image_size=555), "only square tiles of whole square patches"),
        ({**LLAMA_11B["text_config"]}, "give the directory of the whole model"),
    ],
)
def test_configs_that_cannot_be_read(hf: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        read(hf)
    assert "\n" not in str(error.value)


SIZES = {"heads": 2, "key_value_heads": 2, "head_size": 8}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layout": None}, "does not say which token stands for pictures"),
        ({"adapter": dataclasses.replace(ADAPTER, form="flamingo")}, "gated blocks without query_key_norm"),
        ({"adapter": dataclasses.replace(ADAPTER, norm="layer")}, "norm 'layer'"),
        ({"adapter": dataclasses.replace(ADAPTER, visible="all")}, "visible 'all'"),
        ({"adapter": dataclasses.replace(ADAPTER, blind="skip")}, "blind 'skip'"),
        ({"adapter": dataclasses.replace(ADAPTER, **SIZES)}, "gated blocks of other sizes"),
        ({"adapter": dataclasses.replace(ADAPTER, activation="gelu")}, "activation 'gelu'"),
        ({"adapter": dataclasses.replace(ADAPTER, memory=None)}, "a memory other than"),
        ({"decoder": dataclasses.replace(DECODER, input_only_tokens=1)}, "input_only_tokens 1"),
        ({"decoder": dataclasses.replace(DECODER, input_only_tokens=0, tied_embeddings=True)}, "input_only_tokens 0"),
        ({"decoder": dataclasses.replace(DECODER, head_size=6)}, "heads that do not make up the width"),
        ({"decoder": dataclasses.replace(DECODER, attention_bias=True)}, "without biases"),
        ({"encoder": dataclasses.replace(ENCODER, image_size=(8, 12))}, "tiles that are not square"),
        ({"tiling": dataclasses.replace(mllama.tiling(ENCODER), fit="squash")}, "a tiling other than"),
    ],
)
def test_models_that_cannot_be_written(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        find_writer(dataclasses.replace(MODEL, **changes))
    assert "\n" not in str(error.value)


def test_an_llm_with_tokens_that_are_only_read_is_not_written_alone() -> None:
    with pytest.raises(UserError, match="input_only_tokens"):
        find_writer(DECODER)


def inputs(**changes: Any) -> dict[str, np.ndarray]:
    found = {
        "input_ids": np.array([[3, 30, 4, 5]]),
        "pixel_values": np.ones((1, 1, 2, 3, 8, 8), np.float32),
        "aspect_ratio_ids": np.array([[2]]),
        "aspect_ratio_mask": np.array([[[1, 1]]]),
        "cross_attention_mask": np.ones((1, 4, 1, 2), int),
    }
    return {name: value for name, value in {**found, **changes}.items() if value is not None}


def test_the_mask_of_tiles_follows_from_their_grid(params) -> None:
    given = inputs(aspect_ratio_ids=np.array([[1]]), aspect_ratio_mask=np.array([[[1, 0]]]))
    logits = run_hf_inputs(MODEL, params, given)["logits"]
    assert logits.shape == (1, 4, 30)
    without = run_hf_inputs(MODEL, params, {name: x for name, x in given.items() if name != "aspect_ratio_mask"})
    np.testing.assert_array_equal(without["logits"], logits)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_ids": np.array([[3, 38, 4, 5]])}, "the model embeds 0 to 37"),
        ({"pixel_values": np.ones((1, 1, 3, 3, 8, 8))}, r"pixel_values is \[1, 1, 3, 3, 8, 8\]; give .* 2, 3, 8, 8"),
        ({"pixel_values": np.ones((2, 1, 2, 3, 8, 8))}, r"aspect_ratio_ids is int64 \[1, 1\]"),
        ({"aspect_ratio_ids": np.array([[3]])}, "go from 3 to 3; the model knows 1 to 2"),
        ({"aspect_ratio_ids": np.array([[1.0]])}, "aspect_ratio_ids is float64"),
        ({"aspect_ratio_ids": None}, "aspect_ratio_ids is missing"),
        ({"aspect_ratio_mask": np.ones((1, 1, 3))}, r"aspect_ratio_mask is \[1, 1, 3\]"),
        ({"cross_attention_mask": np.ones((1, 3, 1, 2))}, r"cross_attention_mask is \[1, 3, 1, 2\]"),
        ({"input_ids": np.ones((2, 4), int)}, "pixel_values has 1 rows, input_ids 2"),
        ({"image_sizes": np.ones((1, 2))}, "image_sizes cannot be given"),
    ],
)
def test_inputs_of_other_shapes_are_refused(changes: dict[str, Any], says: str, params) -> None:
    with pytest.raises(UserError, match=says) as error:
        run_hf_inputs(MODEL, params, inputs(**changes))
    assert "\n" not in str(error.value)
