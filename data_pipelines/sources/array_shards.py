"""Random access to the records of many ArrayRecord files, each compared with what it should hold before it is read."""

import bisect
import collections
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

_OPEN_FILES = 256
"""Files that are kept open at a time; the least recently used gives way."""

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
"""For random access: reads one record's bytes, in the calling thread."""


class ArrayShards:
    """The records of some files, numbered one after another. Reading is safe from many threads.

    Making it touches no file; a file is opened when the first of its records is asked for.
    """

    def __init__(self, counts: Sequence[int], path_of: Callable[[int], str], name: str) -> None:
        """Takes what the files should hold.

        Args:
            counts: Records of each file.
            path_of: Number of a file -> its local path; may take its time to fetch it.
            name: Of the source, for errors.
        """
        self._counts = counts
        self._path_of = path_of
        self._name = name
        self._starts = [0, *itertools.accumulate(counts)]
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> bytes:
        """The bytes of a record.

        Raises:
            BadRecord: if they are damaged.
            UserError: if the file has another number of records: a truncated one looks empty.
        """
        file, place = self.place(index)
        reader = self._reader(file)
        try:
            return bytes(reader.read([place])[0])
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise BadRecord(f"cannot be read ({reason})") from None

    def place(self, index: int) -> tuple[int, int]:
        """Number of the record's file, and of the record in it.

        Raises:
            IndexError: if there is no such record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in source '{self._name}'")
        file = bisect.bisect_right(self._starts, index) - 1
        return file, index - self._starts[file]

    def _reader(self, file: int) -> Any:
        with self._lock:
            if file in self._readers:
                self._readers.move_to_end(file)
                return self._readers[file]
        reader = self._open(file)  # outside the lock: to fetch a remote file takes its time
        with self._lock:
            self._readers[file] = reader
            if len(self._readers) > _OPEN_FILES:
                # A thread that still reads from it holds it; the last one to let go closes it.
                self._readers.popitem(last=False)
        return reader

    def _open(self, file: int) -> Any:
        path = self._path_of(file)
        found = (reader := open_reader(path)).num_records()
        if found != self._counts[file]:
            raise UserError(
                f"source '{self._name}': {path} has {found:,} records instead of {self._counts[file]:,}; it is "
                "missing, damaged or replaced: prepare the set again"
            )
        return reader


def open_reader(path: str) -> Any:
    """ArrayRecord's own reader. A file that is missing or truncated looks like one without records."""
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordReader(path, _READER_OPTIONS, file_reader_buffer_size=1 << 15)
