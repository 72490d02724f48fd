"""Image encoders: this is the union that configs choose from. Each gives features [N, P, D] of a grid of patches."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vlm_jax.models.convnext import ConvNeXt, ConvNeXtConfig
from vlm_jax.models.layers import Precision
from vlm_jax.models.tile_vit import TileViT, TileViTConfig
from vlm_jax.models.vit import ViT, ViTConfig
from vlm_jax.pictures import Tiling

EncoderConfig = ViTConfig | ConvNeXtConfig | TileViTConfig
"""All have image_size, grid, patches, width, features, mean and std."""

Encoder = ViT | ConvNeXt | TileViT
"""The modules."""


def build_encoder(config: EncoderConfig, precision: Precision) -> Encoder:
    """The encoder's module, for `run_encoder`; `states` gives more, where there is one."""
    if isinstance(config, ConvNeXtConfig):
        return ConvNeXt(config, precision)
    if isinstance(config, TileViTConfig):
        return TileViT(config, precision)
    return ViT(config, precision)


def run_encoder(
    encoder: Encoder, pixels: Float[Array, "N H W 3"], tile_index: Int[Array, "N 3"] | None = None
) -> Float[Array, "N P D"]:
    """Features of normalised image slots; only encoders whose tiles see each other read which tile is which."""
    if not isinstance(encoder, TileViT):
        return encoder(pixels)
    if tile_index is None:
        raise ValueError("encoder: the tiles of a picture see each other; give the tile_index of the image slots")
    return encoder(pixels, tile_index)


def slots_together(config: EncoderConfig) -> int:
    """How many image slots in a row are encoded together: the tiles of a picture that see each other; else 1."""
    return config.tiles if isinstance(config, TileViTConfig) else 1


def check_tiling(config: EncoderConfig, tiling: Tiling | None) -> None:
    """Raises ValueError if pictures would not be cut as an encoder needs it whose tiles see each other."""
    if not isinstance(config, TileViTConfig):
        return
    grids = () if tiling is None else tiling.grids
    if tiling is None or tiling.slots != config.tiles or tiling.thumbnail != "none" or {*grids} - {*config.grids}:
        raise ValueError(
            f"VLMConfig: a TileViTConfig takes {config.tiles} image slots a picture; set tiling to Tiling(grids=its "
            f'grids, or some of them, slots={config.tiles}, thumbnail="none")'
        )


def normalise(images: UInt8[Array, "*N H W 3"], config: EncoderConfig) -> Float[Array, "*N H W 3"]:
    """uint8 pixels -> (pixels / 255 - mean) / std, float32."""
    mean, std = jnp.asarray(config.mean), jnp.asarray(config.std)
    return (images.astype(jnp.float32) / 255 - mean) / std
