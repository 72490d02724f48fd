"""Gated cross-attention blocks (Alayrac et al. 2022, Flamingo, section 3.2 and appendix A.1.2): text reads a memory.

    x + tanh(a) * attention(norm(x), memory), then x + tanh(m) * mlp(norm(x))

The gates a and m are learned and start at 0, so that at first a block changes nothing.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlm_jax.models.attention import attention, attention_over_cache
from vlm_jax.models.layers import Activation, GatedMLP, LayerNorm, Precision, Projection, RMSNorm, parameter
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.memory import KeysAndValues
from vlm_jax.models.placement import constrain
from vlm_jax.models.rematerialisation import named

Blind = Literal["skip", "feed_forward", "whole_example"]
"""What a block is to a position that sees no picture:
skip: nothing; it goes past the block as if there were none, so that text before a picture, and examples without one,
are what they are to the text LLM;
feed_forward: attention gives nothing, the feed-forward part runs (Flamingo's and Idefics' code);
whole_example: attention reads all slots of its own example, later ones too, and the feed-forward part gives nothing
(Llama 3.2); in an example without pictures neither gives anything.
"""


@dataclasses.dataclass(frozen=True)
class GatedBlockConfig:
    """Sizes of a block, all of them given."""

    width: int
    """The decoder's."""
    memory_width: int
    heads: int
    key_value_heads: int
    head_size: int
    mlp_width: int
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-5
    query_key_norm: bool = False
    """RMS-norms each head of queries and keys."""
    activation: Activation = "silu"
    blind: Blind = "skip"
    output_scale: float = 1.0
    """Of the outputs' initial standard deviation."""


class CrossAttention(nn.Module):
    """Grouped-query attention of text to a memory, without positions."""

    config: GatedBlockConfig
    precision: Precision

    def setup(self) -> None:
        c, precision = self.config, self.precision

        def inwards(width: int, heads: int, axis: str) -> Projection:
            shape = (width, heads, c.head_size)
            axes = ("embed", axis, "head_size")
            return Projection("bsd,dhk->bshk", shape, axes, width, precision)

        self.query = inwards(c.width, c.heads, "heads")
        self.key = inwards(c.memory_width, c.key_value_heads, "key_value_heads")
        self.value = inwards(c.memory_width, c.key_value_heads, "key_value_heads")
        shape, axes = (c.heads, c.head_size, c.width), ("heads", "head_size", "embed")
        fan_in = c.heads * c.head_size
        self.out = Projection("bshk,hkd->bsd", shape, axes, fan_in, precision, scale=c.output_scale)
        if c.query_key_norm:
            self.query_norm = RMSNorm(precision, c.norm_epsilon)
            self.key_norm = RMSNorm(precision, c.norm_epsilon)

    def keys_and_values(self, memory: Float[Array, "B T W"]) -> tuple[Float[Array, "B T G K"], Float[Array, "B T G K"]]:
        """What the memory is to all queries."""
        axes = ("batch", "key_length", "act_heads", "head_size")
        keys, values = (constrain(part(memory), axes) for part in (self.key, self.value))
        return self.key_norm(keys) if self.config.query_key_norm else keys, values

    def __call__(
        self,
        x: Float[Array, "B S D"],
        memory: Float[Array, "B T W"] | None,
        kept: KeysAndValues | None,
        mask: Bool[Array, "B S T"],
    ) -> Float[Array, "B S D"]:
        queries = constrain(self.query(x), ("batch", "length", "act_heads", "head_size"))
        if self.config.query_key_norm:
            queries = self.query_norm(queries)
        if kept is not None:
            return self.out(attention_over_cache(queries, *kept, mask))
        assert memory is not None
        keys, values = self.keys_and_values(memory)
        y = attention(named("query", queries), named("key", keys), named("value", values), mask)
        return named("attention_out", self.out(y))


class GatedBlock(nn.Module):
    """One block; the module's docstring says what it computes."""

    config: GatedBlockConfig
    precision: Precision

    def setup(self) -> None:
        c, precision = self.config, self.precision

        def norm() -> nn.Module:
            return RMSNorm(precision, c.norm_epsilon) if c.norm == "rms" else LayerNorm(precision, c.norm_epsilon)

        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = CrossAttention(c, precision)
        self.mlp = GatedMLP(c.width, c.mlp_width, precision, c.output_scale, c.activation)
        self.attention_gate = parameter(self, "attention_gate", nn.initializers.zeros, (1,), (None,), precision)
        self.mlp_gate = parameter(self, "mlp_gate", nn.initializers.zeros, (1,), (None,), precision)

    def keys_and_values(self, memory: Float[Array, "B T W"]) -> KeysAndValues:
        """What generation keeps of a memory, as a cache lays it out."""
        keys, values = self.attention.keys_and_values(memory)
        return keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        memory: Float[Array, "B T W"] | None,
        kept: KeysAndValues | None,
        mask: Bool[Array, "B S T"] | None,
        sees: Bool[Array, "B S"] | None,
    ) -> Float[Array, "B S D"]:
        """The residual stream after the block.

        Args:
            x: the residual stream.
            memory: the memory's tokens, or
            kept: what `keys_and_values` made of them; neither where there are no image slots.
            mask: True where a position reads a token of the memory; a position that reads none gets exactly nothing.
            sees: positions that may see a picture.
        """
        if mask is not None:
            y = self.attention(self.attention_norm(x), memory, kept, mask)
            x = x + jnp.where(mask.any(-1, keepdims=True), _gate(self.attention_gate, y), 0)
        y = _gate(self.mlp_gate, self.mlp(self.mlp_norm(x)))
        if self.config.blind != "feed_forward" and sees is not None:
            y = jnp.where(sees[:, :, None], y, 0)
        return constrain(x + y, ("batch", "length", "act_embed"))


def _gate(gate: Float[Array, "1"], y: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    return jnp.tanh(gate.astype(jnp.float32)).astype(y.dtype) * y


@dataclasses.dataclass(frozen=True)
class BlockWork:
    """What one block has to do."""

    positions: float
    """Positions of text that it works on."""
    memory_tokens: float
    """Tokens that it makes keys and values of."""
    pairs: float
    """Pairs of a position and a token of the memory that it reads."""


def count_gated_block(ledger: Ledger, c: GatedBlockConfig, work: BlockWork, x: Depends, memory: Depends) -> Depends:
    """Writes down a block's matrix products; x, memory and what it gives are as in `Ledger`."""
    width, positions = c.heads * c.head_size, work.positions
    normed = ledger.learned("attention_norm", x)
    with ledger.within("attention"):
        queries = ledger.learned("query_norm", ledger.linear("query", positions * c.width * width, normed))
        size = work.memory_tokens * c.memory_width * c.key_value_heads * c.head_size
        keys, values = (ledger.linear(name, size, memory) for name in ("key", "value"))
        y = ledger.attention(work.pairs, width, queries, ledger.learned("key_norm", keys), values)
        y = ledger.linear("out", positions * width * c.width, y)
    x |= ledger.learned("attention_gate", y)
    y = ledger.mlp("mlp", positions, c.width, c.mlp_width, ledger.learned("mlp_norm", x), gated=True)
    return x | ledger.learned("mlp_gate", y)
