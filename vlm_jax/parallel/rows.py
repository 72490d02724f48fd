"""Which rows of a batch this process's devices hold, and arrays over all processes made of what each of them has.

What a process holds follows from how rows are split over devices, and not from its number: where the devices of several
processes share one row (its positions, or the model's heads), each of these processes holds that row.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jaxtyping import PyTree

from vlm_jax.batch import Batch
from vlm_jax.parallel.layout import Layout, batch_shardings, row_sharding


def held_places(rows: int, layout: Layout) -> list[int]:
    """Places in a batch of so many rows that this process's devices hold, ascending."""
    found = row_sharding(layout).addressable_devices_indices_map((rows,)).values()
    return sorted({place for (part,) in found if part is not None for place in range(*part.indices(rows))})


def put_batch(batch: Batch, layout: Layout) -> Batch:
    """A batch on the devices.

    Args:
        batch: on the host; of several processes each has the rows at `held_places`, whole.
        layout: where it goes.

    Returns:
        The global batch.
    """
    shardings = batch_shardings(batch, layout)
    if row_sharding(layout).is_fully_addressable:
        placed: Batch = jax.device_put(batch, shardings)
        return placed
    parts = layout.devices("batch")
    held = held_places(parts, layout)
    each = len(batch.tokens) // len(held)
    order = {part: number for number, part in enumerate(held)}

    def put(local: np.ndarray, sharding: NamedSharding) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            start = order[(index[0].start or 0) // each] * each
            return local[(slice(start, start + each), *index[1:])]

        return jax.make_array_from_callback((parts * each, *local.shape[1:]), sharding, shard)

    with jax.transfer_guard("allow"):  # this is the one transfer that is meant
        result: Batch = jax.tree.map(put, batch, shardings)
    return result


def put_same(tree: PyTree, sharding: Sharding) -> PyTree:
    """Arrays on the devices of all processes, from values that all of them have alike."""

    def put(value: Any) -> jax.Array:
        array = np.asarray(value)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    with jax.transfer_guard("allow"):
        return jax.tree.map(put, tree)
