"""Decoder LLM of the Llama family and its relatives: RMSNorm, rotary positions, grouped-query attention, a gated MLP.

What sets Mistral, Qwen 2 and 3, Gemma 1 and 2 apart from Llama are fields of the config.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.models.attention import AttentionKernel, attention, attention_over_cache
from vlm_jax.models.cache import KeyValueCache, empty_cache
from vlm_jax.models.embedding import look_up
from vlm_jax.models.insertion import Inserted, scan_with_inserted, unstacked
from vlm_jax.models.layers import Activation, GatedMLP, Precision, Projection, RMSNorm, parameter, weight
from vlm_jax.models.placement import constrain
from vlm_jax.models.rematerialisation import RematPolicy, named, remat
from vlm_jax.models.rope import RopeScaling, Turns, rope_turns, rotary
from vlm_jax.models.sight import RowSight, gathered


@dataclasses.dataclass(frozen=True)
class SelfAttentionBlock:
    """One block of the pattern: causal self-attention and a gated MLP."""

    window: int = 0
    """Sliding window in positions; 0 = the whole example."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder. Its layers repeat `pattern`, so alternating or inserted blocks are data."""

    vocabulary_size: int = 32_000
    width: int = 768
    layers: int = 12
    heads: int = 12
    key_value_heads: int = 12
    head_size: int = 64
    mlp_width: int = 2048
    context: int = 0
    """The longest sequence that it was made for, in positions; 0 = no limit is known."""
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    """How positions past those of pre-training are reached; None = as in the paper."""
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0
    """What is added to the scales of all norms; Gemma takes 1."""
    post_norms: bool = False
    """Also norms what a block's attention and MLP give, before it is added (Gemma 2)."""
    query_key_norm: bool = False
    """Norms each head of queries and keys before they are turned (Qwen 3)."""
    query_scale: float = 0.0
    """Multiplies attention scores; 0 = head_size^(-1/2)."""
    attention_bias: bool = False
    """Biases of queries, keys and values (Qwen 2)."""
    output_bias: bool = False
    """A bias of attention's output."""
    mlp_bias: bool = False
    activation: Activation = "silu"
    attention_softcap: float = 0.0
    """Scores s become cap * tanh(s / cap); 0 = they do not (Gemma 2)."""
    logit_softcap: float = 0.0
    """The same for logits."""
    input_only_tokens: int = 0
    """Tokens after those of the vocabulary that have an embedding but no logit: they are read and never written, such
    as Llama 3.2's token for a picture's place.
    """
    tied_embeddings: bool = True
    embedding_scale: float = 1.0
    """Multiplies token embeddings on their way in; Gemma takes sqrt(width) (Gemma Team 2024)."""
    pattern: tuple[SelfAttentionBlock, ...] = (SelfAttentionBlock(),)
    attention_kernel: AttentionKernel = "auto"
    """Of training; what a stage runs is told to `VLM` (`attention.resolve_kernel`)."""
    remat: RematPolicy = "none"

    def __post_init__(self) -> None:
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"DecoderConfig: {self.heads} heads do not divide by {self.key_value_heads} key_value_heads"
            )
        if not self.pattern or self.layers % len(self.pattern):
            raise ValueError(
                f"DecoderConfig: {self.layers} layers are not a multiple of the pattern's {len(self.pattern)} blocks"
            )
        if self.head_size % 2:
            raise ValueError(f"DecoderConfig: head_size {self.head_size} is odd; rotary positions turn pairs")
        if self.input_only_tokens and self.tied_embeddings:
            raise ValueError(
                "DecoderConfig: input_only_tokens have no logits, but tied_embeddings give every embedded token one; "
                "set tied_embeddings False"
            )
        for name in ("input_only_tokens", "context", "query_scale", "attention_softcap", "logit_softcap"):
            if getattr(self, name) < 0:
                raise ValueError(f"DecoderConfig: {name} is {getattr(self, name)}; it cannot be negative")

    @property
    def embedded_tokens(self) -> int:
        """Rows of the embedding table: ids below this may stand in the input."""
        return self.vocabulary_size + self.input_only_tokens

    @property
    def repeats(self) -> int:
        """R, how often the pattern repeats."""
        return self.layers // len(self.pattern)


def shortest_pattern(blocks: Sequence[SelfAttentionBlock]) -> tuple[SelfAttentionBlock, ...]:
    """The shortest pattern whose repeats are these blocks, one a layer: (a, b, a, b) -> (a, b)."""
    for size in range(1, len(blocks) + 1):
        pattern = tuple(blocks[:size])
        if len(blocks) % size == 0 and pattern * (len(blocks) // size) == tuple(blocks):
            return pattern
    return tuple(blocks)


Masks = tuple[RowSight, ...]
"""One mask for each block of the pattern; dense where there is a cache."""

State = tuple[Float[Array, "B S D"], KeyValueCache | None]
"""What the scan over layers carries: the residual stream and the cache (None in training)."""


class SelfAttention(nn.Module):
    """Rotary, grouped-query self-attention; with a cache it writes S slots and reads all of them."""

    config: DecoderConfig
    precision: Precision
    place: int
    """Which block of the pattern this is: its entry in the cache."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        turns: Turns,
        mask: RowSight,
        cache: KeyValueCache | None,
        repeat: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "B S D"], KeyValueCache | None]:
        c, precision = self.config, self.precision

        def project(name: str, heads: int) -> Array:
            axes = ("embed", "heads" if name == "query" else "key_value_heads", "head_size")
            shape = (c.width, heads, c.head_size)
            bias_dims = 2 if c.attention_bias else 0
            y = Projection("bsd,dhk->bshk", shape, axes, c.width, precision, bias_dims, name=name)(x)
            return constrain(y, ("batch", "length", "act_heads", "head_size"))

        queries, keys = project("query", c.heads), project("key", c.key_value_heads)
        values = project("value", c.key_value_heads)
        if c.query_key_norm:
            queries = RMSNorm(precision, c.norm_epsilon, c.norm_offset, name="query_norm")(queries)
            keys = RMSNorm(precision, c.norm_epsilon, c.norm_offset, name="key_norm")(keys)
        queries, keys = named("query", rotary(queries, turns)), named("key", rotary(keys, turns))
        values = named("value", values)
        options: Any = {"scale": c.query_scale or None, "softcap": c.attention_softcap}
        if cache is None:
            y = attention(queries, gathered(keys, mask), gathered(values, mask), mask, **options)
        else:
            assert isinstance(mask, jax.Array)
            cache, keys, values = self.remember(cache, repeat, keys, values, x.shape[1])
            y = attention_over_cache(queries, keys, values, mask, **options)
        shape, axes = (c.heads, c.head_size, c.width), ("heads", "head_size", "embed")
        scale = (2 * c.layers) ** -0.5
        fan_in = c.heads * c.head_size
        bias_dims = 1 if c.output_bias else 0
        out = Projection("bshk,hkd->bsd", shape, axes, fan_in, precision, bias_dims, scale=scale, name="out")
        return named("attention_out", out(y)), cache

    def remember(
        self, cache: KeyValueCache, repeat: Array | None, keys: Array, values: Array, count: int
    ) -> tuple[KeyValueCache, Array, Array]:
        """Writes this layer's new keys and values; returns the cache and all that the layer has, in its layout."""
        start = cache.used - count

        def write(store: Array, new: Array, place: tuple[Array | int, ...]) -> tuple[Array, Array]:
            if repeat is None:
                store = jax.lax.dynamic_update_slice(store, new.astype(store.dtype), (0, 0, *place))
                return store, store
            store = jax.lax.dynamic_update_slice(store, new[None].astype(store.dtype), (repeat, 0, 0, *place))
            return store, jax.lax.dynamic_index_in_dim(store, repeat, keepdims=False)

        stored_keys, all_keys = write(cache.keys[self.place], keys.transpose(0, 2, 3, 1), (0, start))
        stored_values, all_values = write(cache.values[self.place], values.swapaxes(1, 2), (start, 0))

        def swap(arrays: tuple[Array, ...], new: Array) -> tuple[Array, ...]:
            return tuple(new if i == self.place else array for i, array in enumerate(arrays))

        cache = dataclasses.replace(cache, keys=swap(cache.keys, stored_keys), values=swap(cache.values, stored_values))
        return cache, all_keys, all_values


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `post_norms` both branches are normed at their end too."""

    config: DecoderConfig
    precision: Precision
    place: int

    @nn.compact
    def __call__(self, state: State, turns: Turns, mask: RowSight, repeat: Array | None) -> State:
        c, precision = self.config, self.precision
        x, cache = state

        def norm(name: str, x: Array) -> Array:
            return RMSNorm(precision, c.norm_epsilon, c.norm_offset, name=name)(x)

        attend = SelfAttention(c, precision, self.place, name="attention")
        y, cache = attend(norm("attention_norm", x), turns, mask, cache, repeat)
        x = x + (norm("attention_post_norm", y) if c.post_norms else y)
        scale = (2 * c.layers) ** -0.5
        mlp = GatedMLP(c.width, c.mlp_width, precision, scale, c.activation, c.mlp_bias, name="mlp")
        y = mlp(norm("mlp_norm", x))
        x = x + (norm("mlp_post_norm", y) if c.post_norms else y)
        return constrain(x, ("batch", "length", "act_embed")), cache


class Pattern(nn.Module):
    """One repeat of the pattern: the body of the scan. With `every` it also gives what comes out of each block."""

    config: DecoderConfig
    precision: Precision
    first: int = 0
    """The first block's entry in the cache."""

    @nn.compact
    def __call__(
        self, state: State, repeat: Array | None, turns: Turns, masks: Masks, every: bool
    ) -> tuple[State, tuple[Float[Array, "B S D"], ...]]:
        block = remat(Block, self.config.remat)
        outputs = []
        for place, mask in enumerate(masks):
            layer = block(self.config, self.precision, self.first + place, name=f"block_{place}")
            state = layer(state, turns, mask, repeat)
            outputs.append(state[0])
        return state, tuple(outputs) if every else ()


class Decoder(nn.Module):
    """Embeddings in, hidden states out; `embed` and `unembed` map tokens to the one and the other to logits."""

    config: DecoderConfig
    precision: Precision = Precision()
    unrolled: bool = False
    """No scan: the parameters are as `unrolled_params` gives them, the cache as `KeyValueCache.unrolled` does."""

    def setup(self) -> None:
        c, init = self.config, nn.initializers.normal(0.02)
        shape = (c.embedded_tokens, c.width)
        self.embedding = parameter(self, "embedding", init, shape, ("vocab", "embed"), self.precision)
        scanned: Any = nn.scan(
            Pattern,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.repeats,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if self.unrolled:
            firsts = range(0, c.layers, len(c.pattern))
            self.layers: Any = [Pattern(c, self.precision, first) for first in firsts]
        else:
            self.layers = scanned(c, self.precision)
        self.norm = RMSNorm(self.precision, c.norm_epsilon, c.norm_offset)
        if not c.tied_embeddings:
            self.head = parameter(self, "head", init, (c.width, c.vocabulary_size), ("embed", "vocab"), self.precision)

    def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Token ids -> their embeddings, in the compute dtype."""
        x = look_up(self.embedding.astype(self.precision.compute), tokens) * self.config.embedding_scale
        return constrain(x, ("batch", "length", "act_embed"))

    def __call__(
        self,
        x: Float[Array, "B S D"],
        positions: Int[Array, "B S"],
        masks: Masks,
        cache: KeyValueCache | None = None,
        inserted: Inserted | None = None,
    ) -> tuple[Float[Array, "B S D"], KeyValueCache | None]:
        """Runs the layers and the final norm.

        Args:
            x: embeddings, text and visual tokens together.
            positions: position of each embedding in its example.
            masks: for each block of the pattern, True where query s may see key t; T = S, or the cache's slots.
            cache: if given, its last S claimed slots are written (`KeyValueCache.append` first).
            inserted: blocks of an adapter that stand between the layers; None = the text LLM.
        """
        (x, cache), _ = self._run(x, positions, masks, cache, inserted, every=False)
        return self.norm(x), cache

    def hidden_states(
        self, x: Float[Array, "B S D"], positions: Int[Array, "B S"], masks: Masks, inserted: Inserted | None = None
    ) -> tuple[Float[Array, "B S D"], ...]:
        """What `__call__` computes, layer by layer: layers + 1 arrays, and one more for each inserted block.

        The first is `x`, then comes what each layer or block gives, but the last one is taken after the final norm:
        these are the `hidden_states` of transformers.
        """
        (last, _), each = self._run(x, positions, masks, None, inserted, every=True)
        return (x, *each[:-1], self.norm(last))

    def _run(
        self,
        x: Array,
        positions: Array,
        masks: Masks,
        cache: KeyValueCache | None,
        inserted: Inserted | None,
        *,
        every: bool,
    ) -> tuple[State, tuple[Float[Array, "B S D"], ...]]:
        """All layers; with `every` also what comes out of each layer and inserted block, in their order."""
        c = self.config
        turns = rope_turns(positions, c.head_size, c.rope_base, c.rope_scaling)
        if self.unrolled:
            return self._run_unrolled((x, cache), turns, masks, inserted, every)
        given: Any = ()
        if inserted is None:
            state, outputs = self.layers((x, cache), jnp.arange(c.repeats), turns, masks, every)
        else:
            pattern: Any = Pattern(c, self.precision, parent=None)

            def layer(state: State, entry: Any) -> Any:
                params, repeat = entry
                return pattern.apply({"params": params}, state, repeat, turns, masks, every)

            layers = (nn.meta.unbox(self.layers.variables["params"]), jnp.arange(c.repeats))
            places = tuple(place // len(c.pattern) for place in inserted.layers)
            state, outputs, given = scan_with_inserted(layer, (x, cache), layers, inserted, places, every=every)
        if not every:
            return state, ()
        each = [block[repeat] for repeat in range(c.repeats) for block in outputs]
        before = [] if inserted is None else list(zip(inserted.layers, given, strict=True))
        return state, tuple(
            y
            for layer in range(c.layers + 1)
            for y in (*(block for place, block in before if place == layer), *each[layer : layer + 1])
        )

    def _run_unrolled(
        self, state: State, turns: Turns, masks: Masks, inserted: Inserted | None, every: bool
    ) -> tuple[State, tuple[Float[Array, "B S D"], ...]]:
        blocks = [] if inserted is None else list(zip(inserted.layers, inserted.blocks, strict=True))
        outputs: list[Array] = []
        for repeat in range(self.config.repeats + 1):
            for block in [block for place, block in blocks if place == repeat * len(self.config.pattern)]:
                assert inserted is not None
                state = inserted.run(state[0], block), state[1]
                outputs.append(state[0])
            if repeat < self.config.repeats:
                state, given = self.layers[repeat](state, None, turns, masks, every)
                outputs += given
        return state, tuple(outputs) if every else ()

    def unembed(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Hidden states -> logits, float32."""
        dtype, cap = jnp.dtype(self.precision.compute), self.config.logit_softcap
        hidden = hidden.astype(dtype)
        if self.config.tied_embeddings and hidden.ndim == 2:
            # In decoding, where rows are few, XLA for CPUs reads the table fastest as the left factor; without the
            # barrier it would turn the product round.
            columns = jnp.einsum("vd,bd->vb", self.embedding.astype(dtype), hidden, preferred_element_type=jnp.float32)
            logits = jax.lax.optimization_barrier(columns).T
        elif self.config.tied_embeddings:
            table = weight(self.embedding, ("vocab", "embed"), self.precision)
            logits = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
        else:
            head = weight(self.head, ("embed", "vocab"), self.precision)
            logits = jnp.einsum("...d,dv->...v", hidden, head, preferred_element_type=jnp.float32)
        if logits.ndim == 3:
            logits = constrain(logits, ("batch", "length", "act_vocab"))
        return cap * jnp.tanh(logits / cap) if cap else logits

    def empty_cache(self, rows: int, length: int) -> KeyValueCache:
        """A cache of `length` slots for `rows` rows."""
        c = self.config
        dtype = jnp.dtype(self.precision.compute)
        return empty_cache(len(c.pattern), c.repeats, rows, length, c.key_value_heads, c.head_size, dtype)


def unrolled_params(config: DecoderConfig, params: Any) -> Any:
    """Parameters of `Decoder(config, unrolled=True)`: each repeat of the pattern has arrays of its own.

    A scan over layers copies each layer's weights out of the stacked array before they are used, on backends whose
    matrix products cannot read a slice in place (XLA's for CPUs); where a step reads all weights for one token, that
    copy costs as much as the step. On a CPU the arrays made here share the memory of the stacked ones.

    Args:
        config: of the decoder.
        params: the decoder's plain nested dict, with stacked layers, on one device.
    """
    layers = {f"layers_{repeat}": unstacked(params["layers"], repeat) for repeat in range(config.repeats)}
    return {name: value for name, value in params.items() if name != "layers"} | layers
