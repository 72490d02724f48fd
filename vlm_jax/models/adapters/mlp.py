"""MLP projector (LLaVA-1.5): each feature of the encoder, or square of them, is one token of the LLM's sequence."""

import dataclasses
import itertools

from jaxtyping import Array, Float, Int

from vlm_jax.models.adapters.base import AdapterConfigBase, PromptAdapter
from vlm_jax.models.layers import ACTIVATIONS, Activation, Precision, dense
from vlm_jax.models.ledger import Depends, Ledger
from vlm_jax.models.states import FeatureMap
from vlm_jax.pictures import Grid


@dataclasses.dataclass(frozen=True)
class MLPAdapterConfig(AdapterConfigBase):
    """A linear map (layers = 1) or an MLP, after an optional pixel-shuffle; a class token becomes a token too."""

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

    def prompt_tokens(self, features: FeatureMap) -> int:
        """One for each feature, or square of features."""
        r = self.pixel_shuffle
        if r > 1 and features.ahead:
            raise ValueError(
                "MLPAdapterConfig: pixel_shuffle joins patches, but keep_class_token keeps a feature that is none"
            )
        if features.rows % r or features.columns % r:
            raise ValueError(
                f"MLPAdapterConfig: a grid of {features.rows} x {features.columns} patches does not divide by "
                f"pixel_shuffle {r}"
            )
        return features.patches // r**2 + features.ahead

    def token_grid(self, features: FeatureMap) -> Grid:
        """That of the patches, or of the squares."""
        if features.ahead:
            return (0, 0)
        return features.rows // self.pixel_shuffle, features.columns // self.pixel_shuffle

    def count(self, ledger: Ledger, features: FeatureMap, width: int, x: Depends) -> Depends:
        """Each layer maps each token."""
        hidden = self.hidden or width
        sizes = [features.width * self.pixel_shuffle**2, *[hidden] * (self.layers - 1), width]
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            x = ledger.linear(f"layer_{i}", self.prompt_tokens(features) * inputs * outputs, x)
        return x

    def build(self, features: FeatureMap, width: int, precision: Precision, separator: bool) -> "MLPAdapter":
        """The module."""
        return MLPAdapter(self, features, width, precision, separator)


def pixel_shuffle(features: Float[Array, "N h w D"], r: int) -> Float[Array, "N h/r w/r r*r*D"]:
    """Joins each r x r square of features into one; squares row by row, and row by row inside a square.

    r = 2 joins a grid of 2 x 2 into one token: [[a, b], [c, d]] -> [[abcd]].
    """
    count, rows, columns, width = features.shape
    x = features.reshape(count, rows // r, r, columns // r, r, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, rows // r, columns // r, r * r * width)


class MLPAdapter(PromptAdapter):
    """Each feature, or square of features, is mapped by itself."""

    config: MLPAdapterConfig

    def tokens(self, features: Float[Array, "N P D"], instructions: Int[Array, "N Q"] | None) -> Float[Array, "N T W"]:
        """[N, P, D] features -> [N, prompt_tokens, W] visual tokens."""
        c = self.config
        count, _, channels = features.shape
        x = features
        if c.pixel_shuffle > 1:
            x = pixel_shuffle(x.reshape(count, self.features.rows, self.features.columns, channels), c.pixel_shuffle)
            x = x.reshape(count, -1, x.shape[-1])
        hidden = c.hidden or self.width
        for i in range(c.layers):
            last = i == c.layers - 1
            axes = ("features", "embed" if last else "vision_embed")
            outputs = self.width if last else hidden
            x = dense(x.shape[-1], outputs, axes, self.precision, bias=c.bias, name=f"layer_{i}")(x)
            x = x if last else ACTIVATIONS[c.activation](x)
        return x
