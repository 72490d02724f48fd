"""The image encoder of InternVL (Chen et al. 2024): DINOv2's sums under other names.

Inside LLaVA it stands for a DINOv2 whose features are normed, which transformers' own DINOv2 does not give LLaVA.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families import dinov2
from vlm_jax.convert.families.common import refuse
from vlm_jax.convert.families.vision import pair
from vlm_jax.convert.names import Row
from vlm_jax.errors import UserError
from vlm_jax.models.vit import ViTConfig

MODEL_TYPES = ("internvl_vision",)
RENAMED = ((r"^internvl_vision\.", ""),)
DROPPED = (r"embeddings\.mask_token$",)

DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": False,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 448,
    "patch_size": 14,
    "num_channels": 3,
    "use_mean_pooling": True,
}
"""What transformers takes for a field that config.json leaves out."""

_NAMES = (
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda match: f".attention.{match[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.projection_layer."),
    (r"\.layer_scale([12])\.lambda1$", r".lambda_\1"),
)
"""DINOv2's names, and those here."""


def read_config(hf: Mapping[str, Any]) -> ViTConfig:
    """config.json of an InternVLVisionModel.

    Raises:
        UserError: if it asks for what `ViTConfig` cannot express.
    """
    fields = {**DEFAULTS, **hf}
    refuse(
        "an InternVL encoder here",
        {
            "use_qk_norm": fields.get("use_qk_norm"),
            "norm_type other than layer_norm": fields.get("norm_type", "layer_norm") != "layer_norm",
            "no absolute positions": not fields.get("use_absolute_position_embeddings", True),
        },
    )
    if pair(fields["patch_size"], "patch_size")[0] != pair(fields["patch_size"], "patch_size")[1]:
        raise UserError(f"config.json: patch_size is {fields['patch_size']}; only square patches are known")
    same = {"model_type": "dinov2", "mlp_ratio": 4, "qkv_bias": fields["attention_bias"]}
    config = dinov2.read_config({**fields, **same})
    return dataclasses.replace(
        config,
        mlp_width=fields["intermediate_size"],
        final_norm="none" if fields["use_mean_pooling"] else "features",
    )


def rows(config: ViTConfig) -> list[Row]:
    """The name table."""
    return [dataclasses.replace(row, theirs=_rename(row.theirs)) for row in dinov2.rows(config)]


def _rename(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)  # type: ignore[call-overload]
    return name


def write_config(config: Any) -> dict[str, Any] | None:
    """None: by itself such an encoder is written as a DINOv2."""
    return None


def write_fields(config: ViTConfig) -> dict[str, Any]:
    """The fields of config.json inside another model.

    Raises:
        UserError: if it cannot express the encoder.
    """
    refuse("InternVL's encoder", {"registers": config.registers, "gated_mlp": config.gated_mlp})
    fields = dinov2.write_fields(dataclasses.replace(config, mlp_width=4 * config.width))
    left = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "num_channels")
    return {
        "model_type": "internvl_vision",
        **{name: fields[name] for name in left},
        "intermediate_size": config.mlp_width,
        "image_size": [fields["image_size"]] * 2,
        "patch_size": [fields["patch_size"]] * 2,
        "attention_bias": config.attention_bias,
        "use_mean_pooling": config.final_norm == "none",
    }
