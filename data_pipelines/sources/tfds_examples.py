"""Records as examples of tensorflow-datasets, and back: typed fields that anybody can read, and nothing lost.

Each kind has typed features, so that a data set that was written here serves programs that know nothing of this one:

    captions      id, image, captions: {text, language}
    interleaved   id, language, images, segments: {text, picture, text_index}     picture: number in `images`, -1 = text
    instruct      id, images, questions: {question, answer, language}
    text_only     id, language, text

What a record has beyond that, or in another form, stands in `other` as JSON, pictures in it as {"__picture__": number}.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.examples import Image
from data_pipelines.images import BadImage, file_bytes
from data_pipelines.quarantine import BadRecord

_PICTURE = "__picture__"

Plain = dict[str, Any]
"""A record whose pictures are {"__picture__": number}."""


def to_example(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The example of a record: typed fields with pictures as bytes, and `other`.

    Args:
        record: As records.py describes it.
        kind: A key of TYPED: its fields are typed, the others go to `other`.

    Raises:
        BadRecord: if a picture cannot be read, a value is of a type that JSON does not have, or the number of
            pictures does not suit the kind.
    """
    pictures: list[bytes] = []
    name = str(record.get("id", ""))
    try:
        plain = _without_pictures(record, pictures)
        typed, view = TYPED[kind]
        example = typed(plain)
        again = view(example)
        other = {key: value for key, value in plain.items() if key not in again or again[key] != value}
        absent = [key for key in again if key not in plain]
        example["other"] = json.dumps({"fields": other, "absent": absent} if other or absent else {})
        for text in _texts(example):
            text.encode()
    except (AttributeError, KeyError, TypeError, ValueError, BadImage) as error:
        raise BadRecord(f"cannot be written: {error}", name) from None
    if kind == "captions":
        if len(pictures) != 1:
            raise BadRecord(f"captions are about one picture, and here are {len(pictures)}", name)
        return {**example, "image": pictures[0]}
    if kind == "text_only":
        if pictures:
            raise BadRecord("text only, but it has a picture", name)
        return example
    return {**example, "images": pictures}


def from_example(example: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The record that `to_example` made an example of. The example's pictures are `Image`, lists are lists.

    Raises:
        BadRecord: if it is no such example.
    """
    try:
        pictures = [example["image"]] if "image" in example else example.get("images", [])
        other = json.loads(example["other"])
        plain = {**TYPED[kind][1](example), **other.get("fields", {})}
        for key in other.get("absent", ()):
            plain.pop(key)
        return {key: _with_pictures(value, pictures) for key, value in plain.items()}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise BadRecord(f"not an example of kind {kind} ({error!r})", str(example.get("id", ""))) from None


def _type_captions(plain: Plain) -> Plain:
    return {"id": plain["id"], "captions": _table(plain.get("captions"), ("text", "language"))}


def _view_captions(example: Mapping[str, Any]) -> Plain:
    return {"id": example["id"], "image": {_PICTURE: 0}, "captions": example["captions"]}


def _type_segments(plain: Plain) -> Plain:
    segments = []
    for segment in plain.get("segments", ()):
        number = segment["image"][_PICTURE] if "image" in segment else -1
        row = {"text": segment.get("text", ""), "picture": number, "text_index": segment.get("text_index", -1)}
        segments.append(row)
    return {"id": plain["id"], "language": _text(plain.get("language")), "segments": segments}


def _view_segments(example: Mapping[str, Any]) -> Plain:
    segments: list[Plain] = []
    for row in example["segments"]:
        if row["picture"] < 0:
            segments.append({"text": row["text"]})
        else:
            known = {"text_index": row["text_index"]} if row["text_index"] >= 0 else {}
            segments.append({"image": {_PICTURE: row["picture"]}, **known})
    return {"id": example["id"], "language": example["language"], "segments": segments}


def _type_questions(plain: Plain) -> Plain:
    return {"id": plain["id"], "questions": _table(plain.get("questions"), ("question", "answer", "language"))}


def _view_questions(example: Mapping[str, Any]) -> Plain:
    return {"id": example["id"], "image": {_PICTURE: 0}, "questions": example["questions"]}


def _type_text(plain: Plain) -> Plain:
    return {"id": plain["id"], "language": _text(plain.get("language")), "text": _text(plain.get("text"))}


def _view_text(example: Mapping[str, Any]) -> Plain:
    return {key: example[key] for key in ("id", "language", "text")}


TYPED: Mapping[str, tuple[Callable[[Plain], Plain], Callable[[Mapping[str, Any]], Plain]]] = {
    "captions": (_type_captions, _view_captions),
    "interleaved": (_type_segments, _view_segments),
    "instruct": (_type_questions, _view_questions),
    "text_only": (_type_text, _view_text),
}
"""Kind -> from a record without pictures to its typed fields, and back. What does not come back goes to `other`."""


def _table(rows: Any, columns: tuple[str, ...]) -> list[dict[str, str]]:
    return [{column: _text(row.get(column)) for column in columns} for row in rows or ()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for entry in value.values() for text in _texts(entry)]
    if isinstance(value, list):
        return [text for entry in value for text in _texts(entry)]
    return [value] if isinstance(value, str) else []


def _without_pictures(value: Any, pictures: list[bytes]) -> Any:
    if isinstance(value, Image):
        pictures.append(file_bytes(value))
        return {_PICTURE: len(pictures) - 1}
    if isinstance(value, Mapping):
        return {key: _without_pictures(entry, pictures) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_pictures(entry, pictures) for entry in value]
    return value


def _with_pictures(value: Any, pictures: list[Image]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_PICTURE}:
            return pictures[value[_PICTURE]]
        return {key: _with_pictures(entry, pictures) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_pictures(entry, pictures) for entry in value]
    return value
