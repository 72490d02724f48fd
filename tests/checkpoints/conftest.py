"""One saved step of a tiny model; tests that harm it take a copy."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vlm_jax.checkpoints import CheckpointManager, abstract_params, initialise_missing
from vlm_jax.checkpoints.files import read_files
from vlm_jax.config import load_experiment
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, assign_rules, build_optimizer
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.serialise import to_json
from vlm_jax.training.state import abstract_optimizer, create_state
from vlm_jax.training.workdir import build_processor

TINY = Path(__file__).parents[1] / "training" / "tiny_experiment.py"


@pytest.fixture(autouse=True)
def quick_compilation():
    """Most of the time of these tests is XLA's; they do not measure how well it optimises."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def scramble(leaf):
    """Moments as after many steps; those of a new optimiser are all zero and would hide much."""
    drawn = np.random.default_rng(leaf.size).normal(scale=8, size=leaf.shape)
    return jax.device_put(drawn.astype(leaf.dtype), leaf.sharding)


@pytest.fixture(scope="session")
def tiny():
    """The tiny experiment, its model, and its parameters and optimiser state, both whole and abstract."""
    jax.config.update("jax_disable_most_optimizations", True)
    experiment, layout = load_experiment(str(TINY)), build_layout(MeshConfig())
    model = VLM(experiment.model)
    abstract = abstract_params(model, layout)
    config = OptimizerConfig()
    rules = assign_rules(config.table, abstract)
    optimizer = build_optimizer(config, rules, 10)
    params = initialise_missing(model, layout, seed=0)
    state = create_state(params, rules, optimizer, "float32", layout)
    return SimpleNamespace(
        experiment=experiment,
        model=model,
        layout=layout,
        params=params,
        optimizer=jax.tree.map(scramble, state.optimizer),
        abstract=abstract,
        abstract_optimizer=abstract_optimizer(optimizer, abstract, layout),
    )


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    """A workdir with the steps 2 and 4 of the stage "captions"; not to be changed."""
    workdir = tmp_path_factory.mktemp("saved")
    build_processor(tiny.experiment).save(workdir / "processor")
    (workdir / "config.json").write_text(to_json(tiny.experiment))
    processor = {f"processor/{name}": content for name, content in read_files(workdir / "processor").items()}
    manager = CheckpointManager(workdir / "checkpoints" / "captions")
    for step in (2, 4):
        files = {"config.json": to_json(tiny.experiment).encode(), **processor}
        manager.save(step, tiny.params, tiny.optimizer, {"at": step}, files)
    manager.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy of `saved` that may be harmed."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture
def step(workdir):
    """The newest step directory of the copy."""
    return workdir / "checkpoints" / "captions" / "4"


@pytest.fixture
def restore(tiny):
    """Restores a step into the shapes of the tiny model, or of another one."""

    def restore(step, **changes):
        parts = {"params": tiny.abstract, "optimizer": tiny.abstract_optimizer, **changes}
        manager = CheckpointManager(step.parent)
        try:
            return manager.restore(int(step.name), **parts)
        finally:
            manager.close()

    return restore


@pytest.fixture(scope="session")
def reshaped(tiny):
    """Abstract parameters of the tiny model with some of its decoder's fields changed."""

    def reshape(**fields):
        decoder = dataclasses.replace(tiny.experiment.model.decoder, **fields)
        return abstract_params(VLM(dataclasses.replace(tiny.experiment.model, decoder=decoder)), tiny.layout)

    return reshape
