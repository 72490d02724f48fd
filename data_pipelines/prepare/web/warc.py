"""Responses of a WARC file (.warc, .warc.gz): read in order once, and single ones again by their offset."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.optional import need

WARC_SUFFIXES = (".warc", ".warc.gz")
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_OK = "200"
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Response:
    """A page or picture that a server sent."""

    url: str
    offset: int
    """Of its record in the file, in bytes."""
    content_type: str
    """In lower case, without parameters."""
    charset: str
    body: bytes
    """Without the transfer's encoding; cut off behind the limit that was asked for."""

    @property
    def is_page(self) -> bool:
        """Whether it is HTML."""
        return self.content_type in _PAGE_TYPES

    @property
    def is_picture(self) -> bool:
        """Whether the server called it a picture."""
        return self.content_type.startswith("image/")


class CutWarc(ValueError):  # noqa: N818
    """The file ends in the middle of a record, or is damaged from there on; what stands before it can be used."""


def warc_responses(path: str, most: int) -> Iterator[Response]:
    """Every page and picture that was sent with status 200, in order.

    Args:
        path: The file.
        most: Bytes of a body to read; a longer one is cut off behind one more.

    Raises:
        CutWarc: after the last whole record, if the file goes on with something else.
    """
    with epath.Path(path).open("rb") as file:
        records = _iterator(file)
        while True:
            try:
                record = next(records, None)
                if record is None:
                    return
                if record.format != "warc":  # it reads the older ARC format too, or takes anything for it
                    raise ValueError("something else than a WARC record stands there")
                response = _response(record, records, most)
            except Exception as error:  # warcio raises many unrelated types
                raise CutWarc(f"{path}: {type(error).__name__}: {error}") from None
            if response is not None:
                yield response


def warc_record(path: str, offset: int, most: int) -> Response | None:
    """The response at an offset; None if there is none."""
    try:
        with epath.Path(path).open("rb") as file:
            file.seek(offset)
            records = _iterator(file)
            return _response(next(records), records, most)
    except Exception:  # as above; a location that a first pass has found is damaged only if the file changes
        return None


def _iterator(file: Any) -> Any:
    # The length of a record is checked by the reader only where it is gzipped, so `_response` does it for all.
    return need("warcio.archiveiterator", "prepare").ArchiveIterator(file, check_digests=False)


def _response(record: Any, records: Any, most: int) -> Response | None:
    if record.rec_type != "response" or record.http_headers is None:
        return None
    content_type, _, parameters = (record.http_headers.get_header("Content-Type") or "").partition(";")
    content_type = content_type.strip().lower()
    if record.http_headers.get_statuscode() != _OK or not content_type.startswith((*_PAGE_TYPES, "image/")):
        return None
    body = _read(record.content_stream(), most + 1)
    if len(body) <= most:
        while record.raw_stream.read(_CHUNK):  # what a decoder has left
            pass
        if getattr(record.raw_stream, "limit", 0) > 0:
            raise EOFError("the last record is cut off")
    return Response(
        url=(record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> "),
        offset=records.get_record_offset(),  # only now: it skips what is left of the record
        content_type=content_type,
        charset=_charset(parameters),
        body=body,
    )


def _read(stream: Any, most: int) -> bytes:
    parts, size = [], 0
    while size < most and (part := stream.read(min(_CHUNK, most - size))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _charset(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'")
    return ""
