"""Random parameters, and rows written by hand or at random."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.batch import Batch
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.vlm import VLM


@pytest.fixture(autouse=True)
def quick_compilation():
    """Most of the time of these tests is XLA's; they do not measure how well it optimises."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def random_params(module, *arguments, seed=0):
    """Parameters without running init; biases and scales too are away from 0 and 1, so that none goes unnoticed."""
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(seed), *arguments))
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        mean = float(path[-1].key == "scale")
        return jnp.asarray(mean + 0.25 * rng.standard_normal(shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(boxed)["params"])


def as_float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def pack(examples, length, prompt_tokens=0, image_size=(0, 0), slots=0):
    """One row of examples, each {'trunk': tokens, 'branches': [tokens], 'images': [pixels]}.

    A negative token -k stands for picture k - 1 of the example: prompt_tokens positions that form a block.
    """
    planes = {
        name: np.zeros(length, np.int32) for name in ("tokens", "segment", "branch", "block", "position", "entry")
    }
    visual = np.full(length, -1, np.int32)
    at, blocks, pictures = 0, 0, []

    def write(token, segment, branch, position, block=0, filled=-1):
        nonlocal at
        for name, value in zip(planes, (token, segment, branch, block, position, segment - 1), strict=True):
            planes[name][at] = value
        visual[at] = filled
        at += 1

    for segment, example in enumerate(examples, 1):
        position = 0
        for token in example["trunk"]:
            if token >= 0:
                write(token, segment, 0, position)
                position += 1
                continue
            blocks += 1
            slot = len(pictures) - token - 1
            for n in range(prompt_tokens):
                write(4, segment, 0, position, blocks, slot * prompt_tokens + n)
                position += 1
        pictures += example.get("images", [])
        for branch, tokens in enumerate(example.get("branches", []), 1):
            for offset, token in enumerate(tokens):
                write(token, segment, branch, position + offset)
    visuals = {}
    if slots:
        images = np.zeros((1, slots, *image_size, 3), np.uint8)
        images[0, : len(pictures)] = np.reshape(pictures, (-1, *image_size, 3))
        visuals = {"images": images, "visual_index": visual[None]}
    row = {name: plane[None] for name, plane in planes.items()}
    return Batch(
        tokens=row["tokens"],
        targets=np.zeros((1, length), np.int32),
        loss_weights=np.zeros((1, length), np.float32),
        segment_ids=row["segment"],
        branch_ids=row["branch"],
        block_ids=row["block"],
        positions=row["position"],
        example_index=np.maximum(row["entry"], 0),
        source_ids=np.zeros((1, max(1, len(examples))), np.int32),
        **visuals,
    )


@pytest.fixture(scope="session")
def make():
    return SimpleNamespace(params=random_params, float64=as_float64, pack=pack)


@pytest.fixture(scope="session")
def mu():
    """(config, params) of a mu that has a sliding window in every second layer."""
    config = vlm_mu()
    decoder = config.decoder
    pattern = (decoder.pattern[0], dataclasses.replace(decoder.pattern[0], window=7))
    config = dataclasses.replace(config, decoder=dataclasses.replace(decoder, pattern=pattern))
    batch = pack([{"trunk": [2, -1, 5], "images": [np.zeros((32, 32, 3), np.uint8)]}], 8, 4, (32, 32), 1)
    return config, random_params(VLM(config), batch)
