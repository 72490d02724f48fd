"""The image encoder of BLIP (Li et al. 2022), BLIP-2 and InstructBLIP: a ViT with one map for queries, keys and values.

The published BLIP-2 have EVA-CLIP's (Sun et al. 2023). The pooled class token is normed twice.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.common import affine
from vlm_jax.convert.families.vision import (
    BlockNames,
    convolution,
    norm,
    pair,
    patch_stem,
    per_block,
    position_grid,
    read_blocks,
    write_blocks,
)
from vlm_jax.convert.names import Linear, Part, Reshape, Row
from vlm_jax.errors import UserError
from vlm_jax.models.vit import ViTConfig

MODEL_TYPES = ("blip_2_vision_model", "instructblip_vision_model", "blip_vision_model")
RENAMED = ((r"^vision_model\.", ""),)
DROPPED = (r".*\.position_ids$",)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, of the pictures that all of them were trained on; config.json does not hold them."""

_BLIP_2 = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
}
_BLIP = {
    **_BLIP_2,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 384,
    "patch_size": 16,
    "layer_norm_eps": 1e-5,
}
"""What transformers takes for a field that config.json leaves out."""

_NAMES = BlockNames("encoder.layers.{layer}", "layer_norm1", "", "", "", "self_attn.projection", "layer_norm2")


def read_config(hf: Mapping[str, Any]) -> ViTConfig:
    """config.json of a Blip2VisionModel, an InstructBlipVisionModel or a BlipVisionModel.

    Raises:
        UserError: if it asks for what `ViTConfig` cannot express.
    """
    vision = {**(_BLIP if hf.get("model_type") == "blip_vision_model" else _BLIP_2), **hf}
    size = pair(vision["image_size"], "image_size")
    return ViTConfig(
        size,
        patch_stem(vision, size, bias=True),
        **read_blocks(vision),
        mean=MEAN,
        std=STD,
        class_token=True,
        attention_bias=bool(vision["qkv_bias"]),
        final_norm="both",
        keep_class_token=True,
    )


def rows(config: ViTConfig) -> list[Row]:
    """The name table."""
    grid, width, heads = position_grid(config), config.width, (config.heads, config.width // config.heads)
    count, positions, joined = math.prod(grid), "embeddings.position_embedding", "self_attn.qkv"
    table = norm("layer_norm1", "attention_norm")
    for i, name in enumerate(("query", "key", "value")):
        part = Part(0, i * width, (i + 1) * width)
        table.append(Row(f"{joined}.weight", f"{name}/kernel", Linear((width,), heads), part=part))
        if config.attention_bias:
            table.append(Row(f"{joined}.bias", f"{name}/bias", Reshape((width,), heads), part=part))
    table += affine("self_attn.projection", "out", heads, (width,))
    table += norm("layer_norm2", "mlp_norm")
    table += affine("mlp.fc1", "mlp/up", (width,), (config.mlp_width,))
    table += affine("mlp.fc2", "mlp/down", (config.mlp_width,), (width,))
    return [
        *convolution("embeddings.patch_embedding", "stem/patch"),
        Row("embeddings.class_embedding", "class_token", Reshape((1, 1, width), (width,))),
        Row(positions, "class_position", Reshape((1, 1, width), (width,)), part=Part(1, 0, 1)),
        Row(positions, "positions", Reshape((1, count, width), (*grid, width)), part=Part(1, 1, count + 1)),
        *per_block(config, _NAMES, table),
        *norm("post_layernorm", "norm"),
    ]


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a Blip2VisionModel; None if this is none.

    Raises:
        UserError: if it is one but for something that BLIP-2 cannot express.
    """
    if not isinstance(config, ViTConfig) or config.final_norm != "both":
        return None
    return {"architectures": ["Blip2VisionModel"], "model_type": "blip_2_vision_model", **write_fields(config)}


def write_fields(config: ViTConfig) -> dict[str, Any]:
    """The fields of config.json without its model_type.

    Raises:
        UserError: if BLIP-2 cannot express the blocks or the stem.
    """
    if not config.keep_class_token:
        raise UserError("BLIP-2's encoder keeps its class token, but keep_class_token is off")
    others = {
        "norm before the blocks": config.stem_norm,
        "stem without a bias": not getattr(config.stem, "bias", True),
    }
    blocks = write_blocks(dataclasses.replace(config, attention_bias=True), "BLIP-2", others)
    return {**blocks, "qkv_bias": config.attention_bias}
