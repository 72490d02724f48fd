"""Trains a model of many adapters for two steps on a mesh of all devices and writes what came out; a program of
its own, since the number of devices is fixed when jax starts.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python adapters_on_mesh.py OUT
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import initialise_missing
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.adapters import CrossAttentionConfig
from vlm_jax.models.presets import ADAPTERS, vlm_mu
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, Schedule, assign_rules, build_optimizer
from vlm_jax.parallel import MeshConfig, build_layout, put_batch, use_layout
from vlm_jax.training.state import create_state
from vlm_jax.training.step import compile_step, train_step

OPTIMIZER = OptimizerConfig(
    arguments={"eps": 1e-2},  # with the usual 1e-8 Adam makes steps out of gradients that are nothing but rounding
    schedule=Schedule(peak=1e-2, shape="constant"),
)


def batch_for(config, rows=8, length=32):
    """Rows of one example: two pictures one after the other, then text that sees both."""
    before, images = 2 * max(1, config.prompt_tokens), 2
    in_sequence = config.prompt_tokens > 0
    spec = Batch.spec(
        rows, length, images=images, image_size=config.image_size, in_sequence=in_sequence, pictures=config.pictures
    )
    arrays = {
        field.name: None if (leaf := getattr(spec, field.name)) is None else np.zeros(leaf.shape, leaf.dtype)
        for field in dataclasses.fields(spec)
    }
    rng, places = np.random.default_rng(0), np.arange(length, dtype=np.int32)
    arrays["tokens"] = rng.integers(0, config.decoder.vocabulary_size, (rows, length), np.int32)
    arrays["targets"] = np.roll(arrays["tokens"], -1, axis=1)
    arrays["loss_weights"] = (rng.random((rows, length)) < np.linspace(0.1, 1, rows)[:, None]).astype(np.float32)
    arrays["segment_ids"] += 1
    arrays["positions"] += places
    arrays["images"] = rng.integers(0, 256, arrays["images"].shape, np.uint8)
    arrays["image_ids"] += np.arange(1, images + 1, dtype=np.int32)
    arrays["tile_index"] += np.array([0, 1, 1], np.int32)
    if in_sequence:
        arrays["visual_index"] += np.where(places < before, places, -1)
    if arrays["visible_images"] is not None:
        arrays["visible_images"][..., 1] += np.where(places < before // 2, 1, 2)
    return Batch(**arrays)


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


def many_adapters():
    """A mu whose visual tokens come from a Q-Former, beside gated blocks that read what a resampler makes."""
    mu = vlm_mu()
    prompt, memory = (ADAPTERS[name](mu, mu.prompt_tokens) for name in ("qformer", "resampler"))
    return dataclasses.replace(mu, adapter=CrossAttentionConfig(every=1, visible="all", memory=memory, prompt=prompt))


def run(mesh_config):
    """(losses of two steps, parameters by name, how many parameters of the adapter are spread over devices)."""
    config = many_adapters()
    losses, _, state = train(config, mesh_config, [batch_for(config)] * 2)
    flat = traverse_util.flatten_dict(state.params, sep="/")
    shared = sum(
        leaf.addressable_shards[0].data.size < leaf.size for key, leaf in flat.items() if key.startswith("adapter/")
    )
    return losses, flat, shared


def main(directory):
    """Writes OUT/sharded.json and OUT/sharded.npz."""
    losses, params, shared = run(MeshConfig(data=2, fsdp=2, tensor=2))
    Path(directory, "sharded.json").write_text(json.dumps({"losses": losses, "shared": shared}))
    np.savez(Path(directory, "sharded.npz"), **params)


if __name__ == "__main__":
    main(*sys.argv[1:])
