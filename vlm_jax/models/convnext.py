"""ConvNeXt image encoder (Liu et al. 2022): stages of depthwise convolutions, each half as wide and high."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.models.layers import MLP, Activation, LayerNorm, Precision, Projection, parameter
from vlm_jax.models.placement import constrain
from vlm_jax.models.rematerialisation import RematPolicy, remat
from vlm_jax.models.states import EncoderStates, FeatureMap


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """Sizes of a ConvNeXt and how it wants its pictures; the defaults are ConvNeXt-T's."""

    image_size: tuple[int, int] = (224, 224)
    """(height, width) in pixels of the pictures that it is trained on; any other size works too."""
    patch: int = 4
    """Side in pixels of the squares that the stem maps to the first width."""
    depths: tuple[int, ...] = (3, 3, 9, 3)
    """Blocks of each stage."""
    widths: tuple[int, ...] = (96, 192, 384, 768)
    norm_epsilon: float = 1e-12
    """Of the norm of the pooled output; the norms inside have 1e-6, as in the published models."""
    layer_scale: bool = True
    """A learned factor for each channel of each block's branch."""
    activation: Activation = "gelu"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of R, G, B in 0..1, taken off on the device."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    remat: RematPolicy = "none"

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"ConvNeXtConfig: {len(self.depths)} depths but {len(self.widths)} widths; give one of each a stage"
            )
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"ConvNeXtConfig: depths are {self.depths}; every stage needs at least one block")
        if 0 in self.grid:
            raise ValueError(
                f"ConvNeXtConfig: a picture of {self.image_size[0]} x {self.image_size[1]} pixels is too small for "
                f"{len(self.depths)} stages after squares of {self.patch}"
            )

    @property
    def width(self) -> int:
        """D, the channels of a feature."""
        return self.widths[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of features of a picture of `image_size`; what fills no square is cut off."""
        stride = self.patch * 2 ** (len(self.depths) - 1)
        return self.image_size[0] // stride, self.image_size[1] // stride

    @property
    def patches(self) -> int:
        """P, the number of features of a picture of `image_size`."""
        return math.prod(self.grid)

    @property
    def features(self) -> FeatureMap:
        """What it makes of a picture of `image_size`."""
        return FeatureMap(*self.grid, self.width)


_INNER_EPSILON = 1e-6


class Patchify(nn.Module):
    """A linear map of every square of `side` x `side` points; points that fill no square are left out."""

    side: int
    width: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w D"]:
        p, channels = self.side, x.shape[-1]
        rows, columns = x.shape[1] // p, x.shape[2] // p
        squares = x[:, : rows * p, : columns * p].reshape(-1, rows, p, columns, p, channels)
        shape, axes = (p, p, channels, self.width), (None, None, "conv_in", "conv_out")
        return Projection(
            "nhpwqc,pqcd->nhwd", shape, axes, p * p * channels, self.precision, bias_dims=1, name="patch"
        )(squares)


class DepthwiseConv(nn.Module):
    """7x7 convolution of each channel by itself, padded by three points all round."""

    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        dtype, channels = jnp.dtype(self.precision.compute), x.shape[-1]
        shape, axes = (7, 7, 1, channels), (None, None, None, "conv_out")
        # No "kernel": by that name Muon knows matrix products, and this is none.
        filters = parameter(self, "filters", nn.initializers.normal(1 / 7), shape, axes, self.precision)
        bias = parameter(self, "bias", nn.initializers.zeros, shape[-1:], axes[-1:], self.precision)
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            filters.astype(dtype),
            (1, 1),
            ((3, 3), (3, 3)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        return y + bias.astype(dtype)


class ConvNeXtBlock(nn.Module):
    """x + scale * mlp(norm(depthwise(x))) (figure 4 of the paper); the MLP is four times as wide."""

    config: ConvNeXtConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "N h w D"], _: None = None) -> tuple[Float[Array, "N h w D"], None]:
        c, precision, width = self.config, self.precision, x.shape[-1]
        y = DepthwiseConv(precision, name="depthwise")(x)
        y = LayerNorm(precision, _INNER_EPSILON, name="norm")(y).reshape(len(x), -1, width)
        y = MLP(width, 4 * width, precision, c.activation, name="mlp")(y).reshape(x.shape)
        if c.layer_scale:
            init = nn.initializers.constant(1e-6)
            y = y * parameter(self, "scale", init, (width,), ("norm",), precision).astype(y.dtype)
        return x + y, None


class ConvNeXt(nn.Module):
    """Normalised pictures -> features of the last stage."""

    config: ConvNeXtConfig
    precision: Precision = Precision()

    def __call__(self, pixels: Float[Array, "N H W 3"]) -> Float[Array, "N P D"]:
        """Encodes N pictures of one size.

        Returns:
            [N, P, D] features, row by row. The final norm belongs to the pooled output, so they are not normed.
        """
        last = self.states(pixels).last
        features = last.reshape(len(last), -1, self.config.width)
        return constrain(features, ("pictures", "patches", "act_embed"))

    @nn.compact
    def states(self, pixels: Float[Array, "N H W 3"]) -> EncoderStates:
        """The same pass, but everything that there is on the way."""
        c, precision = self.config, self.precision
        x = Patchify(c.patch, c.widths[0], precision, name="stem")(pixels)
        x = LayerNorm(precision, _INNER_EPSILON, name="stem_norm")(x)
        hidden = [x]
        for stage, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
            if stage:
                x = LayerNorm(precision, _INNER_EPSILON, name=f"reduce_{stage}_norm")(x)
                x = Patchify(2, width, precision, name=f"reduce_{stage}")(x)
            blocks = nn.scan(
                remat(ConvNeXtBlock, c.remat),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=depth,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = blocks(c, precision, name=f"stage_{stage}")(x, None)
            hidden.append(x)
        pooled = LayerNorm(precision, c.norm_epsilon, name="norm")(jnp.mean(x, (1, 2)))
        return EncoderStates(tuple(hidden), x, pooled)
