"""Who attends to whom. `reference_mask` is the definition; every attention implementation is tested against it."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vlm_jax.batch import Batch


def reference_mask(batch: Batch, window: int = 0) -> Bool[Array, "B S S"]:
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
    """
    segments, branches, blocks = batch.segment_ids, batch.branch_ids, batch.block_ids
    same_segment = (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, :, None]
    index = jnp.arange(segments.shape[1])
    causal = index[None, :, None] >= index[None, None, :]
    same_branch = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    sees = causal & same_branch
    if window:
        sees &= within_window(batch.positions, batch.positions, window)
    same_block = (blocks[:, :, None] == blocks[:, None, :]) & (blocks != 0)[:, :, None]
    return same_segment & (sees | same_block)


def within_window(queries: Int[Array, "B S"], keys: Int[Array, "B T"], window: int) -> Bool[Array, "B S T"]:
    """True where the key's position is fewer than `window` before the query's."""
    return queries[:, :, None] - keys[:, None, :] < window
