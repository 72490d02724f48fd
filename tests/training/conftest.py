"""A toy model for tests of the step and the loop, quick compilation, and rows made at random."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.batch import Batch, BatchInfo
from vlm_jax.losses.next_token import next_token_objective

VOCABULARY, WIDTH = 11, 6


@pytest.fixture(autouse=True)
def quick_compilation():
    """Most of the time of these tests is XLA's; they do not measure how well it optimises."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@dataclasses.dataclass
class Hidden:
    hidden: jax.Array


def toy_forward(variables, inputs, output="", method=""):
    """The smallest language model: an embedding, and a product with the head. Called like `VLM.apply`."""
    params = variables["params"]
    if method == "unembed":
        return inputs @ params["head"]["kernel"]
    return Hidden(jnp.tanh(params["embedding"])[inputs.tokens])


def toy_params(seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {"embedding": draw(VOCABULARY, WIDTH), "head": {"kernel": draw(WIDTH, VOCABULARY)}}


def toy_objective(sources=2):
    return lambda params, part: next_token_objective(toy_forward, params, part, sources)


def toy_batch(rows=8, length=10, seed=0):
    """Rows of two examples of different sources and some padding; every row has another share of targets."""
    rng = np.random.default_rng(seed)
    plane = (rows, length)
    segments = np.repeat([[1] * 4 + [2] * 4 + [0] * (length - 8)], rows, axis=0).astype(np.int32)
    share = np.linspace(0, 1, rows)[:, None]
    weights = rng.choice([0.5, 1.0, 3.0], plane) * (rng.random(plane) < share) * (segments > 0)
    return Batch(
        tokens=rng.integers(0, VOCABULARY, plane, np.int32),
        targets=rng.integers(0, VOCABULARY, plane, np.int32),
        loss_weights=weights.astype(np.float32),
        segment_ids=segments,
        branch_ids=np.zeros(plane, np.int32),
        block_ids=np.zeros(plane, np.int32),
        positions=np.zeros(plane, np.int32),
        example_index=np.maximum(segments - 1, 0),
        source_ids=rng.integers(0, 2, (rows, 3), np.int32),
        image_ids=rng.integers(0, 2, (rows, 2), np.int32),
    )


class ToyBatches:
    """A loader of toy batches; its state is the number of batches handed out."""

    def __init__(self, at=0, poison=None):
        self.at, self.poison = at, poison

    def __next__(self):
        self.at += 1
        batch = toy_batch(seed=self.at)
        if self.at == self.poison:
            batch = dataclasses.replace(batch, loss_weights=np.full_like(batch.loss_weights, np.nan))
        ids = tuple((f"a/{self.at}-{row}", f"b/{self.at}-{row}") for row in range(8))
        seen = {"first": 8 * self.at, "second": 4 * self.at}
        return batch, BatchInfo(ids, ("first", "second"), seen, {"first": self.at / 2, "second": self.at / 4}, {})

    def get_state(self):
        return {"at": self.at}

    def sum_up(self, info):
        return info


@pytest.fixture(scope="session")
def toy():
    return SimpleNamespace(params=toy_params, objective=toy_objective, batch=toy_batch, batches=ToyBatches)
