"""Collects the records of a set and writes it in a directory beside its own, which takes its place when it is whole."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.manifest import (
    Manifest,
    ShardFile,
    code_hash,
    config_hash,
    library_versions,
    shard_name,
    write_manifest,
)
from data_pipelines.prepare.shard_files import SHARD_BYTES, write_shard
from data_pipelines.quarantine import BadRecord, Quarantine
from data_pipelines.records import encode_record
from vlm_jax.errors import UserError

QUARANTINE = "quarantine.jsonl"
"""Beside the shards: records that could not be written, a JSON line each."""


class SetWriter:
    """Collects the records of one set, in any order, and writes it when all are there.

    Records wait encoded in a file, so that a set may be larger than memory: about 150 bytes of it a record remain.

        with SetWriter(Path("prepared/captions/birds/train"), config={"version": 1}) as writer:
            for record in records:
                writer.add(record)
            manifest = writer.finish()
    """

    def __init__(
        self,
        directory: Path,
        *,
        config: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        shards: int = 0,
        bad_record_limit: float = 0.01,
    ) -> None:
        """Prepares to write.

        Args:
            directory: Of the set. A finished set that lies there is replaced when this one is whole.
            config: All that the records depend on besides the code, in JSON types; part of the manifest.
            about: What else the manifest says: 'licences' (a list) and 'versions' (a mapping) go to its own fields.
            shards: Number of files; 0 = as many as make them about SHARD_BYTES large.
            bad_record_limit: Share of bad records above which the build stops.

        Raises:
            UserError: if the directory holds something else, cannot be made, or another process writes this set.
        """
        if shards < 0:
            raise UserError(f"{directory}: shards is {shards}; give a number, or 0 to choose it by size")
        self.directory = directory
        self._config = {"shards": shards, **config}
        self._about = dict(about or {})
        self._shards = shards
        self._quarantine = Quarantine(limit=bad_record_limit)
        self._places: dict[bytes, tuple[int, int]] = {}
        self._real: set[bytes] = set()
        self._size = 0
        self._partial = directory.with_name(f".{directory.name}.partial")
        refuse_foreign(directory)
        with contextlib.ExitStack() as stack:
            try:
                self._partial.mkdir(parents=True, exist_ok=True)
                stack.callback(os.close, self._lock())
                _empty(self._partial)
                self._spool = stack.enter_context(tempfile.TemporaryFile(dir=self._partial))
            except OSError as error:
                raise _unwritable(directory, error) from None
            self._files = stack.pop_all()

    def __enter__(self) -> "SetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Removes what is unfinished."""
        if self._partial.exists():
            _empty(self._partial)
            with contextlib.suppress(OSError):
                self._partial.rmdir()
        with contextlib.suppress(OSError):  # of what was still to be written: where it mattered, it has been said
            self._files.close()

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes a record. One that cannot be encoded is counted and listed beside the shards.

        Raises:
            UserError: if its id is missing or was there before, the disk refuses, or too many records are bad.
        """
        name = record.get("id")
        if not isinstance(name, str) or not name:
            raise UserError(f"{self.directory}: a record has the id {name!r}; every record needs one, a string")
        key = _key(name)
        if key in self._places:
            raise UserError(f"{self.directory}: two records have the id '{name}'; give each an id of its own")
        self._quarantine.met(self.directory.name)
        try:
            blob = encode_record(record)
        except BadRecord as error:
            self.set_aside(name, str(error))
            return
        try:
            self._spool.write(blob)
        except OSError as error:
            raise _unwritable(self.directory, error) from None
        self._places[key] = (self._size, len(blob))
        self._size += len(blob)
        self._real.update(_key(pair) for pair in record.get("real", ()))

    def __contains__(self, record_id: str) -> bool:
        """Whether a record of this id has been taken."""
        return _key(record_id) in self._places

    def set_aside(self, record_id: str, reason: str) -> None:
        """Counts and lists a record that cannot be used.

        Raises:
            UserError: once they are too many.
        """
        self._quarantine.add(self.directory.name, record_id, reason)

    def finish(self) -> Manifest:
        """Writes shards and manifest and puts them into place.

        Raises:
            UserError: if the disk refuses.
        """
        try:
            files = self._write_shards()
            bad = self._quarantine.reasons()
            counts = {"distinct_real_pairs": len(self._real), "bad_records": len(bad)}
            if bad:
                lines = ({"source": source, "id": name, "reason": reason} for (source, name), reason in bad.items())
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                (self._partial / QUARANTINE).write_text(text, encoding="utf-8", errors="backslashreplace")
            manifest = manifest_of(files, self._config, self._about, counts)
            write_manifest(self._partial, manifest)
            _replace(self._partial, self.directory)
        except OSError as error:
            raise _unwritable(self.directory, error) from None
        return manifest

    def _write_shards(self) -> tuple[ShardFile, ...]:
        order = [place for _, place in sorted(self._places.items())]
        wanted = self._shards or max(1, round(self._size / SHARD_BYTES))
        shards = min(wanted, len(order))  # an empty file would look like a truncated one
        self._spool.flush()
        files = []
        for shard in range(shards):
            part = order[len(order) * shard // shards : len(order) * (shard + 1) // shards]
            files.append(write_shard(self._partial / shard_name(shard, shards), self._read(part)))
        return tuple(files)

    def _read(self, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        for offset, length in places:
            yield os.pread(self._spool.fileno(), length, offset)

    def _lock(self) -> int:
        """Keeps other processes off until the file handle is closed, also by the death of this one."""
        handle = os.open(self._partial, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(f"{self.directory}: another process is writing this set; wait for it or stop it") from None
        return handle


def manifest_of(
    files: tuple[ShardFile, ...], config: Mapping[str, Any], about: Mapping[str, Any], counts: Mapping[str, int]
) -> Manifest:
    """The manifest of these files; what has a field of its own is taken out of `about`."""
    rest, config = json.loads(json.dumps([dict(about), dict(config)]))  # as they will be read back
    licences = tuple(rest.pop("licences", ()))
    versions = {**library_versions(), **rest.pop("versions", {})}
    return Manifest(files, config, config_hash(config), code_hash(), versions, licences, dict(counts), rest)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def refuse_foreign(directory: Path) -> None:
    """Raises UserError for a directory that is no prepared set: it is somebody's work, and is not replaced."""
    if re.match(r"\w{2,}:/", os.fspath(directory)):
        raise UserError(
            f"{directory}: sets are written to local disks; choose a local directory and copy it afterwards"
        )
    if directory.is_dir() and any(directory.iterdir()) and not (directory / "manifest.json").exists():
        raise UserError(f"{directory}: holds files but no manifest.json, so it is no prepared set; remove it yourself")


def _replace(partial: Path, directory: Path) -> None:
    """Puts a finished directory into place; a kill in between leaves no set, never half of one."""
    old = directory.with_name(f".{directory.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    if old.exists():
        shutil.rmtree(old)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def _unwritable(directory: Path, error: OSError) -> UserError:
    return UserError(f"{directory}: cannot be written ({error.strerror or error}); free space, or choose another place")
