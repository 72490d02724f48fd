"""One virtual shard of a stage's data: draws records, renders them, and packs them into rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.kinds import to_example
from data_pipelines.mixture import DataConfig, ShardDraws
from data_pipelines.packing import Packer, Size
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import Source
from data_pipelines.template import Processor, Rendered

STOP_AFTER = 200
"""So many unusable records in a row, without a usable one between, end the run."""


@dataclasses.dataclass(frozen=True)
class Item:
    """An example that waits to be placed; shard and number of the draw seed the random changes to its pictures."""

    entry: int
    shard: int
    number: int
    rendered: Rendered
    size: Size
    """Positions and image slots it takes."""


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
        rejected: Unusable records are appended here, among them those too long for a row: nothing is ever cut.
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
        self._seed, self._shard, self._rejected = seed, shard, rejected
        self._draws = ShardDraws(data.mixture, [len(source) for source in sources], seed, shard, data.virtual_shards)
        self._packer = Packer(self.draw, data.budget, data.window)
        self._placed = [0] * len(sources)
        self._unusable = [0] * len(sources)
        self._unusable_in_a_row = 0

    def draw(self, number: int) -> Item | None:
        """The n-th example of the shard, rendered; None if its record is unusable, which is noted and counted."""
        draw = self._draws[number]
        config = self._data.mixture[draw.entry]
        record_id = f"{config.title}[{draw.record}]"
        try:
            record = self._sources[draw.entry][draw.record]
            record_id = record.get("id", record_id)
            rng = np.random.default_rng((self._seed, self._shard, number, 0))
            rendered = self._processor.render(to_example(record, config.kind, rng, config.title))
            if self._data.weigh_by == "example":
                rendered = dataclasses.replace(rendered, loss=rendered.loss / max(float(rendered.loss.sum()), 1.0))
            size = Size(rendered.length, len(rendered.images))
            if misfit := self._data.budget.misfit(size):
                raise BadRecord(misfit, record_id)
        except BadRecord as error:
            self._rejected.append(Rejected(draw.entry, error.record_id or record_id, str(error)))
            self._unusable[draw.entry] += 1
            self._unusable_in_a_row += 1
            if self._unusable_in_a_row >= STOP_AFTER:
                raise AllRejectedError from error
            return None
        self._unusable_in_a_row = 0
        return Item(draw.entry, self._shard, number, rendered, size)

    def next_row(self) -> list[Item]:
        """The examples of the next row."""
        row = self._packer.next_row()
        for item in row:
            self._placed[item.entry] += 1
        return row

    def get_state(self) -> dict[str, Any]:
        """Position, pending examples and counts by mixture entry; JSON-able."""
        return self._packer.get_state() | {"placed": list(self._placed), "unusable": list(self._unusable)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        self._packer.set_state(state)
        self._placed, self._unusable = list(state["placed"]), list(state["unusable"])
        self._unusable_in_a_row = 0
