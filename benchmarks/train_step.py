"""How much of this machine's matrix-product speed a training step reaches.

Times whole optimiser steps of a preset (forward, backward, AdamW) on packed rows, and in turn with them a plain matrix
product of the same number format, and prints tokens/s, FLOP/s and the ratio. FLOPs are the model's, by formula
(vlm_jax/models/flops.py): recomputation does not count as work.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --preset mu --length 256 --rows 8 --json train_step.json
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import print as show
from rich.table import Table

from vlm_jax.batch import Batch
from vlm_jax.checkpoints import initialise_missing
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.flops import training_flops
from vlm_jax.models.layers import Precision
from vlm_jax.models.presets import PRESETS
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.optim import OptimizerConfig, assign_rules, build_optimizer
from vlm_jax.parallel import MeshConfig, build_layout, use_layout
from vlm_jax.training.state import create_state
from vlm_jax.training.step import compile_step, train_step


def make_batch(config: VLMConfig, rows: int, length: int, images: int) -> Batch:
    """Full rows of random tokens, each one example that begins with its pictures; every position bears loss."""
    spec = Batch.spec(rows, length, images=images, image_size=config.image_size)
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        field.name: None if (leaf := getattr(spec, field.name)) is None else np.zeros(leaf.shape, leaf.dtype)
        for field in dataclasses.fields(spec)
    }
    arrays["tokens"] = rng.integers(0, config.decoder.vocabulary_size, (rows, length), np.int32)
    arrays["targets"] = np.roll(arrays["tokens"], -1, axis=1)
    arrays["loss_weights"] += 1
    arrays["segment_ids"] += 1
    arrays["positions"] += np.arange(length, dtype=np.int32)
    if images:
        arrays["images"] = rng.integers(0, 256, arrays["images"].shape, np.uint8)
        arrays["image_ids"] += np.arange(1, images + 1, dtype=np.int32)
        visual = images * config.prompt_tokens
        arrays["visual_index"] += np.where(np.arange(length) < visual, np.arange(length), -1).astype(np.int32)
    return Batch(**arrays)


def seconds(function: Callable[[], Any]) -> float:
    """Wall seconds of one call, its result awaited."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def matmul(dtype: str) -> tuple[Callable[[], Any], float]:
    """A large matrix product, and its FLOPs."""
    shape = (2048, 4096, 4096)
    a = jax.random.normal(jax.random.key(0), shape[:2], dtype)
    b = jax.random.normal(jax.random.key(1), shape[1:], dtype)
    product = jax.jit(lambda x, y: x @ y)
    return lambda: product(a, b), 2.0 * shape[0] * shape[1] * shape[2]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="0.2b")
    parser.add_argument("--rows", type=int, default=4, help="rows a batch (4)")
    parser.add_argument("--length", type=int, default=512, help="positions a row (512)")
    parser.add_argument("--images", type=int, default=1, help="pictures a row (1)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute dtype (float32)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    config = dataclasses.replace(PRESETS[arguments.preset](), precision=Precision(compute=arguments.dtype))
    sizes = (arguments.rows, arguments.length, arguments.images)
    model, layout = VLM(config), build_layout(MeshConfig())
    with use_layout(layout):
        params = initialise_missing(model, layout, seed=0)
        optimizer_config = OptimizerConfig()
        rules = assign_rules(optimizer_config.table, params)
        optimizer = build_optimizer(optimizer_config, rules, steps=1000)
        state = create_state(params, rules, optimizer, arguments.dtype, layout)
        del params
        objective = functools.partial(next_token_objective, model.apply, sources=1, chunk=128)
        pure = functools.partial(
            train_step,
            objective=lambda p, part: objective(p, part),
            optimizer=optimizer,
            rate=optimizer_config.schedule.build(1000),
        )
        step = compile_step(pure, state)
        batch = jax.device_put(make_batch(config, *sizes))

        def advance() -> jax.Array:
            nonlocal state
            state, metrics = step(state, batch)
            return metrics["loss"]

        product, product_flops = matmul(arguments.dtype)
        seconds(advance), seconds(product)
        times = [
            (seconds(advance), statistics.median(seconds(product) for _ in range(5))) for _ in range(arguments.steps)
        ]

    flops = training_flops(config, *sizes)
    ratios = [(flops / step_time) / (product_flops / product_time) for step_time, product_time in times]
    step_time, product_time = (statistics.median(column) for column in zip(*times, strict=True))
    figures = {
        "preset": arguments.preset,
        "parameters": sum(x.size for x in jax.tree.leaves(state.trained)),
        "rows": sizes[0],
        "length": sizes[1],
        "images": sizes[2],
        "dtype": arguments.dtype,
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "step_seconds": step_time,
        "tokens_per_second": sizes[0] * sizes[1] / step_time,
        "step_gflops": flops / step_time / 1e9,
        "matmul_gflops": product_flops / product_time / 1e9,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }
    table = Table("figure", "value", title=f"training step, preset {arguments.preset}")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    show(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
