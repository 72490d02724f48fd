"""Where the samples of a WebDataset tar lie, found in one pass over its headers and kept for the next time."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tarfile
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.sources.shard_cache import default_cache
from vlm_jax.errors import UserError

_VERSION = 2
_MEMBER = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]+)")
"""A member's name: the key of its sample, and what it is of it. Other names belong to no sample."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample: its key, and (what, offset, size in bytes) of each of its members."""

    key: str
    members: tuple[tuple[str, int, int], ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(size for _, _, size in self.members)


class TarIndex:
    """Samples of a tar in their order, some 100 bytes each. `end` is '' or says where and why the tar ends too soon."""

    def __init__(self, arrays: Mapping[str, np.ndarray], endings: Sequence[str], end: str) -> None:
        """Takes the arrays that `pack` makes, and what members are called."""
        self.arrays, self.endings, self.end = arrays, endings, end

    @classmethod
    def pack(cls, samples: Sequence[Sample], end: str) -> "TarIndex":
        """The index of samples.

        keys: uint8, all keys as UTF-8, one behind the other; key_ends: where each ends
        first: of each sample, the number of its first member; and the number of all members
        what, offsets, sizes: of each member, which of the endings it has, and where it lies
        """
        members = [member for sample in samples for member in sample.members]
        endings = sorted({what for what, _, _ in members})
        codes = {what: code for code, what in enumerate(endings)}
        keys = [sample.key.encode("utf-8", "replace") for sample in samples]
        arrays: dict[str, np.ndarray] = {
            "keys": np.frombuffer(b"".join(keys), np.uint8),
            "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
            "first": np.cumsum([0, *(len(sample.members) for sample in samples)], dtype=np.int64),
            "what": np.array([codes[what] for what, _, _ in members], np.int32),
            "offsets": np.array([offset for _, offset, _ in members], np.int64),
            "sizes": np.array([size for _, _, size in members], np.int64),
        }
        return cls(arrays, endings, end)

    def __len__(self) -> int:
        return len(self.arrays["key_ends"])

    def sample(self, number: int) -> Sample:
        """A sample by its number."""
        ends, first = self.arrays["key_ends"], self.arrays["first"]
        key = self.arrays["keys"][int(ends[number - 1]) if number else 0 : int(ends[number])]
        span = slice(int(first[number]), int(first[number + 1]))
        columns = (self.arrays[name][span].tolist() for name in ("what", "offsets", "sizes"))
        members = tuple((self.endings[what], offset, size) for what, offset, size in zip(*columns, strict=True))
        return Sample(key.tobytes().decode(), members)


def index_tar(path: str, name: str, cache: str = "") -> TarIndex:
    """Reads a tar's headers, or what an earlier call wrote down about the same file.

    Args:
        path: A local tar, not compressed.
        name: The source's, for messages.
        cache: Directory for indices; '' = $XDG_CACHE_HOME/vlm-jax/shards.

    Raises:
        UserError: if it cannot be read or is no tar.
    """
    try:
        about = os.stat(path)
        digest = hashlib.sha256(
            f"{os.path.realpath(path)} {about.st_size} {about.st_mtime_ns} {_VERSION}".encode()
        ).hexdigest()
        place = Path(cache or default_cache()) / "tars" / f"{digest[:32]}.npz"
        if (known := _read(place)) is not None:
            return known
        index = _scan(path, name, about.st_size)
    except OSError as error:
        raise UserError(f"source '{name}': {path}: cannot be read ({error.strerror or error})") from None
    _write(index, place)
    return index


def _scan(path: str, name: str, size: int) -> TarIndex:
    groups: list[tuple[str, list[tuple[str, int, int]]]] = []
    end = ""
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise UserError(
                f"source '{name}': {path} is compressed, and gives no access to single records: unpack it (gunzip)"
            )
        file.seek(0)
        try:
            tar = tarfile.TarFile(fileobj=file, mode="r")
        except tarfile.TarError as error:
            raise UserError(f"source '{name}': {path} is no tar, or damaged ({error})") from None
        offset = 0
        while True:
            file.seek(offset)
            try:
                # Not TarFile.next, which takes a damaged or missing header for the end.
                member = tarfile.TarInfo.fromtarfile(tar)
            except tarfile.TarError as error:
                if type(error).__name__ != "EOFHeaderError":
                    end = f"at byte {offset:,} of {size:,} ({error})"
                break
            if member.offset_data + member.size > size:
                end = f"in the middle of '{member.name}', at byte {size:,}"
            if member.isreg() and (parts := _MEMBER.fullmatch(member.name)):
                key, what = parts[1], parts[2].lower()
                if not groups or groups[-1][0] != key:
                    groups.append((key, []))
                groups[-1][1].append((what, member.offset_data, member.size))
            if end:
                break
            offset = tar.offset
    return TarIndex.pack([Sample(key, tuple(members)) for key, members in groups], end)


def _read(place: Path) -> TarIndex | None:
    try:
        with np.load(place, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        words = json.loads(arrays.pop("words").tobytes())
        return TarIndex(arrays, words["endings"], words["end"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _write(index: TarIndex, place: Path) -> None:
    partial = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
    words = json.dumps({"endings": list(index.endings), "end": index.end}).encode()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **{**index.arrays, "words": np.frombuffer(words, np.uint8)})  # type: ignore[arg-type]
        partial.replace(place)
    except OSError:
        with contextlib.suppress(OSError):  # it only saves the next reading
            partial.unlink()
