"""Fills rows with examples: lengths are all it needs, so it runs in the main process before any picture is decoded.

A window of pending examples is kept. Each row takes the oldest pending example, so that none can starve, and then the
subset of the others that fills the row best, found exactly (a knapsack by dynamic programming over bit sets). With some
dozens of pending examples a row without a gap nearly always exists, where first-fit leaves several percent empty.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.checks import check_slots
from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import Rendered
from data_pipelines.visible import visible_ranges
from vlm_jax.errors import UserError
from vlm_jax.pictures import Pictures


class Size(NamedTuple):
    """What an example takes of a row: positions, image slots and entries of the per-example arrays."""

    length: int
    images: int
    entries: int = 1


class Budget(NamedTuple):
    """What a row holds: S positions, I image slots, E entries of the per-example arrays."""

    length: int
    images: int
    entries: int

    def misfit(self, size: Size) -> str | None:
        """Why an example of this size can never stand in a row, with the setting to raise; None if it can."""
        if size.length > self.length:
            return f"{size.length} positions, but a row has {self.length}: raise the stage's data.length"
        if size.images > self.images:
            return f"{size.images} pictures, but a row has {self.images} image slots: raise the stage's data.images"
        if size.entries > self.entries:
            return f"{size.entries} labelled branches, but a row has {self.entries} entries: raise data.examples"
        return None

    def less(self, size: Size) -> "Budget":
        """What is left of the row beside an example of this size."""
        return Budget(self.length - size.length, self.images - size.images, self.entries - size.entries)


def best_subset(sizes: Sequence[Size], budget: Budget) -> list[int]:
    """Indices of the subset with the most positions that the budget allows, in rising order.

    Of several, the one with the most pictures: text fills any gap, while pictures wait for slots, and too many of them
    waiting leave nothing to fill rows with. Then, early items are preferred.

    Exact. For every (images, entries) used, bit n of a Python integer says whether a subset of n positions exists.
    """
    mask, full = (1 << (budget.length + 1)) - 1, 1 << budget.length
    fits = [i for i, size in enumerate(sizes) if budget.misfit(size) is None]
    count = _entries_may_run_out([sizes[i] for i in fits], budget)
    most_images = min(budget.images, sum(sizes[i].images for i in fits))
    layers: list[dict[tuple[int, int], int]] = [{(0, 0): 1}]
    for i in fits:
        before, after = layers[-1], dict(layers[-1])
        length, images, entries = sizes[i]
        done = False
        for (slots, taken), sums in before.items():
            key = (slots + images, taken + entries * count)
            if key[0] <= budget.images and key[1] <= budget.entries:
                after[key] = after.get(key, 0) | ((sums << length) & mask)
                done = done or (key[0] == most_images and bool(after[key] & full))
        layers.append(after)
        if done:
            break
    total, slots, left = max((sums.bit_length() - 1, slots, -taken) for (slots, taken), sums in layers[-1].items())
    return _trace(layers, fits, sizes, (slots, -left), total, count)


def _entries_may_run_out(sizes: Sequence[Size], budget: Budget) -> int:
    """1 or 0: whether entries can run out before positions do, so must be counted, which takes longer."""
    if not sizes:
        return 0
    most = min(len(sizes), budget.length // max(1, min(size.length for size in sizes)))
    return int(sum(sorted((size.entries for size in sizes), reverse=True)[:most]) > budget.entries)


def _trace(
    layers: list[dict[tuple[int, int], int]],
    fits: list[int],
    sizes: Sequence[Size],
    key: tuple[int, int],
    total: int,
    count_entries: int,
) -> list[int]:
    """Walks the layers back from (key, total); an item that can be left out is, so early items are preferred."""
    chosen = []
    for layer in range(len(layers) - 1, 0, -1):
        if layers[layer - 1].get(key, 0) >> total & 1:
            continue
        length, images, entries = sizes[fits[layer - 1]]
        chosen.append(fits[layer - 1])
        key = (key[0] - images, key[1] - entries * count_entries)
        total -= length
    return chosen[::-1]


class Sized(Protocol):
    """Anything the packer can place."""

    @property
    def size(self) -> Size: ...


T = TypeVar("T", bound=Sized)


class Packer(Generic[T]):
    """Rows from a sequence of items.

    Args:
        draw: Gives the next items of the sequence: none of them where a record is unusable, several where one was
            split; None once the sequence has ended. Every item must fit into a row by itself.
        budget: What a row holds.
        window: How many items are considered for a row.

    Attributes:
        pending: Items that wait for a row, oldest first.
    """

    def __init__(self, draw: Callable[[], Sequence[T] | None], budget: Budget, window: int) -> None:
        self._draw, self._budget, self._window = draw, budget, window
        self.pending: list[T] = []

    def next_row(self) -> list[T]:
        """The items of the next row, oldest first; none once all are used up. Every item is handed out exactly once."""
        while len(self.pending) < self._window:
            drawn = self._draw()
            if drawn is None:
                break
            self.pending += drawn
        if not self.pending:
            return []
        considered = [item.size for item in self.pending[: self._window]]
        others = best_subset(considered[1:], self._budget.less(considered[0]))
        chosen = [0, *(1 + i for i in others)]
        row = [self.pending[i] for i in chosen]
        for i in reversed(chosen):
            del self.pending[i]
        return row


@dataclasses.dataclass(frozen=True)
class Planes:
    """The [B, S] arrays of a batch while they are filled, and the shifted pair made from them."""

    tokens: Int[np.ndarray, "B S"]
    loss: Float[np.ndarray, "B S"]
    segment_ids: Int[np.ndarray, "B S"]
    branch_ids: Int[np.ndarray, "B S"]
    block_ids: Int[np.ndarray, "B S"]
    positions: Int[np.ndarray, "B S"]
    visual_index: Int[np.ndarray, "B S"]
    example_index: Int[np.ndarray, "B S"]
    visible_images: Int[np.ndarray, "B S 2"]

    @staticmethod
    def empty(rows: int, length: int, pad_id: int = 0) -> "Planes":
        """Rows of padding: segment 0, no visual token, no loss."""

        def full(value: int) -> np.ndarray:
            return np.full((rows, length), value, np.int32)

        return Planes(
            tokens=full(pad_id),
            loss=np.zeros((rows, length), np.float32),
            segment_ids=full(0),
            branch_ids=full(0),
            block_ids=full(0),
            positions=full(0),
            visual_index=full(-1),
            example_index=full(0),
            visible_images=np.zeros((rows, length, 2), np.int32),
        )

    def write(
        self, row: int, examples: Sequence[Rendered], prompt_tokens: int, pictures: Pictures = Pictures()
    ) -> None:
        """Lays examples one after another into a row: segment k + 1 is example k; pictures keep the examples' order.

        Block numbers are made unique in the row and visual indices slot-major (slot * N + n). An example is one entry;
        where its branches are labelled, each of them is one, and the trunk belongs to the first.

        Args:
            row: which row.
            examples: what it holds.
            prompt_tokens: N, visual tokens a slot.
            pictures: `visible` is the rule by which positions see image slots, which are those of their own example.

        Raises:
            UserError: if an example's places for visual tokens are not those of its pictures.
        """
        start, slots, blocks, entries = 0, 0, 0, 0
        for number, example in enumerate(examples):
            check_images(example, prompt_tokens, pictures)
            span = (row, slice(start, start + example.length))
            self.tokens[span] = example.tokens
            self.loss[span] = example.loss
            self.segment_ids[span] = number + 1
            self.branch_ids[span] = example.branch_ids
            self.block_ids[span] = np.where(example.block_ids > 0, example.block_ids + blocks, 0)
            self.positions[span] = example.positions
            self.visual_index[span] = np.where(
                example.visual_index >= 0, example.visual_index + slots * prompt_tokens, -1
            )
            within = np.maximum(example.branch_ids - 1, 0) if example.labels else 0
            self.example_index[span] = entries + within
            if pictures.visible is not None and example.cuts:
                ranges = visible_ranges(example, pictures.visible)
                self.visible_images[span] = np.where(ranges[:, :1] < ranges[:, 1:], ranges + slots, 0)
            start += example.length
            entries += example.entries
            slots += example.slots
            blocks += int(example.block_ids.max(initial=0))

    def erase(self, row: int, number: int, pad_id: int = 0) -> None:
        """Turns example `number` (from 0) of a row into padding, where it stands."""
        gone = self.segment_ids[row] == number + 1
        for plane in (
            self.segment_ids,
            self.branch_ids,
            self.block_ids,
            self.positions,
            self.example_index,
            self.visible_images,
        ):
            plane[row, gone] = 0
        self.loss[row, gone] = 0.0
        self.tokens[row, gone] = pad_id
        self.visual_index[row, gone] = -1

    def shifted(self) -> tuple[Int[np.ndarray, "B S"], Float[np.ndarray, "B S"]]:
        """(targets, loss_weights), the only place where anything is shifted.

        Position i is to predict token i + 1 if both belong to one example and branch, weighted by that token's loss:

            tokens   B v v U q A a E U q A a E B t
            branch   0 0 0 1 1 1 1 1 2 2 2 2 2 0 0
            loss     . . . . . . 1 1 . . . 1 1 . 1
            targets  v v . q A a E . q A a E . t .
            weights  . . . . . 1 1 . . . 1 1 . 1 .
        """
        same = (self.segment_ids[:, 1:] == self.segment_ids[:, :-1]) & (self.segment_ids[:, 1:] != 0)
        same &= self.branch_ids[:, 1:] == self.branch_ids[:, :-1]
        targets, weights = np.zeros_like(self.tokens), np.zeros_like(self.loss)
        targets[:, :-1] = np.where(same, self.tokens[:, 1:], 0)
        weights[:, :-1] = np.where(same, self.loss[:, 1:], 0.0)
        return targets, weights


def check_images(example: Rendered, prompt_tokens: int, pictures: Pictures = Pictures()) -> None:
    """Raises UserError unless the example's places for visual tokens are exactly those of its pictures, in order."""
    try:
        check_slots(example, prompt_tokens, pictures)
    except BadRecord as error:
        raise UserError(f"example {example.id} of {example.source}: {error}") from None
