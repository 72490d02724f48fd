"""The one entry point to attention, and which kernel does it where."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlm_jax.errors import UserError
from vlm_jax.models.rematerialisation import named
from vlm_jax.models.sight import (
    QUERIES_TOGETHER,
    BlockSight,
    FusedSight,
    Kernel,
    PlaceSight,
    RowSight,
    SegmentSight,
    is_long,
)
from vlm_jax.models.splash import attend_blocks, attend_segments

AttentionKernel = Literal["auto", "xla", "splash", "splash_dynamic", "cudnn"]
"""Self-attention over packed rows, as a config asks for it: auto = by hardware and by what the stage's rows hold; the
others as in docs/models.md, "Attention kernels".
"""

_PLATFORMS: dict[str, str] = {"splash": "tpu", "splash_dynamic": "tpu", "cudnn": "gpu"}


def resolve_kernel(
    wanted: AttentionKernel,
    platform: str,
    emits: tuple[str, str] = ("", ""),
    *,
    length: int = 0,
    head_size: int = 128,
    compute: str = "bfloat16",
    softcap: float = 0.0,
) -> Kernel:
    """The kernel that a stage runs.

    Args:
        wanted: the config's.
        platform: that the stage runs on: "tpu", "gpu" ("cuda", "rocm") or "cpu".
        emits: what of the stage makes branches and what makes blocks, for messages; "" = nothing does.
        length: of a row, in positions.
        head_size, compute, softcap: the decoder's head size and softcap, and the dtype that it computes in.

    Raises:
        UserError: if the kernel that is asked for cannot do that.
    """
    platform = {"cuda": "gpu"}.get(platform, platform)
    unfit = _unfit_for_cudnn(length, head_size, compute, softcap)
    if wanted == "auto":
        if platform == "tpu":
            return "splash_dynamic" if any(emits) else "splash"
        return "cudnn" if platform == "gpu" and not unfit else "xla"
    if _PLATFORMS.get(wanted, platform) != platform:
        raise UserError(
            f"attention_kernel {wanted!r} is for {_PLATFORMS[wanted].upper()}s and this is a {platform.upper()}; "
            "set model.decoder.attention-kernel to auto"
        )
    if wanted == "splash" and any(emits):
        which = "which examples branch" if emits[0] else "which positions see each other both ways"
        raise UserError(
            f"attention_kernel 'splash' knows examples and their order only, not {which}: {emits[0] or emits[1]}; "
            "set model.decoder.attention-kernel to auto, splash_dynamic or xla"
        )
    if wanted == "cudnn" and unfit:
        raise UserError(f"attention_kernel 'cudnn' {unfit}; set model.decoder.attention-kernel to auto or xla")
    return wanted


def _unfit_for_cudnn(length: int, head_size: int, compute: str, softcap: float) -> str:
    if compute != "bfloat16":
        return f"computes in 16 bits, the model in {compute}"
    if head_size % 8 or head_size > 128:
        return f"takes head sizes up to 128 that are multiples of 8, not {head_size}"
    if length % 2:
        return f"takes rows of an even number of positions, not {length}"
    return "has no softcap of scores" if softcap else ""


def attention(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B T G K"],
    values: Float[Array, "B T G K"],
    mask: RowSight | None,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Float[Array, "B S H K"]:
    """softmax(scale Q Kᵀ + mask) V (Vaswani et al. 2017, eq. 1), grouped: H query heads share G key heads.

    The form of the mask says which kernel does it.

    Args:
        queries: H heads of size K; heads h*H/G .. (h+1)*H/G - 1 use key head h.
        keys, values: G heads; H is a multiple of G (Ainslie et al. 2023).
        mask: dense, True = may be seen, which XLA's attention reads; or a form that `row_sights` makes for a kernel;
            None = everything sees everything. A query that may see nothing (padding) gets finite values that mean
            nothing.
        scale: of the scores; None = 1 / sqrt(K).
        softcap: if positive, scores s become softcap * tanh(s / softcap) before the mask (Gemma Team 2024, Gemma 2,
            section 2).
    """
    scale = scale or queries.shape[-1] ** -0.5
    options: Any = {"scale": scale, "softcap": softcap}
    if isinstance(mask, SegmentSight):
        options["interpret"] = mask.interpret
        return attend_segments(queries, keys, values, mask.segment_ids, mask.window, **options)
    if isinstance(mask, BlockSight):
        return attend_blocks(queries, keys, values, mask.blocks, interpret=mask.interpret, **options)
    if isinstance(mask, FusedSight):
        assert not softcap, "resolve_kernel lets no softcap get here"
        fused = mask.mask[:, None]  # a bias of [B, 1, S, S] in the compute dtype, since cuDNN takes no segments here
        y = jax.nn.dot_product_attention(queries, keys, values, mask=fused, scale=scale, implementation="cudnn")
        return named("attention", y)
    if isinstance(mask, PlaceSight):
        padded = mask.places.padded(_groups(queries.shape[1])[1])
        return named("attention", _by_groups(queries, keys, values, padded, mask.mask, scale, softcap))
    if mask is not None and is_long(queries.shape[1], keys.shape[1]):
        padding = _groups(queries.shape[1])[1] - queries.shape[1]
        rows = jnp.pad(mask, ((0, 0), (0, padding), (0, 0)))
        return named("attention", _by_groups(queries, keys, values, rows, lambda rows: rows, scale, softcap))
    return named("attention", _whole(queries, keys, values, mask, scale, softcap))


def _whole(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B T G K"],
    values: Float[Array, "B T G K"],
    mask: Bool[Array, "B S T"] | None,
    scale: float,
    softcap: float,
) -> Float[Array, "B S H K"]:
    """Attention whose scores are all in memory together."""
    if not softcap:
        expanded = None if mask is None else mask[:, None]
        return jax.nn.dot_product_attention(queries, keys, values, mask=expanded, scale=scale, implementation="xla")
    mask = jnp.ones((queries.shape[0], queries.shape[1], keys.shape[1]), bool) if mask is None else mask
    turned = (keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2))
    return attention_over_cache(queries, *turned, mask, scale=scale, softcap=softcap)


def _groups(length: int) -> tuple[int, int]:
    """How many groups the queries of a row form, and the length that they are padded to."""
    groups = -(-length // QUERIES_TOGETHER)
    return groups, groups * -(-length // groups)


def _by_groups(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B T G K"],
    values: Float[Array, "B T G K"],
    about: Any,
    mask: Callable[[Any], Bool[Array, "B Q T"]],
    scale: float,
    softcap: float,
) -> Float[Array, "B S H K"]:
    """Attention with the scores of one group of queries in memory at a time, which the backward pass makes anew.

    Group g takes queries g, g + groups, …: of a row that is split over devices, each device has a share in every group.

    Args:
        about: padded planes of the queries, [B or 1, padded length, …], from which `mask` makes a group's mask.
    """
    length, (groups, padded) = queries.shape[1], _groups(queries.shape[1])
    dtype = keys.dtype

    def grouped(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0], padded // groups, groups, *x.shape[2:]), 2, 0)

    # The gradients of keys and values are sums over groups: in float32, whatever the model computes in.
    wide_keys, wide_values = keys.astype(jnp.float32), values.astype(jnp.float32)

    @jax.checkpoint
    def one(group: Array, about: Any) -> Array:
        return _whole(group, wide_keys.astype(dtype), wide_values.astype(dtype), mask(about), scale, softcap)

    padding = ((0, 0), (0, padded - length), (0, 0), (0, 0))
    parts = (grouped(jnp.pad(queries, padding)), jax.tree.map(grouped, about))
    y = jax.lax.map(lambda part: one(*part), parts)
    return jnp.moveaxis(y, 0, 2).reshape(queries.shape[0], padded, *queries.shape[2:])[:, :length]


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
