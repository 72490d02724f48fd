"""Greedy decoding by our modules, once with a cache and once by full forward passes over and over."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.batch import Batch
from vlm_jax.models.vlm import VLM, VLMConfig


def text_batch(rows: Sequence[Sequence[int]], length: int) -> Batch:
    """Rows of tokens, padded at the end."""
    tokens = np.zeros((len(rows), length), np.int32)
    real = np.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        real[i, : len(row)] = 1
    nothing = np.zeros_like(tokens)
    return Batch(
        tokens=tokens,
        targets=nothing,
        loss_weights=nothing.astype(np.float32),
        segment_ids=real,
        branch_ids=nothing,
        block_ids=nothing,
        positions=np.arange(length, dtype=np.int32) * real,
        example_index=nothing,
        source_ids=nothing[:, :1],
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _prefill(config, params, batch, length):
    hidden, cache = VLM(config).apply({"params": params}, batch, length, method="prefill")
    return VLM(config).apply({"params": params}, hidden, method="unembed"), cache


@functools.partial(jax.jit, static_argnums=0)
def _step(config, params, tokens, positions, cache):
    valid = jnp.ones_like(tokens, bool)
    hidden, cache = VLM(config).apply({"params": params}, tokens, positions, valid, cache, method="step")
    return VLM(config).apply({"params": params}, hidden, method="unembed"), cache


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, batch):
    return VLM(config).apply({"params": params}, batch).logits


def greedy_cached(config: VLMConfig, params, batch: Batch, new_tokens: int) -> np.ndarray:
    """int[B, new_tokens] after prompts that are padded at the end."""
    lengths = np.asarray(batch.segment_ids).astype(bool).sum(1)
    logits, cache = _prefill(config, params, batch, batch.tokens.shape[1] + new_tokens)
    last = np.take_along_axis(np.asarray(logits), lengths[:, None, None] - 1, axis=1)
    found = []
    for offset in range(new_tokens):
        found.append(np.asarray(last).argmax(-1).astype(np.int32))
        last, cache = _step(config, params, found[-1], lengths[:, None] + offset, cache)
    return np.concatenate(found, axis=1)


def greedy_whole(config: VLMConfig, params, rows: Sequence[Sequence[int]], new_tokens: int) -> np.ndarray:
    """The same for text, by a forward pass over everything for every token."""
    rows = [list(row) for row in rows]
    length = max(map(len, rows)) + new_tokens
    for _ in range(new_tokens):
        logits = np.asarray(_forward(config, params, text_batch(rows, length)))
        for i, row in enumerate(rows):
            row.append(int(logits[i, len(row) - 1].argmax()))
    return np.array([row[-new_tokens:] for row in rows])


def as_vlm(config, params):
    """A decoder alone as a text-only VLM."""
    return VLMConfig(decoder=dataclasses.replace(config)), {"decoder": params}
