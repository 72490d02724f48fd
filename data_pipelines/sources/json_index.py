"""Where the objects of a JSON file begin and end, found in one pass with little memory."""

import codecs
import json
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64

from data_pipelines.sources.limits import RECORD_LIMIT
from vlm_jax.errors import UserError

_WINDOW = 1 << 24
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "unzstd", b"BZh": "bunzip2", b"PK": "unzip"}


class Spans:
    """Offsets and sizes of objects in a file, in bytes."""

    def __init__(self, starts: Int64[np.ndarray, "n"], sizes: Int64[np.ndarray, "n"]) -> None:
        """Takes both, in the order of the file."""
        self._starts, self._sizes = starts, sizes

    def __len__(self) -> int:
        return len(self._starts)

    def span(self, number: int) -> tuple[int, int]:
        """(offset, size) of an object."""
        return int(self._starts[number]), int(self._sizes[number])


def index_json(path: str, name: str) -> Spans:
    """The objects of a file: a list's entries where its name ends in .json, else its lines.

    Args:
        path: A local file.
        name: The source's, for messages.

    Raises:
        UserError: if it cannot be read, is compressed, is not UTF-8, or, for .json, is no list of objects.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                start = _check_start(data[:8], path, name)
                if path.endswith(".json"):
                    pairs = list(_list_entries(data, start, f"source '{name}': {path}"))
                    return Spans(*np.array(pairs, np.int64).reshape(-1, 2).T.copy())
                return _lines(data, start)
    except OSError as error:
        raise UserError(f"source '{name}': {path}: cannot be read ({error.strerror or error})") from None


def first_json(path: str, name: str) -> dict[str, Any] | None:
    """The first object of a file, for a look at its fields; None if there is none.

    Raises:
        UserError: as `index_json` does.
    """
    spans = index_json(path, name)
    if not len(spans) or spans.span(0)[1] > RECORD_LIMIT:
        return None
    start, size = spans.span(0)
    with open(path, "rb") as file:
        file.seek(start)
        try:
            value = json.loads(file.read(size))
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _check_start(head: bytes, path: str, name: str) -> int:
    """How many bytes to skip."""
    for magic, program in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(
                f"source '{name}': {path} is compressed, and gives no access to single records: unpack it ({program})"
            )
    if head.startswith(_UTF16):
        raise UserError(f"source '{name}': {path} is UTF-16; make it UTF-8: iconv -f UTF-16 -t UTF-8")
    return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def _lines(data: mmap.mmap, start: int) -> Spans:
    """Lines that hold something."""
    ends: list[np.ndarray] = []
    for offset in range(0, len(data), _WINDOW):
        ends.append(np.flatnonzero(np.frombuffer(data[offset : offset + _WINDOW], np.uint8) == ord("\n")) + offset)
    stops = np.append(np.concatenate(ends), len(data)).astype(np.int64)
    starts = np.append(start, stops[:-1] + 1).astype(np.int64)
    sizes = stops - starts
    # An object has two bytes at least; of what is short, blank lines are left out here, and long ones are bad records.
    blank = [n for n in np.flatnonzero(sizes <= 64) if not data[int(starts[n]) : int(stops[n])].strip()]
    return Spans(np.delete(starts, blank), np.delete(sizes, blank))


def _list_entries(data: mmap.mmap, start: int, where: str) -> Iterator[tuple[int, int]]:
    """Offset and size of each entry of a list, a window of the file at a time."""
    window = _Window(data, start, where)
    if window.skip() != "[":
        raise UserError(f"{where} is no JSON list; if it holds an object a line, call it .jsonl")
    window.move(1)
    if window.skip() == "]":
        return
    while True:
        window.skip()
        offset, size = window.value()
        yield offset, size
        follows = window.skip()
        if follows not in (",", "]"):
            raise UserError(f"{where}: not JSON at byte {window.offset:,} (expected ',' or ']'): mend or rewrite it")
        window.move(1)
        if follows == "]":
            return


class _Window:
    """A decoded stretch of a file, and a place in it."""

    def __init__(self, data: mmap.mmap, offset: int, where: str) -> None:
        self._data, self._where = data, where
        self._decoder = json.JSONDecoder()
        self.offset, self._text, self._at = offset, "", 0
        self._read(_WINDOW)

    def move(self, characters: int) -> None:
        """Goes on."""
        passed = self._text[self._at : self._at + characters]
        self._at += characters
        self.offset += len(passed) if passed.isascii() else len(passed.encode())

    def skip(self) -> str:
        """Goes to the next character that is no space; '' at the end of the file."""
        while True:
            while self._at < len(self._text):
                rest = self._text[self._at : self._at + 256]
                spaces = len(rest) - len(rest.lstrip(" \t\r\n"))
                self.move(spaces)
                if spaces < len(rest):
                    return self._text[self._at]
            if self.offset >= len(self._data):
                return ""
            self._read(_WINDOW)

    def value(self) -> tuple[int, int]:
        """Reads an object and goes behind it: its offset and size in bytes."""
        size = _WINDOW
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # It may only be cut off by the window's end.
                if size > 2 * RECORD_LIMIT or self._last:
                    bad = self.offset + len(self._text[self._at : error.pos].encode())
                    raise UserError(
                        f"{self._where}: not JSON at byte {bad:,} ({error.msg}): mend or rewrite it"
                    ) from None
                size *= 2
                self._read(size)
                continue
            if end < len(self._text) or self._last:
                start = self.offset
                self.move(end - self._at)
                return start, self.offset - start
            size *= 2
            self._read(size)

    def _read(self, size: int) -> None:
        piece = self._data[self.offset : self.offset + size]
        self._last = self.offset + len(piece) >= len(self._data)
        try:
            self._text, self._at = codecs.getincrementaldecoder("utf-8")().decode(piece, self._last), 0
        except UnicodeDecodeError as error:
            at = self.offset + error.start
            raise UserError(f"{self._where}: not UTF-8 at byte {at:,}: make it UTF-8 with iconv") from None
