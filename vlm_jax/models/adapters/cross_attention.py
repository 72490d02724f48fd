"""Cross-attention adapters: the decoder reads pictures through gated blocks between its layers, at no cost of context.

What an image slot becomes there, its memory, is the encoder's features as they are, or what a prompt-based adapter (a
resampler, a Q-Former, a linear map) makes of them. The decoder's own parameters stay those of its text LLM.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vlm_jax.batch import Batch
from vlm_jax.models.adapters.base import AdapterConfigBase
from vlm_jax.models.adapters.prompt_based import PromptAdapterConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.gated import Blind, BlockWork, GatedBlock, GatedBlockConfig, count_gated_block
from vlm_jax.models.insertion import Inserted, unstacked
from vlm_jax.models.layers import Activation, Precision
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.memory import Memory, Sight, own_slots, visible_slots
from vlm_jax.models.rematerialisation import remat
from vlm_jax.models.states import FeatureMap
from vlm_jax.pictures import Grid, Pictures, Visible


@dataclasses.dataclass(frozen=True)
class CrossAttentionConfig(AdapterConfigBase):
    """Gated blocks before some of the decoder's layers.

    Two published forms differ in what `visible`, `blind` and `query_key_norm` are where they are None:

        form        visible   blind           query_key_norm
        flamingo    last      skip            no                (Alayrac et al. 2022)
        llama       group     whole_example   yes               (Llama 3.2 Vision; Grattafiori et al. 2024, section 7.2)
    """

    form: Literal["flamingo", "llama"] = "flamingo"
    every: int = 4
    """Blocks stand before the layers first, first + every, … of the decoder, counted from 0."""
    first: int = 0
    layers: tuple[int, ...] = ()
    """If given, in place of `every` and `first`: the layers that blocks stand before, ascending. A number that is there
    twice is two blocks in a row, and the number of layers is a block after the last one.
    """
    memory: PromptAdapterConfig | None = None
    """Makes the memory; None = the encoder's features as they are."""
    memory_width: int = 0
    """Width of what `memory` makes; 0 = the decoder's."""
    visible: Visible | None = None
    """Which pictures a position may see."""
    blind: Blind | None = None
    """What the blocks are to a position that sees none."""
    heads: int = 0
    """0 = as many as the decoder; so are the other sizes."""
    key_value_heads: int = 0
    head_size: int = 0
    mlp_width: int = 0
    norm: Literal["rms", "layer"] = "rms"
    """Of a block's inputs; Flamingo has LayerNorm, Idefics and Llama 3.2 have RMSNorm."""
    query_key_norm: bool | None = None
    activation: Activation = "silu"
    prompt: PromptAdapterConfig | None = None
    """Makes visual tokens of the sequence besides (NVLM-H; Dai et al. 2024, section 4.1); None = there are none."""
    prompt_slots: Literal["all", "thumbnail"] = "all"
    """Which slots of a picture those come from. With "thumbnail" a cut picture's thumbnail stands in the sequence only,
    and its tiles are read through cross-attention only.
    """

    def __post_init__(self) -> None:
        if self.every < 1 or self.first < 0:
            raise ValueError(
                f"CrossAttentionConfig: every is {self.every} and first {self.first}; they are at least 1 and 0"
            )
        if list(self.layers) != sorted(self.layers) or min(self.layers, default=0) < 0:
            raise ValueError(f"CrossAttentionConfig: layers {self.layers} must be numbers from 0 on, ascending")
        if self.memory_width and self.memory is None:
            raise ValueError(
                "CrossAttentionConfig: memory_width is the width of what `memory` makes, but memory is None, so that "
                "the encoder's features are read as they are; leave it 0, or set memory"
            )
        if self.prompt_slots == "thumbnail" and self.prompt is None:
            raise ValueError(
                "CrossAttentionConfig: prompt_slots says which slots become visual tokens, but prompt, which makes "
                "them, is None; set it, or leave prompt_slots out"
            )

    @property
    def seen(self) -> Visible:
        """`visible`, or that of the form."""
        return self.visible or ("last" if self.form == "flamingo" else "group")

    @property
    def blind_rule(self) -> Blind:
        """`blind`, or that of the form."""
        return self.blind or ("skip" if self.form == "flamingo" else "whole_example")

    def places(self, decoder: DecoderConfig) -> tuple[int, ...]:
        """The decoder's layers that blocks stand before; there are C of them."""
        return self.layers or tuple(range(self.first, decoder.layers, self.every))

    def block(self, features: FeatureMap, decoder: DecoderConfig) -> GatedBlockConfig:
        """One block's sizes."""
        widths = (self.memory_width or decoder.width) if self.memory else features.width
        normed = self.form == "llama" if self.query_key_norm is None else self.query_key_norm
        return GatedBlockConfig(
            width=decoder.width,
            memory_width=widths,
            heads=self.heads or decoder.heads,
            key_value_heads=self.key_value_heads or decoder.key_value_heads,
            head_size=self.head_size or decoder.head_size,
            mlp_width=self.mlp_width or decoder.mlp_width,
            norm=self.norm,
            norm_epsilon=decoder.norm_epsilon,
            query_key_norm=normed,
            activation=self.activation,
            blind=self.blind_rule,
            output_scale=(2 * decoder.layers) ** -0.5,
        )

    def check(self, features: FeatureMap, decoder: DecoderConfig) -> None:
        """Whether there are such layers, and heads divide."""
        places, pattern = self.places(decoder), len(decoder.pattern)
        if not places or places[-1] > decoder.layers:
            raise ValueError(
                f"CrossAttentionConfig: a block is to stand before layer {places[-1] if places else self.first}, but "
                f"the decoder has {decoder.layers} layers, 0 to {decoder.layers - 1} ({decoder.layers} = after them)"
            )
        inside = [place for place in places if place % pattern]
        if inside:
            raise ValueError(
                f"CrossAttentionConfig: a block is to stand before layer {inside[0]}, which is inside the decoder's "
                f"repeating pattern of {pattern} layers; choose multiples of {pattern}"
            )
        block = self.block(features, decoder)
        if block.heads % block.key_value_heads:
            raise ValueError(
                f"CrossAttentionConfig: {block.heads} heads do not divide by {block.key_value_heads} key_value_heads"
            )
        self.prompt_tokens(features)
        self.memory_tokens(features)

    def prompt_tokens(self, features: FeatureMap) -> int:
        """Those of `prompt`."""
        return self.prompt.prompt_tokens(features) if self.prompt else 0

    def memory_tokens(self, features: FeatureMap) -> int:
        """What `memory` makes of a slot, or all features."""
        return self.memory.prompt_tokens(features) if self.memory else features.count

    def token_grid(self, features: FeatureMap) -> Grid:
        """That of `prompt`."""
        return self.prompt.token_grid(features) if self.prompt else (0, 0)

    def pictures(self, features: FeatureMap) -> Pictures:
        """Who sees what, and the instruction that one of the parts reads."""
        parts = [part.pictures(features) for part in (self.memory, self.prompt) if part]
        return Pictures(
            token_grid=self.token_grid(features),
            prompt_slots=self.prompt_slots,
            visible=self.seen,
            instruction=max((part.instruction for part in parts), default=0),
            instruction_vocabulary=max((part.instruction_vocabulary for part in parts), default=0),
        )

    def build_for(
        self, features: FeatureMap, decoder: DecoderConfig, precision: Precision, separator: bool
    ) -> "CrossAttentionAdapter":
        """The module."""
        return CrossAttentionAdapter(self, features, decoder, precision, separator)

    def count_slot(
        self, ledger: Ledger, features: FeatureMap, decoder: DecoderConfig, x: Depends
    ) -> tuple[Depends, Depends]:
        """Making the visual tokens and the memory; the memory's keys and values are the blocks'."""
        memory, visual = x, False
        if self.memory:
            with ledger.within("memory"):
                memory = self.memory.count(ledger, features, self.block(features, decoder).memory_width, x)
        if self.prompt:
            with ledger.within("prompt"):
                visual = self.prompt.count(ledger, features, decoder.width, x)
        return visual, memory

    def count_block(
        self, ledger: Ledger, features: FeatureMap, decoder: DecoderConfig, work: BlockWork, x: Depends, memory: Depends
    ) -> Depends:
        """All blocks have one size."""
        with ledger.within("blocks"):
            return count_gated_block(ledger, self.block(features, decoder), work, x, memory)


class CrossAttentionAdapter(nn.Module):
    """The memory's and the prompt's makers, and the blocks' stacked parameters."""

    config: CrossAttentionConfig
    features: FeatureMap
    decoder: DecoderConfig
    precision: Precision = Precision()
    separator: bool = False

    def setup(self) -> None:
        c, precision = self.config, self.precision
        self.block = c.block(self.features, self.decoder)
        if c.memory:
            self.memory = c.memory.build(self.features, self.block.memory_width, precision, False)
        if c.prompt:
            self.prompt = c.prompt.build(self.features, self.decoder.width, precision, self.separator)
        stacked: Any = nn.vmap(
            GatedBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=len(c.places(self.decoder)),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.blocks = stacked(self.block, precision)

    def __call__(
        self, features: Float[Array, "N P D"], instructions: Int[Array, "N Q"] | None = None
    ) -> Float[Array, "N T W"]:
        """Visual tokens of the sequence, where there is a `prompt`."""
        return self.prompt(features, instructions)

    def remember(
        self, features: Float[Array, "N P D"], instructions: Int[Array, "N Q"] | None = None
    ) -> Float[Array, "N M W"]:
        """The memory of image slots."""
        if not self.config.memory:
            return features.astype(jnp.dtype(self.precision.compute))
        made: Array = self.memory(features, instructions)
        return made

    def sight(self, batch: Batch) -> Sight:
        """Who reads which image slots, by the rule for positions that see none."""
        thumbnails = self.config.prompt_slots != "thumbnail"
        visible = visible_slots(batch, thumbnails=thumbnails)
        sees = visible.any(-1)
        if self.config.blind_rule != "whole_example":
            return Sight(visible, sees)
        return Sight(jnp.where(sees[:, :, None], visible, own_slots(batch, thumbnails=thumbnails)), sees)

    def keep(self, memory: Memory) -> Memory:
        """The same with all blocks' keys and values in place of tokens."""
        block: Any = GatedBlock(self.block, self.precision, parent=None)
        apply = functools.partial(block.apply, method="keys_and_values")
        kept = jax.vmap(apply, in_axes=(0, None))({"params": self._params()}, memory.tokens)
        return dataclasses.replace(memory, tokens=None, kept=kept)

    def inserted(self, memory: Memory | None) -> Inserted | None:
        """The blocks that read a memory, for `Decoder`; None where they change nothing, as there are no image slots."""
        if self.is_initializing():
            # Their parameters are made here; what comes out of them changes nothing, since their gates are 0.
            x = jnp.zeros((1, 1, self.block.width), jnp.dtype(self.precision.compute))
            tokens = jnp.zeros((1, 1, self.block.memory_width), x.dtype)
            self.blocks(x, tokens, None, jnp.ones((1, 1, 1), bool), jnp.ones((1, 1), bool))
            return None
        places = self.config.places(self.decoder)
        params = self._params()
        if memory is None:
            if self.config.blind_rule != "feed_forward":
                return None
            return Inserted(places, self._runner(None, None, None), _entries(params, None, len(places)))
        tokens_a_slot = self.config.memory_tokens(self.features)
        mask = jnp.repeat(memory.sight.reads, tokens_a_slot, axis=2)
        run = self._runner(memory.tokens, mask, memory.sight.sees)
        return Inserted(places, run, _entries(params, memory.kept, len(places)))

    def _runner(
        self, tokens: Array | None, mask: Bool[Array, "B S T"] | None, sees: Bool[Array, "B S"] | None
    ) -> Callable[[Array, PyTree], Array]:
        block: Any = remat(GatedBlock, self.decoder.remat)(self.block, self.precision, parent=None)

        def run(x: Array, entry: PyTree) -> Array:
            y: Array = block.apply({"params": entry["params"]}, x, tokens, entry["kept"], mask, sees)
            return y

        return run

    def _params(self) -> PyTree:
        return nn.meta.unbox(self.variables["params"]["blocks"])


def _entries(params: PyTree, kept: Any, count: int) -> PyTree:
    """What each block has of its own: stacked, or for an unrolled decoder one entry after the other."""
    if f"block_{count - 1}" not in params:
        return {"params": params, "kept": kept}
    each = kept or (None,) * count
    return tuple({"params": params[f"block_{i}"], "kept": each[i]} for i in range(count))


def unrolled_blocks(params: PyTree) -> PyTree:
    """An adapter's parameters for an unrolled decoder: each block's by themselves (`decoder.unrolled_params`)."""
    count = len(params["blocks"]["attention_gate"])
    return params | {"blocks": {f"block_{i}": unstacked(params["blocks"], i) for i in range(count)}}
