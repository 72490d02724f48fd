"""Who attends to whom. `reference_mask` is the definition; every attention implementation is tested against it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vlm_jax.batch import Batch


def reference_mask(
    batch: Batch, window: int = 0, start: int | Int[Array, ""] = 0, count: int | None = None
) -> Bool[Array, "B Q S"]:
    """True where query i (rows) may see key j (columns).

    i sees j iff segment(i) = segment(j) != 0 and
    ((j <= i and branch(j) in {0, branch(i)}) or block(i) = block(j) != 0).

    One picture (v v, a block), a trunk token t, two branches a a and b b, a second example c c, padding (.):

              v v t a a b b c c .
            v # # . . . . . . . .
            v # # . . . . . . . .
            t # # # . . . . . . .
            a # # # # . . . . . .
            a # # # # # . . . . .
            b # # # . . # . . . .
            b # # # . . # # . . .
            c . . . . . . . # . .
            c . . . . . . . # # .
            . . . . . . . . . . .

    Args:
        batch: its segment_ids, branch_ids, block_ids and positions are read, int32[B, S].
        window: if positive, a key also has to be fewer than this many positions back (sliding window; Beltagy et al.
            2020); members of one block see each other all the same.
        start, count: only Q = count queries from `start` on; None = all S.
    """
    length = batch.segment_ids.shape[1]
    count = length if count is None else count

    def pair(plane: Int[Array, "B S"]) -> tuple[Int[Array, "B Q 1"], Int[Array, "B 1 S"]]:
        return jax.lax.dynamic_slice_in_dim(plane, start, count, axis=1)[:, :, None], plane[:, None, :]

    segments, other_segments = pair(jnp.asarray(batch.segment_ids))
    branches, other_branches = pair(jnp.asarray(batch.branch_ids))
    blocks, other_blocks = pair(jnp.asarray(batch.block_ids))
    causal = start + jnp.arange(count)[None, :, None] >= jnp.arange(length)[None, None, :]
    sees = causal & ((other_branches == 0) | (other_branches == branches))
    if window:
        positions = jnp.asarray(batch.positions)
        sees &= within_window(jax.lax.dynamic_slice_in_dim(positions, start, count, axis=1), positions, window)
    same_block = (blocks == other_blocks) & (blocks != 0)
    return (segments == other_segments) & (segments != 0) & (sees | same_block)


def within_window(queries: Int[Array, "B S"], keys: Int[Array, "B T"], window: int) -> Bool[Array, "B S T"]:
    """True where the key's position is fewer than `window` before the query's."""
    return queries[:, :, None] - keys[:, None, :] < window
