"""A few steps of training."""

import functools

import jax
import numpy as np

from vlm_jax.checkpoints import initialise_missing
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, Schedule, assign_rules, build_optimizer
from vlm_jax.parallel import build_layout, put_batch, use_layout
from vlm_jax.training.state import create_state
from vlm_jax.training.step import compile_step, train_step

OPTIMIZER = OptimizerConfig(
    arguments={"eps": 1e-2},  # with the usual 1e-8 Adam makes steps out of gradients that are nothing but rounding
    schedule=Schedule(peak=1e-2, shape="constant"),
)


def train(config, mesh_config, batches, optimizer_config=OPTIMIZER, steps=100):
    """A few steps from random parameters: (losses, parameters before, state after)."""
    layout, model = build_layout(mesh_config), VLM(config)
    with use_layout(layout):
        params = initialise_missing(model, layout, seed=0)
        before = jax.tree.map(np.asarray, params)
        rules = assign_rules(optimizer_config.table, params)
        optimizer = build_optimizer(optimizer_config, rules, steps)
        state = create_state(params, rules, optimizer, "float32", layout)
        step = functools.partial(
            train_step,
            objective=lambda p, part: next_token_objective(model.apply, p, part, 2),
            optimizer=optimizer,
            rate=optimizer_config.schedule.build(steps),
        )
        step, losses = compile_step(step, state), []
        for batch in batches:
            state, metrics = step(state, put_batch(batch, layout))
            losses.append(float(metrics["loss"]))
    return losses, before, state
