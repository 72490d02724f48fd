"""The sequence of batches of a stage: a pure function of (config, seed, step), on any number of hosts.

V virtual shards each draw, render and pack their own rows; row r of the global batch comes from shard r mod V. Host h
of H owns the V / H shards from h * V / H on and yields their rows in the order of the global batch (`host_rows` says
which), so hosts may come and go between runs while the global batches stay the same, bit for bit.

One thread packs rows from lengths, then a pool of threads decodes the pictures, a row a task, some batches ahead.
Neither threads nor timing can change order or content: tasks are submitted and awaited in order, and every random
choice has a generator of its own, seeded by (seed, shard, source, number of the draw).
"""

import collections
import concurrent.futures
import copy
import dataclasses
import itertools
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from data_pipelines.emits import check_one_path
from data_pipelines.feature_store import FeatureStore
from data_pipelines.instructions import slot_instructions
from data_pipelines.mixture import DataConfig, MixtureEntry, StageData, host_rows, host_shards, shard_rows
from data_pipelines.packing import Planes
from data_pipelines.quarantine import Quarantine
from data_pipelines.row_pictures import RowPictures, slot_numbers
from data_pipelines.shard import STOP_AFTER, AllRejectedError, Item, Rejected, Shard, records_used
from data_pipelines.sources import Source, open_source
from data_pipelines.template import Processor
from vlm_jax.batch import Batch, BatchInfo
from vlm_jax.errors import UserError

__all__ = ["DataConfig", "Loader", "MixtureEntry", "host_rows", "make_loader", "merge_states", "shard_rows"]

_MOST_THREADS = 32


def make_loader(
    stage: StageData,
    processor: Processor,
    *,
    seed: int,
    host: int = 0,
    hosts: int = 1,
    quarantine: Quarantine | None = None,
    prefetch: int = 2,
    threads: int = 0,
    features: FeatureStore | None = None,
    one_path: bool = False,
    shards: Sequence[int] | None = None,
) -> "Loader":
    """Opens a stage's sources and gives its batches, from the first one on.

    Args:
        stage: Anything with a name and a DataConfig; the name is part of the seed, so stages draw in different orders.
        processor: Turns examples into arrays.
        seed: The run's seed, not negative.
        host: h, this host's number.
        hosts: H, how many hosts share the global batch.
        quarantine: Account of unusable records; by default one in memory.
        prefetch: Batches that are prepared ahead.
        threads: Threads that decode pictures; 0 = one more than this process may use cores, and at most 32.
        features: Kept features of every picture; batches then carry these in place of the pictures.
        one_path: Examples may have neither branches nor blocks, since the attention kernel cannot tell them apart.
        shards: Virtual shards to read, in place of a host's share: rows then come shard by shard (`shard_rows`), and
            when the shards are used up, rows of padding follow without end, since another host may still have some.

    Returns:
        Iterator of (Batch, BatchInfo) with this host's rows (see `host_rows`). It ends only where every entry of the
        mixture has `max_epochs`, once this host's shards are used up; rows of those that are sooner are padding.

    Raises:
        UserError: if the shards cannot be shared out among the hosts, a source is missing or too small, or the seed is
            negative; while iterating, if too many records are unusable, or an example is not of `one_path`.
    """
    if seed < 0:
        raise UserError(f"seed is {seed}: it must not be negative")
    stage_seed = int(np.random.SeedSequence([seed, zlib.crc32(stage.name.encode())]).generate_state(1)[0])
    account = Quarantine() if quarantine is None else quarantine
    threads = threads or min(_MOST_THREADS, _cores() + 1)  # one is mostly waiting for Python's lock
    own = host_shards(stage.data, host, hosts) if shards is None else shards
    together = shards is not None
    return Loader(stage.data, processor, stage_seed, own, account, prefetch, threads, features, one_path, together)


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins the states that several hosts took after the same batch, for a run on another number of hosts.

    Raises:
        UserError: if they belong to different data.
    """
    first = states[0]
    for state in states:
        if state["data"] != first["data"]:
            raise UserError("the hosts' data positions belong to different data: restore those of one checkpoint")
    return {
        "data": first["data"],
        "shards": {v: position for state in states for v, position in state["shards"].items()},
    }


@dataclasses.dataclass
class _Packed:
    """A packed batch whose pictures are being decoded, and the position after it."""

    items: list[list[Item]]
    planes: Planes
    images: Shaped[np.ndarray, "B I *picture"] | None
    """uint8[B, I, H, W, 3], or features [B, I, P, D] where these are kept."""
    decoded: list[concurrent.futures.Future]
    rejected: list[Rejected]
    state: dict[str, Any]


class Loader:
    """Iterator of (Batch, BatchInfo); see `make_loader`. Use it from one thread; close it when done.

    A picture that cannot be decoded is found only after packing: its example's positions become padding (segment 0, no
    loss) and its id stays in `BatchInfo.example_ids`; it counts as drawn, and is quarantined.
    """

    def __init__(
        self,
        data: DataConfig,
        processor: Processor,
        seed: int,
        shards: Sequence[int],
        quarantine: Quarantine,
        prefetch: int,
        threads: int,
        features: FeatureStore | None = None,
        one_path: bool = False,
        shards_together: bool = False,
    ) -> None:
        self._data, self._processor, self._seed, self._quarantine = data, processor, seed, quarantine
        self._features, self._one_path, self._shards_together = features, one_path, shards_together
        self._pictures = RowPictures(data, processor, features)
        self._titles = tuple(entry.title for entry in data.mixture)
        sources = [open_source(entry.source) for entry in data.mixture]
        self._sizes = [len(source) for source in sources]
        for title, size in zip(self._titles, self._sizes, strict=True):
            quarantine.expect(title, size)
        self._fingerprint = {
            "seed": seed,
            "virtual_shards": data.virtual_shards,
            "mixture": [_identity(entry, source) for entry, source in zip(data.mixture, sources, strict=True)],
            "temperature": data.temperature,
            "kinds": [[kind.kind, kind.share] for kind in data.kinds],
        }
        self._rejected: list[Rejected] = []
        self._shards = {v: Shard(data, sources, processor, seed, v, self._rejected) for v in shards}
        self._packer_pool = concurrent.futures.ThreadPoolExecutor(1, "pack")
        self._decoder_pool = concurrent.futures.ThreadPoolExecutor(threads, "decode")
        self._ahead: collections.deque[concurrent.futures.Future[_Packed | None]] = collections.deque()
        self._prefetch = prefetch
        self._state = self._snapshot()

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> tuple[Batch, BatchInfo]:
        while len(self._ahead) <= self._prefetch:
            self._ahead.append(self._packer_pool.submit(self._pack))
        try:
            packed = self._ahead.popleft().result()
        except AllRejectedError:
            raise self._all_rejected() from None
        if packed is None:
            self._set_apart(self._rejected, met=True)
            self._rejected.clear()
            raise StopIteration
        batch, info = self._finish(packed)
        self._state = packed.state
        return batch, info

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch handed out: {'data': fingerprint, 'shards': {v: position}}; JSON-able."""
        return copy.deepcopy(self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the batch at which the state was taken, on this or another number of hosts.

        Args:
            state: Of `get_state`, or several hosts' states joined by `merge_states`; shards of other hosts are ignored.

        Raises:
            UserError: if the state belongs to other data, another seed or other shards.
        """
        _check_state(state, self._fingerprint, self._shards.keys())
        self._drain()
        for v, shard in self._shards.items():
            shard.set_state(state["shards"][str(v)])
        self._rejected.clear()
        self._state = self._snapshot()

    @property
    def finite(self) -> bool:
        """Whether the data are used up some day."""
        return all(entry.max_epochs for entry in self._data.mixture)

    def close(self) -> None:
        """Stops the threads."""
        self._drain()
        self._packer_pool.shutdown(wait=True)
        self._decoder_pool.shutdown(wait=True, cancel_futures=True)

    def _drain(self) -> None:
        """Forgets what was prepared ahead and waits for what is running."""
        for future in self._ahead:
            future.cancel()
        concurrent.futures.wait(self._ahead)
        for future in self._ahead:
            if not future.cancelled() and future.exception() is None and (packed := future.result()):
                concurrent.futures.wait(packed.decoded)
        self._ahead.clear()

    def _snapshot(self) -> dict[str, Any]:
        shards = {str(v): shard.get_state() for v, shard in self._shards.items()}
        return {"data": self._fingerprint, "shards": shards}

    def _pack(self) -> _Packed | None:
        """Runs on the packing thread: fills the next batch's rows and has its pictures decoded; None at the end."""
        data, processor = self._data, self._processor
        rounds, shards = data.rows // data.virtual_shards, list(self._shards.values())
        turns = [shard for shard in shards for _ in range(rounds)] if self._shards_together else shards * rounds
        items = [shard.next_row() for shard in turns]
        if not any(items) and not self._shards_together:
            return None
        if self._one_path:
            check_one_path([item.rendered for row in items for item in row])
        planes = Planes.empty(len(items), data.length, processor.tokenizer.pad_id)
        for row, examples in enumerate(items):
            planes.write(row, [item.rendered for item in examples], processor.prompt_tokens, processor.pictures)
        images, decoded = None, []
        if data.images:
            images = self._pictures.empty(len(items))
            decoded = [
                self._decoder_pool.submit(self._pictures.fill, row, out) for row, out in zip(items, images, strict=True)
            ]
        rejected = list(self._rejected)
        self._rejected.clear()
        return _Packed(items, planes, images, decoded, rejected, self._snapshot())

    def _finish(self, packed: _Packed) -> tuple[Batch, BatchInfo]:
        """Waits for the pictures, turns examples without them into padding, and shifts."""
        bad = [future.result() for future in packed.decoded] or [{} for _ in packed.items]
        for item in itertools.chain.from_iterable(packed.items):
            self._quarantine.met(self._titles[item.entry])
        self._set_apart(packed.rejected, met=True)
        self._set_apart([rejected for examples in bad for rejected in examples.values()], met=False)
        for row, examples in enumerate(bad):
            for number in examples:
                packed.planes.erase(row, number, self._processor.tokenizer.pad_id)
        return self._batch(packed, bad), self._info(packed)

    def _batch(self, packed: _Packed, bad: list[dict[int, Rejected]]) -> Batch:
        planes, budget, wanted = packed.planes, self._data.budget, self._processor.pictures
        targets, loss_weights = planes.shifted()
        source_ids = np.full((len(packed.items), budget.entries), -1, np.int32)
        pair_ids, labels = np.full_like(source_ids, -1), np.full(source_ids.shape, -1, np.float32)
        for row, items in enumerate(packed.items):
            entry = 0
            for number, item in enumerate(items):
                size, learned = item.size, item.rendered.labels
                if number not in bad[row]:
                    source_ids[row, entry : entry + size.entries] = item.entry
                    labels[row, entry : entry + len(learned)] = learned
                    pair_ids[row, entry : entry + len(learned)] = number if len(learned) > 1 else -1
                entry += size.entries
        fields: dict[str, Any] = {
            "tokens": planes.tokens,
            "targets": targets,
            "loss_weights": loss_weights,
            "segment_ids": planes.segment_ids,
            "branch_ids": planes.branch_ids,
            "block_ids": planes.block_ids,
            "positions": planes.positions,
            "example_index": planes.example_index,
            "source_ids": source_ids,
        }
        if packed.images is not None:
            fields["images" if self._features is None else "features"] = packed.images
            fields["image_ids"], fields["tile_index"] = slot_numbers(packed.items, self._data.images, bad)
            if self._processor.prompt_tokens:
                fields["visual_index"] = planes.visual_index
            if wanted.visible is not None:
                fields["visible_images"] = planes.visible_images
            if wanted.instruction:
                rows = [[item.rendered for item in items] for items in packed.items]
                fields["instructions"] = slot_instructions(rows, self._data.images, wanted.instruction, bad)
        if self._data.has_preferences:
            fields |= {"pair_ids": pair_ids, "labels": labels}
        return Batch(**fields)

    def _info(self, packed: _Packed) -> BatchInfo:
        ids = tuple(tuple(item.rendered.id for item in row) for row in packed.items)
        return self.info_at(packed.state, self._quarantine.counts(), ids)

    def info_at(
        self, state: Mapping[str, Any], quarantined: Mapping[str, int], example_ids: tuple[tuple[str, ...], ...]
    ) -> BatchInfo:
        """A batch's info, with counts at a position, which may be one that `merge_states` joined."""
        shards = state["shards"].values()
        placed, cut = (np.sum([shard[name] for shard in shards], axis=0) for name in ("placed", "cut"))
        used = np.sum([records_used(shard) for shard in shards], axis=0)
        return BatchInfo(
            example_ids=example_ids,
            sources=self._titles,
            examples_seen={title: int(n) for title, n in zip(self._titles, placed, strict=True)},
            epochs_seen={t: float(n / size) for t, n, size in zip(self._titles, used, self._sizes, strict=True)},
            quarantined=dict(quarantined),
            cut={title: int(n) for title, n in zip(self._titles, cut, strict=True) if n},
        )

    def _set_apart(self, rejected: Sequence[Rejected], *, met: bool) -> None:
        """Quarantines records; `met` says whether they are still to be counted as met."""
        for record in rejected:
            if met:
                self._quarantine.met(self._titles[record.entry])
            self._quarantine.add(self._titles[record.entry], record.id, record.reason)

    def _all_rejected(self) -> UserError:
        last = self._rejected[-1]
        self._set_apart(self._rejected, met=True)
        return UserError(
            f"source '{self._titles[last.entry]}': {STOP_AFTER} records in a row are unusable, the last one "
            f"{last.id}: {last.reason}"
        )


def _cores() -> int:
    """That this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _identity(entry: MixtureEntry, source: Source) -> list[Any]:
    """What the draws of an entry depend on, as JSON gives it back; with a digest of the records where there is one."""
    schedule = [list(point) for point in entry.schedule]
    contents = getattr(source, "contents", "")
    return [entry.title, entry.weight, schedule, entry.max_epochs, len(source), *([contents] if contents else [])]


def _check_state(state: Mapping[str, Any], fingerprint: Mapping[str, Any], shards: Collection[int]) -> None:
    for field, ours in fingerprint.items():
        theirs = state["data"].get(field)
        if theirs != ours:
            raise UserError(
                f"the saved data position was taken with {field} = {theirs}, this run has {ours}: "
                "change it back, or start the stage anew"
            )
    missing = [v for v in shards if str(v) not in state["shards"]]
    if missing:
        raise UserError(
            f"the saved data position lacks virtual shards {missing}: join those of all hosts of the earlier run"
        )
