"""The sets that are prepared from the real corpora: what each is, and which function builds it."""

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.prepare.splits import Split

Record = dict[str, Any]
"""A record as data_pipelines/records.py describes it."""


@dataclasses.dataclass(frozen=True)
class CorpusSet:
    """A set of records of one kind, made from packages of the table in packages.py."""

    name: str
    """Its directory below the output: 'captions/tuxpaint', 'interleaved/gimp_en', 'text/libreoffice_ru'."""

    kind: str
    """Which kind reads it: 'interleaved', 'captions', 'instruct', 'text_only' or 'preference'."""

    packages: tuple[str, ...]
    """Names of the packages that it needs."""

    licence: str
    """SPDX expression of what comes out."""

    build: Callable[[Path], Iterator[tuple[Split, Record]]]
    """From the directory where the packages lie (RAW/NAME/usr/…) to (split, record). A pure function of the files:
    the same records whenever and wherever it runs. Raises UserError if files are missing."""

    about: str = ""
    """One line for reports: what the records are, and what was left out."""


_MODULES: tuple[str, ...] = (
    "manuals.gimp",
    "manuals.gnome",
    "manuals.libreoffice",
    "pictures.tuxpaint",
    "pictures.gcompris",
    "pictures.emoji",
    "pictures.openclipart",
    "instruct.sets",
    "transcription.sets",
)
"""Modules of this package with a tuple `SETS` of CorpusSet, in the order in which sets are built."""


def corpus_sets() -> Mapping[str, CorpusSet]:
    """Every set by name. The modules are imported here, since they need the extra [prepare]."""
    sets: dict[str, CorpusSet] = {}
    for name in _MODULES:
        for each in importlib.import_module(f"data_pipelines.prepare.corpora.{name}").SETS:
            if each.name in sets:
                raise ValueError(f"two sets are called {each.name}")
            sets[each.name] = each
    return sets
