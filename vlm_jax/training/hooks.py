"""What happens after steps besides recording: validation, checkpoints, and leaving when asked to."""

import signal
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import PyTree

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import CheckpointManager
from vlm_jax.errors import Preempted
from vlm_jax.parallel import Layout, put_batch
from vlm_jax.training.loop import Event
from vlm_jax.training.recorder import Recorder, summarise


class ValidationHook:
    """Measures loss and accuracy on a fixed handful of batches; leaves them in the event's "validation"."""

    def __init__(
        self,
        batches: Sequence[Batch],
        sums: Callable[[PyTree, Batch], Mapping[str, jax.Array]],
        sources: Sequence[str],
        every: int,
        layout: Layout,
    ) -> None:
        """Args:
        batches: on the host; always the same ones.
        sums: compiled objective: (all parameters, batch) -> its sums.
        sources: names of the validation mixture's entries.
        every: steps between two validations.
        layout: where batches go.
        """
        self._batches, self._sums, self._sources = batches, sums, sources
        self._every, self._layout = every, layout

    def __call__(self, event: Event) -> None:
        """Validates if it is due."""
        if event.step % self._every and not event.last:
            return
        params = event.state.params
        results = [self._sums(params, put_batch(batch, self._layout)) for batch in self._batches]
        fetched = jax.device_get(results)
        total = {key: np.sum([sums[key] for sums in fetched], axis=0) for key in fetched[0]}
        event.extras["validation"] = summarise(total, self._sources)


class CheckpointHook:
    """Saves every so many steps, at the stage's end, and when the run is asked to leave."""

    def __init__(
        self,
        manager: CheckpointManager,
        every: int,
        files: Mapping[str, bytes],
        recorder: Recorder,
        leaving: "Preemption",
    ) -> None:
        """Args:
        manager: of the stage.
        every: steps between two saves.
        files: what makes a checkpoint self-contained besides arrays and data position.
        recorder: asked first whether all numbers were finite, so that no spoilt step is saved.
        leaving: tells whether the run shall end.
        """
        self._manager, self._every, self._files = manager, every, files
        self._recorder, self._leaving = recorder, leaving

    def __call__(self, event: Event) -> None:
        """Saves if it is due; raises Preempted after the save if the run shall end."""
        leave = self._leaving.requested
        if not (event.step % self._every == 0 or event.last or leave):
            return
        if leave:  # else the steps since the last line would be in no line, and in no total
            self._recorder.write(event)
        self._recorder.settle()
        state = event.state
        self._manager.save(event.step, state.params, state.optimizer, event.data_state(), self._files)
        if leave:
            self._manager.wait()
            raise Preempted(f"saved step {event.step} and stopped on request; run the same command to go on")


class Preemption:
    """Notes SIGTERM and the first Ctrl-C; the run then saves and leaves at the end of the step under way.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
