"""The step of an arm's last stage, as training compiles it: how long it takes and how much memory it needs."""

import contextlib
import itertools
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console

from data_pipelines.loader import make_loader
from data_pipelines.template import load_processor
from vlm_jax.ablation.places import Run
from vlm_jax.batch import Batch
from vlm_jax.checkpoints import load_params, step_directory
from vlm_jax.parallel import build_layout, put_batch, use_layout
from vlm_jax.training.features import open_features
from vlm_jax.training.program import build_program

_BATCHES = 8
"""Batches over which examples are averaged."""


class StepCost:
    """A compiled step with its state and a batch of its training; the encoder, where it is frozen, has run before it.

    `positions` and `pictures` are an example's on average, `slots` those of a row.
    """

    def __init__(self, run: Run) -> None:
        """Loads the run's newest parameters, draws batches, and compiles.

        Args:
            run: that is done.
        """
        experiment, stage = run.experiment, run.experiment.stages[-1]
        layout = build_layout(experiment.mesh)
        program = build_program(experiment, len(experiment.stages) - 1, layout)
        params = load_params(step_directory(str(run.directory)), program.abstract_params)
        frozen, processor = program.encoder, load_processor(run.directory / "processor")
        with use_layout(layout):
            self._state = program.create_state(params)
            del params
            features = None
            if stage.cache_features and frozen is not None:
                quiet = Console(quiet=True)
                features = open_features(experiment, stage, run.directory, processor, frozen, self._state.params, quiet)
            with contextlib.closing(make_loader(stage, processor, seed=experiment.seed, features=features)) as loader:
                drawn = list(itertools.islice(loader, _BATCHES))
            batches = [batch for batch, _ in drawn]
            self._batch = put_batch(batches[0], layout)
            if frozen is not None:
                self._batch = frozen(self._state.frozen, self._batch)
            self._step = program.step.lower(self._state, self._batch).compile()
        examples = sum(len(row) for _, info in drawn for row in info.example_ids)
        self.positions = sum(int(np.count_nonzero(batch.segment_ids)) for batch in batches) / examples
        self.pictures = sum(_slots_in_use(batch) for batch in batches) / examples
        self.slots = stage.data.images
        self.figures: dict[str, Any] = {
            "positions_per_example": self.positions,
            "pictures_per_example": self.pictures,
            "example_ids": [list(row) for _, info in drawn[:1] for row in info.example_ids],
            **memory_of(self._step),
        }

    def advance(self) -> float:
        """Makes a step; wall seconds until its result is there."""
        start = time.perf_counter()
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def memory_of(compiled: Any) -> dict[str, int]:
    """What the compiler plans to need of one device, in bytes: nothing is run for it, and nothing else is counted."""
    planned = compiled.memory_analysis()
    arguments, temporary = planned.argument_size_in_bytes, planned.temp_size_in_bytes
    whole = arguments + temporary + planned.output_size_in_bytes - planned.alias_size_in_bytes
    return {"peak_bytes": whole, "argument_bytes": arguments, "temporary_bytes": temporary}


def _slots_in_use(batch: Batch) -> int:
    return 0 if batch.image_ids is None else int(np.count_nonzero(batch.image_ids))
