"""Where the samples of a WebDataset tar lie, found in one pass over its headers and kept for the next time."""

import dataclasses
import hashlib
import json
import os
import re
import tarfile
import threading
from pathlib import Path

from data_pipelines.sources.shard_cache import default_cache
from vlm_jax.errors import UserError

_VERSION = 1
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


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """Samples of a tar in their order. `end` is '' or says where and why the tar ends before its end."""

    samples: tuple[Sample, ...]
    end: str = ""


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
        place = Path(cache or default_cache()) / "tars" / f"{digest[:32]}.json"
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
    return TarIndex(tuple(Sample(key, tuple(members)) for key, members in groups), end)


def _read(place: Path) -> TarIndex | None:
    try:
        plain = json.loads(place.read_text("utf-8"))
        samples = tuple(
            Sample(key, tuple((what, offset, size) for what, offset, size in members))
            for key, members in plain["samples"]
        )
        return TarIndex(samples, plain["end"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(index: TarIndex, place: Path) -> None:
    partial = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
    plain = {"samples": [[sample.key, sample.members] for sample in index.samples], "end": index.end}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(plain, ensure_ascii=False), "utf-8")
        partial.replace(place)
    except OSError:
        pass  # it only saves the next reading
