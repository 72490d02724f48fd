"""The pure step: a global mean whatever the parts, frozen parameters left alone, sums that brute force agrees with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import abstract_params
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.presets import vlm_2b
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, Rule, Schedule, assign_rules, build_optimizer
from vlm_jax.parallel import MeshConfig, build_layout, replicated
from vlm_jax.training.state import TrainState, create_state
from vlm_jax.training.step import split_rows, train_step

FROZEN = (Rule("embedding", rate=0), Rule(".*"))
ALL = (Rule(".*"),)


def placed(tree):
    return jax.device_put(tree, replicated(build_layout(MeshConfig())))


def prepare(toy, table=ALL, accumulation=1, name="sgd", clip=0.0, rate=1.0):
    """(state, step) of the toy model."""
    config = OptimizerConfig(name, schedule=Schedule(peak=rate, shape="constant"), clip=clip, table=table)
    params = placed(toy.params())
    rules = assign_rules(table, params)
    optimizer = build_optimizer(config, rules, 10)
    state = create_state(params, rules, optimizer, "float32", build_layout(MeshConfig()))
    step = functools.partial(
        train_step,
        objective=toy.objective(),
        optimizer=optimizer,
        rate=config.schedule.build(10),
        accumulation=accumulation,
    )
    return state, step


def brute_force(params, batch):
    """Σ w·ce and the other sums by source, position after position."""
    embedding, kernel = (np.asarray(x, np.float64) for x in (params["embedding"], params["head"]["kernel"]))
    names = ("cross_entropy", "weight", "targets", "correct", "tokens")
    sums = {name: np.zeros(2) for name in names}
    for b in range(batch.tokens.shape[0]):
        for s in range(batch.tokens.shape[1]):
            if batch.segment_ids[b, s] == 0:
                continue
            source = batch.source_ids[b, batch.example_index[b, s]]
            sums["tokens"][source] += 1
            weight = batch.loss_weights[b, s]
            if weight == 0:
                continue
            logits = np.tanh(embedding)[batch.tokens[b, s]] @ kernel
            target = batch.targets[b, s]
            sums["cross_entropy"][source] += weight * (np.log(np.exp(logits).sum()) - logits[target])
            sums["weight"][source] += weight
            sums["targets"][source] += 1
            sums["correct"][source] += logits.argmax() == target
    return sums


def test_sums_by_source_and_loss_are_those_of_brute_force(toy):
    state, step = prepare(toy)
    batch = toy.batch()
    expected = brute_force(toy.params(), batch)
    _, metrics = jax.jit(step)(state, batch)
    for name, sums in expected.items():
        np.testing.assert_allclose(metrics[name], sums, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected["cross_entropy"].sum() / expected["weight"].sum(), rtol=1e-5)
    assert metrics["positions"] == batch.tokens.size
    assert metrics["images"] == (batch.image_ids != 0).sum()


@pytest.fixture(scope="module")
def whole(toy):
    """The step over the whole batch at once."""
    state, step = prepare(toy)
    return jax.jit(step)(state, toy.batch())


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_nothing_beyond_rounding(toy, whole, parts):
    """Parts hold very different sums of weights, so a mean of means would be another number."""
    batch = toy.batch()
    shares = split_rows(batch, parts).loss_weights.sum((1, 2))
    assert shares.max() > 1.2 * shares.min()
    state, step = prepare(toy, accumulation=parts)
    after, metrics = jax.jit(step)(state, batch)
    for found, expected in zip(jax.tree.leaves((after, metrics)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_global_mean(toy, whole):
    """With plain gradient descent at rate 1 the gradient is what the parameters lost."""
    params, batch = toy.params(), toy.batch()

    def loss(params):
        total, sums = toy.objective()(params, batch)
        return total / sums["weight"].sum()

    gradient = jax.grad(loss)(params)
    moved = jax.tree.map(jnp.subtract, params, whole[0].params)
    for found, expected in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(whole[1]["gradient_norm"], optax.global_norm(gradient), rtol=1e-5)


def test_frozen_parameters_keep_every_bit_and_have_no_optimiser_state(toy):
    state, step = prepare(toy, FROZEN, name="adam")
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer)]
    assert any("kernel" in path for path in paths)
    assert not any("embedding" in path for path in paths)
    step = jax.jit(step)
    for seed in range(2):
        state, _ = step(state, toy.batch(seed=seed))
    np.testing.assert_array_equal(state.params["embedding"], toy.params()["embedding"])
    assert not np.allclose(state.params["head"]["kernel"], toy.params()["head"]["kernel"])


def count(jaxpr, primitive):
    """How often a primitive stands in a jaxpr and in what it calls."""
    inner = [p for equation in jaxpr.eqns for p in jax.tree.leaves(list(equation.params.values()))]
    below = [getattr(p, "jaxpr", p) for p in inner if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
    return sum(equation.primitive.name == primitive for equation in jaxpr.eqns) + sum(
        count(j, primitive) for j in below
    )


def test_no_gradient_of_a_frozen_parameter_is_computed(toy):
    """Products with a head: one forward, one for its gradient, one for what lies before it (gone if that is frozen)."""
    products, scatters = {}, {}
    for name, table in {"all": ALL, "frozen": FROZEN}.items():
        state, step = prepare(toy, table)
        jaxpr = jax.make_jaxpr(step)(state, toy.batch()).jaxpr
        products[name], scatters[name] = count(jaxpr, "dot_general"), count(jaxpr, "scatter-add")
    assert products["all"] == products["frozen"] + 1
    assert scatters["all"] == scatters["frozen"] + 1


def test_a_batch_without_targets_changes_nothing(toy):
    state, step = prepare(toy, name="sgd")
    batch = toy.batch()
    empty = jax.tree.map(np.copy, batch)
    empty.loss_weights[:] = 0
    after, metrics = jax.jit(step)(state, empty)
    assert metrics["loss"] == 0
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(toy.params()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_of_two_billion_parameters_is_checked_without_memory():
    config = vlm_2b()
    params = abstract_params(VLM(config))
    rules = assign_rules((Rule("^encoder/", rate=0), Rule(".*")), params)
    optimizer = build_optimizer(OptimizerConfig("lion"), rules, 10)
    trained = {name: tree for name, tree in params.items() if name != "encoder"}
    frozen = {"encoder": params["encoder"]}
    counter = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(counter, trained, frozen, jax.eval_shape(optimizer.init, trained))
    batch = Batch.spec(4, 1024, images=2, image_size=config.image_size, examples=4)
    step = functools.partial(
        train_step,
        objective=lambda p, part: next_token_objective(VLM(config).apply, p, part, 3, 256),
        optimizer=optimizer,
        rate=Schedule().build(10),
        accumulation=2,
    )
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["cross_entropy"].shape == (3,)
    assert sum(x.size for x in jax.tree.leaves(params)) > 1.8e9
