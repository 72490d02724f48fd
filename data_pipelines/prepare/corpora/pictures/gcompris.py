"""GCompris' boards: photographs and drawings with titles and descriptions, in English and in its translators' Russian.

The pictures and boards lie in Qt resource archives, the Russian texts in a compiled translation. Boards are QML, in
which a picture's fields stand side by side: `"title": qsTr("Horse"), "image2": "qrc:/…/horse.webp"`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from data_pipelines.examples import Image
from data_pipelines.prepare.corpora.packages import package_path
from data_pipelines.prepare.corpora.pictures.captioned import captioned
from data_pipelines.prepare.corpora.pictures.families import families
from data_pipelines.prepare.corpora.pictures.files import fitted
from data_pipelines.prepare.corpora.pictures.gcompris_puzzles import assembled
from data_pipelines.prepare.corpora.pictures.qt_files import Translations, resources
from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.splits import Split

_ROOT = "usr/share/gcompris-qt"

_BOARDS: Mapping[str, tuple[str, str, str]] = {
    "explore_monuments": ("image2", "title", "text"),
    "explore_world_animals": ("image2", "title", "text"),
    "explore_farm_animals": ("image2", "title", "text"),
    "explore_world_music": ("image2", "", "text"),  # its titles are countries
    "louis-braille": ("img", "", "text"),
    "solar_system": ("realImg", "bodyName", ""),
}
"""Activity -> the fields of its entries that hold the picture, its name and its description; '' = none that fits."""

_PUZZLES = ("paintings", "details")
_WORDS = "gcompris/src/activities/lang/resource"

_ENTRY = re.compile(r"\{[^{}]*\}")
_FIELD = re.compile(r'"(\w+)":\s*(?:qsTr\()?(?:\w+\s*\+\s*)?"((?:[^"\\]|\\.)*)"')
_NOT_SHOWN = frozenset({"color", "family", "animal", "number"})
"""Words whose picture stands for a class of things and shows something else."""

_Texts = list[dict[str, object]]
_Found = Iterator[tuple[str, str, Image, _Texts]]


def records(raw: Path) -> Iterator[tuple[Split, Record]]:
    """A record a picture: boards with descriptions, puzzles put together, words with their pictures.

    Raises:
        UserError: if the package is not there, or a file of it is damaged.
    """
    archives = package_path(raw, "gcompris-qt-data", f"{_ROOT}/rcc")
    russian = Translations(package_path(raw, "gcompris-qt-data", f"{_ROOT}/translations/gcompris_ru.qm"))
    found = {
        name: (topic, fitted(picture), captions)
        for name, topic, picture, captions in _all_pictures(archives, russian)
        if captions
    }
    family_of = families((name, picture) for name, (_, picture, _) in found.items())
    for name, (topic, picture, captions) in sorted(found.items()):
        yield captioned("gcompris", name, picture, captions, family_of[name], topic)


def _all_pictures(archives: Path, russian: Translations) -> _Found:
    for activity, fields in _BOARDS.items():
        yield from _boards(activity, resources(archives / f"{activity}.rcc"), fields, russian)
    for activity in _PUZZLES:
        for name, title, picture in assembled(resources(archives / f"{activity}.rcc")):
            yield f"{activity}/{name}", activity, picture, _both(title, russian, is_name=True)
    yield from _words(resources(archives / "lang.rcc"))


def _boards(activity: str, files: Mapping[str, bytes], fields: tuple[str, str, str], russian: Translations) -> _Found:
    by_end = {PurePosixPath(path).name: path for path in files if path.endswith((".webp", ".jpg", ".png"))}
    for path in sorted(files):
        if not path.endswith((".qml", ".js")):
            continue
        board = _without_nested(files[path].decode())
        for entry in _ENTRY.findall(board):
            values = {key: _plain(value) for key, value in _FIELD.findall(entry)}
            picture = by_end.get(PurePosixPath(values.get(fields[0], "")).name)
            if picture is None:
                continue
            name, text = (values.get(field, "") for field in fields[1:])
            captions = _both(name, russian, is_name=True) + _both(text, russian, is_name=False)
            yield f"{activity}/{PurePosixPath(picture).stem}", activity, Image(data=files[picture]), captions


def _without_nested(board: str) -> str:
    """Levels of questions inside an entry are left out, so that an entry holds no braces."""
    return re.sub(r'"levels":\s*\[.*?\n\s*\](?=\s*\})', "", board, flags=re.DOTALL)


def _words(files: Mapping[str, bytes]) -> _Found:
    """The vocabulary: each word's picture, and the word as each language's table has it, by the name of its voice."""
    tables = {language: json.loads(files[f"{_WORDS}/content-{language}.json"].decode()) for language in ("en", "ru")}
    for chapter in json.loads(files[f"{_WORDS}/words_sample.json"].decode()):
        for lesson in chapter["content"]:
            for word in lesson["content"]:
                stem = PurePosixPath(word["image"]).stem
                if stem in _NOT_SHOWN or word["description"] == lesson["name"]:
                    continue
                captions: _Texts = []
                for language, table in tables.items():
                    if text := table.get(f"{stem}.ogg", "").strip():
                        captions.append({"text": text, "language": language, "name": True})
                picture = Image(data=files[f"{_WORDS}/words_sample/{word['image']}"])
                yield f"words/{stem}", f"words/{lesson['name']}", picture, captions


def _both(text: str, russian: Translations, is_name: bool) -> _Texts:
    if not text:
        return []
    pairs = (("en", text), ("ru", russian.translated(text) or ""))
    more = {"name": True} if is_name else {}
    return [{"text": " ".join(words.split()), "language": language, **more} for language, words in pairs if words]


def _plain(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value)


SETS = (
    CorpusSet(
        name="captions/gcompris",
        kind="captions",
        packages=("gcompris-qt-data",),
        licence="GPL-3.0-or-later AND CC-BY-SA-4.0 AND CC0-1.0",
        build=records,
        about="GCompris' monuments, animals, planets, paintings, vocabulary: names and descriptions in both languages",
    ),
)
