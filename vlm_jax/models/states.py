"""What an image encoder gives: the shape of its features, and what it can show of its inside."""

import dataclasses

import jax
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """What an encoder makes of an image slot: P = ahead + rows * columns features of D = width."""

    rows: int
    columns: int
    width: int
    ahead: int = 0
    """Features ahead of those of the patches, such as a class token."""

    @property
    def patches(self) -> int:
        """Features of patches."""
        return self.rows * self.columns

    @property
    def count(self) -> int:
        """P, all features."""
        return self.ahead + self.patches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderStates:
    """What an encoder can show of its inside, in transformers' order.

    T is all tokens of a ViT, class token and registers first; a ConvNeXt has grids [N, h, w, D] instead.

    Hidden states are those before the final norm: what enters the first block (ViT) or stage (ConvNeXt), then the
    output of each.
    """

    hidden: tuple[Float[Array, "N T D"], ...]
    last: Float[Array, "N T D"]
    """The last hidden state, after the final norm where that is part of the features."""
    pooled: Float[Array, "N D"] | None
    """The class token after the final norm (ViT), or the normed mean (ConvNeXt); None where there is neither."""
