"""A saved model with random parameters, and a server for it that the tests share."""

from pathlib import Path

import jax
import numpy as np
import pytest
from clients import ROWS, server

from vlm_jax.checkpoints import abstract_params
from vlm_jax.checkpoints.converted import save_converted
from vlm_jax.checkpoints.files import read_files
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.config import load_experiment
from vlm_jax.generation import Engine
from vlm_jax.models.vlm import VLM
from vlm_jax.training.workdir import build_processor

TINY = Path(__file__).parents[1] / "training" / "tiny_experiment.py"


@pytest.fixture(autouse=True, scope="session")
def quick_compilation():
    """Most of the time of these tests is XLA's; they do not measure how well it optimises."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def save(directory, endless):
    """Writes a tiny model whose answers differ, as a step directory; endless: greedy answers never end."""
    experiment = load_experiment(str(TINY))
    processor = build_processor(experiment)
    processor.save(directory.with_name("processor"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.6 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), abstract_params(VLM(experiment.model))
    )
    params["decoder"]["embedding"][processor.tokenizer.end_id] *= 0 if endless else 2.5
    params = jax.tree.map(jax.numpy.asarray, params)
    save_converted(directory, experiment.model, params, read_files(directory.with_name("processor")))
    return directory


def load(directory):
    """An engine for a saved model."""
    model = load_model(str(directory))
    return Engine(model.config, model.params, model.processor, ROWS)


@pytest.fixture(scope="session")
def engine(tmp_path_factory, quick_compilation):
    """A model whose answers sometimes end by themselves."""
    return load(save(tmp_path_factory.mktemp("serving") / "tiny", endless=False))


@pytest.fixture(scope="session")
def endless_directory(tmp_path_factory, quick_compilation):
    """A saved model whose greedy answers never end by themselves."""
    return save(tmp_path_factory.mktemp("endless") / "tiny", endless=True)


@pytest.fixture(scope="session")
def endless(endless_directory):
    """That model, ready to answer."""
    return load(endless_directory)


@pytest.fixture(scope="session")
def client(engine):
    """A client of a server that all tests share."""
    with server(engine) as (_, client):
        yield client
