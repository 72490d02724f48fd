"""Layers that every part of the model shares. Parameters carry logical axis names; `parallel/` maps them to a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.models.placement import constrain
from vlm_jax.models.rematerialisation import named

DTypeName = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Precision:
    """Number formats of a model: what it computes in, and what its trained parameters are kept in."""

    compute: DTypeName = "float32"
    parameters: DTypeName = "float32"


Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "squared_relu"]
"""Non-linearities: gelu is exact (with erf), gelu_tanh its approximation (Hendrycks & Gimpel 2016, section 2),
quick_gelu x * sigmoid(1.702 x), as in CLIP, squared_relu max(x, 0)² (So et al. 2021, section 4.1).
"""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "squared_relu": lambda x: jnp.square(nn.relu(x)),
}


def parameter(
    module: nn.Module,
    name: str,
    init: Callable[..., Any],
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    precision: Precision,
) -> Array:
    """A parameter of `module` with a logical axis name for each dimension, in the dtype that parameters are kept in."""
    value: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.dtype(precision.parameters))
    return value


def weight(value: Array, axes: tuple[str | None, ...], precision: Precision) -> Array:
    """A parameter as products take it: in the compute dtype.

    Its gradient is asked for where the parameter lies. Inside a loop over layers the partitioner would else add up the
    whole gradient on every device and cut out the device's part afterwards, which moves twice the bytes.

    Args:
        value: of `parameter`.
        axes: its logical axes.
        precision: gives the dtype.
    """
    return _with_gradient_in_place(axes, value.astype(jnp.dtype(precision.compute)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_gradient_in_place(axes: tuple[str | None, ...], value: Array) -> Array:
    return value


def _forward(axes: tuple[str | None, ...], value: Array) -> tuple[Array, None]:
    return value, None


def _backward(axes: tuple[str | None, ...], _: None, gradient: Array) -> tuple[Array]:
    return (constrain(gradient, axes),)


_with_gradient_in_place.defvjp(_forward, _backward)


class Projection(nn.Module):
    """y = einsum(equation, x, kernel) (+ bias): a linear map between tensors of any rank.

    The kernel is created with its full shape, so that its logical axes fit it under a mesh (flax issue 3676).
    It is drawn from a normal distribution with variance scale² / fan_in.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    fan_in: int
    precision: Precision
    bias_dims: int = 0
    """The trailing dimensions of the kernel that the bias has; 0 = no bias."""
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        dtype = jnp.dtype(self.precision.compute)
        init = nn.initializers.normal(self.scale * self.fan_in**-0.5)
        kernel = parameter(self, "kernel", init, self.shape, self.axes, self.precision)
        y = jnp.einsum(self.equation, x.astype(dtype), weight(kernel, self.axes, self.precision))
        if self.bias_dims:
            shape, axes = self.shape[-self.bias_dims :], self.axes[-self.bias_dims :]
            y += parameter(self, "bias", nn.initializers.zeros, shape, axes, self.precision).astype(dtype)
        return y


def dense(
    inputs: int,
    outputs: int,
    axes: Sequence[str | None],
    precision: Precision,
    *,
    bias: bool = False,
    scale: float = 1.0,
    name: str | None = None,
) -> Projection:
    """A `Projection` of the last dimension: [..., inputs] -> [..., outputs]."""
    return Projection(
        "...i,io->...o", (inputs, outputs), tuple(axes), inputs, precision, int(bias), scale=scale, name=name
    )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * (offset + scale) over the last dimension, in float32 (Zhang & Sennrich 2019)."""

    precision: Precision
    epsilon: float = 1e-5
    offset: float = 0.0
    """Gemma keeps its scales less one: 1.0."""

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        init = nn.initializers.constant(1.0 - self.offset)
        scale = parameter(self, "scale", init, x.shape[-1:], ("norm",), self.precision)
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.epsilon)
        return (wide * (self.offset + scale.astype(jnp.float32))).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last dimension, in float32 (Ba et al. 2016, eq. 4)."""

    precision: Precision
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = parameter(self, "scale", nn.initializers.ones, x.shape[-1:], ("norm",), self.precision)
        bias = parameter(self, "bias", nn.initializers.zeros, x.shape[-1:], ("norm",), self.precision)
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, -1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.epsilon)
        return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class MLPAxes:
    """Logical axes of a feed-forward part: of its weights' two dimensions, and of what is between them."""

    width: str
    hidden: str
    between: tuple[str, str, str]


DECODER_MLP = MLPAxes("embed", "mlp", ("batch", "length", "act_mlp"))
VISION_MLP = MLPAxes("vision_embed", "vision_mlp", ("pictures", "patches", "act_vision_mlp"))


class GatedMLP(nn.Module):
    """SwiGLU and its kin: (activation(x W_gate) * (x W_up)) W_down (Shazeer 2020, eq. 6)."""

    width: int
    hidden: int
    precision: Precision
    output_scale: float = 1.0
    activation: Activation = "silu"
    bias: bool = False
    outputs: int = 0
    """Width of what comes out; 0 = `width`."""
    axes: MLPAxes = DECODER_MLP

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S E"]:
        axes = (self.axes.width, self.axes.hidden)
        inwards = functools.partial(dense, self.width, self.hidden, axes, self.precision, bias=self.bias)
        up, gate = named("mlp_up", inwards(name="up")(x)), named("mlp_gate", inwards(name="gate")(x))
        y = constrain(ACTIVATIONS[self.activation](gate) * up, self.axes.between)
        outputs = self.outputs or self.width
        outwards = functools.partial(dense, self.hidden, outputs, axes[::-1], self.precision, bias=self.bias)
        return outwards(scale=self.output_scale, name="down")(y)


class MLP(nn.Module):
    """activation(x W_1 + b_1) W_2 + b_2: the feed-forward part of a ViT block."""

    width: int
    hidden: int
    precision: Precision
    activation: Activation = "gelu_tanh"
    bias: bool = True
    axes: MLPAxes = VISION_MLP

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        axes = (self.axes.width, self.axes.hidden)
        y = named("mlp_up", dense(self.width, self.hidden, axes, self.precision, bias=self.bias, name="up")(x))
        y = constrain(ACTIVATIONS[self.activation](y), self.axes.between)
        return dense(self.hidden, self.width, axes[::-1], self.precision, bias=self.bias, name="down")(y)
