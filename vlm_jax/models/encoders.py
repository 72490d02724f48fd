"""Image encoders: this is the union that configs choose from. Each gives features [N, P, D] of a grid of patches."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vlm_jax.models.convnext import ConvNeXt, ConvNeXtConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.vit import ViT, ViTConfig

EncoderConfig = ViTConfig | ConvNeXtConfig
"""All have image_size, grid, patches, width, features, mean and std."""


def build_encoder(config: EncoderConfig, precision: Precision) -> ViT | ConvNeXt:
    """The encoder's module: normalised pictures [N, H, W, 3] -> features [N, P, D]; `states` gives more."""
    if isinstance(config, ConvNeXtConfig):
        return ConvNeXt(config, precision)
    return ViT(config, precision)


def normalise(images: UInt8[Array, "*N H W 3"], config: EncoderConfig) -> Float[Array, "*N H W 3"]:
    """uint8 pixels -> (pixels / 255 - mean) / std, float32."""
    mean, std = jnp.asarray(config.mean), jnp.asarray(config.std)
    return (images.astype(jnp.float32) / 255 - mean) / std
