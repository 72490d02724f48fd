"""Parameters into safetensors files, tensor by tensor: the inverse of `streaming`."""

import contextlib
import json
import math
import os
import shutil
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from vlm_jax.convert.names import Row, Shape
from vlm_jax.convert.streaming import their_shapes
from vlm_jax.convert.tensors import DTYPES
from vlm_jax.errors import UserError

SHARD_BYTES = 5_000_000_000
"""Models larger than this are cut into several files, as Hugging Face's own writer does."""

_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}

Shard = dict[str, list[Row]]
"""Tensors of one file, in the order in which they lie there, each with the rows that make it up."""


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that gets its name only when it is whole: yields a place beside it to write into.

    Raises:
        UserError: if `path` is there and not an empty directory, or cannot be written.
    """
    path = path.absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: is there already; name a directory that does not exist or is empty")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another directory") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_rows(
    rows: Sequence[Row],
    params: PyTree[jax.Array],
    directory: Path,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes parameters as their tensors: model.safetensors, or shards with model.safetensors.index.json.

    Args:
        rows: the name table; it must cover every parameter.
        params: nested dictionary of arrays; dtypes are kept.
        directory: exists, and holds no weights yet.
        shard_bytes: no file has more data than this, unless one tensor alone does.
        progress: called with (bytes written, bytes in all) after every tensor.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    shapes = their_shapes(rows, {name: tuple(leaf.shape) for name, leaf in flat.items()})
    sizes = {row.theirs: math.prod(shapes[row.theirs]) * flat[row.ours].dtype.itemsize for row in rows}
    shards = _shards(rows, flat, sizes, shard_bytes)
    total, done = sum(sizes.values()), 0
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        with (directory / name).open("wb") as file:
            file.write(_header({theirs: _kind(flat[parts[0].ours]) for theirs, parts in shard.items()}, shapes, sizes))
            for theirs, parts in shard.items():
                file.write(_bytes(_tensor(parts, flat, shapes[theirs])))
                done += sizes[theirs]
                if progress is not None:
                    progress(done, total)
    if len(shards) > 1:
        placed = {theirs: name for name, shard in zip(names, shards, strict=True) for theirs in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(rows: Sequence[Row], flat: Mapping[str, Any], sizes: Mapping[str, int], limit: int) -> list[Shard]:
    """Tensors in the table's order, but wide number formats first so that all are aligned; cut where they exceed."""
    made: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: -flat[row.ours].dtype.itemsize):
        made[row.theirs].append(row)
    shards: list[Shard] = [{}]
    held = 0
    for theirs, parts in made.items():
        if shards[-1] and held + sizes[theirs] > limit:
            shards.append({})
            held = 0
        shards[-1][theirs] = parts
        held += sizes[theirs]
    return shards


def _kind(leaf: jax.Array) -> str:
    return _KINDS[np.dtype(leaf.dtype)]


def _header(kinds: Mapping[str, str], shapes: Mapping[str, Shape], sizes: Mapping[str, int]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, kind in kinds.items():
        entries[name] = {"dtype": kind, "shape": list(shapes[name]), "data_offsets": [start, start + sizes[name]]}
        start += sizes[name]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _tensor(parts: Sequence[Row], flat: Mapping[str, jax.Array], shape: Shape) -> np.ndarray:
    """One of their tensors, from the parameters that it holds."""
    pieces = [row.form.to_theirs(_on_host(flat[row.ours], row.index)) for row in parts]
    if len(parts) == 1:
        return pieces[0]
    whole = np.empty(shape, pieces[0].dtype)
    for row, piece in zip(parts, pieces, strict=True):
        assert row.part is not None, f"{row.theirs} has several rows, but they are not parts"
        row.part.of(whole)[...] = piece
    return whole


def _on_host(leaf: jax.Array, index: int | None) -> np.ndarray:
    """A parameter or one layer of it; on a CPU device that holds all of it, without a copy."""
    if index is None or leaf.sharding.device_set == {*jax.local_devices(backend="cpu")[:1]}:
        whole = np.asarray(leaf)
        return whole if index is None else whole[index]
    return np.asarray(leaf[index])


def _bytes(array: np.ndarray) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
