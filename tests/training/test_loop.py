"""The loop: the order of things, and nothing crosses between host and device but one batch a step."""

import functools

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from vlm_jax.config import LossPolicy
from vlm_jax.errors import UserError
from vlm_jax.optim import OptimizerConfig, Rule, Schedule, assign_rules, build_optimizer
from vlm_jax.parallel import MeshConfig, build_layout, replicated
from vlm_jax.training.loop import run_stage
from vlm_jax.training.loss_policy import LossGuard
from vlm_jax.training.recorder import Recorder
from vlm_jax.training.state import create_state
from vlm_jax.training.step import pass_over, train_step


@pytest.fixture(scope="module")
def compiled(toy):
    """A compiled step of the toy model, and what makes its first state."""
    config = OptimizerConfig(schedule=Schedule(peak=0.1), table=(Rule(".*"),))
    layout = build_layout(MeshConfig())
    rules = assign_rules(config.table, toy.params())
    optimizer = build_optimizer(config, rules, 20)
    pure = functools.partial(train_step, objective=toy.objective(), optimizer=optimizer, rate=config.schedule.build(20))

    def first_state():
        return create_state(jax.device_put(toy.params(), replicated(layout)), rules, optimizer, "float32", layout)

    return jax.jit(pure, donate_argnums=0), first_state, layout


def test_hooks_see_every_step_in_order_and_the_data_position_after_it(toy, compiled):
    step, first_state, layout = compiled
    seen = []

    def hook(event):
        seen.append((event.step, event.last, event.data_state(), int(jax.device_get(event.state.step))))

    state = run_stage(first_state(), step, toy.batches(), layout, 0, 3, [hook])
    assert seen == [(1, False, {"at": 1}, 1), (2, False, {"at": 2}, 2), (3, True, {"at": 3}, 3)]
    assert int(state.step) == 3


def test_going_on_from_a_step_equals_going_straight_bit_for_bit(toy, compiled):
    step, first_state, layout = compiled
    straight = run_stage(first_state(), step, toy.batches(), layout, 0, 4, [])
    half = run_stage(first_state(), step, toy.batches(), layout, 0, 2, [])
    whole = run_stage(half, step, toy.batches(at=2), layout, 2, 4, [])
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_that_is_left_out_draws_its_batch_and_changes_nothing_but_the_count(toy, compiled):
    step, first_state, layout = compiled
    seen = []
    left = run_stage(
        first_state(), step, toy.batches(), layout, 0, 3, [lambda event: seen.append(dict(event.metrics))], left_out=[2]
    )
    assert [bool(metrics) for metrics in seen] == [True, False, True]
    one = run_stage(first_state(), step, toy.batches(), layout, 0, 1, [])
    two = run_stage(pass_over(one), step, toy.batches(at=2), layout, 2, 3, [])
    assert int(left.step) == int(two.step) == 3
    for a, b in zip(jax.tree.leaves(left.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_is_told_what_begins_and_what_may_take_long(toy, compiled):
    step, first_state, layout = compiled
    acts = []

    class Saving:
        long = True

        def __call__(self, event):
            pass

    def look(event):
        pass

    def begin(act, long):
        acts.append((act, long))

    run_stage(first_state(), step, toy.batches(at=4), layout, 4, 6, [look, Saving()], begin=begin)
    assert acts[:4] == [
        ("drawing the batch of step 5", False),
        ("step 5", True),
        ("look after step 5", False),
        ("Saving after step 5", True),
    ]
    assert ("step 6", False) in acts


def test_the_first_step_that_is_computed_is_the_one_that_compiles(toy, compiled):
    step, first_state, layout = compiled
    acts = {}
    run_stage(first_state(), step, toy.batches(), layout, 0, 3, [], left_out=[1], begin=acts.__setitem__)
    assert (acts["step 2"], acts["step 3"]) == (True, False)


def test_what_a_hook_leaves_is_there_for_the_next_but_not_for_the_next_step(toy, compiled):
    step, first_state, layout = compiled
    seen = []
    hooks = [lambda event: event.extras.update({f"from {event.step}": 1}), lambda event: seen.append(event.extras)]
    run_stage(first_state(), step, toy.batches(), layout, 0, 2, hooks)
    assert seen == [{"from 1": 1}, {"from 2": 1}]


class Watched:
    """A metric that counts who reads it; on the CPU backend NumPy looks into a jax array without a trace."""

    def __init__(self, array, counts):
        self._array, self._counts = array, counts

    def __array__(self, dtype=None, copy=None):
        self._counts["read"] += 1
        return np.array(self._array, dtype)

    def __float__(self):
        return float(self.__array__())

    def item(self):
        return self.__array__().item()


@pytest.fixture
def transfers(monkeypatch):
    """Counts what the CPU backend does not: arrays put on the device, and arrays that the host reads."""
    counts = {"put": 0, "read": 0}
    value, put = ArrayImpl._value, jax.device_put

    def read(self):
        counts["read"] += 1
        return value.fget(self)

    def counted_put(*arguments, **options):
        counts["put"] += 1
        return put(*arguments, **options)

    monkeypatch.setattr(ArrayImpl, "_value", property(read))
    monkeypatch.setattr(jax, "device_put", counted_put)
    return counts


def watch(step, counts):
    """The step, which refuses arrays of the host (they would be copied in silence), with metrics that are watched."""

    def checked(state, batch):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((state, batch)))
        state, metrics = step(state, batch)
        return state, {name: Watched(value, counts) for name, value in metrics.items()}

    return checked


def run_and_count(toy, compiled, tmp_path, transfers, extra_hooks=()):
    """[(puts, reads)] of every step of ten, with a line of metrics at every fifth."""
    step, first_state, layout = compiled
    lines, counted = [], []
    recorder = Recorder(LossGuard(LossPolicy(), tmp_path, "toy"), "toy", ("first", "second"), (5,), [lines.append])
    state = first_state()
    run_stage(state, step, toy.batches(), layout, 0, 1, [])
    state, before = first_state(), dict(transfers)

    def count(event):
        counted.append((transfers["put"] - before["put"], transfers["read"] - before["read"]))
        before.update(transfers)

    run_stage(state, watch(step, transfers), toy.batches(), layout, 0, 10, [recorder, *extra_hooks, count])
    assert [line["step"] for line in lines] == [5, 10]
    return counted


def test_between_logged_steps_one_batch_goes_to_the_device_and_nothing_comes_back(toy, compiled, tmp_path, transfers):
    counted = run_and_count(toy, compiled, tmp_path, transfers)
    assert [puts for puts, _ in counted] == [1] * 10
    quiet = [reads for i, (_, reads) in enumerate(counted, 1) if i % 5]
    assert quiet == [0] * 8
    assert all(counted[i][1] > 0 for i in (4, 9))


@pytest.mark.parametrize("read", [float, np.asarray, jax.device_get, np.isfinite, lambda x: x.item()])
def test_the_count_would_notice_a_hook_that_reads(toy, compiled, tmp_path, transfers, read):
    counted = run_and_count(toy, compiled, tmp_path, transfers, [lambda event: read(event.metrics["loss"])])
    assert all(reads for _, reads in counted)


def test_data_that_end_before_the_steps_do_are_an_error(toy, compiled):
    step, first_state, layout = compiled

    class Two(type(toy.batches())):
        def __next__(self):
            if self.at == 2:
                raise StopIteration
            return super().__next__()

    assert int(run_stage(first_state(), step, Two(), layout, 0, 2, []).step) == 2
    with pytest.raises(UserError, match="used up after 2 of 4 steps: raise max_epochs"):
        run_stage(first_state(), step, Two(), layout, 0, 4, [])
