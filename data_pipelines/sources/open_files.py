"""Open files for random access by many threads: the least recently used gives way when there are too many."""

import collections
import os
import threading

_LIMIT = 256


class OpenFiles:
    """Descriptors of files, kept open."""

    def __init__(self, limit: int = _LIMIT) -> None:
        """Keeps up to `limit` files open."""
        self._limit = limit
        self._open: collections.OrderedDict[str, _Descriptor] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on.

        Raises:
            OSError: if the file cannot be read, or ends before.
        """
        with self._lock:
            file = self._open.get(path)
            if file is None:
                file = self._open[path] = _Descriptor(path)
                if len(self._open) > self._limit:
                    self._open.popitem(last=False)  # a thread that still reads from it holds it
            else:
                self._open.move_to_end(path)
        data = os.pread(file.number, size, offset)
        while len(data) < size:
            more = os.pread(file.number, size - len(data), offset + len(data))
            if not more:
                raise OSError(f"the file ends at byte {offset + len(data):,} instead of {offset + size:,}")
            data += more
        return data


class _Descriptor:
    """A descriptor that is closed when nobody holds it any more."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
