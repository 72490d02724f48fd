"""ViT image encoder (Dosovitskiy et al. 2021): a stem, learned positions, pre-norm transformer blocks."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlm_jax.models.attention import attention
from vlm_jax.models.layers import (
    MLP,
    VISION_MLP,
    Activation,
    GatedMLP,
    LayerNorm,
    Precision,
    Projection,
    dense,
    parameter,
)
from vlm_jax.models.placement import constrain
from vlm_jax.models.positions import Resampling, fractional_positions, resample
from vlm_jax.models.rematerialisation import RematPolicy, named, remat
from vlm_jax.models.states import EncoderStates, FeatureMap


@dataclasses.dataclass(frozen=True)
class PatchStem:
    """Cuts the picture into squares and maps each one linearly (ViT, eq. 1)."""

    patch: int = 16
    """Side of a square, in pixels."""
    bias: bool = True
    truncate: bool = False
    """Pictures may have sides that are no multiple of `patch`; the rest at the right and at the bottom is cut off."""

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
    """Sizes of a ViT and how it wants its pictures; the defaults are SigLIP's architecture (Zhai et al. 2023)."""

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
    class_token: bool = False
    """A learned token with a position of its own goes ahead of the patches (ViT, eq. 1)."""
    registers: int = 0
    """Learned tokens without positions, between class token and patches (Darcet et al. 2024)."""
    stem_norm: bool = False
    """A norm before the first block (CLIP)."""
    layer_scale: bool = False
    """A learned factor for each channel of each branch's output (Touvron et al. 2021, eq. 4)."""
    attention_bias: bool = True
    """Biases of queries, keys and values."""
    activation: Activation = "gelu_tanh"
    gated_mlp: bool = False
    """activation(x W_gate) * (x W_up) in the feed-forward part; with "silu" it is SwiGLU."""
    position_grid: tuple[int, int] | None = None
    """(rows, columns) that positions are learned for, where it is not the `grid` of `image_size`."""
    position_resampling: Resampling = "bicubic_antialias"
    final_norm: Literal["features", "pooled", "both", "none"] = "features"
    """features: the final norm is part of the features; pooled: it belongs to the pooled class token, and the features
    are the last block's output (CLIP); both: of the features, and of the pooled class token once more (BLIP); none:
    there is none.
    """
    keep_class_token: bool = False
    """The class token is the first feature; else only patches are features."""

    def __post_init__(self) -> None:
        truncates = isinstance(self.stem, PatchStem) and self.stem.truncate
        if any(side % self.stem.stride for side in self.image_size) and not truncates:
            raise ValueError(
                f"ViTConfig: image_size {self.image_size} is not a multiple of the stem's stride {self.stem.stride}"
            )
        if self.width % self.heads:
            raise ValueError(f"ViTConfig: width {self.width} does not divide by {self.heads} heads")
        needs = "keep_class_token" if self.keep_class_token else f"final_norm {self.final_norm!r}"
        if not self.class_token and (self.keep_class_token or self.final_norm in ("pooled", "both")):
            raise ValueError(f"ViTConfig: {needs} needs class_token")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of a picture of `image_size`."""
        return self.image_size[0] // self.stem.stride, self.image_size[1] // self.stem.stride

    @property
    def patches(self) -> int:
        """P, the number of patches of a picture of `image_size`."""
        return math.prod(self.grid)

    @property
    def features(self) -> FeatureMap:
        """What it makes of a picture of `image_size`."""
        return FeatureMap(*self.grid, self.width, ahead=int(self.keep_class_token))

    @property
    def extra_tokens(self) -> int:
        """Tokens ahead of the patches: class token and registers."""
        return self.class_token + self.registers


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
            if stem.truncate:
                pixels = pixels[:, : height // p * p, : columns // p * p]
            squares = pixels.reshape(count, height // p, p, columns // p, p, 3)
            shape, axes = (p, p, 3, width), (None, None, None, "vision_embed")
            bias = int(stem.bias)
            map_patch = Projection("nhpwqc,pqcd->nhwd", shape, axes, p * p * 3, self.precision, bias, name="patch")
            return map_patch(squares)
        x = pixels
        for i, (channels, stride) in enumerate(zip(stem.channels, stem.strides, strict=True)):
            x = nn.gelu(Conv(channels, stride, self.precision, name=f"conv_{i}")(x))
        return dense(x.shape[-1], width, ("conv_in", "vision_embed"), self.precision, bias=True, name="out")(x)


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
    """x + scale * attention(norm(x)), then x + scale * mlp(norm(x)) (ViT, eq. 2 and 3; the scales are optional)."""

    config: ViTConfig
    precision: Precision
    collect: bool = False
    """Gives its output a second time, for a scan to stack."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "N T D"], mask: Bool[Array, "N 1 T"] | None = None
    ) -> tuple[Float[Array, "N T D"], Array | None]:
        c, precision = self.config, self.precision
        head = c.width // c.heads
        shape, axes = (c.width, c.heads, head), ("vision_embed", "vision_heads", "head_size")
        y = LayerNorm(precision, c.norm_epsilon, name="attention_norm")(x)
        q, k, v = (
            Projection("npd,dhk->nphk", shape, axes, c.width, precision, 2 * c.attention_bias, name=n)(y)
            for n in ("query", "key", "value")
        )
        q, k, v = (constrain(t, ("pictures", "patches", "act_vision_heads", "head_size")) for t in (q, k, v))
        y = attention(named("query", q), named("key", k), named("value", v), mask)
        out = Projection(
            "nphk,hkd->npd",
            (c.heads, head, c.width),
            ("vision_heads", "head_size", "vision_embed"),
            c.width,
            precision,
            1,
            name="out",
        )
        x = x + self._scaled("attention_scale", named("attention_out", out(y)))
        y = LayerNorm(precision, c.norm_epsilon, name="mlp_norm")(x)
        x = x + self._scaled("mlp_scale", self._mlp()(y))
        x = constrain(x, ("pictures", "patches", "act_embed"))
        return x, x if self.collect else None

    def _mlp(self) -> nn.Module:
        c = self.config
        if c.gated_mlp:
            return GatedMLP(
                c.width, c.mlp_width, self.precision, activation=c.activation, bias=True, axes=VISION_MLP, name="mlp"
            )
        return MLP(c.width, c.mlp_width, self.precision, c.activation, name="mlp")

    def _scaled(self, name: str, y: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        if not self.config.layer_scale:
            return y
        init = nn.initializers.constant(1e-5)  # as DINOv2 is trained: branches come in slowly
        return y * parameter(self, name, init, y.shape[-1:], ("norm",), self.precision).astype(y.dtype)


class ViT(nn.Module):
    """Normalised pictures -> features."""

    config: ViTConfig
    precision: Precision = Precision()

    def __call__(
        self, pixels: Float[Array, "N H W 3"], shown: Bool[Array, "N h w"] | None = None
    ) -> Float[Array, "N P D"]:
        """Encodes N pictures of one size, a multiple of the stem's stride; positions are resampled to its grid.

        Args:
            pixels: normalised.
            shown: True where a patch is of the picture, in its upper left, and False where it is of padding, which
                nothing attends to; None = there is no padding.

        Returns:
            [N, P, D] features, patches row by row, after the class token if that is kept.
        """
        c = self.config
        last = self._run(pixels, shown, collect=False).last
        patches = last[:, c.extra_tokens :]
        return jnp.concatenate([last[:, :1], patches], 1) if c.keep_class_token else patches

    def states(self, pixels: Float[Array, "N H W 3"], shown: Bool[Array, "N h w"] | None = None) -> EncoderStates:
        """The same pass, but everything that there is on the way."""
        return self._run(pixels, shown, collect=True)

    @nn.compact
    def _run(self, pixels: Array, shown: Array | None, collect: bool) -> EncoderStates:
        c = self.config
        x = self._embed(pixels, shown)
        hidden, mask = [x], None
        if shown is not None:
            patches = shown.reshape(len(shown), 1, -1)
            mask = jnp.pad(patches, ((0, 0), (0, 0), (c.extra_tokens, 0)), constant_values=True)
        if c.layers:
            scanned = nn.scan(
                remat(EncoderBlock, c.remat),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=c.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, stacked = scanned(c, self.precision, collect, name="layers")(x, mask)
            hidden += [] if stacked is None else list(stacked)
        pooled = None
        if c.final_norm != "none":
            norm = LayerNorm(self.precision, c.norm_epsilon, name="norm")
            normed = norm(x)
            pooled = normed[:, 0] if c.class_token else None
            pooled = norm(normed[:, 0]) if c.final_norm == "both" else pooled
            x = x if c.final_norm == "pooled" else normed
        return EncoderStates(tuple(hidden) if collect else (), x, pooled)

    def _embed(self, pixels: Float[Array, "N H W 3"], shown: Bool[Array, "N h w"] | None) -> Float[Array, "N T D"]:
        """Stem and positions, after class token and registers: what enters the first block."""
        c, precision = self.config, self.precision
        x = Stem(c, precision, name="stem")(pixels)
        count, rows, columns, width = x.shape
        normal = nn.initializers.normal(0.02)
        shape, axes = (*(c.position_grid or c.grid), width), (None, None, "vision_embed")
        positions = parameter(self, "positions", normal, shape, axes, precision)
        if shown is not None and c.position_resampling == "fractional":
            positions = fractional_positions(positions, shown)
        else:
            positions = resample(positions, (rows, columns), c.position_resampling)
        x = x + positions.astype(x.dtype)
        x = x.reshape(count, rows * columns, width)
        ahead = []
        if c.class_token:
            token, position = (
                parameter(self, name, normal, (width,), ("vision_embed",), precision)
                for name in ("class_token", "class_position")
            )
            ahead.append((token + position)[None])
        if c.registers:
            ahead.append(parameter(self, "registers", normal, (c.registers, width), (None, "vision_embed"), precision))
        if ahead:
            tokens = jnp.concatenate(ahead).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(tokens, (count, *tokens.shape)), x], 1)
        if c.stem_norm:
            x = LayerNorm(precision, c.norm_epsilon, name="stem_norm")(x)
        return constrain(x, ("pictures", "patches", "act_embed"))
