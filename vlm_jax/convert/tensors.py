"""Where named tensors come from, one at a time: the Tensors protocol, and a directory of safetensors files."""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from vlm_jax.errors import UserError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Names of number formats in the header of a safetensors file."""

_HEADER_LIMIT = 100_000_000
"""Bytes; the reference implementation takes no longer header."""


class Tensors(Protocol):
    """Named tensors of a pre-trained model, under the names and layouts that Hugging Face gives them."""

    @property
    def where(self) -> str:
        """The file or directory, for messages."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor that is there."""

    def dtype(self, name: str) -> str:
        """NumPy's name of the dtype that `read` gives."""

    def read(self, name: str) -> np.ndarray:
        """The tensor, as an array that the caller owns."""


class SafetensorsFile:
    """One safetensors file, read tensor by tensor without a memory map.

    Eight bytes hold the header's length, little endian; the header is JSON: {name: {dtype, shape, data_offsets}}; the
    rest is the tensors' bytes (https://huggingface.co/docs/safetensors).
    """

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            UserError: if the file is cut short or is no safetensors file.
        """
        self.where = str(path)
        self._path = path
        self._data, self._entries = _read_header(path)
        self.shapes = {name: tuple(entry["shape"]) for name, entry in self._entries.items()}

    def dtype(self, name: str) -> str:
        """NumPy's name of a tensor's dtype."""
        return self._dtype(name).name

    def read(self, name: str) -> np.ndarray:
        """One tensor.

        Raises:
            UserError: if the file has become shorter than it was, or has a number format that NumPy cannot hold.
        """
        array = np.empty(self.shapes[name], self._dtype(name))
        with self._path.open("rb") as file:
            file.seek(self._data + self._entries[name]["data_offsets"][0])
            got = file.readinto(array.reshape(-1).view(np.uint8).data) if array.size else 0
        if got != array.nbytes:
            raise UserError(f"{self.where}: cut short within {name}; copy the file again")
        return array

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._entries[name]["dtype"]
        if kind not in DTYPES:
            raise UserError(f"{self.where}: {name} is stored as {kind}; convert it to F32, F16 or BF16 first")
        return DTYPES[kind]


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """(offset of the data in bytes, header without metadata)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise UserError(
                    f"{path}: no whole safetensors file ({size} bytes, its header would take {length}); copy it again"
                )
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
            for name, entry in entries.items():
                _check_entry(path, name, entry)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path}: no safetensors file ({type(error).__name__} in its header); copy it again") from None
    if 8 + length + end != size:
        raise UserError(f"{path}: {size} bytes long, but its header speaks of {8 + length + end}; copy it again")
    return 8 + length, entries


def _check_entry(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    start, stop = entry["data_offsets"]
    shape, kind = entry["shape"], entry["dtype"]
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop - start)):
        raise ValueError(name)
    if kind in DTYPES and stop - start != int(np.prod(shape, dtype=object)) * DTYPES[kind].itemsize:
        raise UserError(f"{path}: {name} has shape {list(shape)} of {kind} but {stop - start} bytes; copy it again")


class SafetensorsDirectory:
    """A Hugging Face directory: model.safetensors, or shards that model.safetensors.index.json lists."""

    def __init__(self, path: Path) -> None:
        """Reads every header; no tensor yet.

        Raises:
            UserError: if there are no safetensors, a shard is missing or damaged, or the index names what is not there.
        """
        self.where = str(path)
        index = path / "model.safetensors.index.json"
        names = _indexed(index) if index.is_file() else {}
        if not names and not (path / "model.safetensors").is_file():
            raise _no_weights(path)
        files = sorted(set(names.values())) or ["model.safetensors"]
        missing = [name for name in files if not (path / name).is_file()]
        if missing:
            raise UserError(f"{path}: shard {missing[0]} is missing, one of {len(missing)} such; copy it there")
        opened = {name: SafetensorsFile(path / name) for name in files}
        strays = [name for name, file in names.items() if name not in opened[file].shapes]
        if strays:
            raise UserError(f"{index}: {names[strays[0]]} holds no {strays[0]}, one of {len(strays)} such; copy both")
        self._files = {name: file for file in opened.values() for name in file.shapes}
        self.shapes = {name: file.shapes[name] for name, file in self._files.items()}

    def dtype(self, name: str) -> str:
        """NumPy's name of a tensor's dtype."""
        return self._files[name].dtype(name)

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._files[name].read(name)


def _indexed(index: Path) -> dict[str, str]:
    """{tensor: file} of an index."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(file, str) and Path(file).name == file for file in names.values()):
            raise ValueError("weight_map")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: damaged ({type(error).__name__}); copy it again") from None
    return dict(names)


def _no_weights(path: Path) -> UserError:
    pickled = sorted(file.name for file in path.glob("*.bin")) + sorted(file.name for file in path.glob("*.pt*"))
    if pickled:
        return UserError(
            f"{path}: holds {pickled[0]}, a pickle, which can run code when it is read; convert it to safetensors "
            "(save_pretrained of transformers writes it)"
        )
    return UserError(f"{path}: there is no model.safetensors; give a directory that save_pretrained wrote")


class Renamed:
    """The same tensors under other names: an older layout of a file, read as the present one."""

    def __init__(self, tensors: Tensors, patterns: Sequence[tuple[str, str]]) -> None:
        """Applies every (regex, replacement) in turn to every name.

        Raises:
            UserError: if two tensors get the same name.
        """
        self.where = tensors.where
        self._tensors = tensors
        self._names: dict[str, str] = {}
        for name in tensors.shapes:
            present = _rename(name, patterns)
            if present in self._names:
                raise UserError(f"{self.where}: {name} and {self._names[present]} both mean {present}; remove one")
            self._names[present] = name
        self.shapes = {name: tensors.shapes[old] for name, old in self._names.items()}

    def dtype(self, name: str) -> str:
        """NumPy's name of a tensor's dtype."""
        return self._tensors.dtype(self._names[name])

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._tensors.read(self._names[name])


def _rename(name: str, patterns: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name
