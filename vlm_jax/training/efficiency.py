"""What a run's time went to, and how much of the devices' speed its steps use: figures for lines of metrics.jsonl.

    model_flops             of the steps of the line: what their batches ask of the model (`models.flops`), exactly
    model_flops_per_second  the same by the line's wall time
    mfu                     the same by what all devices can do (`parallel.peaks`), where that is known
    goodput                 share of all wall time since the run began that went to steps which counted
    spent                   that wall time in seconds, by what it went to

Time is the devices': while they work on a step it is the step's, whatever the host does meanwhile. Only while they wait
it is what the host is at:

    step        steps that counted
    data        drawing batches                     checkpoint  saving
    compile     tracing and compiling               validation  validating
    start       from a process's start, or a stage's, to its first batch: loading, restoring
    lost        steps that were skipped or that a restart did again, and the time in which no process ran
    other       everything else: lines of metrics, handing batches over
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from etils import epath

from vlm_jax.batch import Batch, BatchInfo
from vlm_jax.generation.compilations import compilations
from vlm_jax.models.flops import trained_names, work_flops
from vlm_jax.models.work import Work, work_of
from vlm_jax.parallel.peaks import peak_flops
from vlm_jax.parallel.processes import gather_json
from vlm_jax.training.lines import Line
from vlm_jax.training.loop import Batches, Event, Hook, Step
from vlm_jax.training.program import StageProgram
from vlm_jax.training.recorder import Interval
from vlm_jax.training.step_clock import StepClock, overlap

Part = Literal["step", "data", "compile", "checkpoint", "validation", "start", "lost", "other"]
PARTS: tuple[Part, ...] = ("step", "data", "compile", "checkpoint", "validation", "start", "lost", "other")
"""In this order they stand in a line."""


def read_began(workdir: epath.Path, now: float) -> float:
    """When the run began, in seconds since 1970: WORKDIR/began.json, written if this is the first process.

    Args:
        workdir: of the run.
        now: the time.
    """
    path = workdir / "began.json"
    if path.exists():
        try:
            return float(json.loads(path.read_bytes())["began"])
        except (ValueError, KeyError, TypeError):
            pass  # half written when a process was killed
    path.write_text(json.dumps({"began": now}) + "\n")
    return now


def peak_of_all() -> float | None:
    """What all devices of all processes can do together, in FLOP/s; None where that is not known."""
    peak = peak_flops(jax.devices()[0])
    return None if peak is None else peak * jax.device_count()


class Meter:
    """Measures one stage, or what is left of it: it stands round the batches, the step and the hooks of the loop.

    It reads nothing from the devices: a thread waits for their results (`step_clock`).
    """

    def __init__(
        self, program: StageProgram, began: float, process_began: float, last_line: Line | None, peak: float | None
    ) -> None:
        """Args:
        program: of the stage.
        began: when the run began, in seconds since 1970.
        process_began: when this process's part of it did.
        last_line: of metrics.jsonl, of what came before and counts.
        peak: FLOP/s of all devices together (`peak_of_all`); None = not known.
        """
        self._config, self._rows = program.model.config, program.stage.data.rows
        self._trained = trained_names(self._config, lambda name: program.rules[name].rate != 0)
        self._features_given = program.stage.cache_features
        self._peak = peak
        self._clock, self._began = StepClock(), began
        self._acts: list[tuple[Part, float, float]] = []
        self._drawn: Batch | None = None
        self._work, self._own_rows = Work(), 0
        before = (last_line or {}).get("spent", {})
        self._spent = {part: float(before.get(part, 0.0)) for part in PARTS}
        # A line that this process wrote is one of an earlier stage: nothing since then was lost.
        self._offset = time.time() - time.monotonic()
        accounted = began + sum(self._spent.values())
        self._spent["lost"] += max(0.0, process_began - accounted)
        self._mark = max(accounted, process_began) - self._offset
        self._starting = True

    def batches(self, batches: Batches) -> Batches:
        """The same batches; how long drawing them takes and what they ask of the model is noted."""
        return _Measured(batches, self)

    def step(self, step: Step) -> Step:
        """The same step; when it ends is noted."""

        def measured(state: Any, batch: Batch) -> Any:
            start, before = time.monotonic(), compilations()
            state, metrics = step(state, batch)
            self._add_drawn()
            now, after = time.monotonic(), compilations()
            compiled = after.compiled + after.loaded > before.compiled + before.loaded
            self._note("compile" if compiled else "other", start, now)
            self._clock.hand_over(now if compiled else start, metrics["loss"])
            return state, metrics

        return measured

    def hook(self, part: Part, hook: Hook) -> Hook:
        """The same hook; its time is that part's."""
        return _Timed(part, hook, self._note)

    def close(self) -> None:
        """Ends the thread."""
        self._clock.close()

    def figures(self, interval: Interval) -> Mapping[str, Any]:
        """For `Recorder`: what the module's docstring lists. All processes must call it."""
        self._account(interval.skipped / max(1, interval.steps))
        work, self._work, own_rows, self._own_rows = self._work, Work(), self._own_rows, 0
        found = gather_json([dataclasses.astuple(work), own_rows])
        # Where processes hold the same rows, they count them more than once.
        share = self._rows * interval.steps / max(1, sum(rows for _, rows in found))
        everywhere = sum((_work(values) for values, _ in found), Work()).times(share)
        flops = work_flops(self._config, self._trained, everywhere, features_given=self._features_given).total
        rate = flops / interval.seconds
        figures: dict[str, Any] = {"model_flops": flops, "model_flops_per_second": rate}
        if self._peak is not None:
            figures["mfu"] = rate / self._peak
        wall = sum(self._spent.values())
        return figures | {
            "goodput": self._spent["step"] / wall if wall else 0.0,
            "spent": {part: round(seconds, 3) for part, seconds in self._spent.items()},
        }

    def _note(self, part: Part, start: float, end: float) -> None:
        if self._starting:
            self._acts.append(("start", self._mark, start))
            self._starting = False
        self._acts.append((part, start, end))

    def _add_drawn(self) -> None:
        """Counts the batch that was drawn last, now that a step was made of it."""
        if self._drawn is not None:
            self._work += work_of(self._config, self._drawn)
            self._own_rows += len(self._drawn.segment_ids)

    def _account(self, skipped: float) -> None:
        """Shares out the time since the last line, of whose steps this share was skipped."""
        now, busy = time.monotonic(), self._clock.take()
        idle: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        for part, start, end in self._acts:
            rest = (max(start, self._mark), end)  # a line may have been written in the middle of an act
            idle[part] += max(0.0, rest[1] - rest[0]) - overlap(rest, busy)
        worked = sum(end - start for start, end in busy)
        idle["step"], idle["lost"] = worked * (1 - skipped), worked * skipped
        idle["other"] += max(0.0, now - self._mark - sum(idle.values()))
        for part, seconds in idle.items():
            self._spent[part] += seconds
        self._acts.clear()
        self._mark = now


def _work(values: list[Any]) -> Work:
    positions, slots, pairs, readers, memory_pairs = values
    return Work(positions, slots, tuple(pairs), readers, memory_pairs)


class _Measured:
    """Batches, measured."""

    def __init__(self, batches: Batches, meter: Meter) -> None:
        self._batches, self._meter = batches, meter
        self.get_state, self.sum_up = batches.get_state, batches.sum_up

    def __next__(self) -> tuple[Batch, BatchInfo]:
        start = time.monotonic()
        batch, info = next(self._batches)
        self._meter._drawn = batch
        self._meter._note("data", start, time.monotonic())
        return batch, info


class _Timed:
    """A hook, measured; to the loop it has the hook's own name."""

    def __init__(self, part: Part, hook: Hook, note: Callable[[Part, float, float], None]) -> None:
        self._part, self._hook, self._note = part, hook, note
        self.long = getattr(hook, "long", False)
        self.__name__ = getattr(hook, "__name__", type(hook).__name__)

    def __call__(self, event: Event) -> None:
        start = time.monotonic()
        try:
            self._hook(event)
        finally:
            self._note(self._part, start, time.monotonic())
