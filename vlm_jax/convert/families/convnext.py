"""ConvNeXt (Liu et al. 2022)."""

from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.families.common import affine, read_activation, write_activation
from vlm_jax.convert.families.vision import (
    CONV_KERNEL,
    convolution,
    norm,
    pair,
    three_channels,
)
from vlm_jax.convert.names import Row, per_layer
from vlm_jax.errors import UserError
from vlm_jax.models.convnext import ConvNeXtConfig

MODEL_TYPES = ("convnext",)
RENAMED = ((r"^convnext\.", ""),)
DROPPED = (r"classifier\.",)

DEFAULTS = {
    "patch_size": 4,
    "hidden_sizes": [96, 192, 384, 768],
    "depths": [3, 3, 9, 3],
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "layer_scale_init_value": 1e-6,
    "image_size": 224,
}
"""What transformers takes for a field that config.json leaves out."""


def read_config(hf: Mapping[str, Any]) -> ConvNeXtConfig:
    """config.json of a ConvNextModel.

    Raises:
        UserError: if it asks for what `ConvNeXtConfig` cannot express.
    """
    hf = {**DEFAULTS, **hf}
    three_channels(hf)
    height, width = pair(hf["patch_size"], "patch_size")
    if height != width:
        raise UserError(f"config.json: patch_size is {height} x {width}; only square patches are known")
    return ConvNeXtConfig(
        pair(hf["image_size"], "image_size"),
        patch=height,
        depths=tuple(hf["depths"]),
        widths=tuple(hf["hidden_sizes"]),
        norm_epsilon=hf["layer_norm_eps"],
        layer_scale=hf["layer_scale_init_value"] > 0,
        activation=read_activation(hf),
    )


def rows(config: ConvNeXtConfig) -> list[Row]:
    """The name table. The final norm is the pooled output's."""
    found = [
        *convolution("embeddings.patch_embeddings", "stem/patch"),
        *norm("embeddings.layernorm", "stem_norm"),
        *norm("layernorm", "norm"),
    ]
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        theirs = f"encoder.stages.{stage}"
        if stage:
            found += norm(f"{theirs}.downsampling_layer.0", f"reduce_{stage}_norm")
            found += convolution(f"{theirs}.downsampling_layer.1", f"reduce_{stage}/patch")
        block, ours = f"{theirs}.layers.{{layer}}", f"stage_{stage}"
        table = [
            Row(f"{block}.dwconv.weight", f"{ours}/depthwise/filters", CONV_KERNEL),
            Row(f"{block}.dwconv.bias", f"{ours}/depthwise/bias"),
            *norm(f"{block}.layernorm", f"{ours}/norm"),
            *affine(f"{block}.pwconv1", f"{ours}/mlp/up", (width,), (4 * width,)),
            *affine(f"{block}.pwconv2", f"{ours}/mlp/down", (4 * width,), (width,)),
        ]
        if config.layer_scale:
            table.append(Row(f"{block}.layer_scale_parameter", f"{ours}/scale"))
        found += per_layer(table, depth)
    return found


def write_config(config: Any) -> dict[str, Any] | None:
    """config.json of a ConvNextModel; None if this is none."""
    if not isinstance(config, ConvNeXtConfig):
        return None
    height, width = config.image_size
    return {
        "architectures": ["ConvNextModel"],
        "model_type": "convnext",
        "num_channels": 3,
        "patch_size": config.patch,
        "num_stages": len(config.depths),
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "hidden_act": write_activation(config.activation),
        "layer_norm_eps": config.norm_epsilon,
        "layer_scale_init_value": 1e-6 if config.layer_scale else 0.0,
        "image_size": height if height == width else [height, width],
    }
