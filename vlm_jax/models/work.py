"""What a batch asks of a model: positions, image slots, and who attends to whom, counted on the host.

Everything here counts what is of use. Padding and unused image slots are computed too, but nobody reads them.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from vlm_jax.batch import Batch
from vlm_jax.models.adapters.cross_attention import CrossAttentionConfig
from vlm_jax.models.vlm import VLMConfig

Plane = Int[np.ndarray, "B S"]


@dataclasses.dataclass(frozen=True)
class Work:
    """Counts over whole batches; those of several batches add up."""

    positions: float = 0.0
    """Positions that hold a token."""
    slots: float = 0.0
    """Image slots that show something."""
    pairs: tuple[float, ...] = ()
    """For each block of the decoder's pattern: pairs of a query and a key that it may see."""
    readers: float = 0.0
    """Positions for which blocks of cross-attention have work: those that read a picture, or all."""
    memory_pairs: float = 0.0
    """Pairs of a position and a token of the memory that it reads."""

    def __add__(self, other: "Work") -> "Work":
        longest = max(len(self.pairs), len(other.pairs))
        mine, theirs = (x.pairs + (0.0,) * (longest - len(x.pairs)) for x in (self, other))
        return Work(
            self.positions + other.positions,
            self.slots + other.slots,
            tuple(a + b for a, b in zip(mine, theirs, strict=True)),
            self.readers + other.readers,
            self.memory_pairs + other.memory_pairs,
        )

    def times(self, count: float) -> "Work":
        """Of so many batches like this."""
        return Work(
            self.positions * count,
            self.slots * count,
            tuple(count * pairs for pairs in self.pairs),
            self.readers * count,
            self.memory_pairs * count,
        )


def full_rows(config: VLMConfig, rows: int, length: int, slots: int) -> Work:
    """Rows without padding, each one causal example whose positions all read the row's pictures (or one, as it may be).

    Args:
        config: of the model.
        rows, length: of a batch.
        slots: image slots a row.
    """
    windows = [min(block.window or length, length) for block in config.decoder.pattern]
    pairs = tuple(rows * (window * (window + 1) / 2 + (length - window) * window) for window in windows)
    seen = min(slots, 1) if config.pictures.visible == "last" else slots
    positions = float(rows * length)
    readers = positions if slots or _feeds_all(config) else 0.0
    return Work(positions, float(rows * slots), pairs, readers, positions * seen * config.memory_tokens)


def all_pairs(config: VLMConfig, rows: int, length: int, slots: int) -> Work:
    """What a kernel computes that leaves nothing out: every query with every key, every position with every slot."""
    square = float(rows * length * length)
    work = full_rows(config, rows, length, slots)
    return dataclasses.replace(
        work,
        pairs=(square,) * len(config.decoder.pattern),
        memory_pairs=work.positions * slots * config.memory_tokens,
    )


def work_of(config: VLMConfig, batch: Batch) -> Work:
    """What the rows of a batch on the host ask of the model.

    It costs O(S log S) a row, not S * S. A run of positions that sees each other both ways must lie in one branch, and
    positions must follow each other within an example, as the packer lays them out.
    """
    segments = np.asarray(batch.segment_ids)
    real = segments != 0
    positions = float(real.sum())
    pairs = attended_pairs(batch, [block.window for block in config.decoder.pattern])
    slots = 0.0 if batch.image_ids is None else float((np.asarray(batch.image_ids) != 0).sum())
    readers, memory_pairs = positions * _feeds_all(config), 0.0
    if isinstance(config.adapter, CrossAttentionConfig) and batch.visible_images is not None and slots:
        reads = _slots_read(config.adapter, batch)
        memory_pairs = float(reads.sum()) * config.memory_tokens
        readers = readers or float((reads > 0).sum())
    return Work(positions, slots, pairs, readers, memory_pairs)


def attended_pairs(batch: Batch, windows: list[int]) -> tuple[float, ...]:
    """For each window (0 = none) how many pairs (query, key) of a batch `masks.reference_mask` allows.

    Position i sees, of the positions up to its own, those of its example's trunk and those of its own branch; their
    numbers are ranks in groups, found by sorting. A block of n adds n to each of its members, less what it saw already.
    """
    segments, branches, blocks = (np.asarray(x) for x in (batch.segment_ids, batch.branch_ids, batch.block_ids))
    real, trunk = segments != 0, branches == 0
    examples = np.where(real, segments.astype(np.int64), np.iinfo(np.int32).max)  # padding last, where it lies
    before = _ranks(examples, trunk)
    if not trunk.all():
        width = np.int64(branches.max()) + 1
        before = np.where(trunk, before, before + _ranks(examples * width + branches, ~trunk))
    members, earlier = _blocks(examples, blocks, real & (blocks != 0))

    def total(window: int) -> float:
        seen = np.minimum(before, window) if window else before
        twice = np.minimum(earlier, window) if window else earlier
        return float(((seen + members - twice) * real).sum())

    return tuple(total(window) for window in windows)


def _ranks(groups: Plane, counted: Bool[np.ndarray, "B S"]) -> Plane:
    """For each position, how many of its group are counted, up to and with itself; groups are numbers in a row."""
    if (groups[:, 1:] >= groups[:, :-1]).all():  # as rows are mostly laid out
        return _ranks_of_sorted(groups, counted)
    order = np.argsort(groups, axis=1, kind="stable")
    ranks = np.empty_like(order)
    take = np.take_along_axis
    np.put_along_axis(ranks, order, _ranks_of_sorted(take(groups, order, 1), take(counted, order, 1)), 1)
    return ranks


def _ranks_of_sorted(groups: Plane, counted: Bool[np.ndarray, "B S"]) -> Plane:
    sums = np.cumsum(counted, axis=1)
    first = np.ones_like(counted)
    first[:, 1:] = groups[:, 1:] != groups[:, :-1]
    starts: Plane = np.maximum.accumulate(np.where(first, sums - counted, 0), axis=1)
    return sums - starts


def _blocks(examples: Plane, blocks: Plane, inside: Bool[np.ndarray, "B S"]) -> tuple[Plane, Plane]:
    """For each position how many its block has, and how many of these up to and with itself; 0 outside of blocks."""
    if not inside.any():
        return np.zeros_like(blocks), np.zeros_like(blocks)
    keys = np.where(inside, examples * (np.int64(blocks.max()) + 1) + blocks, 0)
    # Between blocks the number of the block before stands, so that the row stays sorted where its blocks are.
    keys = np.where(inside, keys, np.maximum.accumulate(keys, axis=1))
    ranks = _ranks(keys, inside)
    following = _ranks(-keys[:, ::-1], inside[:, ::-1])[:, ::-1]
    return np.where(inside, ranks + following - 1, 0), np.where(inside, ranks, 0)


def _feeds_all(config: VLMConfig) -> bool:
    """Whether blocks of cross-attention have a feed-forward part for positions that read no picture."""
    return isinstance(config.adapter, CrossAttentionConfig) and config.adapter.blind_rule == "feed_forward"


def _slots_read(adapter: CrossAttentionConfig, batch: Batch) -> Int[np.ndarray, "B S"]:
    """How many image slots each position reads, as `CrossAttentionAdapter.sight` says, slot by slot."""
    first, end = np.moveaxis(np.asarray(batch.visible_images), -1, 0)
    used, thumbnail = _slots(adapter, batch)
    read, blind = np.zeros(first.shape, np.int32), np.ones(first.shape, bool)
    own = np.zeros(first.shape, np.int32)
    for slot in range(used.shape[1]):
        inside = (slot >= first) & (slot < end)
        sees = inside & (used & ~thumbnail)[:, slot, None]
        read += sees
        blind &= ~sees
        if adapter.blind_rule == "whole_example":
            own += _owners(batch, inside) & ~thumbnail[:, slot, None]
    return np.where(blind, own, read) if adapter.blind_rule == "whole_example" else read


def _slots(adapter: CrossAttentionConfig, batch: Batch) -> tuple[Any, Any]:
    """Which slots show something, and which hold thumbnails that are not read, bool[B, I]."""
    used = np.asarray(batch.image_ids) != 0
    thumbnail = np.zeros_like(used)
    if batch.tile_index is not None:
        tile, rows, columns = np.moveaxis(np.asarray(batch.tile_index), -1, 0)
        used = used & (tile <= rows * columns)
        if adapter.prompt_slots == "thumbnail":
            thumbnail = (tile == 0) & (rows * columns > 1)
    return used, thumbnail


def _owners(batch: Batch, inside: Bool[np.ndarray, "B S"]) -> Bool[np.ndarray, "B S"]:
    """Positions of the example (and branch) whose positions may see a slot: `memory.own_slots` for one slot."""
    segments, branches = np.asarray(batch.segment_ids), np.asarray(batch.branch_ids)
    owner = np.where(inside, segments, 0).max(1, keepdims=True)
    branch = np.where(inside, branches, np.iinfo(np.int32).max).min(1, keepdims=True)
    own: Bool[np.ndarray, "B S"] = (owner == segments) & ((branch == 0) | (branch == branches)) & (segments != 0)
    return own
