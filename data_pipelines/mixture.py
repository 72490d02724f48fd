"""What a stage learns from, and in which proportion: the same draw for the same seed on any number of hosts.

The data are cut into V virtual shards, however many hosts there are. Shard v owns records v, v + V, v + 2V, … of
*every* source and mixes them by weight, so each shard sees the whole mixture (a slice of the finished mix would not:
the mix is a periodic interleave, and every second element of a one-to-one mix comes from one source).
"""

import dataclasses
import functools
import sys
import zlib
from collections.abc import Sequence
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
        UserError: if the weight is not a positive number.
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

    def __post_init__(self) -> None:
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise UserError(
                f"mixture entry {self.title}: weight is {self.weight}; give a positive number or drop the entry"
            )

    @property
    def title(self) -> str:
        """The name that metrics and reports use."""
        return self.name or source_name(self.source)


def check_mixture(mixture: Sequence[MixtureEntry]) -> None:
    """Raises UserError if the mixture is empty or two entries share a name."""
    if not mixture:
        raise UserError("the mixture has no entries: add at least one MixtureEntry to the stage's data")
    titles = [entry.title for entry in mixture]
    doubled = sorted({title for title in titles if titles.count(title) > 1})
    if doubled:
        raise UserError(f"mixture entries share the name {', '.join(doubled)}: give each a `name` of its own")


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which record the n-th draw of a shard is."""

    entry: int
    """Index into the mixture."""
    record: int
    """Index into the entry's source."""


class ShardDraws:
    """The endless sequence of draws of one virtual shard; `draws[n]` is random access and keeps no state.

    Each entry's records come in a fresh order every epoch, each once an epoch. An entry's order depends on its name,
    the seed and the shard only, so adding another entry leaves it alone.

    Args:
        mixture: The entries, checked by `check_mixture`.
        sizes: Number of records in each entry's source.
        seed: The stage's seed.
        shard: v, from 0.
        shards: V.

    Raises:
        UserError: if a source has fewer records than there are shards.
    """

    def __init__(
        self, mixture: Sequence[MixtureEntry], sizes: Sequence[int], seed: int, shard: int, shards: int
    ) -> None:
        parts, self._offsets, offset = [], [0], 0
        for entry, size in zip(mixture, sizes, strict=True):
            if size < shards:
                raise UserError(
                    f"source {entry.title} has {size} records, too few for {shards} virtual shards: "
                    f"lower virtual_shards to {max(size, 1)} or less"
                )
            # Records of all entries are numbered one after another, so that one number says entry and record.
            own = range(offset + shard, offset + size, shards)
            parts.append(_endless(own, _entry_seed(seed, shard, entry.title)))
            offset += size
            self._offsets.append(offset)
        self._draws = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, [entry.weight for entry in mixture])

    def __getitem__(self, index: int) -> Draw:
        number = int(self._draws[index])
        entry = int(np.searchsorted(self._offsets, number, side="right")) - 1
        return Draw(entry, number - self._offsets[entry])


def _endless(numbers: range, seed: int) -> grain.MapDataset:
    """The numbers in a fresh random order every epoch, for ever."""
    if len(numbers) < _SMALL:
        return grain.MapDataset.source(_Epochs(numbers, seed))
    return grain.MapDataset.range(numbers.start, numbers.stop, numbers.step).shuffle(seed=seed).repeat()


class _Epochs:
    """Shuffled epochs of a small range; grain's shuffle keeps no memory, which costs it milliseconds a draw here."""

    def __init__(self, numbers: range, seed: int) -> None:
        self._numbers, self._seed = numbers, seed
        self._order = functools.lru_cache(maxsize=4)(self._shuffled)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: SupportsIndex) -> int:
        epoch, place = divmod(int(index), len(self._numbers))
        return self._numbers[int(self._order(epoch)[place])]

    def _shuffled(self, epoch: int) -> Int[np.ndarray, " records"]:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._numbers))


def _entry_seed(seed: int, shard: int, title: str) -> int:
    """A 32-bit seed that does not depend on the entry's place in the mixture."""
    return int(np.random.SeedSequence([seed, shard, zlib.crc32(title.encode())]).generate_state(1)[0])


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
    """E: examples a row at most; 0 = as many as image slots or, without pictures, length // 16."""
    virtual_shards: int = 1
    """V: independent streams; a divisor of `rows` and a multiple of every number of hosts that is to be used."""
    window: int = 64
    """Pending examples that a shard considers for a row: more fill rows better, and stray further from drawn order."""
    weigh_by: Literal["token", "example"] = "token"
    """token: every learned token counts alike; example: each example does, its learned tokens share a weight of 1."""

    def __post_init__(self) -> None:
        check_mixture(self.mixture)
        for field, least in (
            ("rows", 1),
            ("length", 2),
            ("images", 0),
            ("examples", 0),
            ("virtual_shards", 1),
            ("window", 1),
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
        return Budget(self.length, self.images, self.examples or self.images or max(1, self.length // 16))


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
