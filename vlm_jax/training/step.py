"""One optimiser step, pure: it can be traced without data and knows neither model nor objective by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from vlm_jax.batch import Batch
from vlm_jax.config import LossPolicy
from vlm_jax.optim import at_step, merge
from vlm_jax.training.loss_watch import choose, judge
from vlm_jax.training.state import TrainState

Objective = Callable[[PyTree, Batch], tuple[Float[Array, ""], dict[str, Array]]]
"""(all parameters, part of a batch) -> (Σ w·ce, sums to report); sums of parts add up to those of the whole."""

Metrics = dict[str, Array]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    accumulation: int = 1,
    policy: LossPolicy = LossPolicy(),
) -> tuple[TrainState, Metrics]:
    """Moves the trained parameters by the gradient of Σ w·ce / Σ w, both sums over the whole global batch.

    Args:
        state: before the step.
        batch: the global batch.
        objective: what to minimise.
        optimizer: of the stage.
        rate: its learning rate as a function of the step, to report it.
        accumulation: parts that the batch is cut into, one after the other; the result does not depend on it beyond
            rounding.
        policy: whether a step may leave parameters and optimiser state as they were; the default one adds nothing.

    Returns:
        The state after the step; and the objective's sums, with "loss", "gradient_norm", "update_norm",
        "learning_rate", "positions", "images" and what `loss_watch.judge` adds.
    """
    weight = jnp.maximum(batch.loss_weights.sum(), 1e-6)

    def loss(trained: PyTree, part: Batch) -> tuple[Array, dict[str, Array]]:
        total, sums = objective(merge(trained, state.frozen), part)
        return total / weight, sums

    def gradient_and_sums(part: Batch) -> tuple[PyTree, dict[str, Array]]:
        gradient, sums = jax.grad(loss, has_aux=True)(state.trained, part)
        return gradient, sums

    if accumulation == 1:
        gradient, sums = gradient_and_sums(batch)
    else:
        gradient, sums = _add_up(gradient_and_sums, split_rows(batch, accumulation))
    updates, optimizer_state = optimizer.update(gradient, at_step(state.optimizer, state.step), state.trained)
    trained = optax.apply_updates(state.trained, updates)
    metrics = {
        **sums,
        "loss": sums["cross_entropy"].sum() / weight,
        "gradient_norm": optax.global_norm(gradient),
        "update_norm": optax.global_norm(updates),
        "learning_rate": jnp.asarray(rate(state.step), jnp.float32),
        "positions": jnp.asarray(batch.tokens.size, jnp.float32),
        "images": count_images(batch),
    }
    if policy.skips or state.watch is not None:
        skip, watch, told = judge(policy, state.watch, metrics)
        if skip is not None:
            trained, optimizer_state = choose(skip, (state.trained, state.optimizer), (trained, optimizer_state))
        state, metrics = dataclasses.replace(state, watch=watch), metrics | told
    return dataclasses.replace(state, step=state.step + 1, trained=trained, optimizer=optimizer_state), metrics


_next = jax.jit(lambda number: number + 1)


def pass_over(state: TrainState) -> TrainState:
    """The state after a step that does nothing but count."""
    return dataclasses.replace(state, step=_next(state.step))


def compile_step(step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]], state: TrainState) -> Any:
    """The step under jit; it gives up the state it is given, and the new one lies as the old one did.

    Metrics are on all devices, as the state's counter is, so every process can read them. Were the layout left to the
    compiler, parameters could move after the first step, and the second would be compiled anew for where they lie then.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, shardings.step))


def _add_up(function: Callable[[Batch], PyTree], parts: Batch) -> PyTree:
    """Sum of function(part) over the leading axis of `parts`, one part in memory at a time."""
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(lambda sum_, part: (jax.tree.map(jnp.add, sum_, function(part)), None), zeros, parts)
    return total


def split_rows(batch: Batch, parts: int) -> Batch:
    """[B, …] -> [parts, B / parts, …]; part a takes rows a, a + parts, …, so each device keeps the rows it has."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def count_images(batch: Batch) -> Float[Array, ""]:
    """Image slots in use."""
    if batch.image_ids is None:
        return jnp.zeros((), jnp.float32)
    return (batch.image_ids != 0).sum().astype(jnp.float32)
