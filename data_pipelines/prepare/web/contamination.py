"""Evaluation sets as what training data must not come near: hashes of their word sequences and of their pictures.

The index is two sorted arrays in one file, which every worker reads once.
"""

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.examples import Image
from data_pipelines.images import BadImage, decode
from data_pipelines.prepare.web.config import ContaminationRules
from data_pipelines.prepare.web.documents import Document, block_text, blocks_of, tidy
from data_pipelines.prepare.web.duplicates import sketch_of
from data_pipelines.quarantine import BadRecord
from data_pipelines.words import words_of
from vlm_jax.errors import UserError

_NOT_CONTENT = ("id", "language", "real", "role", "source", "family", "licence", "license", "origin", "split")
"""Fields of records that are no texts that a model is asked about."""


@dataclasses.dataclass(frozen=True)
class EvaluationIndex:
    """What is in the evaluation sets."""

    grams: np.ndarray
    """uint64[n], sorted: sequences of words, and short texts as wholes."""
    pictures: np.ndarray
    """uint64[m], sorted: perceptual hashes."""

    def touches_text(self, document: Document, rules: ContaminationRules) -> str:
        """The first passage of the document that an evaluation text has in common with it, or ''."""
        if not len(self.grams):
            return ""
        for segments in blocks_of(document).values():
            text = block_text(segments)
            hashes = list(text_hashes(text, rules))
            if hashes and np.isin(np.array(hashes, np.uint64), self.grams).any():
                return text
        return ""

    def touches_picture(self, value: int, rules: ContaminationRules) -> bool:
        """Whether an evaluation picture is nearly the same."""
        if not len(self.pictures):
            return False
        return bool((np.bitwise_count(self.pictures ^ np.uint64(value)) <= rules.distance).any())

    def save(self, path: epath.Path) -> None:
        """Writes the file."""
        data = io.BytesIO()
        np.savez(data, grams=self.grams, pictures=self.pictures)
        path.write_bytes(data.getvalue())

    @classmethod
    def load(cls, path: epath.Path) -> "EvaluationIndex":
        """Reads the file."""
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return cls(arrays["grams"], arrays["pictures"])


def text_hashes(text: str, rules: ContaminationRules) -> Iterator[int]:
    """64-bit hashes of the text's sequences of words; of a shorter text, of the whole if it has words enough."""
    words = words_of(tidy(text).casefold())
    if len(words) < rules.gram:
        if len(words) >= rules.least_words:
            yield _hash(" ".join(words))
        return
    for i in range(len(words) - rules.gram + 1):
        yield _hash(" ".join(words[i : i + rules.gram]))


def build_index(sets: Iterable[tuple[str, Iterable[Any]]], rules: ContaminationRules) -> EvaluationIndex:
    """Gathers every text and picture of evaluation sets.

    Args:
        sets: (name, records) of each; a record is a dictionary as sources give them. Unreadable ones are errors:
            what is not known of an evaluation set cannot be kept out.
        rules: Lengths of sequences.

    Raises:
        UserError: if a record or picture cannot be read, naming it.
    """
    grams: set[int] = set()
    pictures: set[int] = set()
    for name, records in sets:
        for record in records:
            try:
                for value in _contents(record):
                    if isinstance(value, Image):
                        pictures.add(sketch_of(decode(value))[0])
                    else:
                        grams.update(text_hashes(value, rules))
            except BadImage as error:
                raise UserError(f"{name}, record {record.get('id', '?')}: {error}; mend the evaluation set") from None
    return EvaluationIndex(np.array(sorted(grams), np.uint64), np.array(sorted(pictures), np.uint64))


def open_set(path: str) -> tuple[str, Iterator[Any]]:
    """(path, its records) of an evaluation set in any format that sources read.

    Raises:
        UserError: if the path holds none, or (while it is gone through) a record cannot be read.
    """
    from data_pipelines.sources import open_source, source_for

    source = open_source(source_for(path))

    def records() -> Iterator[Any]:
        for index in range(len(source)):
            try:
                yield source[index]
            except BadRecord as error:
                where = error.record_id or f"number {index}"
                raise UserError(f"{path}, record {where}: {error}; mend the evaluation set") from None

    return path, records()


def _contents(value: Any) -> Iterator[str | Image]:
    if isinstance(value, (str, Image)):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _NOT_CONTENT:
                yield from _contents(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _contents(inner)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
