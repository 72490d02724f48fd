"""Who attends to whom. `reference_mask` is the definition; every attention implementation is tested against it."""

import dataclasses

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
    keys = places(batch)
    count = keys.index.shape[1] if count is None else count
    return sees(keys.part(start, count), keys, window)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """What decides who sees whom, for Q positions of each row."""

    index: Int[Array, "1 Q"]
    """Place in the row."""
    segments: Int[Array, "B Q"]
    branches: Int[Array, "B Q"]
    blocks: Int[Array, "B Q"]
    positions: Int[Array, "B Q"]

    def part(self, start: int | Int[Array, ""], count: int) -> "Places":
        """Those of `count` places from `start` on."""
        return jax.tree.map(lambda plane: jax.lax.dynamic_slice_in_dim(plane, start, count, axis=1), self)

    def padded(self, length: int) -> "Places":
        """With padding up to `length` places."""
        after = ((0, 0), (0, length - self.index.shape[1]))
        planes = jax.tree.map(lambda plane: jnp.pad(plane, after), self)
        return dataclasses.replace(planes, index=jnp.arange(length)[None])


def places(batch: Batch) -> Places:
    """Of all positions of packed rows."""
    planes = (batch.segment_ids, batch.branch_ids, batch.block_ids, batch.positions)
    return Places(jnp.arange(batch.segment_ids.shape[1])[None], *map(jnp.asarray, planes))


def sees(queries: Places, keys: Places, window: int = 0) -> Bool[Array, "B Q S"]:
    """The rule of `reference_mask` for any queries and keys of the same rows."""

    def pair(name: str) -> tuple[Int[Array, "B Q 1"], Int[Array, "B 1 S"]]:
        return getattr(queries, name)[:, :, None], getattr(keys, name)[:, None, :]

    (index, other_index), (segment, other_segment) = pair("index"), pair("segments")
    (branch, other_branch), (block, other_block) = pair("branches"), pair("blocks")
    before = (index >= other_index) & ((other_branch == 0) | (other_branch == branch))
    if window:
        before &= within_window(queries.positions, keys.positions, window)
    same_block = (block == other_block) & (block != 0)
    return (segment == other_segment) & (segment != 0) & (before | same_block)


def within_window(queries: Int[Array, "B S"], keys: Int[Array, "B T"], window: int) -> Bool[Array, "B S T"]:
    """True where the key's position is fewer than `window` before the query's."""
    return queries[:, :, None] - keys[:, None, :] < window
