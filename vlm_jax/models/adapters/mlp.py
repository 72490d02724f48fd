"""MLP projector (LLaVA-1.5): each feature of the encoder, or square of them, is one token of the LLM's sequence."""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from vlm_jax.models.layers import ACTIVATIONS, Activation, Precision, dense


@dataclasses.dataclass(frozen=True)
class MLPAdapterConfig:
    """A linear map (layers = 1) or an MLP, after an optional pixel-shuffle."""

    layers: int = 2
    hidden: int = 0
    """Width between the layers; 0 = the decoder's width."""
    pixel_shuffle: int = 1
    """r: squares of r x r neighbouring features become one token of r² times the width (Idefics 3, section 3)."""
    activation: Activation = "gelu_tanh"
    bias: bool = True

    def __post_init__(self) -> None:
        if self.layers not in (1, 2, 3):
            raise ValueError(f"MLPAdapterConfig: layers is {self.layers}; it can be 1, 2 or 3")

    def prompt_tokens(self, grid: tuple[int, int]) -> int:
        """N, how many visual tokens a picture puts into the LLM's sequence, from the encoder's (rows, columns).

        Raises:
            ValueError: if the grid does not divide by the pixel-shuffle factor.
        """
        r = self.pixel_shuffle
        if grid[0] % r or grid[1] % r:
            raise ValueError(
                f"MLPAdapterConfig: a grid of {grid[0]} x {grid[1]} patches does not divide by pixel_shuffle {r}"
            )
        return grid[0] * grid[1] // r**2


def pixel_shuffle(features: Float[Array, "N h w D"], r: int) -> Float[Array, "N h/r w/r r*r*D"]:
    """Joins each r x r square of features into one; squares row by row, and row by row inside a square.

    r = 2 joins a grid of 2 x 2 into one token: [[a, b], [c, d]] -> [[abcd]].
    """
    count, rows, columns, width = features.shape
    x = features.reshape(count, rows // r, r, columns // r, r, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, rows // r, columns // r, r * r * width)


class MLPAdapter(nn.Module):
    """[N, P, D] features -> [N, prompt_tokens, width] visual tokens; a class token among the features is one too."""

    config: MLPAdapterConfig
    grid: tuple[int, int]
    """(rows, columns) of the encoder's patches."""
    width: int
    """The decoder's width."""
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, features: Float[Array, "N P D"]) -> Float[Array, "N T W"]:
        c = self.config
        count, _, channels = features.shape
        x = features
        if c.pixel_shuffle > 1:
            x = pixel_shuffle(x.reshape(count, *self.grid, channels), c.pixel_shuffle)
            x = x.reshape(count, -1, x.shape[-1])
        hidden = c.hidden or self.width
        for i in range(c.layers):
            last = i == c.layers - 1
            axes = ("features", "embed" if last else "mlp")
            outputs = self.width if last else hidden
            x = dense(x.shape[-1], outputs, axes, self.precision, bias=c.bias, name=f"layer_{i}")(x)
            x = x if last else ACTIVATIONS[c.activation](x)
        return x
