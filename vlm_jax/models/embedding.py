"""Looking up token embeddings in a table that devices share.

Left to XLA's partitioner, a look-up in a table whose columns are split over the devices that share the batch's rows
copies the whole batch's embeddings, or their gradients, to every device. Here tokens travel instead, 4 bytes each, and
of every embedding each device gets its rows' own from those that have its columns.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vlm_jax.models.placement import axes_sharing


def look_up(table: Float[Array, "V D"], tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """table[tokens], for a table with the axes ("vocab", "embed") and tokens with ("batch", "length")."""
    rows, columns = map(axes_sharing, table.shape, ("vocab", "embed"))
    batch, length = map(axes_sharing, tokens.shape, ("batch", "length"))
    if not columns or not set(columns) <= set(batch) or set(rows) & {*batch, *length}:
        return table[tokens]
    own = functools.partial(_own_rows, rows=rows, columns=columns)
    shared = jax.shard_map(
        own,
        in_specs=(PartitionSpec(rows or None, columns), PartitionSpec(batch, length or None)),
        out_specs=PartitionSpec(batch, length or None, None),
        check_vma=False,
    )
    found: Array = shared(table, tokens)
    return found


def _own_rows(
    table: Float[Array, "v d"], tokens: Int[Array, "b s"], rows: tuple[str, ...], columns: tuple[str, ...]
) -> Float[Array, "b s D"]:
    """On one device: embeddings of its own tokens.

    Args:
        table: its rows and columns of the table.
        tokens: its own.
        rows, columns: mesh axes that the table's rows and columns are split over; the latter share the batch.
    """
    everyones = jax.lax.all_gather(tokens, columns)  # [n, b, s]: of all devices that have other columns
    if rows:
        everyones -= jax.lax.axis_index(rows) * table.shape[0]
        here = (everyones >= 0) & (everyones < table.shape[0])
        found = jnp.where(here[..., None], table[jnp.where(here, everyones, 0)], 0)
    else:
        found = table[everyones]
    mine = jax.lax.all_to_all(found, columns, split_axis=0, concat_axis=3, tiled=True)[0]
    return jax.lax.psum(mine, rows) if rows else mine
