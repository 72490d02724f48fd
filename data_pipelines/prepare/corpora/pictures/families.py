"""Families of pictures: those so alike that they must stand in one split. Recoloured, mirrored, redrawn, renumbered."""

import dataclasses
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

_COLOUR = 40
"""Units of 0..255 in which the mean colours of near-identical pictures may differ."""

_SIDE = 256
"""Pixels: larger pictures are looked at at this size."""

_VARIANT = re.compile(
    r"([-_ ]?\d+|[-_ ](left|right|filled|outlined?|mirror(ed)?|flip(ped)?|bw|small|big|large|v\d+|[a-d]))+$",
    re.IGNORECASE,
)


def families(pictures: Iterable[tuple[str, Image]], near: int = NEAR) -> Mapping[str, str]:
    """The family of each picture: the first name, in alphabetical order, of all that hang together with it.

    Two hang together if their names differ only in what tells variants apart ('rocket', 'rocket2', 'eye_left') within
    one folder, or if their perceptual hashes (of the picture, or of its mirror image) differ in at most `near` bits and
    their colours are about the same.

    Args:
        pictures: Name, with '/' between folders, and picture.
        near: Bits of 64.

    Raises:
        BadImage: if a picture cannot be decoded.
    """
    looks = {name: _look(picture) for name, picture in pictures}
    names = sorted(looks)
    groups = _Groups(len(names))
    stems: dict[str, int] = {}
    for index, name in enumerate(names):
        groups.join(index, stems.setdefault(stem(name), index))
    for one, other in _near_pairs([looks[name] for name in names], near):
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


@dataclasses.dataclass(frozen=True)
class _Look:
    """What pictures are compared by: perceptual hashes of it and of its mirror image, which know shapes in grey, and
    its mean colour, without which all tricolours would be one flag."""

    hash: int
    mirrored: int
    colour: np.ndarray


def _look(picture: Image) -> _Look:
    """A drawing is first cut to what stands out from its ground, so that its margins do not make the hash."""
    imagehash = need("imagehash", "prepare")
    pixels = decode(picture)
    if (scale := _SIDE / max(pixels.shape[:2])) < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    pixels = cv2.resize(_cut_to_content(pixels), (64, 64), interpolation=cv2.INTER_AREA)
    one, other = (
        int(str(imagehash.phash(PIL.Image.fromarray(np.ascontiguousarray(each)))), 16)
        for each in (pixels, pixels[:, ::-1])
    )
    return _Look(one, other, pixels.mean(axis=(0, 1)))


def _cut_to_content(pixels: np.ndarray) -> np.ndarray:
    differs = np.abs(pixels.astype(np.int16) - pixels[0, 0].astype(np.int16)).max(axis=2) > 8
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return pixels
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _near_pairs(looks: list[_Look], near: int) -> Iterable[tuple[int, int]]:
    hashes = np.array([look.hash for look in looks], np.uint64)
    mirrored = np.array([look.mirrored for look in looks], np.uint64)
    colours = np.array([look.colour for look in looks], np.float32).reshape(-1, 3)
    for index in range(len(looks) - 1):
        rest = hashes[index + 1 :]
        bits = np.minimum(np.bitwise_count(rest ^ hashes[index]), np.bitwise_count(rest ^ mirrored[index]))
        away = np.abs(colours[index + 1 :] - colours[index]).max(axis=1)
        for other in np.flatnonzero((bits <= near) & (away <= _COLOUR)):
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
