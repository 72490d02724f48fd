"""One process's share of the data: it reads the shards whose rows its devices hold, and keeps step with the others."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from data_pipelines.loader import Loader, merge_states
from data_pipelines.mixture import DataConfig, shards_of_places
from data_pipelines.quarantine import Quarantine, join_files
from vlm_jax.batch import Batch, BatchInfo
from vlm_jax.parallel import Layout, held_places
from vlm_jax.parallel.processes import count, gather_at_first, gather_json, is_first, wait_for_all


def own_shards(data: DataConfig, layout: Layout) -> list[int]:
    """The virtual shards whose rows this process's devices hold; of a process that is alone, all.

    Raises:
        UserError: if they hold only a part of a shard's rows.
    """
    return shards_of_places(data, held_places(data.rows, layout), count())


class SharedBatches:
    """A loader's batches in step with those of the other processes; what it says of the whole, all must ask for."""

    def __init__(self, loader: Loader, quarantine: Quarantine) -> None:
        """Args:
        loader: of the shards whose rows this process's devices hold.
        quarantine: of this process.
        """
        self._loader, self._quarantine = loader, quarantine

    def __iter__(self) -> "SharedBatches":
        return self

    def __next__(self) -> tuple[Batch, BatchInfo]:
        """This process's rows of the next global batch.

        Raises:
            StopIteration: in all processes, when the data of all are used up.
        """
        batch, info = next(self._loader)
        if self._loader.finite and not any(gather_json(any(info.example_ids))):
            raise StopIteration
        return batch, info

    def get_state(self) -> dict[str, Any]:
        """The position of all processes together after the last batch, in process 0, which writes it; else empty."""
        found = gather_at_first(self._loader.get_state())
        return merge_states(found) if found else {}

    def sum_up(self, info: BatchInfo) -> BatchInfo:
        """A batch's info with the counts of all processes, after the last batch; ids are those of this process.

        The others, which write no lines, get it as it is.
        """
        found = gather_at_first([self._loader.get_state(), dict(self._quarantine.new_counts())])
        if not found:
            return info
        # Processes that hold the same rows read the same shards, and meet the same records.
        new = {tuple(sorted(state["shards"])): counts for state, counts in found}
        quarantined = _added(self._quarantine.known_counts(), *new.values())
        whole = self._loader.info_at(merge_states([state for state, _ in found]), quarantined, ())
        return dataclasses.replace(whole, example_ids=info.example_ids)


def _added(*counts: Mapping[str, int]) -> dict[str, int]:
    names = {name for each in counts for name in each}
    return {name: int(np.sum([each.get(name, 0) for each in counts])) for name in sorted(names)}


def open_quarantine(workdir: epath.Path, limit: float) -> Quarantine:
    """This process's account of unusable records: of the first WORKDIR/quarantine.jsonl, which all have read."""
    path = workdir / "quarantine.jsonl"
    join_quarantines(workdir)
    own = path if is_first() else workdir / f"quarantine-{jax.process_index()}.jsonl"
    quarantine = Quarantine(own, limit, known=None if is_first() else path)
    wait_for_all()
    return quarantine


def join_quarantines(workdir: epath.Path) -> None:
    """Makes one file of those of all processes, also of a run that was killed; all must call this."""
    wait_for_all()
    if is_first():
        join_files(workdir / "quarantine.jsonl", sorted(workdir.glob("quarantine-*.jsonl")))
    wait_for_all()
