"""ViT image encoder (Dosovitskiy et al. 2021): a stem, learned positions, pre-norm transformer blocks."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vlm_jax.models.attention import attention
from vlm_jax.models.layers import MLP, LayerNorm, Precision, Projection, RematPolicy, dense, parameter, remat


@dataclasses.dataclass(frozen=True)
class PatchStem:
    """Cuts the picture into squares and maps each one linearly (ViT, eq. 1)."""

    patch: int = 16
    """Side of a square, in pixels."""

    @property
    def stride(self) -> int:
        return self.patch


@dataclasses.dataclass(frozen=True)
class ConvStem:
    """3x3 convolutions with GELU, then a 1x1 map to the width (after Xiao et al. 2021, who have ReLU)."""

    channels: tuple[int, ...] = (32, 64, 128)
    strides: tuple[int, ...] = (2, 2, 2)

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.strides):
            raise ValueError(
                f"ConvStem: {len(self.channels)} channels but {len(self.strides)} strides; give one of each a layer"
            )

    @property
    def stride(self) -> int:
        return math.prod(self.strides)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT and how it wants its pictures."""

    image_size: tuple[int, int] = (224, 224)
    """(height, width) in pixels of the pictures that it is trained on; other multiples of the stride work too."""
    stem: PatchStem | ConvStem = dataclasses.field(default_factory=PatchStem)
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    norm_epsilon: float = 1e-6
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of R, G, B in 0..1, taken off on the device."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    remat: RematPolicy = "none"

    def __post_init__(self) -> None:
        if any(side % self.stem.stride for side in self.image_size):
            raise ValueError(
                f"ViTConfig: image_size {self.image_size} is not a multiple of the stem's stride {self.stem.stride}"
            )
        if self.width % self.heads:
            raise ValueError(f"ViTConfig: width {self.width} does not divide by {self.heads} heads")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of a picture of `image_size`."""
        return self.image_size[0] // self.stem.stride, self.image_size[1] // self.stem.stride

    @property
    def patches(self) -> int:
        """P, the number of patches of a picture of `image_size`."""
        return math.prod(self.grid)


def normalise(images: UInt8[Array, "*N H W 3"], config: ViTConfig) -> Float[Array, "*N H W 3"]:
    """uint8 pixels -> (pixels / 255 - mean) / std, float32."""
    mean, std = jnp.asarray(config.mean), jnp.asarray(config.std)
    return (images.astype(jnp.float32) / 255 - mean) / std


class Stem(nn.Module):
    """Pictures -> a grid of patch embeddings."""

    config: ViTConfig
    precision: Precision

    @nn.compact
    def __call__(self, pixels: Float[Array, "N H W 3"]) -> Float[Array, "N h w D"]:
        stem, width = self.config.stem, self.config.width
        if isinstance(stem, PatchStem):
            count, height, columns, _ = pixels.shape
            p = stem.patch
            squares = pixels.reshape(count, height // p, p, columns // p, p, 3)
            shape, axes = (p, p, 3, width), (None, None, None, "embed")
            map_patch = Projection("nhpwqc,pqcd->nhwd", shape, axes, p * p * 3, self.precision, 1, name="patch")
            return map_patch(squares)
        x = pixels
        for i, (channels, stride) in enumerate(zip(stem.channels, stem.strides, strict=True)):
            x = nn.gelu(Conv(channels, stride, self.precision, name=f"conv_{i}")(x))
        return dense(x.shape[-1], width, ("conv_in", "embed"), self.precision, bias=True, name="out")(x)


class Conv(nn.Module):
    """3x3 convolution, padded by one pixel all round: [N, H, W, C] -> [N, ceil(H/stride), ceil(W/stride), channels]."""

    channels: int
    stride: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w D"]:
        dtype = jnp.dtype(self.precision.compute)
        shape, axes = (3, 3, x.shape[-1], self.channels), (None, None, "conv_in", "conv_out")
        kernel = parameter(self, "kernel", nn.initializers.he_normal(), shape, axes, self.precision)
        bias = parameter(self, "bias", nn.initializers.zeros, shape[-1:], axes[-1:], self.precision)
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            (self.stride,) * 2,
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(dtype)


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (ViT, eq. 2 and 3)."""

    config: ViTConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "N P D"], _: None = None) -> tuple[Float[Array, "N P D"], None]:
        c, precision = self.config, self.precision
        head = c.width // c.heads
        shape, axes = (c.width, c.heads, head), ("embed", "heads", "head_size")
        y = LayerNorm(precision, c.norm_epsilon, name="attention_norm")(x)
        q, k, v = (
            Projection("npd,dhk->nphk", shape, axes, c.width, precision, 2, name=n)(y)
            for n in ("query", "key", "value")
        )
        q, k, v = (nn.with_logical_constraint(t, ("batch", "patches", "act_heads", "head_size")) for t in (q, k, v))
        y = attention(q, k, v, mask=None)
        out = Projection(
            "nphk,hkd->npd",
            (c.heads, head, c.width),
            ("heads", "head_size", "embed"),
            c.width,
            precision,
            1,
            name="out",
        )
        x = x + out(y)
        y = LayerNorm(precision, c.norm_epsilon, name="mlp_norm")(x)
        x = x + MLP(c.width, c.mlp_width, precision, name="mlp")(y)
        return nn.with_logical_constraint(x, ("batch", "patches", "act_embed")), None


class ViT(nn.Module):
    """Normalised pictures -> patch features after the final norm."""

    config: ViTConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, pixels: Float[Array, "N H W 3"]) -> Float[Array, "N P D"]:
        """Encodes N pictures of one size, a multiple of the stem's stride; positions are resampled to its grid.

        Returns:
            [N, P, D] features, patches row by row.
        """
        c, precision = self.config, self.precision
        x = Stem(c, precision, name="stem")(pixels)
        count, rows, columns, width = x.shape
        shape, axes = (*c.grid, width), (None, None, "embed")
        positions = parameter(self, "positions", nn.initializers.normal(0.02), shape, axes, precision)
        x = (x + resample(positions, (rows, columns)).astype(x.dtype)).reshape(count, rows * columns, width)
        x = nn.with_logical_constraint(x, ("batch", "patches", "act_embed"))
        if c.layers:
            scanned = nn.scan(
                remat(EncoderBlock, c.remat),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=c.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = scanned(c, precision, name="layers")(x, None)
        return LayerNorm(precision, c.norm_epsilon, name="norm")(x)


def resample(
    positions: Float[Array, "h w D"], grid: tuple[int, int], method: Literal["bicubic", "linear"] = "bicubic"
) -> Float[Array, "H W D"]:
    """Learned positions of one grid, interpolated to another (ViT, section 3.2); the same grid changes nothing."""
    if positions.shape[:2] == grid:
        return positions
    return jax.image.resize(positions.astype(jnp.float32), (*grid, positions.shape[-1]), method)
