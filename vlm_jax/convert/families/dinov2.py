"""DINOv2 (Oquab et al. 2024), without and with registers (Darcet et al. 2024)."""

import math
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.common import affine, read_activation, write_activation
from vlm_jax.convert.families.vision import (
    BlockNames,
    block_rows,
    check_resampling,
    convolution,
    norm,
    pair,
    patch_stem,
    per_block,
    position_grid,
    square_size,
)
from vlm_jax.convert.names import Linear, Part, Reshape, Row
from vlm_jax.errors import UserError
from vlm_jax.models.presets import IMAGENET_MEAN, IMAGENET_STD
from vlm_jax.models.vit import ViTConfig

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
RENAMED = ((r"^dinov2(_with_registers)?\.", ""),)
DROPPED = (r"embeddings\.mask_token$", r"classifier\.")

DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "num_register_tokens": 4,
}
"""What transformers takes for a field that config.json leaves out."""

NAMES = BlockNames(
    "encoder.layer.{layer}",
    "norm1",
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "norm2",
)


def read_config(hf: Mapping[str, Any]) -> ViTConfig:
    """config.json of a Dinov2Model or Dinov2WithRegistersModel.

    Raises:
        UserError: if it asks for what `ViTConfig` cannot express.
    """
    registers = hf["model_type"] == "dinov2_with_registers"
    hf = {**DEFAULTS, "patch_size": 16 if registers else 14, **hf}
    size = pair(hf["image_size"], "image_size")
    gated, width = bool(hf["use_swiglu_ffn"]), hf["hidden_size"]
    return ViTConfig(
        size,
        patch_stem(hf, size, bias=True),
        width=width,
        layers=hf["num_hidden_layers"],
        heads=hf["num_attention_heads"],
        mlp_width=_mlp_width(width, hf["mlp_ratio"], gated),
        norm_epsilon=hf["layer_norm_eps"],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        class_token=True,
        registers=hf["num_register_tokens"] if registers else 0,
        layer_scale=True,
        attention_bias=hf["qkv_bias"],
        activation="silu" if gated else read_activation(hf),
        gated_mlp=gated,
        position_resampling=_resampling(registers),
    )


def rows(config: ViTConfig) -> list[Row]:
    """The name table; without the final norm where the config has none.

    `weights_in` of a gated MLP holds the gate's rows, then the other's.
    """
    grid = position_grid(config)
    count, width = math.prod(grid), config.width
    positions = "embeddings.position_embeddings"
    found = [
        *convolution("embeddings.patch_embeddings.projection", "stem/patch"),
        Row("embeddings.cls_token", "class_token", Reshape((1, 1, width), (width,))),
        Row(positions, "class_position", Reshape((1, 1, width), (width,)), part=Part(1, 0, 1)),
        Row(positions, "positions", Reshape((1, count, width), (*grid, width)), part=Part(1, 1, count + 1)),
        *block_rows(config, NAMES),
        *per_block(config, NAMES, [Row(f"layer_scale{i}.lambda1", f"{part}_scale") for i, part in _BRANCHES]),
        *(norm("layernorm", "norm") if config.final_norm != "none" else []),
    ]
    if config.registers:
        shape = config.registers, width
        found.append(Row("embeddings.register_tokens", "registers", Reshape((1, *shape), shape)))
    if config.gated_mlp:
        found += per_block(config, NAMES, _gated(width, config.mlp_width))
    return found


_BRANCHES = ((1, "attention"), (2, "mlp"))


def _gated(width: int, hidden: int) -> list[Row]:
    table = affine("mlp.weights_out", "mlp/down", (hidden,), (width,))
    for ours, start in (("gate", 0), ("up", hidden)):
        part = Part(0, start, start + hidden)
        table.append(Row("mlp.weights_in.weight", f"mlp/{ours}/kernel", Linear((width,), (hidden,)), part=part))
        table.append(Row("mlp.weights_in.bias", f"mlp/{ours}/bias", part=part))
    return table


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a Dinov2Model or Dinov2WithRegistersModel; None if this is none.

    Raises:
        UserError: if it is one but for something that DINOv2 cannot express.
    """
    if not (isinstance(config, ViTConfig) and config.class_token and config.layer_scale) or config.stem_norm:
        return None
    if config.final_norm != "features":
        raise UserError(f"DINOv2 norms its features, but final_norm is {config.final_norm!r}")
    architecture = "Dinov2WithRegistersModel" if config.registers else "Dinov2Model"
    return {"architectures": [architecture], **write_fields(config)}


def write_fields(config: ViTConfig) -> dict[str, Any]:
    """The fields of config.json, whatever becomes of the final norm.

    Raises:
        UserError: if DINOv2 cannot express the blocks or the stem.
    """
    size = square_size(config, "DINOv2")
    if not config.layer_scale:
        raise UserError("DINOv2 has no blocks without layer_scale")
    if not getattr(config.stem, "bias", True):
        raise UserError("DINOv2 has no stem without a bias")
    if config.gated_mlp and config.activation != "silu":
        raise UserError(f"DINOv2 has no gated MLP with {config.activation}, only with silu")
    check_resampling(config, "DINOv2", _resampling(bool(config.registers)))
    special = {"num_register_tokens": config.registers} if config.registers else {"use_mask_token": False}
    return {
        "model_type": "dinov2_with_registers" if config.registers else "dinov2",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "mlp_ratio": _mlp_ratio(config),
        "hidden_act": "gelu" if config.gated_mlp else write_activation(config.activation),
        "layer_norm_eps": config.norm_epsilon,
        "image_size": size,
        "patch_size": config.stem.stride,
        "num_channels": 3,
        "qkv_bias": config.attention_bias,
        "use_swiglu_ffn": config.gated_mlp,
        **special,
    }


def _resampling(registers: bool) -> Any:
    # The published models with registers were run with another interpolation than those without.
    return "bicubic_antialias" if registers else "bicubic"


def _mlp_width(width: int, ratio: float, gated: bool) -> int:
    """A gated MLP has two thirds of the width, rounded up to a multiple of 8, as it has three matrices, not two."""
    hidden = int(width * ratio)
    return -(-int(hidden * 2 / 3) // 8) * 8 if gated else hidden


def _mlp_ratio(config: ViTConfig) -> int:
    for ratio in range(1, 65):
        if _mlp_width(config.width, ratio, config.gated_mlp) == config.mlp_width:
            return ratio
    raise UserError(
        f"DINOv2's mlp_ratio is a whole number, but none makes mlp_width {config.mlp_width} of width {config.width}"
    )
