"""From weights to shares: schedules over steps, temperature by size, shares of kinds, and entries that are used up."""

import math
from collections.abc import Collection, Sequence

from data_pipelines.mixture import DataConfig


class Weights:
    """The share of every mixture entry, at a step.

    Args:
        data: The stage's data.
        sizes: Number of records in each entry's source.
    """

    def __init__(self, data: DataConfig, sizes: Sequence[int]) -> None:
        self._entries = data.mixture
        # Sizes are taken relative to the largest, so that no power of them overflows.
        power = 1 / data.temperature if data.temperature else 0.0
        self._factors = [(size / max(sizes)) ** power if power else 1.0 for size in sizes]
        kinds = [entry.kind.kind for entry in data.mixture] if data.kinds else []
        self._groups = [(kind.share, [i for i, own in enumerate(kinds) if own == kind.kind]) for kind in data.kinds]
        named = {i for _, members in self._groups for i in members}
        rest = [i for i in range(len(data.mixture)) if i not in named]
        if rest:
            self._groups.append((1 - math.fsum(kind.share for kind in data.kinds), rest))

    def shares(self, step: int, used_up: Collection[int] = ()) -> list[float]:
        """Shares of the entries, which sum to 1; all 0 where nothing is left to draw.

        What an entry has that is used up or has weight 0 at the step, the others of its kind share; what a kind has of
        which nothing is left, the other kinds.

        Args:
            step: From 0.
            used_up: Entries that are not to be drawn any more.
        """
        weights = [
            0.0 if i in used_up else entry.weight_at(step) * factor
            for i, (entry, factor) in enumerate(zip(self._entries, self._factors, strict=True))
        ]
        totals = [math.fsum(weights[i] for i in members) for _, members in self._groups]
        whole = math.fsum(share for (share, _), total in zip(self._groups, totals, strict=True) if total)
        shares = [0.0] * len(weights)
        for (share, members), total in zip(self._groups, totals, strict=True):
            for i in members if total else ():
                shares[i] = weights[i] / total * (share / whole)
        return shares
