"""Traces of a few steps for xprof, as `vlm train --profile FIRST:LAST` asks for them."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Collection, Iterator
from typing import Any

import jax
from etils import epath

from vlm_jax.batch import Batch
from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.training.loop import Step

log = logging.getLogger(__name__)

STEP_NAME = "train"
"""Name of a step's annotation in the trace; its number stands beside it."""


@dataclasses.dataclass(frozen=True)
class ProfiledSteps:
    """Which steps are traced."""

    stage: str
    first: int
    last: int


def parse_profile(text: str, experiment: Experiment) -> ProfiledSteps:
    """[STAGE:]FIRST:LAST, the steps of a stage counted from 1; without a name of the first stage.

    Raises:
        UserError: if it is not that, there is no such stage, or it has no such steps.
    """
    found = re.fullmatch(r"(?:(?P<stage>.+):)?(?P<first>\d+):(?P<last>\d+)", text)
    if not found:
        raise UserError(
            f"--profile {text}: write [STAGE:]FIRST:LAST, such as 10:12 or {experiment.stages[-1].name}:10:12"
        )
    name, first, last = found["stage"] or experiment.stages[0].name, int(found["first"]), int(found["last"])
    stage = next((stage for stage in experiment.stages if stage.name == name), None)
    if stage is None:
        names = ", ".join(stage.name for stage in experiment.stages)
        raise UserError(f"--profile {text}: there is no stage {name}; there are {names}")
    if not 1 <= first <= last <= stage.steps:
        raise UserError(
            f"--profile {text}: stage {name} has steps 1 to {stage.steps}; choose FIRST and LAST among them"
        )
    return ProfiledSteps(name, first, last)


@contextlib.contextmanager
def profiled(
    step: Step,
    steps: ProfiledSteps | None,
    stage: str,
    done: int,
    directory: epath.Path,
    left_out: Collection[int] = (),
) -> Iterator[Step]:
    """The step, traced where that is asked for; the trace is written even if the run ends meanwhile.

    Each process writes its own files into the directory. The device is waited for once, after the last traced step.

    Args:
        step: of the stage.
        steps: to be traced; None = none.
        stage: which stage this is.
        done: steps of it that are done.
        directory: where traces go.
        left_out: steps that are passed over, so that the step is not called for them.
    """
    if steps is None or steps.stage != stage:
        yield step
        return
    if done >= steps.last:
        log.warning("stage %s: steps %d to %d are done already, so none is traced", stage, steps.first, steps.last)
        yield step
        return
    trace = _Trace(step, steps, done, directory, left_out)
    try:
        yield trace
    finally:
        trace.stop()


def _options() -> jax.profiler.ProfileOptions:
    """Python's own calls are left out: they are so many that nothing else has room in the trace."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


class _Trace:
    """A step that starts and ends the trace as its turn comes."""

    def __init__(
        self, step: Step, steps: ProfiledSteps, done: int, directory: epath.Path, left_out: Collection[int]
    ) -> None:
        self._step, self._steps, self._number, self._directory = step, steps, done, directory
        self._left_out = left_out
        self._running = False

    def __call__(self, state: Any, batch: Batch) -> Any:
        self._number += 1
        while self._number in self._left_out:
            self._number += 1
        if not self._running and self._steps.first <= self._number <= self._steps.last:
            jax.profiler.start_trace(str(self._directory), profiler_options=_options())
            self._running = True
        with jax.profiler.StepTraceAnnotation(STEP_NAME, step_num=self._number):
            state, metrics = self._step(state, batch)
        if self._running and self._number >= self._steps.last:
            jax.block_until_ready(metrics)
            self.stop()
        return state, metrics

    def stop(self) -> None:
        """Writes the trace, if one is under way."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        log.info(
            "steps %d to %d are traced in %s; open it with: pip install xprof && xprof --logdir %s",
            *(self._steps.first, min(self._number, self._steps.last), self._directory, self._directory),
        )
