"""Tensor by tensor: from a name table's left side into sharded parameters, and back into files.

No more than one tensor exists beside the parameters themselves. What is stacked over layers is filled in place, each
device's part by itself, and handed over to the device without a copy where the backend can (CPU).
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from vlm_jax.convert.names import Row, Shape
from vlm_jax.convert.tensors import Tensors
from vlm_jax.errors import UserError

_LISTED = 10
"""So many names of each kind of mistake are listed."""

_ALIGNMENT = 64
"""Bytes: a NumPy array that begins at a multiple of this becomes a CPU device's without a copy."""


def load_rows(
    rows: Sequence[Row],
    tensors: Tensors,
    abstract: PyTree[jax.ShapeDtypeStruct],
    dropped: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Parameters from named tensors, each straight into its dtype and sharding.

    Args:
        rows: the name table; it must cover every parameter.
        tensors: where the tensors are.
        abstract: nested dictionary of shapes, dtypes and maybe shardings of all parameters.
        dropped: regexes of tensors that are knowingly not taken (matched from the start of their names).
        progress: called with (bytes read, bytes in all) after every tensor.

    Raises:
        UserError: before anything is read, listing tensors that are missing, not expected, of another shape, or not
            of a floating-point type.
    """
    flat = traverse_util.flatten_dict(abstract, sep="/")
    by_leaf = _rows_by_leaf(rows, flat)
    _check(rows, tensors, flat, tuple(dropped))
    total, done = sum(_bytes(tensors, row.theirs) for row in rows), 0

    def read(row: Row) -> np.ndarray:
        nonlocal done
        array = tensors.read(row.theirs)
        done += array.nbytes
        if progress is not None:
            progress(done, total)
        return row.form.to_ours(array if row.part is None else row.part.of(array))

    # Large tensors come first, while there is room for a second copy of them.
    order = sorted(flat, key=lambda name: -max(_bytes(tensors, row.theirs) for row in by_leaf[name]))
    loaded = {name: _fill(by_leaf[name], flat[name], read) for name in order}
    return traverse_util.unflatten_dict({name: loaded[name] for name in flat}, sep="/")


def stored_dtypes(rows: Sequence[Row], tensors: Tensors, abstract: PyTree) -> dict[str, Any]:
    """The same abstract parameters, each in the dtype that its tensors are stored in; float16 becomes float32."""
    flat = traverse_util.flatten_dict(abstract, sep="/")
    kinds: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.theirs in tensors.shapes:
            kinds[row.ours].add(tensors.dtype(row.theirs))
    narrow = {name: kinds[name] == {"bfloat16"} for name in flat}
    return traverse_util.unflatten_dict(
        {name: _with_dtype(leaf, "bfloat16" if narrow[name] else "float32") for name, leaf in flat.items()}, sep="/"
    )


def cast_dtypes(abstract: PyTree, dtype: str) -> PyTree:
    """The same abstract parameters, all in one dtype."""
    return jax.tree.map(lambda leaf: _with_dtype(leaf, dtype), abstract)


def _with_dtype(leaf: jax.ShapeDtypeStruct, dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, np.dtype(jax.numpy.dtype(dtype)), sharding=leaf.sharding)


def _bytes(tensors: Tensors, name: str) -> int:
    return math.prod(tensors.shapes[name]) * jax.numpy.dtype(tensors.dtype(name)).itemsize


def _rows_by_leaf(rows: Sequence[Row], flat: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Rows of every parameter. That the table fits the model is the code's business: a mismatch is a ValueError."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.ours].append(row)
    for name, leaf in flat.items():
        places = [row.index for row in found.get(name, ())]
        if places != [None] and sorted(i for i in places if i is not None) != list(range(leaf.shape[0])):
            raise ValueError(f"name table: the rows of {name} {leaf.shape} are for {places}")
    if strays := sorted(set(found) - set(flat)):
        raise ValueError(f"name table: the model has no {', '.join(strays[:_LISTED])}")
    return found


def their_shapes(rows: Iterable[Row], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every tensor on the left of a table, from those of the parameters on the right."""
    found: dict[str, list[int]] = {}
    for row in rows:
        ours = shapes[row.ours]
        theirs = list(row.form.their_shape(ours if row.index is None else ours[1:]))
        if row.part is not None:
            before = found.get(row.theirs)
            theirs[row.part.axis] = max(row.part.stop, before[row.part.axis] if before else 0)
        found[row.theirs] = theirs
    return {name: tuple(shape) for name, shape in found.items()}


def _check(rows: Sequence[Row], tensors: Tensors, flat: Mapping[str, Any], dropped: tuple[str, ...]) -> None:
    wanted = their_shapes(rows, {name: tuple(leaf.shape) for name, leaf in flat.items()})
    there = tensors.shapes
    wrong = {
        "missing": [name for name in wanted if name not in there],
        "not expected": [
            name for name in there if name not in wanted and not any(re.match(pattern, name) for pattern in dropped)
        ],
        "of another shape": [
            f"{name} {list(there[name])} for {list(shape)}"
            for name, shape in wanted.items()
            if name in there and tuple(there[name]) != shape
        ],
        "not of floating point": [
            f"{name} {tensors.dtype(name)}" for name in wanted if name in there and not _is_float(tensors.dtype(name))
        ],
    }
    said = [f"{len(names)} {kind} ({_list(names)})" for kind, names in wrong.items() if names]
    if said:
        raise UserError(f"{tensors.where}: its tensors are not those that its config speaks of: {'; '.join(said)}")


def _is_float(dtype: str) -> bool:
    return bool(jax.numpy.issubdtype(jax.numpy.dtype(dtype), jax.numpy.floating))


def _list(names: Sequence[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _fill(rows: Sequence[Row], leaf: jax.ShapeDtypeStruct, read: Callable[[Row], np.ndarray]) -> jax.Array:
    """One parameter from its rows: every device's part is filled as tensors come, then becomes the device's."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = {
        device: tuple(slice(*cut.indices(size)[:2]) for cut, size in zip(index or (), leaf.shape, strict=True))
        for device, index in sharding.addressable_devices_indices_map(leaf.shape).items()
    }
    parts = {_key(place): _empty([cut.stop - cut.start for cut in place], leaf.dtype) for place in places.values()}
    cuts = {_key(place): place for place in places.values()}
    for row in rows:
        array = read(row)
        for key, cut in cuts.items():
            if row.index is None:
                parts[key][...] = array[cut]
            elif cut[0].start <= row.index < cut[0].stop:
                parts[key][row.index - cut[0].start] = array[cut[1:]]
        del array  # before the next one is read
    arrays = [jax.device_put(parts[_key(place)], device) for device, place in places.items()]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays, dtype=leaf.dtype)


def _key(place: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((cut.start, cut.stop) for cut in place)


def _empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array whose memory a CPU device can take over."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
