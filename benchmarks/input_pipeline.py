"""How much faster the loader alone is than the training step that it feeds.

For every stage of an experiment: batches a second that the loader gives when nothing else runs (draw, render, pack,
decode, augment), and steps a second of the compiled training step on one batch that stays on the device.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --experiment experiments/mu.py --json input_pipeline.json
"""

import argparse
import itertools
import json
import logging
import tempfile
import time
from pathlib import Path

import jax
from etils import epath
from rich import print as show
from rich.console import Console
from rich.table import Table

from data_pipelines.loader import make_loader
from data_pipelines.quarantine import Quarantine
from vlm_jax.checkpoints import abstract_params, initialise_missing, logical_axes
from vlm_jax.config import Experiment, Stage, load_experiment
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import assign_rules, build_optimizer
from vlm_jax.parallel import build_mesh, use_mesh
from vlm_jax.training.hooks import Preemption
from vlm_jax.training.recipe import Run, build_step
from vlm_jax.training.state import create_state
from vlm_jax.training.workdir import build_processor


def loader_rate(run: Run, stage: Stage, batches: int) -> float:
    """Batches a second of the loader alone, after the first ones."""
    loader = make_loader(stage, run.processor, seed=run.experiment.seed)
    for _ in itertools.islice(loader, 5):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(loader, batches):
        pass
    rate = batches / (time.perf_counter() - start)
    loader.close()
    return rate


def step_rate(run: Run, stage: Stage, steps: int) -> float:
    """Steps a second on a batch that is already there."""
    abstract = abstract_params(run.model, run.mesh)
    rules = assign_rules(stage.optimizer.table, abstract)
    optimizer = build_optimizer(stage.optimizer, rules, stage.steps, logical_axes(run.model))
    params = initialise_missing(run.model, run.mesh, run.experiment.seed)
    state = create_state(params, rules, optimizer, run.experiment.model.precision.compute, run.mesh)
    step = build_step(run, stage, optimizer, state)
    loader = make_loader(stage, run.processor, seed=run.experiment.seed)
    batch = jax.device_put(next(loader)[0])
    loader.close()
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return steps / (time.perf_counter() - start)


def measure(experiment: Experiment, batches: int, steps: int) -> dict[str, dict[str, float]]:
    """Figures of every stage."""
    mesh = build_mesh(experiment.mesh)
    processor, model = build_processor(experiment), VLM(experiment.model)
    figures = {}
    with tempfile.TemporaryDirectory() as directory, use_mesh(mesh):
        run = Run(
            experiment, epath.Path(directory), processor, model, mesh, Quarantine(), Preemption(), Console(stderr=True)
        )
        for stage in experiment.stages:
            fed, used = loader_rate(run, stage, batches), step_rate(run, stage, steps)
            figures[stage.name] = {"loader_batches_per_second": fed, "steps_per_second": used, "ratio": fed / used}
    return figures


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="experiments/quickstart.py", help="experiment file (quickstart)")
    parser.add_argument("--batches", type=int, default=200, help="timed batches of the loader (200)")
    parser.add_argument("--steps", type=int, default=30, help="timed training steps (30)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    logging.getLogger("jax").setLevel(logging.ERROR)
    figures = measure(load_experiment(arguments.experiment), arguments.batches, arguments.steps)
    table = Table("stage", "loader, batches/s", "step, batches/s", "ratio")
    for name, values in figures.items():
        table.add_row(name, *(f"{value:.1f}" for value in values.values()))
    show(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
