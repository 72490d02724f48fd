"""Records: the plain dictionaries that sources give and kinds read, and their form in a file.

A record has an 'id' and the fields of the kinds that it can serve:

    interleaved   {'id', 'language', 'segments': [{'text'} | {'image', 'text_index'?}, …]}      in reading order
    captions      {'id', 'image', 'captions': [{'text', 'language'}, …]}
    instruct      {'id', 'image'? | 'images'?, 'questions': [{'question', 'answer', 'language'?, …}, …]}
                  {'id', 'messages': [{'role', 'content'}, …]}
    text_only     {'id', 'language', 'text'}
    preference    {'id', 'image'? | 'images'?, 'prompt' | 'messages', 'chosen', 'rejected'}

'image' is an `Image`, 'images' a list of them; a message's 'content' is a string, or a list of {'text'} and {'image'}
in order. 'text_index' says which text segment (counted from 0 among the record's segments) a picture belongs to, where
a corpus knows it. More fields may stand there; kinds do not read them.
"""

from collections.abc import Mapping
from typing import Any

import msgpack

from data_pipelines.examples import Image
from data_pipelines.images import BadImage, file_bytes
from data_pipelines.quarantine import BadRecord

_PICTURE = 1
"""msgpack's extension type of a picture's encoded bytes."""


def encode_record(record: Mapping[str, Any]) -> bytes:
    """A record as bytes (msgpack). Pictures go in as the bytes of their files, so that a shard stands by itself.

    Raises:
        BadRecord: if a picture's file cannot be read, or a value is of a type that a record cannot hold.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Image):
            return msgpack.ExtType(_PICTURE, file_bytes(value))
        raise TypeError(f"a {type(value).__name__}")

    try:
        return msgpack.packb(dict(record), default=plain, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError, BadImage) as error:
        raise BadRecord(f"cannot be written: {error}", str(record.get("id", ""))) from None


def decode_record(data: bytes) -> dict[str, Any]:
    """The record that `encode_record` made bytes of; lists come back as lists.

    Raises:
        BadRecord: if the bytes are none.
    """
    try:
        record = msgpack.unpackb(data, ext_hook=_picture, strict_map_key=True)
    except Exception as error:  # msgpack raises several unrelated types
        raise BadRecord(f"not a record ({type(error).__name__}: {error})") from None
    if not isinstance(record, dict):
        raise BadRecord(f"not a record, but a {type(record).__name__}")
    return record


def _picture(code: int, data: bytes) -> Image:
    if code != _PICTURE:
        raise ValueError(f"unknown extension type {code}")
    return Image(data=data)
