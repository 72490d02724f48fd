"""CLIP's image encoder (Radford et al. 2021): CLIPVisionModel, by itself or inside a CLIPModel, whose text is left."""

import math
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.vision import (
    BlockNames,
    block_rows,
    convolution,
    norm,
    pair,
    patch_stem,
    position_grid,
    read_blocks,
    write_blocks,
)
from vlm_jax.convert.names import Part, Reshape, Row
from vlm_jax.errors import UserError
from vlm_jax.models.vit import ViTConfig

MODEL_TYPES = ("clip_vision_model", "clip")
RENAMED = ((r"^vision_model\.", ""),)
DROPPED = (r"text_model\.", r"(text|visual)_projection\.", r"logit_scale$", r"classifier\.", r".*\.position_ids$")

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on; config.json does not hold them."""

DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""What transformers takes for a field that config.json leaves out."""

NAMES = BlockNames(
    "encoder.layers.{layer}",
    "layer_norm1",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "layer_norm2",
)


def read_config(hf: Mapping[str, Any]) -> ViTConfig:
    """config.json of a CLIPVisionModel, or of a CLIPModel, whose vision_config it is then.

    Raises:
        UserError: if it asks for what `ViTConfig` cannot express.
    """
    vision = {**DEFAULTS, **(hf.get("vision_config") or {}), **(hf.get("vision_config_dict") or {})}
    vision = vision if hf.get("model_type") == "clip" else {**DEFAULTS, **hf}
    size = pair(vision["image_size"], "image_size")
    return ViTConfig(
        size,
        patch_stem(vision, size, bias=False),
        **read_blocks(vision),
        mean=MEAN,
        std=STD,
        class_token=True,
        stem_norm=True,
        final_norm="pooled",
    )


def rows(config: ViTConfig) -> list[Row]:
    """The name table; without the final norm where the config has none (as in LLaVA)."""
    grid = position_grid(config)
    count, width = math.prod(grid), config.width
    positions = "embeddings.position_embedding.weight"
    return [
        *convolution("embeddings.patch_embedding", "stem/patch", bias=False),
        Row("embeddings.class_embedding", "class_token"),
        Row(positions, "class_position", Reshape((1, width), (width,)), part=Part(0, 0, 1)),
        Row(positions, "positions", Reshape((count, width), (*grid, width)), part=Part(0, 1, count + 1)),
        *norm("pre_layrnorm", "stem_norm"),
        *block_rows(config, NAMES),
        *(norm("post_layernorm", "norm") if config.final_norm != "none" else []),
    ]


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a CLIPVisionModel; None if this is none.

    Raises:
        UserError: if it is one but for something that CLIP cannot express.
    """
    if not (isinstance(config, ViTConfig) and config.class_token and config.stem_norm):
        return None
    if config.final_norm != "pooled":
        raise UserError(f"CLIP norms the pooled class token only, but final_norm is {config.final_norm!r}")
    return {"architectures": ["CLIPVisionModel"], **write_fields(config)}


def write_fields(config: ViTConfig) -> dict[str, Any]:
    """The fields of config.json, whatever becomes of the final norm.

    Raises:
        UserError: if CLIP cannot express the blocks or the stem.
    """
    others = {"a bias in the stem": getattr(config.stem, "bias", False)}
    return {"model_type": "clip_vision_model", **write_blocks(config, "CLIP", others)}
