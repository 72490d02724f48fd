"""Runs a few steps of the tiny model on a mesh of all devices and writes what came out; a program of its own, since
the number of devices is fixed when jax starts.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python eight_devices.py OUT DATA FSDP TENSOR …
"""

import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import CheckpointManager, abstract_params, initialise_missing
from vlm_jax.checkpoints.checksums import tree_checksums
from vlm_jax.config import load_experiment
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, Rule, Schedule, assign_rules, build_optimizer
from vlm_jax.parallel import MeshConfig, build_layout, put_batch, use_layout
from vlm_jax.training.state import create_state
from vlm_jax.training.step import compile_step, train_step

TINY = Path(__file__).parents[1] / "training" / "tiny_experiment.py"
OPTIMIZER = OptimizerConfig(
    arguments={"eps": 1e-2},  # with the usual 1e-8 Adam makes steps out of gradients that are nothing but rounding
    schedule=Schedule(peak=1e-2, shape="constant"),
    table=(Rule(".*", weight_decay=0.1),),
)


def batch_for(model, rows=8, length=24):
    """Rows of one example: a picture, then text; every row has another share of targets."""
    rng = np.random.default_rng(0)
    plane = (rows, length)
    index = np.full(plane, -1, np.int32)
    index[:, 1 : 1 + model.prompt_tokens] = np.arange(model.prompt_tokens)
    weights = (rng.random(plane) < np.linspace(0.1, 1, rows)[:, None]).astype(np.float32)
    vocabulary = model.decoder.vocabulary_size
    return Batch(
        tokens=rng.integers(0, vocabulary, plane, np.int32),
        targets=rng.integers(0, vocabulary, plane, np.int32),
        loss_weights=weights,
        segment_ids=np.ones(plane, np.int32),
        branch_ids=np.zeros(plane, np.int32),
        block_ids=(index >= 0).astype(np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        example_index=np.zeros(plane, np.int32),
        source_ids=np.zeros((rows, 1), np.int32),
        images=rng.integers(0, 255, (rows, 1, *model.image_size, 3), np.uint8),
        image_ids=np.ones((rows, 1), np.int32),
        tile_index=np.zeros((rows, 1, 3), np.int32),
        visual_index=index,
    )


def run(mesh_config, accumulation=1, steps=2, model=None, make_batch=batch_for, change=lambda params: params):
    """(what came out as plain numbers, the state) of a few steps on a mesh."""
    config, layout = model or load_experiment(str(TINY)).model, build_layout(mesh_config)
    model = VLM(config)
    with use_layout(layout):
        params = change(initialise_missing(model, layout, seed=0))
        rules = assign_rules(OPTIMIZER.table, params)
        optimizer = build_optimizer(OPTIMIZER, rules, 10)
        out = {"drawn": tree_checksums(params)}
        state = create_state(params, rules, optimizer, "float32", layout)
        step = functools.partial(
            train_step,
            objective=lambda p, part: next_token_objective(model.apply, p, part, 1),
            optimizer=optimizer,
            rate=OPTIMIZER.schedule.build(10),
            accumulation=accumulation,
        )
        step = compile_step(step, state)
        out["losses"] = []
        for _ in range(steps):
            state, metrics = step(state, put_batch(make_batch(config), layout))
            out["losses"].append(float(metrics["loss"]))
        out["checksums"] = tree_checksums(state.params)
        flat = traverse_util.flatten_dict(state.params, sep="/")
        out["whole"] = {name: list(leaf.shape) for name, leaf in flat.items()}
        out["shard"] = {name: list(leaf.addressable_shards[0].data.shape) for name, leaf in flat.items()}
        moments = jax.tree_util.tree_leaves_with_path(state.optimizer)
        out["moment_shards"] = {
            jax.tree_util.keystr(path): list(leaf.addressable_shards[0].data.shape) for path, leaf in moments
        }
        out["abstract_agrees"] = jax.tree.all(
            jax.tree.map(
                lambda a, x: a.sharding.is_equivalent_to(x.sharding, x.ndim),
                abstract_params(model, layout),
                state.params,
            )
        )
    return out, state


def main(directory, *sizes):
    """Runs every mesh DATA FSDP TENSOR; writes OUT/NAME.json, OUT/NAME.npz and a checkpoint OUT/NAME/1."""
    for data, fsdp, tensor in zip(*[map(int, sizes)] * 3, strict=True):
        name = f"{data}x{fsdp}x{tensor}"
        out, state = run(MeshConfig(data, fsdp, tensor))
        Path(directory, f"{name}.json").write_text(json.dumps(out))
        np.savez(Path(directory, f"{name}.npz"), **traverse_util.flatten_dict(state.params, sep="/"))
        manager = CheckpointManager(Path(directory, name))
        manager.save(1, state.params, state.optimizer, {}, {"config.json": b"{}"})
        manager.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
