"""One virtual shard of a stage's data: draws records, renders them, and packs them into rows."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.checks import check_example, check_slots
from data_pipelines.draws import Draw, ShardDraws
from data_pipelines.fitting import fit, size_of
from data_pipelines.images import BadImage
from data_pipelines.kinds import to_example
from data_pipelines.mixture import DataConfig
from data_pipelines.packing import Packer, Size
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import Source
from data_pipelines.template import Processor, Rendered
from data_pipelines.visible import check_seen
from vlm_jax.errors import UserError

STOP_AFTER = 200
"""So many unusable records in a row, without a usable one between, end the run."""


@dataclasses.dataclass(frozen=True)
class Item:
    """An example, or a piece of one, that waits to be placed."""

    draw: Draw
    piece: int
    """Which piece of the example, from 0."""
    picture_seed: tuple[int, ...]
    """Seeds the random changes to its pictures."""
    rendered: Rendered
    size: Size
    """Positions, image slots and entries that it takes."""

    @property
    def entry(self) -> int:
        """Index into the mixture."""
        return self.draw.entry

    @property
    def record_id(self) -> str:
        """The record's id, which further pieces have a number behind."""
        return self.rendered.id.removesuffix(f"#{self.piece + 1}") if self.piece else self.rendered.id


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A record that cannot be used, and why."""

    entry: int
    id: str
    reason: str


class AllRejectedError(Exception):
    """STOP_AFTER records in a row were unusable."""


class Shard:
    """One virtual shard: draws records, renders them and packs them into rows.

    Args:
        data: The stage's data.
        sources: The opened source of each mixture entry.
        processor: Turns examples into arrays.
        seed: The stage's seed.
        shard: v, from 0.
        rejected: Unusable records are appended here, among them those too long for a row that may not be parted.
    """

    def __init__(
        self,
        data: DataConfig,
        sources: Sequence[Source],
        processor: Processor,
        seed: int,
        shard: int,
        rejected: list[Rejected],
    ) -> None:
        self._data, self._sources, self._processor = data, sources, processor
        self._rejected = rejected
        self._titles = [entry.title for entry in data.mixture]
        self._draws = ShardDraws(data, [len(source) for source in sources], seed, shard)
        self._packer = Packer(self.draw, data.budget, data.window)
        self._rows = 0
        self._rows_a_step = data.rows // data.virtual_shards
        self._placed = [0] * len(sources)
        self._cut = [0] * len(sources)
        self._unusable_in_a_row = 0

    def draw(self) -> list[Item] | None:
        """The next example of the shard, rendered, or its pieces; none of them if the record is unusable, which is
        noted; None if all sources are used up.
        """
        draw = self._draws.next(self._rows // self._rows_a_step)
        if draw is None:
            return None
        try:
            items, cut = self._items(draw)
        except BadRecord as error:
            self._rejected.append(Rejected(draw.entry, error.record_id, str(error)))
            self._unusable_in_a_row += 1
            if self._unusable_in_a_row >= STOP_AFTER:
                raise AllRejectedError from error
            return []
        self._unusable_in_a_row = 0
        self._cut[draw.entry] += cut
        return items

    def _items(self, draw: Draw) -> tuple[list[Item], int]:
        """What a draw gives, and how many positions were cut off; a pure function.

        Raises:
            BadRecord: with the record's id.
        """
        title, processor, number = self._titles[draw.entry], self._processor, self._draws.record(draw)
        record_id = f"{title}[{number}]"
        try:
            record = self._sources[draw.entry][number]
            record_id = record.get("id", record_id)
            rng = np.random.default_rng(self._draws.kind_seed(draw))
            example = to_example(record, self._data.mixture[draw.entry].kind, rng, title)
            check_example(example)
            whole = processor.render(example)
            check_slots(whole, processor.prompt_tokens, processor.pictures)
            pieces, cut = fit(whole, self._data.budget, example.when_long, processor.tokenizer, processor.prompt_tokens)
            if processor.pictures.visible is not None and not processor.prompt_tokens:
                for piece in pieces:
                    check_seen(piece, processor.pictures.visible)
        except BadImage as error:
            raise BadRecord(str(error), record_id) from error
        except BadRecord as error:
            raise BadRecord(str(error), error.record_id or record_id) from error
        if self._data.weigh_by == "example":
            pieces = [dataclasses.replace(p, loss=p.loss / max(float(p.loss.sum()), 1.0)) for p in pieces]
        return [
            Item(draw, number, self._draws.picture_seed(draw, number), piece, size_of(piece))
            for number, piece in enumerate(pieces)
        ], cut

    def next_row(self) -> list[Item]:
        """The examples of the next row; none once all are used up."""
        row = self._packer.next_row()
        self._rows += 1
        for item in row:
            self._placed[item.entry] += 1
        return row

    def get_state(self) -> dict[str, Any]:
        """Position, pending examples (entry, draw, piece) and counts by mixture entry; JSON-able."""
        pending = [[item.draw.entry, item.draw.count, item.piece] for item in self._packer.pending]
        counts = {"placed": list(self._placed), "cut": list(self._cut)}
        return {"rows": self._rows, "pending": pending} | self._draws.get_state() | counts

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state; the pending examples are rendered again.

        Raises:
            UserError: if one of them is not there any more, so the data are not those of the state.
        """
        self._draws.set_state(state)
        drawn: dict[Draw, list[Item]] = {}
        self._packer.pending = []
        for entry, count, piece in state["pending"]:
            draw = Draw(entry, count)
            if draw not in drawn:
                drawn[draw] = self._drawn_again(draw)
            if piece >= len(drawn[draw]):
                raise self._gone(draw, f"its piece {piece + 1} is not there")
            self._packer.pending.append(drawn[draw][piece])
        self._rows, self._placed, self._cut = state["rows"], list(state["placed"]), list(state["cut"])
        self._unusable_in_a_row = 0

    def _drawn_again(self, draw: Draw) -> list[Item]:
        try:
            return self._items(draw)[0]
        except BadRecord as error:
            raise self._gone(draw, f"{error.record_id}: {error}") from None

    def _gone(self, draw: Draw, why: str) -> UserError:
        title, number = self._titles[draw.entry], self._draws.record(draw)
        return UserError(
            f"cannot continue: record {number} of {title} is no longer usable ({why}); restore the data that was there"
        )


def records_used(state: dict[str, Any]) -> list[int]:
    """Records of each mixture entry that a shard is done with, good and bad, at a state: drawn and not pending."""
    waiting = collections.Counter(entry for entry, _ in {(entry, count) for entry, count, _ in state["pending"]})
    return [drawn - waiting[entry] for entry, drawn in enumerate(state["drawn"])]
