"""Learned positions of one grid of patches, brought to another (ViT, section 3.2)."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Resampling = Literal["bicubic_antialias", "bicubic", "fractional"]
"""bicubic_antialias: Keys' cubic (a = -0.5), widened where the new grid is coarser; bicubic: a = -0.75 over the four
nearest points whatever the scale, which is PyTorch's default and what most published encoders were run with;
fractional: each patch has the learned position of the cell that its upper left corner falls into, where both grids are
laid over the same picture (Dehghani et al. 2023, NaViT, section 2.1; Idefics 2 and 3).
"""


def resample(
    positions: Float[Array, "h w D"], grid: tuple[int, int], method: Resampling = "bicubic_antialias"
) -> Float[Array, "H W D"]:
    """Positions for a grid of (rows, columns), float32 where they are mixed; the same grid changes nothing."""
    if method == "fractional":
        old_rows, old_columns = positions.shape[:2]
        return positions[_cells(old_rows, grid[0])[-1]][:, _cells(old_columns, grid[1])[-1]]
    if positions.shape[:2] == grid:
        return positions
    wide = positions.astype(jnp.float32)
    if method == "bicubic_antialias":
        return jax.image.resize(wide, (*grid, positions.shape[-1]), "bicubic")
    rows, columns = (_taps(old, new) for old, new in zip(positions.shape[:2], grid, strict=True))
    return jnp.einsum("Hh,Ww,hwd->HWd", rows, columns, wide, precision=jax.lax.Precision.HIGHEST)


def fractional_positions(positions: Float[Array, "h w D"], shown: Bool[Array, "N H W"]) -> Float[Array, "N H W D"]:
    """Fractional positions of pictures that fill the upper left of a frame, each over its own size.

    A side of five patches, the learned one of four, three patches shown (.. is padding and gets position 0):

        patch       0   1   2  ..  ..
        falls at    0  1/3 2/3
        position    0   1   2   0   0
    """
    (old_rows, old_columns), (rows, columns) = positions.shape[:2], shown.shape[1:]
    row = jnp.asarray(_cells(old_rows, rows))[shown[:, :, 0].sum(1)]
    column = jnp.asarray(_cells(old_columns, columns))[shown[:, 0, :].sum(1)]
    found = positions[row[:, :, None], column[:, None, :]]
    return jnp.where(shown[..., None], found, positions[0, 0])


def keeps_positions(grid: tuple[int, int]) -> bool:
    """Whether fractional positions for the grid that is learned are the learned ones, each in its place."""
    return all(np.array_equal(_cells(side, side)[-1], np.arange(side)) for side in grid)


def _cells(old: int, most: int) -> Int[np.ndarray, "most+1 most"]:
    """Row n: the cell of `old` equal ones that each patch of n falls into.

    In float32, as the published models are run: where a corner lies on a cell's edge, rounding decides, and may decide
    for the cell before it, for grids that are equal too (25, 29, 31, ... patches a side).
    """
    edges = (np.arange(1, old) * (1 / old)).astype(np.float32)
    steps = np.float32(1) / np.maximum(np.arange(most + 1, dtype=np.float32), 1)
    at = np.minimum(np.arange(most, dtype=np.float32) * steps[:, None], np.float32(1 - 1e-6))
    return np.searchsorted(edges, at, side="right").astype(np.int32)


def _taps(old: int, new: int, a: float = -0.75) -> Float[np.ndarray, "new old"]:
    """How much each old point adds to each new one: cubic convolution (Keys 1981, eq. 4), edges repeated.

    Points are centres of equal cells, so that new point i lies at (i + 1/2) old / new - 1/2.
    """
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(at).astype(int) - 1
    weights = np.zeros((new, old), np.float32)
    for tap in range(4):
        x = np.abs(at - (first + tap))
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return weights
