"""What the families of image encoders share: rows of a ViT's blocks, and fields of config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.common import affine, read_activation, write_activation
from vlm_jax.convert.names import Row, Transpose, per_layer
from vlm_jax.errors import UserError
from vlm_jax.models.positions import keeps_positions
from vlm_jax.models.vit import ConvStem, PatchStem, ViTConfig

CONV_KERNEL = Transpose((2, 3, 1, 0))
"""Theirs [outputs, inputs, height, width], ours [height, width, inputs, outputs]."""


def convolution(theirs: str, ours: str, *, bias: bool = True) -> list[Row]:
    """Rows of a convolution."""
    return [Row(f"{theirs}.weight", f"{ours}/kernel", CONV_KERNEL)] + [Row(f"{theirs}.bias", f"{ours}/bias")] * bias


def norm(theirs: str, ours: str) -> list[Row]:
    """Rows of a layer norm."""
    return [Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")]


@dataclasses.dataclass(frozen=True)
class BlockNames:
    """What a ViT family calls the parts of a block."""

    block: str
    """With {layer}."""
    attention_norm: str
    query: str
    key: str
    value: str
    out: str
    mlp_norm: str


def block_rows(config: ViTConfig, names: BlockNames) -> list[Row]:
    """Rows of all blocks, but for layer scales and a gated MLP's."""
    width, heads = (config.width,), (config.heads, config.width // config.heads)
    table = norm(names.attention_norm, "attention_norm")
    for theirs, ours in ((names.query, "query"), (names.key, "key"), (names.value, "value")):
        table += affine(theirs, ours, width, heads, bias=config.attention_bias)
    table += affine(names.out, "out", heads, width)
    table += norm(names.mlp_norm, "mlp_norm")
    if not config.gated_mlp:
        table += affine("mlp.fc1", "mlp/up", width, (config.mlp_width,))
        table += affine("mlp.fc2", "mlp/down", (config.mlp_width,), width)
    return per_block(config, names, table)


def per_block(config: ViTConfig, names: BlockNames, table: list[Row]) -> list[Row]:
    """Rows of one block, repeated for all."""
    named = [dataclasses.replace(row, theirs=f"{names.block}.{row.theirs}", ours=f"layers/{row.ours}") for row in table]
    return per_layer(named, config.layers)


def position_grid(config: ViTConfig) -> tuple[int, int]:
    """(rows, columns) that positions are learned for."""
    return config.position_grid or config.grid


def pair(value: Any, name: str) -> tuple[int, int]:
    """A size in pixels, which config.json gives as one number or as [height, width].

    Raises:
        UserError: if it is neither.
    """
    sides = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise UserError(f"config.json: {name} is {value!r}; it must be one size in pixels or [height, width]")
    return sides


def patch_stem(hf: Mapping[str, Any], image_size: tuple[int, int], *, bias: bool) -> PatchStem:
    """The stem, from patch_size and num_channels.

    Raises:
        UserError: if patches are no squares, or pictures do not have three channels.
    """
    height, width = pair(hf["patch_size"], "patch_size")
    if height != width:
        raise UserError(f"config.json: patch_size is {height} x {width}; only square patches are known")
    three_channels(hf)
    return PatchStem(height, bias, truncate=any(side % height for side in image_size))


def three_channels(hf: Mapping[str, Any]) -> None:
    """Refuses models whose pictures are not RGB, with a UserError."""
    if (channels := hf.get("num_channels", 3)) != 3:
        raise UserError(f"config.json: num_channels is {channels}; pictures have 3 here")


def square_size(config: ViTConfig, architecture: str) -> int:
    """image_size of config.json: the side of the pictures that the positions are learned for.

    Raises:
        UserError: if those are not square, or the stem is none of patches, or positions would be resampled otherwise.
    """
    if isinstance(config.stem, ConvStem):
        raise UserError(
            f"{architecture} cuts pictures into squares, but the stem is a ConvStem; an encoder that is to be exported "
            "needs a PatchStem"
        )
    rows, columns = position_grid(config)
    if rows != columns:
        raise UserError(f"{architecture} takes square pictures, but positions are learned for {rows} x {columns}")
    if config.position_grid is None and config.image_size[0] == config.image_size[1]:
        return config.image_size[0]
    return rows * config.stem.patch


def check_resampling(config: ViTConfig, architecture: str, method: str) -> None:
    """Refuses, with a UserError, a model that would run with other positions outside."""
    same = position_grid(config) == config.grid
    if "fractional" in (config.position_resampling, method):
        same = same and keeps_positions(config.grid)
    if not same and config.position_resampling != method:
        raise UserError(
            f"{architecture} resamples positions by {method}, and this model by {config.position_resampling}; "
            "they are for another grid than its pictures have"
        )


def read_blocks(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a ViTConfig that config.json holds under the names that CLIP and SigLIP share."""
    return {
        "width": hf["hidden_size"],
        "layers": hf["num_hidden_layers"],
        "heads": hf["num_attention_heads"],
        "mlp_width": hf["intermediate_size"],
        "norm_epsilon": hf["layer_norm_eps"],
        "activation": read_activation(hf),
        "position_resampling": "bicubic",
    }


def write_blocks(config: ViTConfig, architecture: str, others: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of config.json that CLIP and SigLIP share.

    Args:
        config: what to write.
        architecture: its name, for messages.
        others: by name, what the architecture does not have, and whether the config has it.

    Raises:
        UserError: if the architecture cannot express the blocks or the stem.
    """
    size = square_size(config, architecture)
    others = {
        "registers": config.registers,
        "layer_scale": config.layer_scale,
        "gated_mlp": config.gated_mlp,
        "attention without biases": not config.attention_bias,
        **others,
    }
    if wrong := [name for name, present in others.items() if present]:
        raise UserError(f"{architecture} has no {' and no '.join(wrong)}")
    check_resampling(config, architecture, "bicubic")
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "image_size": size,
        "patch_size": config.stem.stride,
        "hidden_act": write_activation(config.activation),
        "layer_norm_eps": config.norm_epsilon,
    }
