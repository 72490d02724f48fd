"""Families of pictures: those so alike that they must stand in one split. Recoloured, mirrored, redrawn, renumbered."""

import re
from collections.abc import Iterable, Mapping

import cv2
import numpy as np
import PIL.Image

from data_pipelines.examples import Image
from data_pipelines.images import decode
from data_pipelines.optional import need

NEAR = 6
"""Bits of 64 in which the perceptual hashes of near-identical pictures may differ."""

_VARIANT = re.compile(
    r"([-_ ]?(\d+|left|right|filled|outline|mirror(ed)?|flip(ped)?|bw|small|big|large|v\d+|[a-d](?=$)))+$", re.IGNORECASE
)


def families(pictures: Iterable[tuple[str, Image]], near: int = NEAR) -> Mapping[str, str]:
    """The family of each picture: the first name, in alphabetical order, of all that hang together with it.

    Two hang together if their names differ only in what tells variants apart ('rocket', 'rocket2', 'eye_left') within
    one folder, or if their perceptual hashes (of the picture, or of its mirror image) differ in at most `near` bits.

    Args:
        pictures: Name, with '/' between folders, and picture.
        near: Bits of 64.

    Raises:
        BadImage: if a picture cannot be decoded.
    """
    names, hashes, mirrored = [], [], []
    for name, picture in sorted(pictures, key=lambda each: each[0]):
        names.append(name)
        one, other = _hashes(picture)
        hashes.append(one)
        mirrored.append(other)
    groups = _Groups(len(names))
    stems: dict[str, int] = {}
    for index, name in enumerate(names):
        groups.join(index, stems.setdefault(stem(name), index))
    for one, other in _near_pairs(np.array(hashes, np.uint64), np.array(mirrored, np.uint64), near):
        groups.join(one, other)
    return {name: names[groups.root(index)] for index, name in enumerate(names)}


def stem(name: str) -> str:
    """A picture's name without what tells its variants apart.

    >>> stem("people/body_parts/eye_green_left"), stem("space/rocket2"), stem("9")
    ('people/body_parts/eye_green', 'space/rocket', '9')
    """
    folder, _, last = name.rpartition("/")
    shorter = _VARIANT.sub("", last)
    return f"{folder}/{shorter or last}" if folder else shorter or last


def _hashes(picture: Image) -> tuple[int, int]:
    """Perceptual hashes of a picture and of its mirror image.

    A drawing is first cut to what stands out from its ground, so that its margins do not make the hash.
    """
    imagehash = need("imagehash", "prepare")
    pixels = _cut_to_content(decode(picture))
    pixels = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA)
    return tuple(  # type: ignore[return-value]
        int(str(imagehash.phash(PIL.Image.fromarray(each))), 16) for each in (pixels, np.ascontiguousarray(pixels[:, ::-1]))
    )


def _cut_to_content(pixels: np.ndarray) -> np.ndarray:
    differs = np.abs(pixels.astype(np.int16) - pixels[0, 0].astype(np.int16)).max(axis=2) > 8
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return pixels
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _near_pairs(hashes: np.ndarray, mirrored: np.ndarray, near: int) -> Iterable[tuple[int, int]]:
    for index in range(len(hashes) - 1):
        rest = hashes[index + 1 :]
        away = np.minimum(np.bitwise_count(rest ^ hashes[index]), np.bitwise_count(rest ^ mirrored[index]))
        for other in np.flatnonzero(away <= near):
            yield index, index + 1 + int(other)


class _Groups:
    """Union-find in which the smallest index leads a group."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def root(self, index: int) -> int:
        while self._above[index] != index:
            self._above[index] = self._above[self._above[index]]
            index = self._above[index]
        return index

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._above[second] = first
