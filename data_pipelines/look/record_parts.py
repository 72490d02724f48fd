"""A record's texts and pictures in reading order, whatever its kind: what pages about raw data show and count."""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from data_pipelines.examples import Image
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import Source
from data_pipelines.words import script_of

Role = Literal[
    "picture", "text", "caption", "question", "answer", "system", "user", "assistant", "chosen", "rejected", "other"
]

_ENOUGH = 10_000
"""So many characters tell the script of a text."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A text or a picture of a record, and what it is there for."""

    role: Role
    text: str = ""
    image: Image | None = None
    language: str = ""
    """As the record says; '' = it says nothing."""

    @property
    def language_or_script(self) -> str:
        """The language, or the script where none is named; '' for a picture."""
        return self.language or ("" if self.image is not None else script_of(self.text[:_ENOUGH]))


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A record that its source could not give."""

    id: str
    reason: str


def sampled_records(source: Source, records: int, seed: int) -> Iterator[tuple[int, dict[str, Any] | Unreadable]]:
    """(index, record) at random places of a source, in the source's order; `records` 0 = all of them."""
    size = len(source)
    chosen = range(size) if not records or records >= size else sorted(random.Random(seed).sample(range(size), records))
    for index in chosen:
        try:
            yield index, source[index]
        except BadRecord as error:
            yield index, Unreadable(error.record_id or f"{source.name}[{index}]", str(error))


def parts_of(record: Mapping[str, Any]) -> list[Part]:
    """Everything that kinds could read in a record, in the order in which a reader would meet it.

    >>> [part.role for part in parts_of({'captions': [{'text': 'Утка.', 'language': 'ru'}], 'image': duck})]
    ['picture', 'caption']
    """
    language = _string(record.get("language"))
    parts = [Part("picture", image=image) for image in (record.get("image"), *_list(record.get("images")))]
    parts = [part for part in parts if isinstance(part.image, Image)]
    if isinstance(record.get("text"), str):
        parts.append(Part("text", record["text"], language=language))
    for segment in _dicts(record.get("segments")):
        parts += _content([segment], "text", language)
    for caption in _dicts(record.get("captions")):
        parts.append(Part("caption", _string(caption.get("text")), language=_language(caption, language)))
    for entry in _dicts(record.get("questions")):
        spoken = _language(entry, language)
        parts.append(Part("question", _string(entry.get("question")), language=spoken))
        parts.append(Part("answer", _string(entry.get("answer")), language=spoken))
    for message in _dicts(record.get("messages")):
        parts += _content(message.get("content"), _role(message), _language(message, language))
    parts += _content(record.get("prompt"), "user", language)
    for answer in ("chosen", "rejected"):
        value = record.get(answer)
        for message in _dicts(value) if isinstance(value, (list, tuple)) else [{"content": value}]:
            parts += _content(message.get("content"), answer, language)
    return parts


def other_fields(record: Mapping[str, Any]) -> dict[str, str]:
    """What else a record holds, shortened, for people: its licence, its page, its author, …"""
    known = {"id", "image", "images", "text", "segments", "captions", "questions", "messages", "prompt", "chosen"}
    known |= {"rejected", "language", "real"}
    plain = {key: value for key, value in record.items() if key not in known and value not in (None, "", [], {})}
    return {str(key): _shortened(_written(value)) for key, value in plain.items()}


def kinds_of(record: Mapping[str, Any]) -> list[str]:
    """Names of the kinds that find their fields in a record."""
    fields = {
        "interleaved": ("segments",),
        "captions": ("captions",),
        "instruct": ("questions", "messages"),
        "text_only": ("text",),
        "preference": ("chosen",),
    }
    return [kind for kind, names in fields.items() if any(record.get(name) for name in names)]


def _content(value: Any, role: Role, language: str) -> Iterator[Part]:
    """A text, or a list of texts and pictures."""
    for piece in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(piece, str):
            yield Part(role, piece, language=language)
        elif isinstance(piece, Image):
            yield Part("picture", image=piece)
        elif isinstance(piece, Mapping):
            if isinstance(piece.get("text"), str):
                yield Part(role, piece["text"], language=_language(piece, language))
            if isinstance(piece.get("image"), Image):
                yield Part("picture", image=piece["image"])


def _role(message: Mapping[str, Any]) -> Role:
    role = message.get("role")
    return role if role in ("system", "user", "assistant") else "other"


def _language(entry: Mapping[str, Any], default: str) -> str:
    return _string(entry.get("language")) or default


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in _list(value) if isinstance(entry, Mapping)]


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _written(value: Any) -> str:
    """A value in a few words, however large it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, Image):
        return "a picture"
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value):,} bytes"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_written(entry)}" for key, entry in itertools.islice(value.items(), 8))
    if isinstance(value, (list, tuple)):
        return ", ".join(_written(entry) for entry in value[:8])
    return repr(value)


def _shortened(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
