"""Splash attention, jax's Pallas kernels for TPUs: scores of a block of queries and keys never leave the chip's core.

Two ways to say who sees whom:

- segments: causal (or a sliding window) within equal segment ids. It costs no memory besides the ids, but there is no
  word in it for branches and blocks.
- mask blocks: any mask at all, cut into blocks that the kernel fetches beside the keys. Blocks in which no row of the
  device sees anything are skipped.

Flash attention is Dao et al. 2022; Dao 2023 (FlashAttention-2) is how the loops run here.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as static_masks
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.over_mesh import Split, find_split
from vlm_jax.models.rematerialisation import Name

SAVED_NAME: Name = "attention"
"""What a rematerialisation policy calls the kernel's output and its log-sum-exp: kept, it need not run again."""

_LANES = 128
"""Positions that a vector register of a TPU holds side by side: blocks are multiples of it."""
_LARGEST_BLOCK = 1024
_LARGEST_MASK_BLOCK = 512
_LEAST_GOAL = 512
_MOST_SCORES = 1024 * 512
_MOST_PADDING = 1 / 16


def choose_block(length: int, shards: int = 1, largest: int = _LARGEST_BLOCK) -> tuple[int, int]:
    """How many positions a block of the kernel has, and the length that rows are padded to.

    A block of the causal mask is computed whole or not at all, so that n blocks a row cost (n + 1) / n of the pairs
    that are seen; and each block has a cost of its own, for which the matrix units wait. Hence blocks of a quarter of
    the row, where the loss is a quarter, but not smaller than 512, and not larger than 1024: the scores of 1024 x 512
    in float32, and what the backward pass keeps beside them, still fit into the 16 MiB of fast memory that a v5e gives
    a kernel. Rows whose length has no such divisor are padded, by a sixteenth at most beyond the next multiple of 128.

    Args:
        length: of a row, in positions.
        shards: devices that share the row; each gets whole blocks.
        largest: block. Those of a mask stand beside the scores, twice, as 32-bit numbers: there it is 512.
    """
    share = _round_up(-(-length // shards), _LANES)
    largest = min(max(share * shards // 4 // _LANES * _LANES, _LEAST_GOAL), largest, share)
    for block in range(largest, _LANES, -_LANES):
        padded = _round_up(share, block)
        if padded - share <= share * _MOST_PADDING:
            return block, padded * shards
    return _LANES, share * shards


def block_sizes(block: int) -> kernels.BlockSizes:
    """Of all passes; the fused backward pass computes scores once for all three gradients, where two kernels would
    each do it again (five products a block in place of seven).
    """
    parts = (size for size in range(block, 0, -_LANES) if block % size == 0 and block * size <= _MOST_SCORES)
    together = next(parts)
    return kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=together,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=together,
        use_fused_bwd_kernel=True,
    )


def attend_segments(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B S G K"],
    values: Float[Array, "B S G K"],
    segment_ids: Int[Array, "B S"],
    window: int = 0,
    *,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
) -> Float[Array, "B S H K"]:
    """Causal attention within equal segment ids, padding (0) among itself.

    Args:
        queries, keys, values: as in `attention`.
        segment_ids: which example of the row.
        window: if positive, keys also are fewer than this many places back.
        scale, softcap: as in `attention`.
        interpret: run by jax's interpreter, where there is no TPU; for tests.
    """
    split = find_split(queries.shape)
    length, (block, padded) = queries.shape[1], choose_block(queries.shape[1], split.length_shards)
    shape, heads = (padded, padded), queries.shape[2] // split.head_shards
    mask: static_masks.Mask = static_masks.CausalMask(shape, shard_count=split.length_shards)
    if window:
        mask = static_masks.LocalMask(shape, (window - 1, 0), 0, shard_count=split.length_shards)
    kernel = kernels.make_splash_mha(
        static_masks.MultiHeadMask([mask] * heads),
        block_sizes=block_sizes(block),
        head_shards=1,
        q_seq_shards=split.length_shards,
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name=SAVED_NAME,
        interpret=interpret,
    )

    def local(kernel: kernels.SplashAttentionKernel, q: Array, k: Array, v: Array, ids: Array) -> Any:
        k, v, others = split.gather(k, 2), split.gather(v, 2), split.gather(ids, 1)
        return jax.vmap(kernel)(q, k, v, kernels.SegmentIds(q=ids, kv=others))

    ids = _pad(segment_ids, padded)
    turned = _head_major(queries, keys, values, padded, scale, split)
    if split.mesh is None:
        y = local(kernel, *turned, ids)
    else:
        # The table of blocks is cut with the queries, so that each device skips what its own queries do not see.
        table = kernel.manual_sharding_spec(NamedSharding(split.mesh, P(None, split.length)))
        inwards = (table, *[split.heads_spec] * 3, P(split.batch, split.length))
        y = split.run(local, inwards, split.heads_spec)(kernel, *turned, ids)
    return y.swapaxes(1, 2)[:, :length]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskBlocks:
    """A mask as the kernels fetch it: N x N blocks of b x b."""

    forward: Bool[Array, "B N N b b"]
    """Block (i, j): queries of i in rows, keys of j in columns."""
    backward: Bool[Array, "B N N b b"]
    """Block (i, j) turned: keys of j in rows, queries of i in columns."""
    seen: Bool[Array, "B N N"]
    """Whether any query of block i sees any key of block j."""


def mask_blocks(mask: Bool[Array, "B S S"], shards: int = 1) -> MaskBlocks:
    """Cuts a mask into blocks; padding, and a query that would see nothing, sees itself, so that softmax has a sum."""
    block, padded = choose_block(mask.shape[1], shards, _LARGEST_MASK_BLOCK)
    after = (0, padded - mask.shape[1])
    mask = jnp.pad(mask, ((0, 0), after, after)) | jnp.eye(padded, dtype=bool)
    cut = mask.reshape(mask.shape[0], padded // block, block, padded // block, block).swapaxes(2, 3)
    return MaskBlocks(cut, cut.swapaxes(3, 4), cut.any((3, 4)))


def attend_blocks(
    queries: Float[Array, "B S H K"],
    keys: Float[Array, "B S G K"],
    values: Float[Array, "B S G K"],
    blocks: MaskBlocks,
    *,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
) -> Float[Array, "B S H K"]:
    """Attention by a mask in blocks; arguments as in `attend_segments`."""
    split, length = find_split(queries.shape), queries.shape[1]
    padded, block = blocks.forward.shape[2] * blocks.forward.shape[4], blocks.forward.shape[4]
    options = {
        "block_sizes": block_sizes(block),
        "is_mqa": False,
        "save_residuals": False,
        "mask_value": kernels.DEFAULT_MASK_VALUE,
        "attn_logits_soft_cap": softcap or None,
        "residual_checkpoint_name": SAVED_NAME,
        "mask_function": None,
        "interpret": interpret,
    }

    def local(q: Array, k: Array, v: Array, blocks: MaskBlocks) -> Array:
        # Which blocks run is one table for all rows of the device: a table a row would run the rows one by one.
        seen, k, v = blocks.seen.any(0), split.gather(k, 2), split.gather(v, 2)
        forward, backward = _walk(seen), _walk(seen.T)
        running = seen[None].astype(jnp.int32)

        def row(q: Array, k: Array, v: Array, ahead: Array, back: Array) -> Any:
            info = MaskInfo(forward[None] % seen.shape[1], forward[None], running, _flat(ahead), None)
            turned = backward.T[None]
            back_info = MaskInfo(turned % seen.shape[0], turned, running, _flat(back.swapaxes(0, 1)), None)
            return kernels.SplashAttentionKernel(info, None, back_info, **options)(q, k, v)

        y: Array = jax.vmap(row)(q, k, v, blocks.forward, blocks.backward)
        return y

    turned = _head_major(queries, keys, values, padded, scale, split)
    if split.mesh is None:
        y = local(*turned, blocks)
    else:
        inwards = (*[split.heads_spec] * 3, P(split.batch, split.length))
        y = split.run(local, inwards, split.heads_spec)(*turned, blocks)
    return y.swapaxes(1, 2)[:, :length]


def _walk(seen: Bool[Array, "A C"]) -> Int[Array, "A C"]:
    """For each block, row by row, the number of the next one that runs, itself included: what is fetched ahead."""
    flat = seen.reshape(-1)
    own = jnp.where(flat, jnp.arange(flat.size), flat.size)
    following = jax.lax.cummin(own, reverse=True)
    return jnp.where(following == flat.size, own.min(), following).reshape(seen.shape)


def _flat(blocks: Bool[Array, "A C b c"]) -> Bool[Array, "A*C b c"]:
    return blocks.reshape(-1, *blocks.shape[2:])


def _head_major(
    queries: Array, keys: Array, values: Array, length: int, scale: float, split: Split
) -> tuple[Float[Array, "B H T K"], Float[Array, "B G T K"], Float[Array, "B G T K"]]:
    """Padded, heads ahead of positions; the kernel does not scale, and each device needs key heads of its own."""
    groups = keys.shape[2]
    copies = math.lcm(groups, split.head_shards) // groups
    if copies > 1:
        keys, values = (jnp.repeat(x, copies, axis=2) for x in (keys, values))
    scaled = (queries.astype(jnp.float32) * scale).astype(queries.dtype)
    q, k, v = (_pad(x, length).swapaxes(1, 2) for x in (scaled, keys, values))
    return q, k, v


def _pad(x: Array, length: int) -> Array:
    """Zeros after the positions of a row, [B, S, …] -> [B, length, …]."""
    if x.shape[1] == length:
        return x
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
