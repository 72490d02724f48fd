"""Row groups of Parquet files, decoded: kept in memory up to a limit, or unpacked once into memory-mapped files."""

import collections
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.optional import need


class RowGroups:
    """Decoded row groups. Threads that ask for the same one at the same time decode it once."""

    def __init__(
        self, paths: Sequence[str], columns: Sequence[str] | None, memory: int, unpacked: Path | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            paths: The files.
            columns: Those to read; None = all.
            memory: Bytes to keep; the row group asked for last is always kept.
            unpacked: Directory for memory-mapped files; None = decode into memory.
        """
        self._paths, self._columns, self._memory, self._unpacked = paths, columns, memory, unpacked
        self._tables: collections.OrderedDict[tuple[int, int], Any] = collections.OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self._decoding: dict[tuple[int, int], threading.Lock] = {}

    def table(self, file: int, group: int) -> Any:
        """A row group as a pyarrow.Table.

        Raises:
            OSError, ValueError: if it cannot be read.
        """
        key = (file, group)
        if (table := self._kept(key)) is not None:
            return table
        with self._lock:
            own = self._decoding.setdefault(key, threading.Lock())
        with own:
            if (table := self._kept(key)) is not None:
                return table
            table = self._decoded(file, group) if self._unpacked is None else self._mapped(file, group, self._unpacked)
            self._keep(key, table)
        with self._lock:
            self._decoding.pop(key, None)
        return table

    def _kept(self, key: tuple[int, int]) -> Any:
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
            return self._tables.get(key)

    def _keep(self, key: tuple[int, int], table: Any) -> None:
        with self._lock:
            self._tables[key] = table
            # Mapped files are the system's to drop from memory.
            self._held += 0 if self._unpacked else table.nbytes
            while self._held > self._memory and len(self._tables) > 1:
                _, dropped = self._tables.popitem(last=False)
                self._held -= dropped.nbytes

    def _decoded(self, file: int, group: int) -> Any:
        parquet = need("pyarrow.parquet", "formats")
        with parquet.ParquetFile(self._paths[file], page_checksum_verification=True) as opened:
            # In this thread: the loader has threads of its own.
            return opened.read_row_group(group, columns=self._columns, use_threads=False)

    def _mapped(self, file: int, group: int, directory: Path) -> Any:
        arrow = need("pyarrow", "formats")
        path = self._paths[file]
        about = os.stat(path)
        name = f"{os.path.realpath(path)} {about.st_size} {about.st_mtime_ns} {self._columns}"
        place = directory / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}-{group:05d}.arrow"
        if not place.exists():
            directory.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
            try:
                table = self._decoded(file, group)
                with arrow.OSFile(os.fspath(partial), "wb") as sink, arrow.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)
        return arrow.ipc.open_file(arrow.memory_map(os.fspath(place), "r")).read_all()
