"""What happens after steps besides recording: validation, checkpoints, and leaving when asked to."""

import os
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
from vlm_jax.parallel import Layout, processes, put_batch
from vlm_jax.training.loop import Event
from vlm_jax.training.loss_watch import FILE as WATCH_FILE
from vlm_jax.training.recorder import Recorder, summarise
from vlm_jax.training.state import TrainState


class ValidationHook:
    """Measures loss and accuracy on a fixed handful of batches; leaves them in the event's "validation"."""

    long = True
    """May take longer than other hooks."""

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

    long = True
    """May take longer than other hooks."""

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
        leave = self._leaving.due()
        if event.last:  # the next chance would be after the first step of the next stage, which has to be compiled
            leave |= self._leaving.due()
        if not (event.step % self._every == 0 or event.last or leave):
            return
        if leave:  # else the steps since the last line would be in no line, and in no total
            self._recorder.write(event)
        self._recorder.settle()
        self.save(event.step, event.state, event.data_state(), wait=leave or event.last)
        if leave:
            raise Preempted(f"saved step {event.step} and stopped on request; run the same command to go on")

    def save(self, step: int, state: TrainState, data: Mapping[str, Any], wait: bool) -> None:
        """Saves a state.

        Args:
            step: steps done.
            state: after them.
            data: the loader's position there.
            wait: until it is on disk.
        """
        files = self._files if state.watch is None else {**self._files, WATCH_FILE: state.watch.to_json()}
        self._manager.save(step, state.params, state.optimizer, data, files, wait=wait)


class Preemption:
    """Notes SIGTERM and the first Ctrl-C; the run then saves and leaves at the end of a step.

    A process that is alone does so after the step under way. Several, of which any may have been sent a signal, agree
    on a step with the help of jax, whose own handler of SIGTERM must stay in place; Ctrl-C is passed on to it. A second
    Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether this process was sent a signal that it handles itself."""
        self._alone = processes.count() == 1
        self._asked = 0
        self._before: dict[int, Any] = {}

    def due(self) -> bool:
        """Whether the run shall save and leave now: the same in all processes. All ask once after every step."""
        self._asked += 1  # and not the step's number: jax counts from 0 in a run that was resumed, too
        return self.requested if self._alone else processes.preemption_requested(self._asked)

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
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
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)
