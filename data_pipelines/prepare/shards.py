"""Writes records as ArrayRecord shards with a manifest: the same records give the same files, or nothing is left.

A set is built in a directory beside its own and takes its place when it is whole, so a killed build leaves nothing that
looks finished, and the next one starts the set afresh. Records stand in the order of a hash of their ids: whatever
order they came in, and shuffled well enough that a part of the files is a fair sample.
"""

import contextlib
import dataclasses
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
    is_intact,
    library_versions,
    shard_file,
    shard_name,
    write_manifest,
)
from data_pipelines.prepare.splits import SPLITS, Split
from data_pipelines.quarantine import BadRecord, Quarantine
from data_pipelines.records import encode_record
from vlm_jax.errors import UserError

SHARD_BYTES = 64 << 20
"""About so large is a shard where the number of shards is not given."""

QUARANTINE = "quarantine.jsonl"
"""Beside the shards: records that could not be written, a JSON line each."""

_WRITER_OPTIONS = "group_size:1"
"""One record a chunk: the fastest random access."""


def write_shard(path: Path, blobs: Iterable[bytes]) -> ShardFile:
    """Writes one ArrayRecord file of encoded records; the same bytes for the same records.

    Raises:
        OSError: if the disk refuses.
    """
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)
    records = 0
    for blob in blobs:
        writer.write(blob)
        records += 1
    if not writer.ok():
        raise OSError(f"{path}: cannot be written")
    writer.close()
    return shard_file(path, records)


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
        _refuse_foreign(directory)
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
            manifest = _manifest(files, self._config, self._about, counts)
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


def write_set(
    directory: Path,
    records: Iterable[Mapping[str, Any]],
    *,
    config: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    shards: int = 0,
    bad_record_limit: float = 0.01,
) -> Manifest:
    """Writes one set, unless it is there already: with the same config and code, and every file as it was written.

    Args:
        directory: Of the set: OUT/captions/birds/train.
        records: In any order; not touched where the set is there. Each needs an 'id' of its own. 'real' of a record,
            if it has it, lists the distinct real (picture, text) pairs that it is made from; they are counted.
        config: All that the records depend on besides the code (versions of packages, options), in JSON types.
        about: What else the manifest says; see `SetWriter`.
        shards: Number of files; 0 = as many as make them about SHARD_BYTES large.
        bad_record_limit: Share of records that cannot be encoded above which the build stops.

    Raises:
        UserError: if two records share an id, one has none, too many are bad, or the directory cannot be written.
    """
    if present := find_set(directory, config=config, about=about, shards=shards):
        return present
    with SetWriter(directory, config=config, about=about, shards=shards, bad_record_limit=bad_record_limit) as writer:
        for record in records:
            writer.add(record)
        return writer.finish()


def write_splits(
    directory: Path,
    records: Iterable[tuple[Split, Mapping[str, Any]]],
    *,
    config: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    shards: int = 0,
    bad_record_limit: float = 0.01,
) -> dict[Split, Manifest]:
    """`write_set` for all splits of a set at once, from one pass over (split, record): OUT/captions/birds/{train, …}.

    A split without records is an empty set. A split that is there already is written again with the others.

    Raises:
        UserError: as `write_set`, or if a split has another name.
    """
    present = {split: find_set(directory / split, config=config, about=about, shards=shards) for split in SPLITS}
    if all(present.values()):
        return {split: manifest for split, manifest in present.items() if manifest}
    options: dict[str, Any] = {"config": config, "about": about, "bad_record_limit": bad_record_limit}
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(SetWriter(directory / split, shards=shards, **options)) for split in SPLITS
        }
        for split, record in records:
            if split not in writers:
                raise UserError(f"{directory}: a record has the split {split!r}; it can be {', '.join(SPLITS)}")
            elsewhere = [other for other in SPLITS if other != split and record.get("id", "") in writers[other]]
            if elsewhere:
                raise UserError(
                    f"{directory}: record '{record['id']}' is in {split} and in {elsewhere[0]}; give it one"
                )
            writers[split].add(record)
        return {split: writer.finish() for split, writer in writers.items()}


def find_set(
    directory: Path, *, config: Mapping[str, Any], about: Mapping[str, Any] | None = None, shards: int = 0
) -> Manifest | None:
    """The manifest of this very set if it is there and whole; a change of `about` alone is written into it."""
    _refuse_foreign(directory)
    wanted = config_hash({"shards": shards, **config})
    manifest = is_intact(directory, same=lambda found: found.config_hash == wanted and found.code_hash == code_hash())
    if manifest is None:
        return None
    fresh = _manifest(manifest.files, {"shards": shards, **config}, about or {}, manifest.counts)
    fresh = dataclasses.replace(fresh, versions={**fresh.versions, **manifest.versions})
    if fresh != manifest:
        write_manifest(directory, fresh)
    return fresh


def _manifest(
    files: tuple[ShardFile, ...], config: Mapping[str, Any], about: Mapping[str, Any], counts: Mapping[str, int]
) -> Manifest:
    rest, config = json.loads(json.dumps([dict(about), dict(config)]))  # as they will be read back
    licences = tuple(rest.pop("licences", ()))
    versions = {**library_versions(), **rest.pop("versions", {})}
    return Manifest(files, config, config_hash(config), code_hash(), versions, licences, dict(counts), rest)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def _refuse_foreign(directory: Path) -> None:
    """A directory that is no prepared set is somebody's work: it is not replaced."""
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
