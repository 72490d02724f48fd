"""The one entry point to attention, and rotary position embedding."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

AttentionKernel = Literal["xla"]


def attention(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B T G K"],
    values: Float[Array, "B T G K"],
    mask: Bool[Array, "B S T"] | None,
    kernel: AttentionKernel = "xla",
) -> Float[Array, "B S H K"]:
    """softmax(Q Kᵀ / sqrt(K) + mask) V (Vaswani et al. 2017, eq. 1), grouped: H query heads share G key heads.

    Args:
        queries: H heads of size K; heads h*H/G .. (h+1)*H/G - 1 use key head h.
        keys, values: G heads; H is a multiple of G (Ainslie et al. 2023).
        mask: True = may be seen, `masks.reference_mask`; None = everything sees everything. A query that may see
            nothing (padding) gets finite values that mean nothing.
        kernel: the implementation; "xla" runs everywhere.
    """
    expanded = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(queries, keys, values, mask=expanded, implementation=kernel)


def rotary(x: Float[Array, "B S H K"], positions: Int[Array, "B S"], base: float) -> Float[Array, "B S H K"]:
    """Rotary position embedding (Su et al. 2021, eq. 34): turns pair (k, k + K/2) by angle position * base^(-2k/K).

    Pairs lie half a head apart, which is the convention of Llama weights in Hugging Face format.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
