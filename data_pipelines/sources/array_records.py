"""The ArrayRecord source: prepared sets, directories of shards with a manifest, local or remote."""

import bisect
import collections
import dataclasses
import glob
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipelines.manifest import Manifest, ShardFile, read_manifest
from data_pipelines.quarantine import BadRecord
from data_pipelines.records import decode_record
from data_pipelines.sources.naming import source_name
from data_pipelines.sources.shard_cache import ShardCache, default_cache
from vlm_jax.errors import UserError

_OPEN_FILES = 256
"""Shards that are kept open at a time; the least recently used gives way."""

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
"""For random access: reads one record's bytes, in the calling thread."""


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """A set of ArrayRecord shards that `vlm data prepare` wrote.

    path: its directory, with manifest.json; local or remote (gs://…).
    name: of the source; '' = the end of the path ('captions/birds' for 'prepared/captions/birds/train').
    cache: directory where shards are copied to before they are read; '' = none for a local path, and
        $XDG_CACHE_HOME/vlm-jax/shards (~/.cache/vlm-jax/shards) for a remote one.
    unchecked: read files without a manifest; `path` is then a directory of *.arrayrecord, or a pattern. Nothing tells
        then whether a file is truncated, which an ArrayRecord reads as empty.
    """

    path: str
    name: str = ""
    cache: str = ""
    unchecked: bool = False


class ArrayRecordsSource:
    """Records of a set, as `data_pipelines/records.py` describes them, in the order of the files.

    Opening it reads the manifest and compares the files' sizes; a file is opened, and the number of its records
    compared with the manifest, when the first of its records is asked for. Reading is safe from many threads.
    """

    def __init__(self, config: ArrayRecords) -> None:
        """Opens the set.

        Raises:
            UserError: if there is no manifest, it is not one of ArrayRecord files, a file is missing or of another
                size, or the set is empty.
        """
        self.config = config
        self.name = source_name(config)
        self.manifest: Manifest | None = None
        self._cache: ShardCache | None = None
        if config.unchecked:
            self._directory, self._files = _list_unchecked(config, self.name)
        else:
            self.manifest = read_manifest(config.path)
            self._directory, self._files = config.path, self.manifest.files
            if self.manifest.format != "array_record":
                raise UserError(f"source '{self.name}': {config.path} holds {self.manifest.format}, not ArrayRecord")
        if "://" in config.path or config.cache:
            self._cache = ShardCache(config.path, config.cache or default_cache())
        elif self.manifest is not None:
            _check_sizes(Path(config.path), self._files, self.name)
        self._starts = [0, *itertools.accumulate(file.records for file in self._files)]
        if not len(self):
            raise UserError(f"source '{self.name}': {config.path} has no records; prepare it again or leave it out")
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record.

        Raises:
            BadRecord: if its bytes are damaged.
            UserError: if its file is not what the manifest says.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in source '{self.name}'")
        file = bisect.bisect_right(self._starts, index) - 1
        place = index - self._starts[file]
        try:
            return decode_record(self._reader(file).read([place])[0])
        except BadRecord as error:
            raise BadRecord(str(error), f"{self._files[file].name}#{place}") from None
        except (RuntimeError, ValueError, OSError) as error:
            raise BadRecord(
                f"cannot be read: {' '.join(str(error).split())}", f"{self._files[file].name}#{place}"
            ) from None

    def _reader(self, file: int) -> Any:
        with self._lock:
            if file in self._readers:
                self._readers.move_to_end(file)
                return self._readers[file]
        reader = self._open(file)  # outside the lock: opening a remote file takes its time
        with self._lock:
            self._readers[file] = reader
            if len(self._readers) > _OPEN_FILES:
                # A thread that still reads from it holds it; the last one to let go closes it.
                self._readers.popitem(last=False)
        return reader

    def _open(self, file: int) -> Any:
        entry = self._files[file]
        path = self._cache.fetch(entry) if self._cache else os.path.join(self._directory, entry.name)
        reader = _open_reader(path)
        if (found := reader.num_records()) != entry.records:
            raise UserError(
                f"source '{self.name}': {path} has {found:,} records instead of {entry.records:,}; it is damaged or "
                "was replaced: prepare the set again"
            )
        return reader


def _open_reader(path: str) -> Any:
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordReader(path, _READER_OPTIONS, file_reader_buffer_size=1 << 15)


def _check_sizes(directory: Path, files: tuple[ShardFile, ...], name: str) -> None:
    with os.scandir(directory) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    for file in files:
        if file.name not in sizes:
            raise UserError(f"source '{name}': {directory / file.name} is missing; prepare the set again")
        if sizes[file.name] != file.bytes:
            raise UserError(
                f"source '{name}': {directory / file.name} has {sizes[file.name]:,} bytes instead of {file.bytes:,}; "
                "it is damaged: prepare the set again"
            )


def _list_unchecked(config: ArrayRecords, name: str) -> tuple[str, tuple[ShardFile, ...]]:
    if "://" in config.path:
        raise UserError(f"source '{name}': {config.path}: remote shards need a manifest.json; `unchecked` is for local")
    pattern = os.path.join(glob.escape(config.path), "*.arrayrecord") if os.path.isdir(config.path) else config.path
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise UserError(f"source '{name}': no file matches {pattern}; mend `path`")
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda path: int(_open_reader(path).num_records()), paths))
    if 0 in counts:
        raise UserError(f"source '{name}': {paths[counts.index(0)]} has no records, or is truncated; remove it")
    return "", tuple(ShardFile(path, count, 0, "") for path, count in zip(paths, counts, strict=True))
