"""SigLIP's image encoder (Zhai et al. 2023), SigLIP 2 of fixed resolution included; the pooling head is left out."""

import math
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.clip import NAMES
from vlm_jax.convert.families.vision import (
    block_rows,
    convolution,
    norm,
    pair,
    patch_stem,
    position_grid,
    read_blocks,
    write_blocks,
)
from vlm_jax.convert.names import Reshape, Row
from vlm_jax.errors import UserError
from vlm_jax.models.vit import ViTConfig

MODEL_TYPES = ("siglip_vision_model", "siglip")
RENAMED = ((r"^vision_model\.", ""),)
DROPPED = (r"text_model\.", r"head\.", r"logit_(scale|bias)$", r"classifier\.", r".*\.position_ids$")

DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
"""What transformers takes for a field that config.json leaves out."""


def read_config(hf: Mapping[str, Any]) -> ViTConfig:
    """config.json of a SiglipVisionModel, or of a SiglipModel, whose vision_config it is then.

    Raises:
        UserError: if it asks for what `ViTConfig` cannot express.
    """
    vision = {**DEFAULTS, **((hf.get("vision_config") or {}) if hf.get("model_type") == "siglip" else hf)}
    size = pair(vision["image_size"], "image_size")
    return ViTConfig(
        size,
        patch_stem(vision, size, bias=True),
        **read_blocks(vision),
    )


def rows(config: ViTConfig) -> list[Row]:
    """The name table; without the final norm where the config has none."""
    grid = position_grid(config)
    flat, square = (math.prod(grid), config.width), (*grid, config.width)
    return [
        *convolution("embeddings.patch_embedding", "stem/patch"),
        Row("embeddings.position_embedding.weight", "positions", Reshape(flat, square)),
        *block_rows(config, NAMES),
        *(norm("post_layernorm", "norm") if config.final_norm != "none" else []),
    ]


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a SiglipVisionModel, which is also how ViTs trained here are written; None if this is none.

    Raises:
        UserError: if it is one but for something that SigLIP cannot express.
    """
    if not isinstance(config, ViTConfig) or config.class_token:
        return None
    if config.final_norm != "features":
        raise UserError(f"SigLIP norms its features, but final_norm is {config.final_norm!r}")
    return {"architectures": ["SiglipVisionModel"], **write_fields(config)}


def write_fields(config: ViTConfig) -> dict[str, Any]:
    """The fields of config.json, whatever becomes of the final norm.

    Raises:
        UserError: if SigLIP cannot express the blocks or the stem.
    """
    others = {
        "norm before the blocks": config.stem_norm,
        "stem without a bias": not getattr(config.stem, "bias", True),
    }
    return {"model_type": "siglip_vision_model", **write_blocks(config, "SigLIP", others), "vision_use_head": False}
