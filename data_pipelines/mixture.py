"""What a stage learns from, in which proportion and order: the config, and the order of a source's records.

The data are cut into V virtual shards, however many hosts there are. Shard v owns records v, v + V, v + 2V, … of
*every* source and mixes them by weight, so each shard sees the whole mixture (a slice of the finished mix would not:
the mix is a periodic interleave, and every second element of a one-to-one mix comes from one source).
"""

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Collection, Sequence
from typing import Literal, Protocol, SupportsIndex

import grain
import numpy as np
from jaxtyping import Int

from data_pipelines.images import Augmentation
from data_pipelines.kinds import KindConfig
from data_pipelines.packing import Budget
from data_pipelines.sources import SourceConfig, source_name
from vlm_jax.errors import UserError

_SMALL = 1 << 16
"""Below this many records a shard, an epoch's order is kept in memory."""


@dataclasses.dataclass(frozen=True)
class MixtureEntry:
    """A source, how its records become examples, and how often they are drawn.

    Raises:
        UserError: if the weight, its schedule or the cap makes no sense, with the numbers.
    """

    source: SourceConfig
    """Where the records come from."""
    kind: KindConfig
    """How a record becomes an example."""
    weight: float = 1.0
    """Share of the drawn examples, relative to the other entries."""
    name: str = ""
    """Name in metrics and reports; by default the source's."""
    augmentation: Augmentation | None = None
    """Random changes to the pictures; None shows them as they are."""
    schedule: tuple[tuple[int, float], ...] = ()
    """(step, weight) points that straight lines join, in place of `weight`; before the first and after the last the
    weight stays. A weight of 0 pauses the entry."""
    max_epochs: float = 0.0
    """The entry drops out after so many passes over its source, and the others share what it had; 0 = no end."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise UserError(
                f"mixture entry {self.title}: weight is {self.weight}; give a positive number or drop the entry"
            )
        if not (np.isfinite(self.max_epochs) and self.max_epochs >= 0):
            raise UserError(
                f"mixture entry {self.title}: max_epochs is {self.max_epochs}; give a positive number, or 0 for no end"
            )
        self._check_schedule()

    def _check_schedule(self) -> None:
        steps, weights = [step for step, _ in self.schedule], [weight for _, weight in self.schedule]
        where = f"mixture entry {self.title}: schedule {list(self.schedule)}"
        if any(a >= b for a, b in itertools.pairwise((-1, *steps))):
            raise UserError(f"{where}: its steps must rise from 0 or later; put the points in order")
        if any(not (np.isfinite(weight) and weight >= 0) for weight in weights) or (weights and not any(weights)):
            raise UserError(f"{where}: weights must be 0 or positive, one at least positive; correct the points")

    @property
    def title(self) -> str:
        """The name that metrics and reports use."""
        return self.name or source_name(self.source)

    def weight_at(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        if not self.schedule:
            return self.weight
        steps, weights = zip(*self.schedule, strict=True)
        return float(np.interp(step, steps, weights))


@dataclasses.dataclass(frozen=True)
class KindShare:
    """What share of the drawn examples a kind of data has; its entries have it among themselves, by weight."""

    kind: str
    """A name of `data_pipelines.kinds.KIND_NAMES`."""
    share: float
    """From 0 to 1."""


def check_mixture(mixture: Sequence[MixtureEntry]) -> None:
    """Raises UserError if the mixture is empty, two entries share a name, or nothing is to be drawn at some step."""
    if not mixture:
        raise UserError("the mixture has no entries: add at least one MixtureEntry to the stage's data")
    titles = [entry.title for entry in mixture]
    doubled = sorted({title for title in titles if titles.count(title) > 1})
    if doubled:
        raise UserError(f"mixture entries share the name {', '.join(doubled)}: give each a `name` of its own")
    # A sum of straight pieces that are never negative is 0 within a piece only if it is at its ends.
    for step in sorted({0, *(step for entry in mixture for step, _ in entry.schedule)}):
        if not any(entry.weight_at(step) for entry in mixture):
            raise UserError(f"all mixture entries have weight 0 at step {step}: give one of them a weight there")


def check_kinds(mixture: Sequence[MixtureEntry], kinds: Sequence[KindShare]) -> None:
    """Raises UserError unless the kinds' shares leave what the other entries of the mixture need, and no more."""
    if not kinds:
        return
    named, present = [kind.kind for kind in kinds], {entry.kind.kind for entry in mixture}
    if len(set(named)) < len(named) or set(named) - present:
        raise UserError(
            f"data.kinds names {', '.join(named)}; name each kind once, and only kinds that the mixture has: "
            + ", ".join(sorted(present))
        )
    total = sum(kind.share for kind in kinds)
    rest = present - set(named)
    if any(not 0 < kind.share <= 1 for kind in kinds) or (total >= 1 if rest else abs(total - 1) > 1e-6):
        needed = f"less than 1, and leave the rest to {', '.join(sorted(rest))}" if rest else "exactly 1"
        raise UserError(f"data.kinds: the shares make {total:g}; each must be positive, and all of them {needed}")


def endless_order(numbers: range, key: tuple[int, ...]) -> Sequence[int]:
    """The numbers, each once an epoch, in a fresh random order every epoch, for ever; random access without state.

    Args:
        numbers: not empty; they are never all in memory where they are many.
        key: seeds the order.
    """
    if len(numbers) < _SMALL:
        return _Epochs(numbers, key)
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return grain.MapDataset.range(numbers.start, numbers.stop, numbers.step).shuffle(seed=seed).repeat()


class _Epochs(Sequence[int]):
    """Shuffled epochs of a small range; grain's shuffle keeps no memory, which costs it milliseconds a draw here."""

    def __init__(self, numbers: range, key: tuple[int, ...]) -> None:
        self._numbers, self._key = numbers, key
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: SupportsIndex) -> int:  # type: ignore[override]
        epoch, place = divmod(int(index), len(self._numbers))
        return self._numbers[int(self._order(epoch)[place])]

    def _shuffled(self, epoch: int) -> Int[np.ndarray, " records"]:
        return np.random.default_rng((*self._key, epoch)).permutation(len(self._numbers)).astype(np.uint16)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of a stage: the mixture and the shape of its batches.

    Raises:
        UserError: if the mixture or a size makes no sense, with the numbers.
    """

    mixture: tuple[MixtureEntry, ...]
    """What is drawn, and how often."""
    rows: int
    """B: rows of the global batch, over all hosts."""
    length: int
    """S: positions a row."""
    images: int
    """I: image slots a row; 0 = a stage without pictures."""
    examples: int = 0
    """E: examples a row at most (of preference data, answers); 0 = length // 16, or the image slots if that is more."""
    virtual_shards: int = 1
    """V: independent streams; a divisor of `rows` and a multiple of every number of hosts that is to be used."""
    window: int = 64
    """Pending examples that a shard considers for a row: more fill rows better, and stray further from drawn order."""
    weigh_by: Literal["token", "example"] = "token"
    """token: every learned token counts alike; example: each example does, its learned tokens share a weight of 1."""
    temperature: float = 0.0
    """0 = weights as given; T from 0.1 on = shares in proportion to weight · records^(1/T): where weights are alike, 1
    passes through all sources at one pace, and large T draws as much of each whatever their sizes."""
    kinds: tuple[KindShare, ...] = ()
    """Shares of kinds of data; kinds that are not named have the rest. () = each entry stands for itself."""
    keep_pictures: int = 0
    """MiB of a host's memory for pictures as they come out of decoding and resizing, so that later epochs need neither;
    a picture of 224 x 224 takes 0.14. 0 = none are kept. No batch depends on it."""

    def __post_init__(self) -> None:
        check_mixture(self.mixture)
        check_kinds(self.mixture, self.kinds)
        if self.temperature and not 0.1 <= self.temperature < np.inf:
            raise UserError(f"data.temperature is {self.temperature}: give 0.1 or more, or 0 for plain weights")
        for field, least in (
            ("rows", 1),
            ("length", 2),
            ("images", 0),
            ("examples", 0),
            ("virtual_shards", 1),
            ("window", 1),
            ("keep_pictures", 0),
        ):
            if getattr(self, field) < least:
                raise UserError(f"data.{field} is {getattr(self, field)}: it must be at least {least}")
        if self.rows % self.virtual_shards:
            raise UserError(
                f"data.rows = {self.rows} is not a multiple of data.virtual_shards = {self.virtual_shards}: change one"
            )

    @property
    def budget(self) -> Budget:
        """What a row holds."""
        return Budget(self.length, self.images, self.examples or max(1, self.images, self.length // 16))

    @property
    def has_preferences(self) -> bool:
        """Whether batches pair and label their entries."""
        return any(entry.kind.kind == "preference" for entry in self.mixture)


class StageData(Protocol):
    """The part of a stage that the loader needs."""

    @property
    def name(self) -> str: ...
    @property
    def data(self) -> DataConfig: ...


def host_shards(data: DataConfig, host: int, hosts: int) -> range:
    """The virtual shards that a host owns.

    Raises:
        UserError: if the shards cannot be shared out evenly.
    """
    if not 0 <= host < hosts or data.virtual_shards % hosts:
        raise UserError(
            f"host {host} of {hosts} cannot share {data.virtual_shards} virtual shards: "
            f"set data.virtual_shards to a multiple of {hosts} that divides data.rows = {data.rows}"
        )
    share = data.virtual_shards // hosts
    return range(host * share, (host + 1) * share)


def host_rows(data: DataConfig, host: int, hosts: int) -> Int[np.ndarray, " rows"]:
    """Which rows of the global batch a host yields, in its order: global[host_rows(...)] = the host's batch."""
    shards = host_shards(data, host, hosts)
    rounds = np.arange(data.rows // data.virtual_shards) * data.virtual_shards
    return (rounds[:, None] + np.asarray(shards)[None, :]).reshape(-1)


def shard_rows(data: DataConfig, shards: Sequence[int]) -> Int[np.ndarray, " rows"]:
    """Which rows of the global batch these shards give, shard by shard: v, v + V, v + 2V, … of shard v.

    Rows lie on the devices in this order, of all shards: so those of a shard are neighbours, and a host whose devices
    hold a part of the rows reads a part of the shards, on any number of hosts.
    """
    return np.concatenate([np.arange(v, data.rows, data.virtual_shards) for v in shards])


def shards_of_places(data: DataConfig, places: Collection[int], hosts: int) -> list[int]:
    """The virtual shards whose rows lie at these places of the batch on the devices (see `shard_rows`).

    Args:
        data: of the stage.
        places: numbers from 0 to B - 1, those that one host's devices hold.
        hosts: how many hosts there are, for the message.

    Raises:
        UserError: if they hold only a part of a shard's rows.
    """
    rounds, held = data.rows // data.virtual_shards, set(places)
    shards = sorted({place // rounds for place in held})
    if len(held) != rounds * len(shards):
        edges = {place for place in held if place - 1 not in held} | {p + 1 for p in held if p + 1 not in held}
        raise UserError(
            f"{hosts} hosts cannot share data.virtual_shards = {data.virtual_shards}: one of them holds {len(held)} of "
            f"data.rows = {data.rows}, which is no number of whole shards; set data.virtual_shards to a multiple of "
            f"{data.rows // math.gcd(*edges, data.rows)} that divides data.rows"
        )
    return shards
