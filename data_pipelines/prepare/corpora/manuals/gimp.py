"""GIMP's manual in English and Russian: interleaved pages, and screenshots with their captions in both languages."""

import collections
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.examples import Image
from data_pipelines.prepare.corpora.manuals.gimp_pages import read_pages
from data_pipelines.prepare.corpora.manuals.pages import Page, page_records, pair_key, picture_splits, translated
from data_pipelines.prepare.corpora.packages import package_path
from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.splits import Split
from data_pipelines.words import words_of

_LICENCE = "GFDL-1.2-no-invariants-or-later"
_LANGUAGES = ("en", "ru")

_MOST_PAGES = 3
"""A picture that more pages show is a stock photograph before some filter: captions say what is done to it, not what
it shows."""

_WORDS = (2, 150)
"""A caption's words, at least and at most."""


def pages(raw: Path, language: str) -> list[Page]:
    """The manual's pages in a language, by name.

    Raises:
        UserError: if its package is not there.
    """
    directory = package_path(raw, f"gimp-help-{language}", f"usr/share/gimp/2.0/help/{language}")
    return list(read_pages(directory, language))


def captions(raw: Path) -> Iterator[tuple[Split, Record]]:
    """A record a picture: its captions in both languages, each with the page and the section that it stands in.

    A screenshot that differs from one language to the other is two pictures, with the captions of its own language.

    Yields:
        (split, {'id', 'image', 'captions': [{'text', 'language', 'title', 'heading'}, …], 'real': [key, …]}).
    """
    by_language = {language: pages(raw, language) for language in _LANGUAGES}
    everything = [page for each in by_language.values() for page in each]
    splits = picture_splits(everything, "gimp")
    found = {language: _captions(each) for language, each in by_language.items()}
    shown = collections.Counter(
        path for page in by_language["en"] for path in {picture.path for picture in page.pictures}
    )
    for path in sorted(splits):
        if shown[path] > _MOST_PAGES:
            continue
        for record in _records(path, found, {language: each[0].root for language, each in by_language.items()}):
            yield splits[path], record


def _captions(pages: Sequence[Page]) -> Mapping[str, list[dict[str, Any]]]:
    """Distinct captions by the picture's path."""
    found: dict[str, dict[str, dict[str, Any]]] = collections.defaultdict(dict)
    for page in map(translated, pages):
        for picture in page.pictures:
            if _WORDS[0] <= len(words_of(picture.caption)) <= _WORDS[1]:
                found[picture.path].setdefault(
                    picture.caption,
                    {
                        "text": picture.caption,
                        "language": page.language,
                        "title": page.title,
                        "heading": picture.heading,
                    },
                )
    return {path: list(captions.values()) for path, captions in found.items()}


def _records(
    path: str, found: Mapping[str, Mapping[str, list[dict[str, Any]]]], roots: Mapping[str, Path]
) -> Iterator[Record]:
    """One record for each different file that the languages have under this path."""
    files: dict[str, Record] = {}
    for language, captions in found.items():
        if path not in captions:
            continue
        file = roots[language] / path
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        name = f"gimp/{path}" if not files else f"gimp/{path}:{language}"
        record = files.setdefault(content, {"id": name, "image": Image(path=str(file)), "captions": [], "real": []})
        record["captions"] += captions[path]
        record["real"].append(pair_key("gimp", path, language))
    yield from files.values()


def _page_set(kind: str, folder: str, language: str) -> CorpusSet:
    what = "with their pictures" if kind == "interleaved" else "without pictures"
    return CorpusSet(
        f"{folder}/gimp_{language}",
        kind,
        (f"gimp-help-{language}",),
        _LICENCE,
        functools.partial(_pages_of, kind=kind, language=language),
        f"Pages of GIMP's manual {what}; passages in another language are left out",
    )


def _pages_of(raw: Path, *, kind: Any, language: str) -> Iterator[tuple[Split, Record]]:
    return page_records(pages(raw, language), "gimp", kind)


SETS = (
    *(_page_set("interleaved", "interleaved", language) for language in _LANGUAGES),
    *(_page_set("text_only", "text", language) for language in _LANGUAGES),
    CorpusSet(
        "captions/gimp",
        "captions",
        tuple(f"gimp-help-{language}" for language in _LANGUAGES),
        _LICENCE,
        captions,
        f"Screenshots with what GIMP's manual says of them; not those of more than {_MOST_PAGES} pages",
    ),
)
