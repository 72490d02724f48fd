"""The one entry point to attention."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

AttentionKernel = Literal["xla"]


def attention(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B T G K"],
    values: Float[Array, "B T G K"],
    mask: Bool[Array, "B S T"] | None,
    kernel: AttentionKernel = "xla",
    *,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Float[Array, "B S H K"]:
    """softmax(scale Q Kᵀ + mask) V (Vaswani et al. 2017, eq. 1), grouped: H query heads share G key heads.

    Args:
        queries: H heads of size K; heads h*H/G .. (h+1)*H/G - 1 use key head h.
        keys, values: G heads; H is a multiple of G (Ainslie et al. 2023).
        mask: True = may be seen, `masks.reference_mask`; None = everything sees everything. A query that may see
            nothing (padding) gets finite values that mean nothing.
        kernel: the implementation; "xla" runs everywhere.
        scale: of the scores; None = 1 / sqrt(K).
        softcap: if positive, scores s become softcap * tanh(s / softcap) before the mask (Gemma Team 2024, Gemma 2,
            section 2); no kernel has it, so that memory grows with S * T.
    """
    if softcap:
        return _capped_attention(queries, keys, values, mask, scale or queries.shape[-1] ** -0.5, softcap)
    expanded = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(queries, keys, values, mask=expanded, scale=scale, implementation=kernel)


def _capped_attention(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B T G K"],
    values: Float[Array, "B T G K"],
    mask: Bool[Array, "B S T"] | None,
    scale: float,
    softcap: float,
) -> Float[Array, "B S H K"]:
    rows, length, heads, size = queries.shape
    grouped = queries.reshape(rows, length, keys.shape[2], -1, size)
    scores = jnp.einsum("bsghk,btgk->bghst", grouped, keys, preferred_element_type=jnp.float32)
    scores = softcap * jnp.tanh(scores * (scale / softcap))
    if mask is not None:
        # Finite, so that a row that sees nothing has gradients; far below any score, so that its weight is 0.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min / 2)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bghst,btgk->bsghk", weights, values).reshape(rows, length, heads, size)
