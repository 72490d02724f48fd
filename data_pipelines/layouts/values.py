"""Single values of records as public data sets write them: texts, pictures, fields by name."""

from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.examples import Image
from data_pipelines.images import FILE_LIMIT
from data_pipelines.quarantine import BadRecord


class Native:
    """A record as its file has it, with our names for its fields."""

    def __init__(
        self, record: Mapping[str, Any], names: Mapping[str, str], language: str, image: Callable[[str], Image]
    ) -> None:
        """Takes the record, our name -> its name, the language of its texts, and what gives the picture at a path."""
        self.record, self.names, self.language, self.image = record, names, language, image

    def renamed(self, field: str) -> str:
        """What the data call a field."""
        return self.names.get(field, field)

    def get(self, field: str) -> Any:
        """A field's value; None where there is none."""
        return get(self.record, self.renamed(field))

    def text_language(self) -> str:
        """The language that the record says, or else that of the source."""
        said = self.get("language")
        return text_in(said) if present(said) else self.language

    def pictures(self) -> list[Image]:
        """Those of 'image' and 'images', in this order."""
        return [
            picture
            for field in ("image", "images")
            if present(value := self.get(field))
            for picture in pictures(value, self.image)
        ]

    def one_picture(self, field: str) -> Image:
        """The only picture of a field.

        Raises:
            BadRecord: if it has none or several.
        """
        found = pictures(self.get(field), self.image)
        if len(found) != 1:
            raise BadRecord(f"{len(found)} pictures in '{self.renamed(field)}' instead of one")
        return found[0]


def get(record: Mapping[str, Any], name: str) -> Any:
    """A field by its name; dots and slashes lead into nested ones. None where there is none."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.replace("/", ".").split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def present(value: Any) -> bool:
    """Whether there is a value: None, NaN (an empty cell of some tables) and '' are none."""
    return not (
        value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value)
    )


def text_in(value: Any) -> str:
    """A text, or the UTF-8 bytes of one.

    Raises:
        BadRecord: if it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRecord(f"a text is not UTF-8 ({error.reason} at byte {error.start})") from None
    raise BadRecord(f"a text is of type {type(value).__name__}")


def pictures(value: Any, image: Callable[[str], Image]) -> list[Image]:
    """A picture or a list of them: bytes, a path, {'bytes', 'path'}.

    Raises:
        BadRecord: if something else stands there, or a file is too large.
    """
    if isinstance(value, (list, tuple)):
        return [picture for entry in value for picture in pictures(entry, image)]
    if isinstance(value, Image):
        return [value]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        if len(value) > FILE_LIMIT:
            raise BadRecord(f"a picture of {len(value):,} bytes; the limit is {FILE_LIMIT:,}")
        return [Image(data=bytes(value))]
    if isinstance(value, str):
        return [image(value)]
    raise BadRecord(f"a picture is of type {type(value).__name__}; it must be a file's bytes or a path")
