"""What every adapter has: how it meets the decoder, and what it costs. A new one is a file and a line of the union.

Prompt-based adapters turn an image slot into visual tokens of the sequence: a config derived from `AdapterConfigBase`
and a module derived from `PromptAdapter`; their line stands in `prompt_based.py`, since they can also make the memory
of cross-attention. Cross-attention-based ones turn a slot into a memory that blocks of their own read.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.gated import BlockWork
from vlm_jax.models.layers import Precision, parameter
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.states import FeatureMap
from vlm_jax.pictures import Grid, Pictures


@dataclasses.dataclass(frozen=True)
class AdapterConfigBase:
    """What the model, the packer and the reports ask an adapter's config.

    `features` is what the encoder makes of an image slot; ValueError is raised where an adapter cannot take it.
    """

    def prompt_tokens(self, features: FeatureMap) -> int:
        """N, the visual tokens that an image slot puts into the sequence; 0 = none."""
        return 0

    def memory_tokens(self, features: FeatureMap) -> int:
        """M, the keys and values that an image slot gives to cross-attention; 0 = none."""
        return 0

    def pictures(self, features: FeatureMap) -> Pictures:
        """What the packer must know; the model adds how pictures are cut."""
        return Pictures(token_grid=self.token_grid(features))

    def token_grid(self, features: FeatureMap) -> Grid:
        """(rows, columns) that a slot's visual tokens form; (0, 0) where they form none."""
        return (0, 0)

    def count(self, ledger: Ledger, features: FeatureMap, width: int, x: Depends) -> Depends:
        """Writes down the matrix products for one image slot, in their order.

        Args:
            ledger: where to; names are those of the module's parameters.
            features: of the encoder.
            width: of the decoder.
            x: whether the features depend on something that trains.

        Returns:
            The same of the visual tokens.
        """
        raise NotImplementedError

    def flops(self, features: FeatureMap, width: int) -> float:
        """Forward FLOPs for one image slot: what `count` writes down."""
        ledger = Ledger()
        self.count(ledger, features, width, False)
        return ledger.forward

    def build(self, features: FeatureMap, width: int, precision: Precision, separator: bool) -> Any:
        """The module.

        Args:
            features: of the encoder.
            width: of the decoder.
            precision: number formats.
            separator: it also gives a separator of rows (`PromptAdapter`).
        """
        raise NotImplementedError

    # What follows is for adapters that need more of the decoder than its width: those with blocks of their own.

    def check(self, features: FeatureMap, decoder: DecoderConfig) -> None:
        """Whether it fits this encoder and decoder; ValueError if not."""
        self.prompt_tokens(features)

    def build_for(self, features: FeatureMap, decoder: DecoderConfig, precision: Precision, separator: bool) -> Any:
        """`build` for a decoder."""
        return self.build(features, decoder.width, precision, separator)

    def count_slot(
        self, ledger: Ledger, features: FeatureMap, decoder: DecoderConfig, x: Depends
    ) -> tuple[Depends, Depends]:
        """`count` with this decoder: of the visual tokens, and of the memory that blocks of its own read."""
        return self.count(ledger, features, decoder.width, x), False

    def places(self, decoder: DecoderConfig) -> tuple[int, ...]:
        """The decoder's layers that blocks of its own stand before; a block is written down by `count_block`."""
        return ()

    def count_block(
        self, ledger: Ledger, features: FeatureMap, decoder: DecoderConfig, work: BlockWork, x: Depends, memory: Depends
    ) -> Depends:
        """Writes down one block of its own.

        Args:
            ledger, features, decoder: as above.
            work: how much there is to do.
            x, memory: whether what it reads depends on something that trains.

        Returns:
            The same of what comes out.
        """
        raise NotImplementedError


class PromptAdapter(nn.Module):
    """[N, P, D] features -> [N, T, W] visual tokens, T = prompt_tokens, and one more where there is a separator.

    The separator is a learned vector, the same for all slots, which ends rows of visual tokens (LLaVA-NeXT).
    """

    config: Any
    features: FeatureMap
    width: int
    """The decoder's width, W."""
    precision: Precision = Precision()
    separator: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "N P D"], instructions: Int[Array, "N Q"] | None = None
    ) -> Float[Array, "N T W"]:
        """Visual tokens of image slots.

        Args:
            features: the encoder's.
            instructions: ids of the instruction that goes with each slot, 0 = padding; for adapters that read them.
        """
        x = self.tokens(features, instructions)
        if self.separator:
            init = nn.initializers.normal(self.width**-0.5)
            vector = parameter(self, "separator", init, (self.width,), ("embed",), self.precision).astype(x.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(vector, (len(x), 1, self.width))], 1)
        return x

    def tokens(self, features: Float[Array, "N P D"], instructions: Int[Array, "N Q"] | None) -> Float[Array, "N T W"]:
        """What `config.prompt_tokens` counts; called within a compact method, so it may make submodules."""
        raise NotImplementedError
