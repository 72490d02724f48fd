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


def attention_over_cache(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B G K T"],
    values: Float[Array, "B G T K"],
    mask: Bool[Array, "B S T"],
    *,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Float[Array, "B S H K"]:
    """`attention` to keys and values as a cache holds them: as matrices that products read without turning them."""
    rows, length, heads, size = queries.shape
    groups, scale = keys.shape[1], scale or size**-0.5
    grouped = queries.reshape(rows, length, groups, -1, size).swapaxes(1, 2).reshape(rows, groups, -1, size)
    scores = jnp.einsum("bgqk,bgkt->bgqt", grouped, keys, preferred_element_type=jnp.float32)
    scores = softcap * jnp.tanh(scores * (scale / softcap)) if softcap else scores * scale
    # Finite, so that a row that sees nothing has gradients; far below any score, so that its weight is 0.
    hidden = jnp.finfo(jnp.float32).min / 2
    scores = jnp.where(mask[:, None, :, None], scores.reshape(rows, groups, length, -1, keys.shape[3]), hidden)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype).reshape(rows, groups, -1, keys.shape[3])
    y = jnp.einsum("bgqt,bgtk->bgqk", weights, values)
    return y.reshape(rows, groups, length, -1, size).swapaxes(1, 2).reshape(rows, length, heads, size)


def _capped_attention(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B T G K"],
    values: Float[Array, "B T G K"],
    mask: Bool[Array, "B S T"] | None,
    scale: float,
    softcap: float,
) -> Float[Array, "B S H K"]:
    mask = jnp.ones((queries.shape[0], queries.shape[1], keys.shape[1]), bool) if mask is None else mask
    turned = (keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2))
    return attention_over_cache(queries, *turned, mask, scale=scale, softcap=softcap)
