"""Tiles as transformers takes them for Llama 3.2 Vision: pictures of T tiles each, and which of these are in use."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from vlm_jax.convert.run_text import Arrays
from vlm_jax.errors import UserError
from vlm_jax.models.layers import Precision
from vlm_jax.models.tile_vit import TileViT, TileViTConfig

TILE_INPUTS = {"pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"}
"""Names of what an encoder of tiles takes."""


@dataclasses.dataclass(frozen=True)
class TileInputs:
    """The pictures of B rows, I of each."""

    pixels: Float[np.ndarray, "B I T H W 3"]
    grids: Int[np.ndarray, "B I"]
    """Place of the grid in the encoder's `grids`, from 1; 0 = no picture."""
    used: Bool[np.ndarray, "B I T"]


def read_tiles(config: TileViTConfig, inputs: Mapping[str, np.ndarray]) -> TileInputs:
    """pixel_values [B, I, T, 3, H, W], aspect_ratio_ids [B, I] and aspect_ratio_mask [B, I, T] (1 = a tile in use).

    Without the mask, tiles in use are those of the grid, and the first one in any case, as transformers' processor has
    it.

    Raises:
        UserError: if one is missing or of another shape, or an id stands for no grid.
    """
    for name in ("pixel_values", "aspect_ratio_ids"):
        if name not in inputs:
            raise UserError(f"inputs: {name} is missing; there are {', '.join(inputs) or 'none'}")
    pixels, grids = np.asarray(inputs["pixel_values"], np.float32), np.asarray(inputs["aspect_ratio_ids"])
    tile = (config.tiles, 3, *config.image_size)
    if pixels.ndim != 6 or pixels.shape[2:] != tile:
        raise UserError(f"inputs: pixel_values is {list(pixels.shape)}; give [rows, pictures, {str([*tile])[1:-1]}]")
    if grids.shape != pixels.shape[:2] or not np.issubdtype(grids.dtype, np.integer):
        raise UserError(
            f"inputs: aspect_ratio_ids is {grids.dtype} {list(grids.shape)}; give a whole number for each picture, "
            f"{list(pixels.shape[:2])}"
        )
    if grids.size and not 0 <= grids.min() <= grids.max() <= len(config.grids):
        raise UserError(
            f"inputs: aspect_ratio_ids go from {grids.min()} to {grids.max()}; the model knows 1 to "
            f"{len(config.grids)}, and 0 for no picture"
        )
    sizes = np.array([1, *(rows * columns for rows, columns in config.grids)])
    used = np.asarray(inputs.get("aspect_ratio_mask", np.arange(config.tiles) < sizes[grids][..., None]))
    if used.shape != pixels.shape[:3]:
        raise UserError(f"inputs: aspect_ratio_mask is {list(used.shape)}; give {list(pixels.shape[:3])}")
    return TileInputs(np.moveaxis(pixels, 3, -1), grids.astype(np.int32), used != 0)


def encode_tiles(
    config: TileViTConfig, params: PyTree, inputs: TileInputs, precision: Precision | None = None
) -> Float[Array, "B I T P D"]:
    """Features of all tiles of all pictures.

    Args:
        config, params: of the encoder.
        inputs: the pictures.
        precision: number formats; by default all in float32.
    """
    rows, pictures = inputs.grids.shape
    flat = (x.reshape(rows * pictures, *x.shape[2:]) for x in (inputs.pixels, inputs.grids, inputs.used))
    features = _encode(TileViT(config, precision or Precision()), params, *flat)
    return features.reshape(rows, pictures, *features.shape[1:])


def run_tile_encoder(config: TileViTConfig, params: PyTree, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """last_hidden_state [B, I, T, P, D] of an encoder of tiles by itself, float32.

    Raises:
        UserError: see `read_tiles`.
    """
    return {"last_hidden_state": np.asarray(encode_tiles(config, params, read_tiles(config, inputs)), np.float32)}


@functools.partial(jax.jit, static_argnums=0)
def _encode(encoder: TileViT, params: PyTree, pixels: Array, grids: Array, used: Array) -> Float[Array, "N T P D"]:
    result: Any = encoder.apply({"params": params}, pixels, grids, used, method="encode_tiles")
    return result
