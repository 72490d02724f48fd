"""The compiled parts of generation: encode pictures, prefill prompts, decode token by token.

Each function is compiled once for a config and a set of shapes; the engine rounds shapes up to buckets.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from vlm_jax.batch import Batch
from vlm_jax.generation.samplers import Sampler
from vlm_jax.models.cache import KeyValueCache
from vlm_jax.models.vlm import VLM, VLMConfig

Params = Any


class Limits(NamedTuple):
    """When to stop, what stands after the stop, and which tokens there are. Traced: other values compile nothing."""

    end_id: int
    pad_id: int
    vocabulary_size: int
    """The tokenizer's; the model may have more embeddings than the tokenizer has tokens."""
    max_new_tokens: int


class Draws(NamedTuple):
    """Where a batch's random numbers come from."""

    seed: int
    numbers: Int[np.ndarray, " B"]
    """Each row's prompt by its place among all prompts: what a row draws does not depend on the rows beside it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """Where the rows of a batch stand between two tokens."""

    token: Int[Array, " B"]
    """The newest token of each row, not yet seen by the model."""
    position: Int[Array, " B"]
    """Its position in its row."""
    ended: Bool[Array, " B"]
    cache: KeyValueCache
    keys: PRNGKeyArray
    """One a row."""
    count: Int[Array, ""]
    """Tokens chosen so far, the newest included."""


@functools.partial(jax.jit, static_argnums=0)
def encode(config: VLMConfig, params: Params, images: UInt8[Array, "N H W 3"]) -> Float[Array, "N P D"]:
    """The encoder's features of pictures."""
    features: Any = VLM(config).apply({"params": params}, images, method="encode")
    return features


@jax.jit
def gather(table: Float[Array, "M P D"], entries: Int[Array, "B I"]) -> Float[Array, "B I P D"]:
    """Features of each image slot, from a table of encoded pictures."""
    return table[entries]


def _choose(
    config: VLMConfig, sampler: Sampler, params: Params, hidden: Array, keys: Array, count: Array, limits: Limits
) -> Int[Array, " B"]:
    logits: Any = VLM(config).apply({"params": params}, hidden, method="unembed")
    logits = jnp.where(jnp.arange(logits.shape[-1]) < limits.vocabulary_size, logits, -jnp.inf)
    return sampler(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, count))


def _start(
    config: VLMConfig, sampler: Sampler, capacity: int, params: Params, batch: Batch, draws: Draws, limits: Limits
) -> Decoding:
    real = batch.segment_ids != 0
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(draws.seed), draws.numbers)
    length = batch.tokens.shape[1] + capacity
    filled: Any = VLM(config).apply({"params": params}, batch, length, method="prefill")
    hidden, cache = filled
    last = jnp.maximum(real.sum(1) - 1, 0)
    final = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    count = jnp.ones((), jnp.int32)
    token = _choose(config, sampler, params, final, keys, count, limits)
    padding = ~real.any(1)
    token = jnp.where(padding, limits.pad_id, token)
    position = jnp.take_along_axis(batch.positions, last[:, None], axis=1)[:, 0] + 1
    return Decoding(token, position, padding | (token == limits.end_id), cache, keys, count)


def _advance(config: VLMConfig, sampler: Sampler, params: Params, now: Decoding, limits: Limits) -> Decoding:
    """Shows the model its newest tokens and chooses the next ones; rows that have ended get padding."""
    inputs = (now.token[:, None], now.position[:, None], ~now.ended[:, None], now.cache)
    stepped: Any = VLM(config).apply({"params": params}, *inputs, method="step")
    hidden, cache = stepped
    count = now.count + 1
    token = _choose(config, sampler, params, hidden[:, 0], now.keys, count, limits)
    token = jnp.where(now.ended, limits.pad_id, token)
    return Decoding(token, now.position + 1, now.ended | (token == limits.end_id), cache, now.keys, count)


start = jax.jit(_start, static_argnums=(0, 1, 2))
"""Prefills a batch of prompts and chooses the first token of each row; the cache has room for `capacity` new tokens."""

advance = jax.jit(_advance, static_argnums=(0, 1), donate_argnums=3)
"""One token further: what streaming calls once a token."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def decode(
    config: VLMConfig, sampler: Sampler, capacity: int, params: Params, batch: Batch, draws: Draws, limits: Limits
) -> Int[Array, "B capacity"]:
    """Prefills prompts and decodes until every row has ended or has `limits.max_new_tokens` tokens.

    Args:
        config: of the model.
        sampler: chooses the tokens.
        capacity: room for new tokens, at least `limits.max_new_tokens`.
        params: of the model.
        batch: one prompt a row, padded at the end; with `features` if it has pictures.
        draws: seed and row numbers.
        limits: when to stop.

    Returns:
        The new tokens of each row, the end token last if it came, then pad tokens.
    """
    first = _start(config, sampler, capacity, params, batch, draws, limits)
    out = jnp.full((batch.tokens.shape[0], capacity), limits.pad_id, jnp.int32).at[:, 0].set(first.token)

    def unfinished(state: tuple[Decoding, Array]) -> Array:
        now, _ = state
        return (now.count < limits.max_new_tokens) & ~now.ended.all()

    def body(state: tuple[Decoding, Array]) -> tuple[Decoding, Array]:
        now, out = state
        after = _advance(config, sampler, params, now, limits)
        return after, jax.lax.dynamic_update_slice(out, after.token[:, None], (0, now.count))

    return jax.lax.while_loop(unfinished, body, (first, out))[1]
