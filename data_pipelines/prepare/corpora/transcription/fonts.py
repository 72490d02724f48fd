"""Fonts of the packages table that have Latin and Cyrillic, and which of them training does not see."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import PIL.ImageFont
from fontTools.ttLib import TTFont, TTLibError

from data_pipelines.prepare.corpora.packages import PACKAGES, package_path
from data_pipelines.prepare.splits import Split, split_of

FONT_PACKAGES = tuple(each.name for each in PACKAGES if each.name.startswith("fonts-") and "emoji" not in each.name)

NEEDED = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    "АБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдеёжзийклмнопрстуфхцчшщъыьэюя"
    " .,:;!?%()«»“”\"'’–—+=/*№-"
)
"""Characters that a font must have."""

_UNREADABLE = re.compile(r"thin|hairline|extralight|keyb|biolinum_k|_dr\b|math", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Face:
    """A font file."""

    name: str
    """Its file name without the ending: 'DejaVuSans-Bold'."""

    path: Path

    @property
    def split(self) -> Split:
        """Faces of validation and test appear in no training picture."""
        return split_of(f"font/{self.name}")


@functools.lru_cache(maxsize=1)
def faces(raw: Path) -> tuple[Face, ...]:
    """All faces that have every character needed, by name.

    Raises:
        UserError: if a font package is not there.
    """
    found: dict[str, Face] = {}
    for package in FONT_PACKAGES:
        for path in sorted(package_path(raw, package, "usr/share/fonts").rglob("*")):
            if path.suffix in (".ttf", ".otf") and not _UNREADABLE.search(path.stem) and _has_all(path):
                found.setdefault(path.stem, Face(path.stem, path))
    return tuple(found[name] for name in sorted(found))


def faces_for(split: Split, every: Sequence[Face]) -> tuple[Face, ...]:
    """The faces for a split: those of training only for training, all of them for the others."""
    return tuple(face for face in every if face.split == "train") if split == "train" else tuple(every)


@functools.lru_cache(maxsize=4096)
def sized(path: Path, size: int) -> PIL.ImageFont.FreeTypeFont:
    """A face at a size in pixels. Neither language needs more than the basic layout."""
    return PIL.ImageFont.truetype(str(path), size, layout_engine=PIL.ImageFont.Layout.BASIC)


def _has_all(path: Path) -> bool:
    try:
        with TTFont(path, lazy=True) as font:
            characters = font.getBestCmap() or {}
    except (TTLibError, OSError, AssertionError):
        return False
    return all(ord(character) in characters for character in NEEDED)
