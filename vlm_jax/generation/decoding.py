"""The compiled parts of generation: encode pictures, prefill prompts, decode token by token.

Each function is compiled once for a config and a set of shapes; the engine rounds shapes up to buckets. How rows are
answered (samplers, lengths, seeds, end tokens) is traced, so it compiles nothing.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8, UInt32

from vlm_jax.batch import Batch
from vlm_jax.generation.samplers import Settings, choose
from vlm_jax.models import decoder
from vlm_jax.models.adapters.cross_attention import unrolled_blocks
from vlm_jax.models.cache import KeyValueCache
from vlm_jax.models.vlm import VLM, VLMConfig

Params = Any


class Vocabulary(NamedTuple):
    """What a decoder must know of a tokenizer."""

    end_ids: Int[Array | np.ndarray, " E"]
    pad_id: int
    size: int
    """The tokenizer's; the model may have more embeddings than the tokenizer has tokens."""


class Draws(NamedTuple):
    """Where each row's random numbers come from: nothing here depends on the rows beside it."""

    seeds: UInt32[Array | np.ndarray, " B"]
    numbers: Int[Array | np.ndarray, " B"]
    """The row's prompt by its place among all prompts."""
    samples: Int[Array | np.ndarray, " B"]
    """Which of its prompt's samples the row is."""


class Controls(NamedTuple):
    """How the rows of a batch are answered."""

    vocabulary: Vocabulary
    settings: Settings
    draws: Draws
    max_new_tokens: Int[Array | np.ndarray, " B"]


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


def unrolled_params(config: VLMConfig, params: Params) -> Params | None:
    """Parameters with which decoding is fastest, if those are others: see `models.decoder.unrolled_params`.

    An adapter's blocks between the decoder's layers get arrays of their own too.
    """
    leaves = jax.tree.leaves(params)
    if not all(isinstance(leaf, jax.Array) and len(leaf.devices()) == 1 for leaf in leaves):
        return None
    if any(device.platform != "cpu" for leaf in leaves for device in leaf.devices()):
        return None
    unrolled = {"decoder": decoder.unrolled_params(config.decoder, params["decoder"])}
    if config.memory_tokens:
        unrolled["adapter"] = unrolled_blocks(params["adapter"])
    return params | unrolled


@functools.partial(jax.jit, static_argnums=0)
def encode(
    config: VLMConfig, params: Params, images: UInt8[Array, "N H W 3"], tile_index: Int[Array, "N 3"]
) -> Float[Array, "N P D"]:
    """The encoder's features of image slots."""
    features: Any = VLM(config).apply({"params": params}, images, tile_index, method="encode")
    return features


@jax.jit
def gather(table: Float[Array, "M P D"], entries: Int[Array, "B I"]) -> Float[Array, "B I P D"]:
    """Features of each image slot of a batch, from a table of encoded slots."""
    return table[entries]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def start(
    config: VLMConfig,
    unrolled: bool,
    capacity: int,
    chunk: int,
    params: Params,
    batch: Batch,
    spread: Int[Array, " B"] | None,
    controls: Controls,
) -> tuple[Decoding, Int[Array, "B capacity"]]:
    """Prefills prompts and chooses the first token of each row.

    Args:
        config: of the model.
        unrolled: whether `advance` is to continue with unrolled parameters (`unrolled_params`).
        capacity: room for new tokens, at least the largest of `controls.max_new_tokens`.
        chunk: prompts are read so many positions at a time, if they are longer; S is then a multiple of it, and no
            block goes past the end of its chunk.
        params: of the model.
        batch: Q prompts, one a row, padded at the end; with `features` if it has pictures.
        spread: which prompt each of B rows continues; None if each of Q continues its own.
        controls: for B rows.

    Returns:
        The rows' state, and their new tokens: the first one, then pad tokens.
    """
    real = jnp.asarray(batch.segment_ids) != 0
    length = real.shape[1]
    # Prompts may have padding between their tokens too, where a block had to begin a chunk.
    last = jnp.maximum((jnp.arange(length) * real).max(1), 0)
    final, cache = _prefill(config, capacity, chunk, params, batch, last)
    position = jnp.take_along_axis(jnp.asarray(batch.positions), last[:, None], axis=1)[:, 0] + 1
    padding = ~real.any(1)
    if unrolled:
        cache = cache.unrolled()
    if spread is not None:
        final, position, padding = final[spread], position[spread], padding[spread]
        cache = cache.take_rows(spread)
    draws = controls.draws
    keys = jax.vmap(jax.random.key)(draws.seeds)
    keys = jax.vmap(jax.random.fold_in)(keys, draws.numbers)
    keys = jax.vmap(jax.random.fold_in)(keys, draws.samples)
    count = jnp.ones((), jnp.int32)
    padding |= controls.max_new_tokens == 0
    token, ended = _choose(VLM(config), params, final, keys, count, padding, controls)
    tokens = jnp.full((token.shape[0], capacity), controls.vocabulary.pad_id, jnp.int32).at[:, 0].set(token)
    return Decoding(token, position, ended, cache, keys, count), tokens


def _prefill(
    config: VLMConfig, capacity: int, chunk: int, params: Params, batch: Batch, last: Int[Array, " Q"]
) -> tuple[Float[Array, "Q D"], KeyValueCache]:
    """Hidden state of each prompt's last token, and the cache."""
    rows, length = batch.tokens.shape
    model, variables = VLM(config), {"params": params}
    begun: Any = model.apply(variables, batch, length + capacity, method="begin")
    x, cache = begun
    size = chunk if length > chunk else length

    def part(number: Array | int, state: tuple[Array, KeyValueCache]) -> tuple[Array, KeyValueCache]:
        final, cache = state
        piece = jax.lax.dynamic_slice_in_dim(x, number * size, size, axis=1)
        read: Any = model.apply(variables, piece, batch, number * size, cache, method="prefill_part")
        hidden, cache = read
        within = jnp.clip(last - number * size, 0, size - 1)
        found = jnp.take_along_axis(hidden, within[:, None, None], axis=1)[:, 0]
        return jnp.where((last // size == number)[:, None], found, final), cache

    state = (jnp.zeros((rows, x.shape[-1]), x.dtype), cache)
    if size == length:
        return part(0, state)
    # What is padding in all rows is not read.
    return jax.lax.fori_loop(0, last.max() // size + 1, part, state)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def advance(
    config: VLMConfig,
    unrolled: bool,
    params: Params,
    now: Decoding,
    tokens: Int[Array, "B capacity"],
    until: Int[Array, ""],
    dropped: Bool[Array, " B"],
    controls: Controls,
) -> tuple[Decoding, Int[Array, "B capacity"]]:
    """Decodes until every row has ended, or the rows have `until` new tokens.

    Args:
        config: of the model.
        unrolled: whether the parameters, and the state's cache, are those of an unrolled decoder.
        params: of the model.
        now: the state, which is used up.
        tokens: new tokens so far.
        until: at most the capacity.
        dropped: rows of which nothing more is wanted.
        controls: as given to `start`.

    Returns:
        The state, and the new tokens of each row: the end token last if it came, then pad tokens.
    """

    def unfinished(state: tuple[Decoding, Array]) -> Array:
        return (state[0].count < until) & ~state[0].ended.all()

    def body(state: tuple[Decoding, Array]) -> tuple[Decoding, Array]:
        now, tokens = state
        after = _step(VLM(config, unrolled), params, now, controls)
        return after, jax.lax.dynamic_update_slice(tokens, after.token[:, None], (0, now.count))

    now = dataclasses.replace(now, ended=now.ended | dropped)
    return jax.lax.while_loop(unfinished, body, (now, tokens))


def _step(model: VLM, params: Params, now: Decoding, controls: Controls) -> Decoding:
    """Shows the model its newest tokens and chooses the next ones; rows that have ended get padding."""
    inputs = (now.token[:, None], now.position[:, None], ~now.ended[:, None], now.cache)
    stepped: Any = model.apply({"params": params}, *inputs, method="step")
    hidden, cache = stepped
    count = now.count + 1
    token, ended = _choose(model, params, hidden[:, 0], now.keys, count, now.ended, controls)
    return Decoding(token, now.position + 1, ended, cache, now.keys, count)


def _choose(
    model: VLM, params: Params, hidden: Array, keys: Array, count: Array, ended: Array, controls: Controls
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    vocabulary = controls.vocabulary
    logits: Any = model.apply({"params": params}, hidden, method="unembed")
    logits = jnp.where(jnp.arange(logits.shape[-1]) < vocabulary.size, logits, -jnp.inf)
    token = choose(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, count), controls.settings)
    token = jnp.where(ended, vocabulary.pad_id, token)
    return token, ended | jnp.isin(token, vocabulary.end_ids) | (count >= controls.max_new_tokens)
