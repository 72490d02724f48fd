"""Pictures that were decoded and resized before, kept in memory up to a budget, for data that come back every epoch."""

import hashlib
import os
import threading
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from data_pipelines.examples import Image

Picture = UInt8[np.ndarray, "*slots H W 3"]


class PictureMemory:
    """Gives what a function makes of a picture, and remembers it while there is room.

    What is in stays in: epochs come in a fresh order each, where throwing out the oldest would mostly throw out what
    comes next. So of N pictures of which n fit, n / N of every later epoch is remembered. A picture is known by the
    bytes of its file or, where it is a file, by path, size and time of change. Safe to use from several threads.
    """

    def __init__(self, prepare: Callable[..., Picture], budget: int) -> None:
        """Args:
        prepare: decodes and resizes, a pure function of a picture; what else it takes depends on the picture alone.
        budget: bytes of all pictures that are kept.
        """
        self._prepare, self._room = prepare, budget
        self._kept: dict[object, Picture] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Pictures that are kept."""
        return len(self._kept)

    def __call__(self, image: Image, *more: object) -> Picture:
        """What `prepare` gives; not to be written to.

        Raises:
            BadImage: as `prepare`, every time anew.
        """
        key = _key(image)
        if key is not None and (found := self._kept.get(key)) is not None:
            return found
        picture = self._prepare(image, *more)
        if key is not None and picture.nbytes <= self._room:
            with self._lock:
                if key not in self._kept and picture.nbytes <= self._room:
                    # A view would keep all of what it is a part of.
                    picture = picture if picture.base is None else picture.copy()
                    picture.flags.writeable = False
                    self._kept[key] = picture
                    self._room -= picture.nbytes
        return picture


def _key(image: Image) -> object:
    if image.data is not None:
        return hashlib.blake2b(image.data, digest_size=16).digest()
    assert image.path is not None
    try:
        status = os.stat(image.path)
    except OSError:  # of a remote file it would take as long to ask as to read it
        return None
    return image.path, status.st_size, status.st_mtime_ns
