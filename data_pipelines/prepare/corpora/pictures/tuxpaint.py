"""Tux Paint's stamps: cut-out pictures of things, each with a sentence in English and in Russian beside it.

`duck.png` or `duck.svg` has its texts in `duck.txt`: the English sentence in the first line, then a line a language,
`ru.utf8=…`. Where a stamp has both forms of a picture, the PNG is taken.
"""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.examples import Image
from data_pipelines.images import BadImage
from data_pipelines.prepare.corpora.packages import package_path
from data_pipelines.prepare.corpora.pictures.captioned import captioned
from data_pipelines.prepare.corpora.pictures.families import families
from data_pipelines.prepare.corpora.pictures.files import drawn, fitted
from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.splits import Split

_STAMPS = "usr/share/tuxpaint/stamps"
_RUSSIAN = "ru.utf8="


def records(raw: Path) -> Iterator[tuple[Split, Record]]:
    """A record a stamp that has texts; stamps of one family stand in one split.

    Raises:
        UserError: if the package is not there, or the library that draws SVG is not installed.
    """
    stamps = package_path(raw, "tuxpaint-stamps-default", _STAMPS)
    found = {name: picture for name, path in _pictures(stamps) if (picture := _picture(path)) is not None}
    family_of = families(found.items())
    for name, picture in found.items():
        captions = _captions(stamps / f"{name}.txt")
        if captions:
            topic = name.rpartition("/")[0]
            yield captioned("tuxpaint", name, picture, captions, family_of[name], topic)


def _pictures(stamps: Path) -> Iterator[tuple[str, Path]]:
    paths: dict[str, Path] = {}
    for path in sorted(stamps.rglob("*")):
        if path.suffix == ".png" or (path.suffix == ".svg" and not path.with_suffix(".png").exists()):
            paths[path.relative_to(stamps).with_suffix("").as_posix()] = path
    for name, path in sorted(paths.items()):
        if path.with_suffix(".txt").exists():
            yield name, path


def _picture(path: Path) -> Image | None:
    try:
        return fitted(drawn(path) if path.suffix == ".svg" else Image(path=str(path)))
    except BadImage:
        return None  # a stamp that is transparent all over, or a drawing that is broken


def _captions(path: Path) -> list[dict[str, str]]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    russian = next((line.removeprefix(_RUSSIAN) for line in lines if line.startswith(_RUSSIAN)), "")
    texts = {"en": lines[0] if lines else "", "ru": russian}
    return [
        {"text": " ".join(text.split()), "language": language}
        for language, text in texts.items()
        if text.strip() and "\ufffd" not in text
    ]


SETS = (
    CorpusSet(
        name="captions/tuxpaint",
        kind="captions",
        packages=("tuxpaint-stamps-default",),
        licence="GPL-2.0-or-later",
        build=records,
        about="Tux Paint's stamps with a sentence in each language; stamps without texts are left out",
    ),
)
