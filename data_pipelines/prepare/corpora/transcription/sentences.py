"""Real sentences and headings of the text corpora, each once, in the split of the page that it stands on."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipelines.prepare.corpora.manuals import gimp, gnome, libreoffice
from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.scripts import is_written_in
from data_pipelines.prepare.splits import SPLITS, Split

_MODULES = (gimp, gnome, libreoffice)

_CHARACTERS = (2, 180)
"""Of a sentence, at least and at most."""

_END = re.compile(r"(?<=[.!?…])[»”\")]?\s+(?=[«“\"(]?[A-ZА-ЯЁ0-9])")
_PLAIN = re.compile(r"[A-Za-zА-Яа-яЁё0-9 .,:;!?%()«»“”\"'’–—+/*№-]+")
"""What every font has that is taken."""

_ADDRESS = re.compile(r"https?:|www\.|\w/\w+/|\.(org|com|ru)\b")


def text_sets(language: str) -> tuple[CorpusSet, ...]:
    """The sets of the corpora that hold running text in a language."""
    return tuple(
        each
        for module in _MODULES
        for each in module.SETS
        if each.kind in ("interleaved", "text_only") and each.name.endswith(f"_{language}")
    )


def sentences(raw: Path, language: str) -> Iterator[tuple[Split, str]]:
    """(split, sentence), each once; one that stands in pages of several splits belongs to training.

    Raises:
        UserError: if a package is not there.
    """
    found: dict[str, Split] = {}
    for each in text_sets(language):
        for split, record in each.build(raw):
            for sentence in _of_record(record, language):
                earlier = found.setdefault(sentence, split)
                if split == SPLITS[0] != earlier:
                    found[sentence] = split
    for sentence in sorted(found):
        yield found[sentence], sentence


def _of_record(record: Record, language: str) -> Iterator[str]:
    texts: Iterable[str] = (
        [segment["text"] for segment in record["segments"] if "text" in segment]
        if "segments" in record
        else [record["text"]]
    )
    for text in texts:
        for line in text.splitlines():
            for sentence in split_sentences(line):
                if is_plain(sentence) and is_written_in(sentence, language, 0.7):
                    yield sentence


def split_sentences(line: str) -> list[str]:
    """A paragraph's sentences.

    >>> split_sentences("Click OK. Now wait! It may take e.g. an hour.")
    ['Click OK.', 'Now wait!', 'It may take e.g. an hour.']
    """
    return [" ".join(part.split()) for part in _END.split(line.removeprefix("- ")) if part.strip()]


def is_plain(sentence: str) -> bool:
    """Whether it can be set in any font, has a letter, is neither too short nor too long, and holds no address."""
    return (
        _CHARACTERS[0] <= len(sentence) <= _CHARACTERS[1]
        and _PLAIN.fullmatch(sentence) is not None
        and any(character.isalpha() for character in sentence)
        and _ADDRESS.search(sentence) is None
    )
