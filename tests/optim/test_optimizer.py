"""The optimiser's chain against plain NumPy and against optax's own; schedules at their corners."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlm_jax.errors import UserError
from vlm_jax.optim import OptimizerConfig, Rule, Schedule, assign_rules, build_optimizer

STEPS = 8
CONSTANT = Schedule(peak=0.1, shape="constant")


def params():
    rng = np.random.default_rng(0)
    return {"a": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}, "b": jnp.ones(5) * 2}


def gradients(count=3):
    rng = np.random.default_rng(1)
    return [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params()) for _ in range(count)]


def run(config):
    """Parameters after a few steps of given gradients."""
    now = params()
    optimizer = build_optimizer(config, assign_rules(config.table, now), STEPS)
    state = optimizer.init(now)
    for gradient in gradients():
        updates, state = optimizer.update(gradient, state, now)
        now = optax.apply_updates(now, updates)
    return now


def adamw_in_numpy(rate, decay, clip, schedule=lambda step: 0.1, b1=0.9, b2=0.999, eps=1e-8):
    now = {name: np.asarray(x, np.float64) for name, x in zip("ab", jax.tree.leaves(params()), strict=True)}
    first, second = ({name: np.zeros_like(x) for name, x in now.items()} for _ in range(2))
    for step, tree in enumerate(gradients()):
        gradient = {name: np.asarray(x, np.float64) for name, x in zip("ab", jax.tree.leaves(tree), strict=True)}
        norm = np.sqrt(sum((x**2).sum() for x in gradient.values()))
        for name, g in gradient.items():
            g = g * min(1.0, clip / norm) if clip else g
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g**2
            m, v = first[name] / (1 - b1 ** (step + 1)), second[name] / (1 - b2 ** (step + 1))
            now[name] -= schedule(step) * rate[name] * (m / (np.sqrt(v) + eps) + decay[name] * now[name])
    return now


def assert_close(tree, expected):
    for leaf, array in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, array, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_rates_decay_and_clip_are_those_of_adamw_written_by_hand(clip):
    table = (Rule("kernel", rate=0.3, weight_decay=0.5), Rule(".*", rate=2.0))
    found = run(OptimizerConfig(schedule=CONSTANT, clip=clip, table=table))
    assert_close(found, adamw_in_numpy({"a": 0.3, "b": 2.0}, {"a": 0.5, "b": 0.0}, clip))


def test_the_schedule_multiplies_the_decay_as_well():
    schedule = Schedule(peak=0.2, warmup=2, shape="linear")
    config = OptimizerConfig(schedule=schedule, clip=0.0, table=(Rule(".*", weight_decay=0.5),))
    expected = adamw_in_numpy({"a": 1, "b": 1}, {"a": 0.5, "b": 0.5}, 0.0, lambda step: [0.0, 0.1, 0.2][step])
    assert_close(run(config), expected)


def optax_result(optimizer):
    now, state = params(), None
    for gradient in gradients():
        state = state or optimizer.init(now)
        updates, state = optimizer.update(gradient, state, now)
        now = optax.apply_updates(now, updates)
    return now


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OptimizerConfig(table=(Rule(".*", weight_decay=0.1),)), lambda: optax.adamw(0.1, weight_decay=0.1)),
        (OptimizerConfig("adam", {"b1": 0.5, "b2": 0.9}), lambda: optax.adam(0.1, b1=0.5, b2=0.9)),
        (OptimizerConfig("adamw", {"weight_decay": 0.2}), lambda: optax.adamw(0.1, weight_decay=0.2)),
        (OptimizerConfig("sgd", {"momentum": 0.9}), lambda: optax.sgd(0.1, momentum=0.9)),
        (OptimizerConfig("lion"), lambda: optax.lion(0.1)),
        (OptimizerConfig("adafactor"), lambda: optax.adafactor(0.1)),
        (OptimizerConfig("muon"), lambda: optax.contrib.muon(0.1)),
    ],
    ids=lambda x: f"{x.name}-{'-'.join(x.arguments)}" if isinstance(x, OptimizerConfig) else "",
)
def test_any_optimiser_of_optax_by_its_name(config, expected):
    config = OptimizerConfig(config.name, config.arguments, CONSTANT, 0.0, config.table)
    assert_close(run(config), optax_result(expected()))


@pytest.mark.parametrize("name", ["adamm", "", "softmax_cross_entropy", "GradientTransformation", "tree"])
def test_what_is_no_optimiser_is_a_user_error(name):
    with pytest.raises(UserError, match="optimizer"):
        build_optimizer(OptimizerConfig(name), {}, STEPS)


def test_arguments_that_the_optimiser_does_not_take_are_named():
    with pytest.raises(UserError, match=r"optimizer\.arguments.*optax\.sgd.*b2"):
        build_optimizer(OptimizerConfig("sgd", {"b2": 0.9}), {}, STEPS)


def rates(schedule, steps=100):
    build = schedule.build(steps)
    return lambda step: float(build(step))


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "warmup_stable_decay"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_a_schedule_rises_to_the_peak_and_ends_at_its_floor(shape, warmup):
    rate = rates(Schedule(peak=2.0, warmup=warmup, shape=shape, final=0.1))
    assert rate(0) == (0.0 if warmup else 2.0)
    assert rate(warmup // 2) == pytest.approx(1.0 if warmup else 2.0)
    assert rate(warmup) == pytest.approx(2.0)
    assert rate(100) == pytest.approx(2.0 if shape == "constant" else 0.2)
    after = [rate(step) for step in range(warmup, 101)]
    assert all(a >= b for a, b in itertools.pairwise(after))


def test_half_way_between_the_corners():
    assert rates(Schedule(peak=2.0, warmup=20, shape="linear"))(60) == pytest.approx(1.0)
    assert rates(Schedule(peak=2.0, warmup=20, shape="cosine"))(60) == pytest.approx(1.0)
    assert rates(Schedule(peak=2.0, warmup=20, shape="cosine"))(40) == pytest.approx(1 + np.cos(np.pi / 4))


def test_warmup_stable_decay_is_flat_and_then_falls_in_the_last_share():
    rate = rates(Schedule(peak=2.0, warmup=20, shape="warmup_stable_decay", decay=0.25))
    assert [rate(step) for step in (20, 50, 80)] == pytest.approx([2.0] * 3)
    assert rate(90) == pytest.approx(1.0)
    assert rate(100) == 0.0
