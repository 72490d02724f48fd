"""Layouts: how public data sets write their records down, whatever the file format; each becomes a canonical record.

    plain       a record as `data_pipelines/records.py` has it
    pairs       {'image', 'text'}                      a picture and its caption, or a list of captions
    questions   {'image', 'question', 'answer'}        one question about one picture, or about none
    llava       {'image', 'conversations': [{'from': 'human', 'value': '<image>\\nWhat is this?'}, …]}
    messages    {'messages': [{'role', 'content'}, …], 'images'}       Hugging Face's, with its forms of content
    obelics     {'images': [image, None, …], 'texts': [None, text, …]}
    mmc4        {'text_list': [text, …], 'image_info': [{'image_name', 'matched_text_index'}, …]}
    preference  {'prompt', 'chosen', 'rejected', 'image'}              answers as texts or as messages

A picture is the bytes of its file, Hugging Face's {'bytes', 'path'}, or a path in the directory of pictures.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from data_pipelines.examples import Image
from data_pipelines.layouts.documents import from_mmc4, from_obelics
from data_pipelines.layouts.messages import from_llava, from_messages, from_preference
from data_pipelines.layouts.values import Native, get, pictures, present, text_in
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

LayoutName = Literal["plain", "pairs", "questions", "llava", "messages", "obelics", "mmc4", "preference"]

_NEEDS: Mapping[LayoutName, tuple[str, ...]] = {
    "plain": (),
    "pairs": ("image", "text"),
    "questions": ("question", "answer"),
    "llava": ("conversations",),
    "messages": ("messages",),
    "obelics": ("images", "texts"),
    "mmc4": ("text_list", "image_info"),
    "preference": ("chosen", "rejected"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which layout records have, and what their fields are called.

    name: see above.
    fields: (a field as it is called above, as the data call it) pairs, where they differ: (('text', 'caption'),); dots
        or slashes lead into nested fields. With 'plain', the record has these fields and no others.
    language: of texts that do not say theirs.
    """

    name: LayoutName = "plain"
    fields: tuple[tuple[str, str], ...] = ()
    language: str = ""

    def __post_init__(self) -> None:
        if self.name not in _NEEDS:
            raise UserError(f"layout '{self.name}' is not known; there are {', '.join(_NEEDS)}")

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields that every record must have, as the data call them."""
        renamed = dict(self.fields)
        if self.name == "plain":
            return tuple(renamed.values())
        return tuple(renamed.get(field, field) for field in _NEEDS[self.name])

    def record(self, native: Mapping[str, Any], place: str, image: Callable[[str], Image]) -> dict[str, Any]:
        """The canonical record.

        Args:
            native: As its file has it.
            place: Where it stands ('birds/17'), from which its id is made: 'birds/17', or 'birds/17:b0042' where it
                has one itself, which need not be unique. With 'plain' its own id is the id.
            image: Gives the picture at a path.

        Raises:
            BadRecord: if a field is missing, of another type, or does not fit the others.
        """
        try:
            if self.name == "plain":
                return self._plain(native, place, image)
            given = Native(native, dict(self.fields), self.language, image)
            for field in _NEEDS[self.name]:
                if not present(given.get(field)):
                    raise BadRecord(f"no field '{given.renamed(field)}'")
            own = given.get("id")
            return {"id": place if own in (None, "") else f"{place}:{own}"} | _READERS[self.name](given)
        except BadRecord as error:
            raise BadRecord(str(error), place) from None

    def _plain(self, native: Mapping[str, Any], place: str, image: Callable[[str], Image]) -> dict[str, Any]:
        record = dict(native)
        if self.fields:
            record = {ours: get(native, theirs) for ours, theirs in (("id", "id"), *self.fields)}
            missing = [theirs for ours, theirs in self.fields if record[ours] is None]
            if missing:
                raise BadRecord(f"no field '{missing[0]}'")
        record = {
            field: text_in(value) if field in _TEXTS and isinstance(value, bytes) else value
            for field, value in record.items()
        }
        record = _with_pictures(record, image)
        record["id"] = str(record.get("id", place))
        return _with_languages(record, self.language)


_PARTS = ("segments", "captions", "questions", "messages", "content", "prompt", "chosen", "rejected")
_TEXTS = ("text", "prompt", "chosen", "rejected", "language", "id")


def _pairs(native: Native) -> dict[str, Any]:
    texts = native.get("text")
    listed = list(texts) if isinstance(texts, (list, tuple)) else [texts]
    captions = [{"text": text_in(text), "language": native.text_language()} for text in listed]
    return {"image": native.one_picture("image"), "captions": captions}


def _questions(native: Native) -> dict[str, Any]:
    answers = native.get("answer")
    listed = list(answers) if isinstance(answers, (list, tuple)) else [answers]
    if not listed:
        raise BadRecord("no answer")
    entry: dict[str, Any] = {"question": text_in(native.get("question")), "answer": text_in(listed[0])}
    entry["language"] = native.text_language()
    entry |= {"answers": [text_in(answer) for answer in listed]} if len(listed) > 1 else {}
    found = native.pictures()
    return {"questions": [entry]} | ({"images": found} if found else {})


_READERS: Mapping[str, Callable[[Native], dict[str, Any]]] = {
    "pairs": _pairs,
    "questions": _questions,
    "llava": from_llava,
    "messages": from_messages,
    "obelics": from_obelics,
    "mmc4": from_mmc4,
    "preference": from_preference,
}


def _with_pictures(entry: Any, image: Callable[[str], Image]) -> Any:
    """The same record with pictures in the places of pictures, and without fields that are null.

    Tables give every entry of a list all fields that any entry has, with null where they do not belong.
    """
    if not isinstance(entry, Mapping):
        return entry
    made: dict[str, Any] = {}
    for field, value in entry.items():
        if value is None:
            continue
        if field == "image":
            found = pictures(value, image)
            if len(found) != 1:
                raise BadRecord(f"{len(found)} pictures in 'image' instead of one")
            made[field] = found[0]
        elif field == "images":
            made[field] = pictures(value, image)
        elif field in _PARTS and isinstance(value, (list, tuple)):
            made[field] = [_with_pictures(part, image) for part in value]
        else:
            made[field] = value
    return made


def _with_languages(record: dict[str, Any], language: str) -> dict[str, Any]:
    if not language:
        return record
    for field in ("captions", "questions"):
        entries = record.get(field)
        if isinstance(entries, list):
            record[field] = [{"language": language} | entry if isinstance(entry, dict) else entry for entry in entries]
    return {"language": language} | record


def guess_layout(record: Mapping[str, Any]) -> LayoutName:
    """The layout that a record's fields speak for; 'plain' where none does."""
    for name in ("llava", "mmc4", "obelics", "preference", "questions"):
        if all(field in record for field in _NEEDS[name]):  # type: ignore[index]
            return name  # type: ignore[return-value]
    if "messages" in record and "id" not in record:
        return "messages"
    if "captions" in record or "segments" in record or "questions" in record:
        return "plain"
    return "pairs" if "image" in record and "text" in record else "plain"
