"""Rotary position embedding, and the ways in which it is stretched to sequences longer than those of pre-training."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class LinearRope:
    """Every position divided by `factor` (position interpolation, Chen et al. 2023, eq. 4)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class DynamicRope:
    """A base that grows with the sequence: rows up to the original context are left as they are ("dynamic NTK").

    The base becomes base * (factor * n / original_context - factor + 1)^(K / (K - 2)) for a row that has n positions.

    Here n belongs to each row: one more than the largest position among those given in one call. Transformers
    takes the largest n of the whole batch, and of all calls since the last short one, so that there a row depends on
    what stands beside and before it. Both turn each new token by its own n in generation and leave cached keys as
    they are.
    """

    factor: float
    original_context: int


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Slow frequencies divided by `factor`, fast ones left alone, a blend between (Llama 3.1).

    A frequency that turns less than `low_frequency_factor` times within the original context is slow, one that turns
    more than `high_frequency_factor` times is fast.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int

    def __post_init__(self) -> None:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"Llama3Rope: high_frequency_factor {self.high_frequency_factor} must be more than "
                f"low_frequency_factor {self.low_frequency_factor}"
            )


@dataclasses.dataclass(frozen=True)
class YarnRope:
    """As in Llama 3.1, but blended over the index of the frequency, and with sharper attention (Peng et al. 2023).

    The blend runs from the index that turns `beta_fast` times within the original context to the one that turns
    `beta_slow` times, as in the authors' program (the paper's eq. 18 blends over the number of turns).
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    """Multiplies queries and keys; 0 = 0.1 ln(factor) + 1 (eq. 22)."""
    truncate: bool = True
    """Both ends of the blend are widened to whole indices."""


RopeScaling = LinearRope | DynamicRope | Llama3Rope | YarnRope


class Turns(NamedTuple):
    """What turns queries and keys: cosine and sine of the angle of each position and pair, float32[B, S, K/2]."""

    cosine: Float[Array, "B S k"]
    sine: Float[Array, "B S k"]


def rope_turns(positions: Int[Array, "B S"], size: int, base: float, scaling: RopeScaling | None = None) -> Turns:
    """Angles position * base^(-2k/K) of the pairs k of a head (Su et al. 2021, eq. 15), scaled.

    Args:
        positions: of each token in its example.
        size: K, of a head; even.
        base: of the wavelengths, 10,000 in the paper.
        scaling: None = that of the paper.
    """
    if isinstance(scaling, DynamicRope):
        frequencies = _dynamic_frequencies(positions, size, base, scaling)[:, None]
        factor = 1.0
    else:
        static, factor = rope_frequencies(size, base, scaling)
        frequencies = jnp.asarray(static, jnp.float32)
    angles = positions[:, :, None].astype(jnp.float32) * frequencies
    return Turns(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def rotary(x: Float[Array, "B S H K"], turns: Turns) -> Float[Array, "B S H K"]:
    """Turns pair (k, k + K/2) of every head by the angles of `turns` (Su et al. 2021, eq. 34).

    Pairs lie half a head apart, which is the convention of Llama weights in Hugging Face format.
    """
    cosine, sine = turns.cosine[:, :, None], turns.sine[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)


def rope_frequencies(
    size: int, base: float, scaling: LinearRope | Llama3Rope | YarnRope | None
) -> tuple[Float[np.ndarray, " k"], float]:
    """(radians per position of each of the K/2 pairs, what cosine and sine are multiplied by)."""
    plain = base ** (-np.arange(0, size, 2) / size)
    if scaling is None:
        return plain, 1.0
    slowed = plain / scaling.factor
    if isinstance(scaling, LinearRope):
        return slowed, 1.0
    if isinstance(scaling, Llama3Rope):
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        turns = scaling.original_context * plain / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return kept * plain + (1 - kept) * slowed, 1.0
    kept = 1 - _yarn_ramp(size, base, scaling)
    factor = scaling.attention_factor or 0.1 * math.log(max(scaling.factor, 1.0)) + 1
    return kept * plain + (1 - kept) * slowed, factor


def _yarn_ramp(size: int, base: float, scaling: YarnRope) -> Float[np.ndarray, " k"]:
    """0 for frequencies that stay, 1 for those that are slowed, linear between."""

    def index(turns: float) -> float:
        """Which frequency turns so often within the original context, as a fraction."""
        return size * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    # The authors bound the end by the size of a head and not by its number of pairs; weights were trained so.
    low, high = max(low, 0), min(high, size - 1)
    return np.clip((np.arange(size // 2) - low) / (high - low or 1e-3), 0, 1)


def _dynamic_frequencies(
    positions: Int[Array, "B S"], size: int, base: float, scaling: DynamicRope
) -> Float[Array, "B k"]:
    length = jnp.maximum(positions.max(axis=1) + 1, scaling.original_context).astype(jnp.float32)
    growth = scaling.factor * length / scaling.original_context - (scaling.factor - 1)
    bases = base * growth ** (size / (size - 2))
    return bases[:, None] ** (-jnp.arange(0, size, 2) / size)
