"""The training loop. It knows no model: it draws batches, calls the step, and tells the hooks."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import jax

from vlm_jax.batch import Batch, BatchInfo
from vlm_jax.errors import UserError
from vlm_jax.parallel import Layout, put_batch
from vlm_jax.training.state import TrainState
from vlm_jax.training.step import Metrics, pass_over

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Batches(Protocol):
    """What the loop needs of a loader (`share.SharedBatches`)."""

    def __next__(self) -> tuple[Batch, BatchInfo]:
        """The next batch.

        Raises:
            StopIteration: if the data are used up.
        """

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch, of all processes together; all must ask, process 0 is told."""

    def sum_up(self, info: BatchInfo) -> BatchInfo:
        """The last batch's info, in process 0 with the counts of all processes; they must all ask."""


@dataclasses.dataclass
class Event:
    """What hooks see after a step. Values on the device are not ready; reading them waits for the step."""

    step: int
    """Steps done in this stage."""
    last: bool
    """Whether this was the stage's last step."""
    state: TrainState
    metrics: Metrics
    """Empty if the step was passed over."""
    info: BatchInfo
    data_state: Callable[[], dict[str, Any]]
    """The loader's position after this step's batch, in process 0; valid until the hooks return. All must ask."""
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What earlier hooks leave for later ones, such as "validation"."""
    sum_up: Callable[[BatchInfo], BatchInfo] = lambda info: info
    """Makes the counts of this step's info those of all processes, in process 0; every process must ask."""


Hook = Callable[[Event], None]


def _unwatched(act: str, long: bool = False) -> None:
    """Nobody wants to know."""


def run_stage(
    state: TrainState,
    step: Step,
    batches: Batches,
    layout: Layout,
    first: int,
    last: int,
    hooks: Sequence[Hook],
    *,
    left_out: Collection[int] = (),
    begin: Callable[[str, bool], None] = _unwatched,
) -> TrainState:
    """Runs steps first + 1 .. last and returns the state after them.

    Each step: draw a batch, put it on the devices, start the step, call the hooks in order. Nothing here waits for the
    device, so the host prepares the next batch while the device works; hooks wait only at the steps where they read.

    Args:
        state: after `first` steps.
        step: the compiled step; it may give up (donate) the state it is given.
        batches: positioned after `first` batches.
        layout: where batches go.
        first, last: steps done before, and when this returns.
        hooks: called after every step with the same Event; an exception from one ends the run.
        left_out: steps that are passed over: they draw their batch, and change nothing.
        begin: told what comes next, and whether it may take long (`Watchdog.begin`).

    Raises:
        UserError: if the data are used up before the last step.
    """
    compiled = False
    with jax.transfer_guard("disallow"):
        for number in range(first + 1, last + 1):
            begin(f"drawing the batch of step {number}", False)
            try:
                batch, info = next(batches)
            except StopIteration:
                raise UserError(
                    f"the data are used up after {number - 1} of {last} steps: raise max_epochs in its mixture, "
                    "or lower its steps"
                ) from None
            begin(f"step {number}", not compiled)
            metrics: Metrics = {}
            if number in left_out:
                state = pass_over(state)
            else:
                state, metrics = step(state, put_batch(batch, layout))
                compiled = True
            event = Event(number, number == last, state, metrics, info, batches.get_state, sum_up=batches.sum_up)
            for hook in hooks:
                begin(f"{_name(hook)} after step {number}", getattr(hook, "long", False))
                hook(event)
    return state


def _name(hook: Hook) -> str:
    return getattr(hook, "__name__", type(hook).__name__)
