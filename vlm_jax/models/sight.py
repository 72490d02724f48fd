"""What queries of self-attention may see, in the form that each kernel of attention reads."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.batch import Batch
from vlm_jax.models.masks import Places, places, reference_mask, sees
from vlm_jax.models.over_mesh import find_split
from vlm_jax.models.placement import constrain
from vlm_jax.models.splash import MaskBlocks, mask_blocks

Kernel = Literal["xla", "splash", "splash_dynamic", "cudnn"]
"""An implementation of self-attention over packed rows; `attention.resolve_kernel` says which can do what."""

QUERIES_TOGETHER = 512
"""In long rows, the queries of a row whose scores XLA's attention holds at the same time."""
_LONG = 1024
"""Longer rows than this are long."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlaceSight:
    """For XLA and long rows: a mask that is made for some queries at a time, out of the planes of the batch."""

    places: Places
    window: int = dataclasses.field(default=0, metadata={"static": True})

    def mask(self, queries: Places) -> Bool[Array, "B Q S"]:
        """True where these queries may see the row's keys."""
        return sees(queries, self.places, self.window)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegmentSight:
    """For splash: causal within equal segment ids. Branches and blocks have no place in it."""

    segment_ids: Int[Array, "B S"]
    window: int = dataclasses.field(default=0, metadata={"static": True})
    """In places of the row; within an example, positions rise by one from place to place."""
    interpret: bool = dataclasses.field(default=False, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockSight:
    """For splash with a dynamic mask."""

    blocks: MaskBlocks
    interpret: bool = dataclasses.field(default=False, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FusedSight:
    """For cuDNN."""

    mask: Bool[Array, "B S S"]


RowSight = Bool[Array, "B S T"] | PlaceSight | SegmentSight | BlockSight | FusedSight
"""A dense mask, or one of the forms above."""


def row_sights(
    batch: Batch, windows: Sequence[int], kernel: Kernel = "xla", *, interpret: bool = False
) -> tuple[RowSight, ...]:
    """`reference_mask` of packed rows for each window, as the kernel reads it; made once, for all layers.

    Args:
        batch: packed rows; for "splash" without branches (one an example is none) and without blocks.
        windows: of sliding windows, in positions; 0 = the whole example.
        kernel: a concrete one.
        interpret: Pallas kernels are run by jax's interpreter, where there is no TPU; for tests.
    """
    made = {window: _row_sight(batch, window, kernel, interpret) for window in dict.fromkeys(windows)}
    return tuple(made[window] for window in windows)


def _row_sight(batch: Batch, window: int, kernel: Kernel, interpret: bool) -> RowSight:
    if kernel == "splash":
        return SegmentSight(jnp.asarray(batch.segment_ids), window, interpret)
    if kernel == "xla" and batch.segment_ids.shape[1] > _LONG:
        return PlaceSight(places(batch), window)
    mask = constrain(reference_mask(batch, window), ("batch", "length", "key_length"))
    if kernel == "splash_dynamic":
        split = find_split((*mask.shape[:2], 1, 1))
        return BlockSight(mask_blocks(mask, split.length_shards), interpret)
    return FusedSight(mask) if kernel == "cudnn" else mask


def gathered(x: Float[Array, "B S G K"], sight: RowSight) -> Float[Array, "B S G K"]:
    """Keys or values as attention wants them: those of the whole row on each device that has queries of it.

    Splash takes a device's part, and gathers the others itself.
    """
    if isinstance(sight, (SegmentSight, BlockSight)):
        return x
    return constrain(x, ("batch", "key_length", "act_heads", "head_size"))


def is_long(queries: int, keys: int) -> bool:
    """Whether attention between so many goes by groups of queries."""
    return queries > QUERIES_TOGETHER and queries * keys > _LONG**2
