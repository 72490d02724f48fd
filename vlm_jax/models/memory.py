"""What gated cross-attention reads: image slots as tokens, and who may see which."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.batch import Batch

KeysAndValues = tuple[Float[Array, "*C B G K T"], Float[Array, "*C B G T K"]]
"""In the layout of a cache: for each of C blocks, or of one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
    """Who reads which image slots, for Q positions."""

    reads: Bool[Array, "B Q I"]
    """Slots that a position's cross-attention reads; a position that reads none gets nothing from it."""
    sees: Bool[Array, "B Q"]
    """Positions that may see a slot at all."""

    def part(self, start: int | Int[Array, ""], count: int) -> "Sight":
        """Of `count` positions from `start` on."""
        return jax.tree.map(lambda plane: jax.lax.dynamic_slice_in_dim(plane, start, count, axis=1), self)

    def repeated(self, count: int) -> "Sight":
        """Of `count` positions that see what the only one sees."""
        return jax.tree.map(lambda plane: jnp.repeat(plane, count, axis=1), self)

    def at(self, places: Int[Array, " B"]) -> "Sight":
        """Of one position a row."""
        take = jnp.take_along_axis
        return Sight(take(self.reads, places[:, None, None], axis=1), take(self.sees, places[:, None], axis=1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What the blocks read: tokens of all image slots of a row, or the keys and values that were made of them."""

    sight: Sight
    tokens: Float[Array, "B T W"] | None = None
    """T = I * M, slot by slot."""
    kept: KeysAndValues | tuple[KeysAndValues, ...] | None = None
    """Made once, for generation; a tuple with an entry a block for an unrolled decoder."""

    def unrolled(self) -> "Memory":
        """The same with keys and values of each block by themselves."""
        assert self.kept is not None
        keys, values = self.kept
        return dataclasses.replace(self, kept=tuple(zip([*keys], [*values], strict=True)))

    def take_rows(self, rows: Int[Array, " Q"]) -> "Memory":
        """A memory whose row q is this one's row rows[q]."""
        kept = jax.tree.map(lambda array: jnp.take(array, rows, axis=-4), self.kept)
        return dataclasses.replace(self, sight=jax.tree.map(lambda plane: plane[rows], self.sight), kept=kept)


def visible_slots(batch: Batch, *, thumbnails: bool = True) -> Bool[Array, "B S I"]:
    """True where a position (row) may see an image slot (column): those of its range that show something.

    An example with a picture of two tiles and a black slot (1 2 .), text a, and a second example of text alone (b); a
    third with two pictures (3 4), of which the last before a position is seen:

              1 2 . 3 4                             visible_images
            a . . . . .                             0 0
            v # # . . .   v: place of a picture     0 3
            a # # . . .                             0 3
            b . . . . .                             0 0
            v . . . # .                             3 4
            c . . . # .                             3 4
            v . . . . #                             4 5

    Args:
        batch: its visible_images, and image_ids and tile_index where it has them, are read.
        thumbnails: whether the thumbnails of cut pictures are seen; not where they stand in the sequence (NVLM-H).
    """
    inside = _in_range(batch)
    if batch.image_ids is not None:
        inside &= (jnp.asarray(batch.image_ids) != 0)[:, None, :]
    if batch.tile_index is not None:
        tile, rows, columns = jnp.moveaxis(jnp.asarray(batch.tile_index), -1, 0)
        inside &= (tile <= rows * columns)[:, None, :]
    return inside if thumbnails else inside & ~_thumbnails(batch)


def own_slots(batch: Batch, *, thumbnails: bool = True) -> Bool[Array, "B S I"]:
    """True where an image slot, black or not, is of the position's example: of its trunk, or of its own branch.

    A slot is of the example whose positions may see it, and of a branch if none of the trunk may. `thumbnails` is as in
    `visible_slots`.
    """
    inside, segments, branches = _in_range(batch), jnp.asarray(batch.segment_ids), jnp.asarray(batch.branch_ids)
    owner = jnp.where(inside, segments[:, :, None], 0).max(axis=1)[:, None, :]
    branch = jnp.where(inside, branches[:, :, None], jnp.iinfo(jnp.int32).max).min(axis=1)[:, None, :]
    own = (owner == segments[:, :, None]) & ((branch == 0) | (branch == branches[:, :, None]))
    own &= (segments != 0)[:, :, None]
    return own if thumbnails else own & ~_thumbnails(batch)


def _thumbnails(batch: Batch) -> Bool[Array, "B 1 I"]:
    """Thumbnails of cut pictures."""
    assert batch.tile_index is not None, "a batch of cut pictures has a tile_index"
    tile, rows, columns = jnp.moveaxis(jnp.asarray(batch.tile_index), -1, 0)
    return ((tile == 0) & (rows * columns > 1))[:, None, :]


def _in_range(batch: Batch) -> Bool[Array, "B S I"]:
    visible = batch.visible_images
    pictures = batch.images if batch.images is not None else batch.features
    assert visible is not None, "a batch for cross-attention has visible_images"
    assert pictures is not None, "a batch for cross-attention has pictures"
    slots = jnp.arange(pictures.shape[1])
    first, end = jnp.asarray(visible)[:, :, :1], jnp.asarray(visible)[:, :, 1:]
    return (slots >= first) & (slots < end)
