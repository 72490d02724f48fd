"""What an image encoder can show of its inside, in transformers' order."""

import dataclasses

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderStates:
    """T is all tokens of a ViT, class token and registers first; a ConvNeXt has grids [N, h, w, D] instead.

    Hidden states are those before the final norm: what enters the first block (ViT) or stage (ConvNeXt), then the
    output of each.
    """

    hidden: tuple[Float[Array, "N T D"], ...]
    last: Float[Array, "N T D"]
    """The last hidden state, after the final norm where that is part of the features."""
    pooled: Float[Array, "N D"] | None
    """The class token after the final norm (ViT), or the normed mean (ConvNeXt); None where there is neither."""
