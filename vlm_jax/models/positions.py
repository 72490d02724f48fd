"""Learned positions of one grid of patches, brought to another (ViT, section 3.2)."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Resampling = Literal["bicubic_antialias", "bicubic"]
"""bicubic_antialias: Keys' cubic (a = -0.5), widened where the new grid is coarser; bicubic: a = -0.75 over the four
nearest points whatever the scale, which is PyTorch's default and what most published encoders were run with.
"""


def resample(
    positions: Float[Array, "h w D"], grid: tuple[int, int], method: Resampling = "bicubic_antialias"
) -> Float[Array, "H W D"]:
    """Positions for a grid of (rows, columns), float32; the same grid changes nothing."""
    if positions.shape[:2] == grid:
        return positions
    wide = positions.astype(jnp.float32)
    if method == "bicubic_antialias":
        return jax.image.resize(wide, (*grid, positions.shape[-1]), "bicubic")
    rows, columns = (_taps(old, new) for old, new in zip(positions.shape[:2], grid, strict=True))
    return jnp.einsum("Hh,Ww,hwd->HWd", rows, columns, wide, precision=jax.lax.Precision.HIGHEST)


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
