"""GNOME's help in English and Russian: pages with their screenshots, and pages of text."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.prepare.corpora.manuals.mallard import read_pages
from data_pipelines.prepare.corpora.manuals.pages import Page, page_records
from data_pipelines.prepare.corpora.packages import package_path
from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.splits import Split

_PACKAGE = "gnome-user-docs"
_FOLDERS = {"en": "C", "ru": "ru"}
_BOOKS = ("gnome-help", "system-admin-guide")


def pages(raw: Path, language: str) -> Iterator[Page]:
    """The pages of both books in a language, by name.

    Raises:
        UserError: if the package is not there.
    """
    for book in _BOOKS:
        yield from read_pages(package_path(raw, _PACKAGE, f"usr/share/help/{_FOLDERS[language]}/{book}"), language)


def _build(raw: Path, *, kind: Any, language: str) -> Iterator[tuple[Split, Record]]:
    return page_records(list(pages(raw, language)), "gnome", kind)


SETS = tuple(
    CorpusSet(
        f"{folder}/gnome_{language}",
        kind,
        (_PACKAGE,),
        "CC-BY-SA-3.0",
        functools.partial(_build, kind=kind, language=language),
        f"Pages of GNOME's help {what}; passages in another language are left out",
    )
    for kind, folder, what in (
        ("interleaved", "interleaved", "with their pictures"),
        ("text_only", "text", "without pictures"),
    )
    for language in _FOLDERS
)
