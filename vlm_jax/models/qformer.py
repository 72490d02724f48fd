"""Q-Former (Li et al. 2023, BLIP-2, section 3.1): learned queries that read an image's features, a BERT of two kinds.

Queries come first, text may follow; all see each other in self-attention (Devlin et al. 2019), queries alone look at
the features, in every k-th layer, and queries and text have feed-forward parts of their own. Norms stand behind the
sums (Vaswani et al. 2017, section 3.1):

    layer        queries               text                with cross_every 2: layers 0, 2, 4, …
    attention    q q q q     <->       t t t
    cross        q q q q <- features
    feed-forward query_mlp             text_mlp
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.attention import attention
from vlm_jax.models.layers import MLP, Activation, LayerNorm, Precision, Projection, parameter
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.placement import constrain
from vlm_jax.models.rematerialisation import RematPolicy, named, remat


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former; the defaults are BLIP-2's. Its queries are an input."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    cross_every: int = 2
    """Layers 0, cross_every, 2 * cross_every, … look at the features."""
    features_width: int = 0
    """Width of the features; 0 = that of the encoder that an adapter stands on."""
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-12
    text: bool = False
    """Text may follow the queries: layers have a feed-forward part for it."""
    text_vocabulary: int = 0
    """Ids of text that it embeds itself (InstructBLIP); 0 = text, if any, comes embedded."""
    text_length: int = 512
    """Positions that embedded text has."""
    remat: RematPolicy = "none"

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("width", "layers", "heads", "mlp_width", "cross_every")}
        if small := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"QFormerConfig: {small[0]} is {sizes[small[0]]}; it must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"QFormerConfig: width {self.width} does not divide by {self.heads} heads")
        if self.text_vocabulary and not self.text:
            raise ValueError("QFormerConfig: text_vocabulary is set, but text is off; turn it on")

    @property
    def cross_layers(self) -> int:
        """Layers that look at the features."""
        return -(-self.layers // self.cross_every)

    def flops(self, queries: int, features: int, text: int = 0) -> float:
        """Forward FLOPs for one image, of so many queries, features and tokens of text."""
        ledger = Ledger()
        self.count(ledger, queries, features, text, False, False)
        return ledger.forward

    def count(self, ledger: Ledger, queries: int, features: int, text: int, start: Depends, seen: Depends) -> Depends:
        """Writes down all layers, for one image.

        Args:
            ledger: where to.
            queries, features, text: how many there are of each.
            start, seen: whether the queries and the features depend on something that trains.

        Returns:
            The same of what comes out.
        """
        tokens, w = queries + text, self.width

        def attend(name: str, count: int, others: int, width: int, x: Depends, to: Depends) -> Depends:
            with ledger.within(name):
                asked = ledger.linear("query", count * w**2, x)
                keys, values = (ledger.linear(part, others * width * w, to) for part in ("key", "value"))
                y = ledger.attention(count * others, w, asked, keys, values)
                return ledger.learned("norm", x | ledger.linear("out", count * w**2, y))

        def feed_forward(name: str, count: int, x: Depends) -> Depends:
            with ledger.within(name):
                return ledger.learned("norm", x | ledger.mlp("mlp", count, w, self.mlp_width, x))

        def group(layers: int, x: Depends) -> Depends:
            for i in range(layers):
                with ledger.within(f"block_{i}"):
                    x = attend("attention", tokens, tokens, w, x, x)
                    y = attend("cross", queries, features, self.features_width, x, seen) if not i else x
                    y = feed_forward("query", queries, y)
                    x = y | feed_forward("text", text, x) if text else y
            return x

        repeats, rest = divmod(self.layers, self.cross_every)
        x = ledger.learned("norm", ledger.learned("text", start) if text else start)
        with ledger.within("layers"):
            x = ledger.layers(repeats, lambda x: group(self.cross_every, x), x)
        with ledger.within("rest"):
            return group(rest, x)


class QFormerAttention(nn.Module):
    """norm(x + attention(x, to)): multi-head attention with biases, its sum, and the norm behind it."""

    config: QFormerConfig
    width: int
    """Of what it looks at."""
    precision: Precision

    @nn.compact
    def __call__(
        self, x: Float[Array, "N S W"], to: Float[Array, "N T D"], sees: Bool[Array, "N T"] | None
    ) -> Float[Array, "N S W"]:
        c, heads = self.config, (self.config.heads, self.config.width // self.config.heads)

        def project(name: str, inputs: int, axis: str, y: Array) -> Array:
            shape, axes = (inputs, *heads), (axis, "vision_heads", "head_size")
            made = Projection("npd,dhk->nphk", shape, axes, inputs, self.precision, 2, name=name)(y)
            return constrain(made, ("pictures", "patches", "act_vision_heads", "head_size"))

        axis = "vision_embed" if to is x else "features"
        q = project("query", c.width, "vision_embed", x)
        k, v = (project(name, self.width, axis, to) for name in ("key", "value"))
        mask = None if sees is None else jnp.broadcast_to(sees[:, None, :], (len(x), x.shape[1], to.shape[1]))
        shape, axes = (*heads, c.width), ("vision_heads", "head_size", "vision_embed")
        out = Projection("nphk,hkd->npd", shape, axes, c.width, self.precision, 1, name="out")
        y = attention(named("query", q), named("key", k), named("value", v), mask)
        return LayerNorm(self.precision, c.norm_epsilon, name="norm")(x + named("attention_out", out(y)))


class QFormerFeedForward(nn.Module):
    """norm(x + mlp(x))."""

    config: QFormerConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "N S W"]) -> Float[Array, "N S W"]:
        c = self.config
        y = x + MLP(c.width, c.mlp_width, self.precision, c.activation, name="mlp")(x)
        return LayerNorm(self.precision, c.norm_epsilon, name="norm")(y)


class QFormerLayer(nn.Module):
    """Self-attention of all, cross-attention of queries where `cross`, a feed-forward part of each kind."""

    config: QFormerConfig
    precision: Precision
    cross: bool
    queries: int
    """How many of the first positions are queries; the others are text."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N S W"],
        features: Float[Array, "N P D"] | None,
        sees: Bool[Array, "N S"] | None,
        sees_features: Bool[Array, "N P"] | None,
    ) -> Float[Array, "N S W"]:
        c = self.config
        x = QFormerAttention(c, c.width, self.precision, name="attention")(x, x, sees)
        parts = []
        if self.queries:
            q = x[:, : self.queries]
            if self.cross:
                assert features is not None, "queries have features to look at"
                q = QFormerAttention(c, c.features_width, self.precision, name="cross")(q, features, sees_features)
            parts.append(QFormerFeedForward(c, self.precision, name="query")(q))
        if x.shape[1] > self.queries:
            parts.append(QFormerFeedForward(c, self.precision, name="text")(x[:, self.queries :]))
        return constrain(jnp.concatenate(parts, 1), ("pictures", "patches", "act_embed"))


class QFormerGroup(nn.Module):
    """Layers in a row, of which the first looks at the features."""

    config: QFormerConfig
    precision: Precision
    layers: int
    queries: int
    collect: bool = False
    """Gives the output of each layer too."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N S W"],
        features: Float[Array, "N P D"] | None,
        sees: Bool[Array, "N S"] | None,
        sees_features: Bool[Array, "N P"] | None,
    ) -> tuple[Float[Array, "N S W"], Float[Array, "L N S W"] | None]:
        states = []
        for i in range(self.layers):
            layer = QFormerLayer(self.config, self.precision, i == 0, self.queries, name=f"block_{i}")
            x = layer(x, features, sees, sees_features)
            states.append(x)
        return x, jnp.stack(states) if self.collect else None


class TextEmbeddings(nn.Module):
    """Ids and positions -> their learned vectors, added."""

    config: QFormerConfig
    precision: Precision

    @nn.compact
    def __call__(self, text: Int[Array, "N T"], positions: Int[Array, "#N T"]) -> Float[Array, "N T W"]:
        c, normal = self.config, nn.initializers.normal(0.02)
        axes = (None, "vision_embed")
        words = parameter(self, "embedding", normal, (c.text_vocabulary, c.width), axes, self.precision)
        places = parameter(self, "positions", normal, (c.text_length, c.width), axes, self.precision)
        dtype = jnp.dtype(self.precision.compute)
        return words[text].astype(dtype) + places[positions].astype(dtype)


class QFormer(nn.Module):
    """Queries (and text) beside an image's features -> what they became."""

    config: QFormerConfig
    precision: Precision = Precision()

    def __call__(
        self,
        queries: Float[Array, "N Q W"],
        features: Float[Array, "N P D"],
        text: Int[Array, "N T"] | None = None,
    ) -> Float[Array, "N Q W"]:
        """What queries read from features, asked by a text.

        Args:
            queries: before the first norm.
            features: of the encoder.
            text: ids of an instruction, 0 = padding, which nobody sees; for a config with a `text_vocabulary`.
        """
        count, sees = queries.shape[1], None
        if text is not None:
            sees = jnp.concatenate([jnp.ones(queries.shape[:2], bool), text != 0], 1)
        return self._run(Inputs(queries, count, features, text, sees=sees), collect=False)[-1][:, :count]

    def states(self, inputs: "Inputs") -> tuple[Float[Array, "N S W"], ...]:
        """What enters the first layer, then the output of each: layers + 1 arrays."""
        return self._run(inputs, collect=True)

    def all_parts(self) -> Float[Array, "1 S W"]:
        """A run over zeros in which every parameter takes part, for initialisation."""
        c = self.config
        x, features = jnp.zeros((1, 1, c.width)), jnp.zeros((1, 1, c.features_width))
        if c.text_vocabulary:
            return self(x, features, jnp.zeros((1, 1), jnp.int32))
        return self._run(Inputs(jnp.concatenate([x] * (1 + c.text), 1), 1, features), collect=False)[-1]

    @nn.compact
    def _run(self, inputs: "Inputs", collect: bool) -> tuple[Float[Array, "N S W"], ...]:
        """The last state, or all of them."""
        c, precision = self.config, self.precision
        x = inputs.embeddings.astype(jnp.dtype(precision.compute))
        if inputs.text is not None:
            text = TextEmbeddings(c, precision, name="text")(inputs.text, inputs.positions)
            x = jnp.concatenate([x, text], 1)
        if x.shape[1] > inputs.queries and not c.text:
            raise ValueError("QFormer: text is given, but this Q-Former has no layers for it; leave it out")
        x = LayerNorm(precision, c.norm_epsilon, name="norm")(x)
        states, beside = [x], (inputs.features, inputs.sees, inputs.sees_features)
        repeats, rest = divmod(c.layers, c.cross_every)
        group = remat(QFormerGroup, c.remat)
        if repeats:
            scanned = nn.scan(
                group,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=repeats,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, stacked = scanned(c, precision, c.cross_every, inputs.queries, collect, name="layers")(x, *beside)
            states += [] if stacked is None else list(stacked.reshape(-1, *x.shape))
        if rest:
            x, stacked = group(c, precision, rest, inputs.queries, collect, name="rest")(x, *beside)
            states += [] if stacked is None else list(stacked)
        return tuple(states) if collect else (x,)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that a Q-Former may be given."""

    embeddings: Float[Array, "N S W"]
    """Queries, and what text comes embedded behind them, before the first norm."""
    queries: int = dataclasses.field(metadata={"static": True})
    """How many of them are queries."""
    features: Float[Array, "N P D"] | None
    """Of the encoder; None if there are no queries."""
    text: Int[Array, "N T"] | None = None
    """Ids that follow; for a config with a `text_vocabulary`."""
    position_ids: Int[Array, "#N T"] | None = None
    """Positions of these ids; None = 0, 1, 2, …"""
    sees: Bool[Array, "N S"] | None = None
    """False = padding among embeddings and text, which nobody sees."""
    sees_features: Bool[Array, "N P"] | None = None
    """False = padding among the features."""

    @property
    def positions(self) -> Int[Array, "#N T"]:
        """Positions of the ids."""
        assert self.text is not None
        return jnp.arange(self.text.shape[1])[None] if self.position_ids is None else self.position_ids
