"""What all kinds read alike: pictures, turns of a dialogue, texts. Each is checked, so that a bad record says so."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from data_pipelines.examples import Image, Role, Segment, Text
from data_pipelines.quarantine import BadRecord

_ROLES = get_args(Role)


def record_id(record: Mapping[str, Any]) -> str:
    """The record's id, '' where it has none."""
    return str(record.get("id", ""))


def pictures_of(record: Mapping[str, Any]) -> tuple[Image, ...]:
    """The record's 'image' and 'images', in this order; none where it has neither.

    Raises:
        BadRecord: if what stands there is no picture.
    """
    pictures = [record["image"]] if record.get("image") is not None else []
    pictures += record.get("images") or ()
    for picture in pictures:
        if not isinstance(picture, Image):
            raise BadRecord(f"a picture is of type {type(picture).__name__}", record_id(record))
    return tuple(pictures)


def text_of(value: Any, what: str, where: str) -> str:
    """A text that is one and holds something.

    Raises:
        BadRecord: naming `what` is missing, of another type or empty in record `where`.
    """
    if not isinstance(value, str):
        raise BadRecord(f"{what} is of type {type(value).__name__}" if value is not None else f"no {what}", where)
    if not value.strip():
        raise BadRecord(f"an empty {what}", where)
    return value


def turns_of(messages: Any, where: str) -> tuple[Segment, ...]:
    """Messages as turns with loss on the assistant's; the pictures of a message stand before its text.

        [{'role': 'user', 'content': [{'text': 'Is this'}, {'image': image}, {'text': 'a duck?'}]},
         {'role': 'assistant', 'content': 'Yes.'}]
        -> (image, Text('Is this a duck?', role='user'), Text('Yes.', loss=True, role='assistant'))

    Texts that had a picture between them are joined by a space. A user may show pictures and say nothing.

    Raises:
        BadRecord: if a message has no known role, no text, or is the assistant's and has pictures.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise BadRecord("no messages", where)
    segments: list[Segment] = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            raise BadRecord(f"a message of role {role!r}; it must be one of {', '.join(_ROLES)}", where)
        pictures, text = _contents(message.get("content"), where)
        if pictures and role != "user":
            raise BadRecord(f"a picture in a message of the {role}", where)
        if not (pictures and not text):
            text_of(text, f"message of the {role}", where)
        segments += [*pictures, Text(text, loss=role == "assistant", role=role)]
    return tuple(segments)


def _contents(content: Any, where: str) -> tuple[list[Image], str]:
    if isinstance(content, str):
        return [], content
    if not isinstance(content, (list, tuple)):
        raise BadRecord(f"a message's content is of type {type(content).__name__}", where)
    pictures = [part for part in _parts(content, "image", where) if isinstance(part, Image)]
    texts = [part for part in _parts(content, "text", where) if isinstance(part, str)]
    if len(pictures) + len(texts) != len(content):
        raise BadRecord("a part of a message is neither {'text'} nor {'image'}", where)
    return pictures, texts[0] if len(texts) == 1 else " ".join(text.strip() for text in texts).strip()


def _parts(content: Iterable[Any], field: str, where: str) -> list[Any]:
    parts = list(content)
    if not all(isinstance(part, Mapping) for part in parts):
        raise BadRecord("a part of a message is neither {'text'} nor {'image'}", where)
    return [part[field] for part in parts if field in part]
