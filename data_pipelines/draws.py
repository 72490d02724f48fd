"""Which record a virtual shard draws next: from which source, by weight, and which of its records.

The next draw falls on the source that lags most. Every draw adds its share to each entry's *credit* and takes 1 from
the chosen one's (smooth weighted round robin), so an entry's draws stay within two of its share of all draws, at any
time, in every shard. Credits start at random offsets below 1/2: the shards are not to draw a rare source all at once.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.mixture import DataConfig, endless_order
from data_pipelines.weights import Weights
from vlm_jax.errors import UserError

_ORDER, _CREDIT, _KIND, _PICTURES = range(4)
"""What a random choice is for: a part of its seed."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """The count-th draw of a mixture entry in a shard, from 0."""

    entry: int
    count: int


class ShardDraws:
    """The draws of one virtual shard.

    Each entry's records come in a fresh order every epoch, each once an epoch. Its order, and the chance that its draws
    are given, depend on its name, the seed and the shard only, so adding another entry leaves them alone.

    Args:
        data: The stage's data.
        sizes: Number of records in each entry's source.
        seed: The stage's seed.
        shard: v, from 0.

    Raises:
        UserError: if a source has fewer records than there are shards.
    """

    def __init__(self, data: DataConfig, sizes: Sequence[int], seed: int, shard: int) -> None:
        shards = data.virtual_shards
        self._keys, self._orders, self._caps = [], [], []
        for entry, size in zip(data.mixture, sizes, strict=True):
            if size < shards:
                raise UserError(
                    f"source {entry.title} has {size} records, too few for {shards} virtual shards: "
                    f"lower virtual_shards to {max(size, 1)} or less"
                )
            key = (seed, shard, zlib.crc32(entry.title.encode()))
            self._keys.append(key)
            self._orders.append(endless_order(range(shard, size, shards), (*key, _ORDER)))
            self._caps.append(_cap(entry.max_epochs, size, shard, shards))
        self._weights = Weights(data, sizes)
        offsets = np.array([np.random.default_rng((*key, _CREDIT)).random() - 0.5 for key in self._keys])
        self._credits = [float(credit) for credit in offsets - offsets.mean()]
        self.drawn = [0] * len(sizes)
        """Draws of each entry so far."""
        self._scheduled = any(entry.schedule for entry in data.mixture)
        self._step = -1
        self._shares: list[float] = []

    def next(self, step: int) -> Draw | None:
        """The next draw; None if every entry is used up or pauses.

        Args:
            step: The step, from 0, whose row asks for it; it decides the weights.
        """
        if not self._shares or (self._scheduled and step != self._step):
            self._weigh(step)
        eligible = [entry for entry, share in enumerate(self._shares) if share > 0]
        if not eligible:
            return None
        for entry in eligible:
            self._credits[entry] += self._shares[entry]
        chosen = max(eligible, key=self._credits.__getitem__)
        self._credits[chosen] -= 1
        draw = Draw(chosen, self.drawn[chosen])
        self.drawn[chosen] += 1
        if self.drawn[chosen] == self._caps[chosen]:
            self._shares = []
        return draw

    def _weigh(self, step: int) -> None:
        used_up = {i for i, cap in enumerate(self._caps) if cap is not None and self.drawn[i] >= cap}
        self._step, self._shares = step, self._weights.shares(step, used_up)

    def record(self, draw: Draw) -> int:
        """Index into the entry's source."""
        return int(self._orders[draw.entry][draw.count])

    def kind_seed(self, draw: Draw) -> tuple[int, ...]:
        """Seeds what the kind leaves to chance; no other draw has the same."""
        return (*self._keys[draw.entry], _KIND, draw.count)

    def picture_seed(self, draw: Draw, piece: int) -> tuple[int, ...]:
        """Seeds the random changes to the pictures of a piece of the example; no other has the same."""
        return (*self._keys[draw.entry], _PICTURES, draw.count, piece)

    def get_state(self) -> dict[str, Any]:
        """Draws and credit of each entry; JSON-able, and exact in JSON."""
        return {"drawn": list(self.drawn), "credits": list(self._credits)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        self.drawn, self._credits = list(state["drawn"]), list(state["credits"])
        self._shares = []


def _cap(max_epochs: float, size: int, shard: int, shards: int) -> int | None:
    """Draws of the shard after which an entry is used up; the shards' caps add up to max_epochs · size, rounded."""
    if not max_epochs:
        return None
    whole, rest = divmod(round(max_epochs * size), size)
    return whole * len(range(shard, size, shards)) + len(range(shard, rest, shards))
