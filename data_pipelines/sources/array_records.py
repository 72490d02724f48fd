"""The ArrayRecord source: prepared sets, directories of shards with a manifest, local or remote."""

import dataclasses
import glob
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipelines.manifest import Manifest, ShardFile, read_manifest
from data_pipelines.quarantine import BadRecord
from data_pipelines.records import decode_record
from data_pipelines.sources.array_shards import ArrayShards, open_reader
from data_pipelines.sources.naming import source_name
from data_pipelines.sources.shard_cache import ShardCache, default_cache
from vlm_jax.errors import UserError


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
        self.contents = ""
        """A digest of all records, by which a resumed run notices that the set is another one; '' = not known."""
        self._cache: ShardCache | None = None
        if config.unchecked:
            self._directory, self._files = _list_unchecked(config, self.name)
        else:
            self.manifest = read_manifest(config.path)
            self._directory, self._files = config.path, self.manifest.files
            self.contents = self.manifest.contents
            if self.manifest.format != "array_record":
                raise UserError(f"source '{self.name}': {config.path} holds {self.manifest.format}, not ArrayRecord")
        if "://" in config.path or config.cache:
            self._cache = ShardCache(config.path, config.cache or default_cache())
        elif self.manifest is not None:
            _check_sizes(Path(config.path), self._files, self.name)
        self._shards = ArrayShards([file.records for file in self._files], self._path, self.name)
        if not len(self):
            raise UserError(f"source '{self.name}': {config.path} has no records; prepare it again or leave it out")

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record.

        Raises:
            BadRecord: if its bytes are damaged.
            UserError: if its file is not what the manifest says.
        """
        try:
            return decode_record(self._shards.read(index))
        except BadRecord as error:
            file, place = self._shards.place(index)
            raise BadRecord(str(error), f"{os.path.basename(self._files[file].name)}#{place}") from None

    def _path(self, file: int) -> str:
        entry = self._files[file]
        return self._cache.fetch(entry) if self._cache else os.path.join(self._directory, entry.name)


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
        counts = list(pool.map(lambda path: int(open_reader(path).num_records()), paths))
    if 0 in counts:
        raise UserError(f"source '{name}': {paths[counts.index(0)]} has no records, or is truncated; remove it")
    return "", tuple(ShardFile(path, count, 0, "") for path, count in zip(paths, counts, strict=True))
