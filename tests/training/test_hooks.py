"""Validation on fixed batches, when checkpoints are saved, and how a run leaves when it is asked to."""

import os
import signal
import threading

import jax
import numpy as np
import pytest
from etils import epath

from vlm_jax.batch import BatchInfo, concatenate
from vlm_jax.config import LossPolicy
from vlm_jax.errors import Preempted, RunError
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.training.hooks import CheckpointHook, Preemption, ValidationHook
from vlm_jax.training.loop import Event
from vlm_jax.training.loss_policy import LossGuard
from vlm_jax.training.recorder import Recorder
from vlm_jax.training.state import TrainState

INFO = BatchInfo((("a",),), ("toy",), {"toy": 1}, {"toy": 0.5}, {})


def finite_metrics(loss=1.0):
    sums = dict.fromkeys(("cross_entropy", "weight", "targets", "correct", "tokens"), np.ones(1, np.float32))
    norms = {"gradient_norm": 1.0, "update_norm": 1.0}
    scalars = {"learning_rate": 0.1, "positions": 2.0, "images": 0.0, "loss": loss} | norms
    return {**sums, **{name: np.float32(value) for name, value in scalars.items()}}


def event(step, last=False, state=None, loss=1.0):
    state = state or TrainState(step, {"w": step}, {}, {"m": step})
    return Event(step, last, state, finite_metrics(loss), INFO, lambda: {"at": step})


def test_validation_is_the_global_mean_over_its_batches_and_comes_when_due(toy):
    batches = [toy.batch(seed=1), toy.batch(rows=8, seed=2)]
    params = toy.params()
    objective = toy.objective()
    sums = jax.jit(lambda params, batch: objective(params, batch)[1])
    hook = ValidationHook(batches, sums, ("first", "second"), 4, build_layout(MeshConfig()))
    state = TrainState(None, params, {}, None)
    due = [event(step, last=step == 6, state=state) for step in range(1, 7)]
    for each in due:
        hook(each)
    assert [bool(each.extras) for each in due] == [False, False, False, True, False, True]
    expected = jax.device_get(objective(params, concatenate(batches))[1])
    found = due[3].extras["validation"]
    assert found == due[5].extras["validation"]
    assert found["loss"] == pytest.approx(expected["cross_entropy"].sum() / expected["weight"].sum(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(expected["correct"].sum() / expected["targets"].sum())
    second = expected["cross_entropy"][1] / expected["weight"][1]
    assert found["sources"]["second"]["loss"] == pytest.approx(second, rel=1e-5)


class FakeManager:
    """Notes what is saved and whether somebody waited for it."""

    def __init__(self):
        self.saved, self.waited = {}, False

    def save(self, step, params, optimizer, data, files, wait):
        self.saved[step] = (params, optimizer, data, files)
        self.waited |= wait


class Leaving:
    requested = False

    def due(self):
        return self.requested


@pytest.fixture
def parts(tmp_path):
    """(hook, manager, leaving, recorder, its lines) with a save every 3 steps and a line every 5."""
    manager, leaving, lines = FakeManager(), Leaving(), []
    recorder = Recorder(LossGuard(LossPolicy(), epath.Path(tmp_path), "toy"), "toy", ("toy",), (5, 3), [lines.append])
    hook = CheckpointHook(manager, 3, {"config.json": b"{}"}, recorder, leaving)
    return hook, manager, leaving, recorder, lines


def test_checkpoints_come_when_due_and_at_the_end_with_all_that_belongs_to_the_step(parts):
    hook, manager, _, recorder, _ = parts
    for step in range(1, 8):
        recorder(event(step, last=step == 7))
        hook(event(step, last=step == 7))
        assert manager.waited == (step == 7)
    assert list(manager.saved) == [3, 6, 7]
    assert manager.saved[6] == ({"w": 6}, {"m": 6}, {"at": 6}, {"config.json": b"{}"})


def test_a_spoilt_step_is_not_saved(parts):
    hook, manager, leaving, recorder, _ = parts
    recorder(event(1, loss=float("nan")))
    leaving.requested = True
    with pytest.raises(RunError):
        hook(event(1))
    assert not manager.saved


def test_a_run_that_shall_leave_saves_first_and_loses_no_step_of_its_metrics(parts):
    hook, manager, leaving, recorder, lines = parts
    for step in (1, 2, 3, 4):
        leaving.requested = step == 4
        recorder(event(step))
        if step < 4:
            hook(event(step))
    with pytest.raises(Preempted, match="step 4"):
        hook(event(4))
    assert list(manager.saved) == [3, 4]
    assert manager.waited
    assert [line["step"] for line in lines] == [3, 4]
    assert lines[-1]["tokens_seen"] == 4


def wait_for(leaving):
    """Until a signal is noted: on a busy machine it takes its time to get here."""
    for _ in range(1000):
        if leaving.requested:
            return
        threading.Event().wait(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_noted_and_handlers_given_back(number):
    before = signal.getsignal(number)
    with Preemption() as leaving:
        assert not leaving.requested
        os.kill(os.getpid(), number)
        wait_for(leaving)
        assert leaving.requested
    assert signal.getsignal(number) is before


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where a shell started the tests in the background and had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_interrupts_at_once(interruptible):
    with Preemption() as leaving:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(leaving)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_terminating_twice_still_saves():
    with Preemption() as leaving:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert leaving.requested
