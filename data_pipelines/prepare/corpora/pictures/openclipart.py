"""Open Clip Art: drawings with English titles, which their PNG files carry as text.

Not every title says what is drawn: many are the name of a collection, or were copied from one drawing to the next, and
one author titled in Italian. Such titles are dropped, and the drawing with them.
"""

import collections
import re
from collections.abc import Iterator
from pathlib import Path

import PIL.Image

from data_pipelines.examples import Image
from data_pipelines.images import BadImage
from data_pipelines.prepare.corpora.packages import package_path
from data_pipelines.prepare.corpora.pictures.captioned import captioned
from data_pipelines.prepare.corpora.pictures.families import families
from data_pipelines.prepare.corpora.pictures.files import fitted, header_pixels
from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.splits import Split

_ROOT = "usr/share/openclipart/png"
_PIXEL_LIMIT = 4_000_000
"""Larger drawings are left out: some are rendered at hundreds of millions of pixels."""

_MOST_ALIKE = 12
"""A title that more drawings have than this names a collection."""

_COLLECTION = re.compile(
    r"clipart by|part of the|collection|theme|icons?\b|icon-?set|symbol_signs|sub?mission|map elements|svg |various|"
    r"advertising|untitled|unbenannt|new document|rpg|\btest\b|\d{4}-\d\d|gramastar|https?:|@|road signs",
    re.IGNORECASE,
)
_NOT_ENGLISH_AUTHOR = re.compile(r"architetto|rollandin|yves.?gu", re.IGNORECASE)
_TAIL = re.compile(r"([ _-]*(\(?(v?[\d.]+|transparent fix|silhouette\s*\d+|remix)\)?))+$", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]{3,}")
_BLACK_AND_WHITE = re.compile(r"\s*\((b and w|b/w|bw|black and white)\)", re.IGNORECASE)


def records(raw: Path) -> Iterator[tuple[Split, Record]]:
    """A record a drawing whose title says what it shows; its description, where it has a real one, is a second caption.

    Raises:
        UserError: if the package is not there.
    """
    root = package_path(raw, "openclipart-png", _ROOT)
    titled = [(path, *_texts(path)) for path in sorted(root.rglob("*.png"))]
    frequency = collections.Counter(title for _, title, _ in titled)
    found: dict[str, tuple[Image, str, str]] = {}
    for path, title, description in titled:
        clean = "" if frequency[title] > _MOST_ALIKE else clean_title(title)
        if clean and (picture := _picture(path)) is not None:
            found[path.relative_to(root).with_suffix("").as_posix()] = (picture, clean, description)
    family_of = families((name, picture) for name, (picture, _, _) in found.items())
    for name, (picture, title, description) in found.items():
        captions = [{"text": title, "language": "en", "name": True}]
        if _is_real(description, title):
            captions.append({"text": " ".join(description.split()), "language": "en"})
        yield captioned("openclipart", name, picture, captions, family_of[name], name.rpartition("/")[0])


def clean_title(title: str) -> str:
    """A title as words, or '' if it does not say what is drawn.

    >>> clean_title("Cherry Pie (B and W)"), clean_title("padlock_silhouette"), clean_title("Lemon SVG theme")
    ('Cherry Pie, black and white', 'padlock', '')
    """
    if _COLLECTION.search(title) or not title.isascii():
        return ""
    words = _TAIL.sub("", re.sub(r"[_\s]+", " ", _BLACK_AND_WHITE.sub(", black and white", title))).strip(" -.,:")
    words = re.sub(r" silhouette$", "", words, flags=re.IGNORECASE)
    return words if _WORD.search(words) and len(words) <= 80 else ""


def _texts(path: Path) -> tuple[str, str]:
    """Title and description, without decoding the picture."""
    if _NOT_ENGLISH_AUTHOR.search(path.name) or header_pixels(path) > _PIXEL_LIMIT:
        return "", ""
    try:
        with PIL.Image.open(path) as picture:
            if _NOT_ENGLISH_AUTHOR.search(str(picture.info.get("Author", ""))):
                return "", ""
            return str(picture.info.get("Title", "")).strip(), str(picture.info.get("Description", "")).strip()
    except (OSError, SyntaxError, ValueError):
        return "", ""


def _is_real(description: str, title: str) -> bool:
    words = description.split()
    return (
        3 <= len(words) <= 60
        and description.isascii()
        and not _COLLECTION.search(description)
        and description.lower().strip(" .") != title.lower()
    )


def _picture(path: Path) -> Image | None:
    try:
        return fitted(Image(path=str(path)))
    except BadImage:
        return None  # damaged, or transparent all over


SETS = (
    CorpusSet(
        name="captions/openclipart",
        kind="captions",
        packages=("openclipart-png",),
        licence="CC-PDDC",
        build=records,
        about="Open Clip Art's drawings with English titles; those that name a collection are dropped",
    ),
)
