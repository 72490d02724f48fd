"""The text of an HTML file, whatever its encoding: what it says of itself is tried first, then what it looks like."""

import codecs
import re

_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_DECLARED = re.compile(
    rb"""<meta[^>]{0,300}?charset\s*=\s*["']?\s*([\w.:-]{1,40})|<\?xml[^>]{0,200}?encoding=["']([\w.:-]{1,40})""", re.I
)
_HEAD = 4096
_LATIN = {"iso8859-1": "cp1252", "ascii": "cp1252"}
"""Browsers read these names as Windows' Latin code page, so pages mean that by them."""
_NOT_FOR_PAGES = {"utf-7", "unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined"}
_CYRILLIC_PAGES = ("cp1251", "koi8-r")
_COMMON_LETTERS = frozenset("оеаинтсрвл")


def decode_html(data: bytes, declared: str = "") -> str:
    """The file as text. Bytes that fit no encoding become U+FFFD, never an error.

    Tried in order: a byte order mark, `declared`, the file's own <meta> or XML declaration, UTF-8; each of them
    strictly. Then a single-byte page is guessed by its letters; a file that is mostly UTF-8 is read as that.

    Args:
        data: The file's bytes.
        declared: The charset of the Content-Type header, where there is one.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    for name in (declared, _own_declaration(data), "utf-8"):
        encoding = _codec(name)
        if encoding:
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                continue
    text = data.decode("utf-8", errors="replace")
    multi_byte = sum(ord(letter) > 127 for letter in text) - text.count("\ufffd")
    if multi_byte > text.count("\ufffd"):
        return text  # UTF-8 with a damaged or foreign part
    return data.decode(_guess(data), errors="replace")


def _own_declaration(data: bytes) -> str:
    found = _DECLARED.search(data[:_HEAD])
    return (found[1] or found[2]).decode("ascii", errors="ignore") if found else ""


def _codec(name: str) -> str:
    """Python's name of a text encoding; '' where it knows none or pages cannot be in it."""
    try:
        codec = codecs.lookup(name.strip().lower()).name
        "".encode(codec)  # names such as 'hex' belong to codecs that are not of text
    except (LookupError, ValueError):
        return ""
    # A 16-bit declaration that could be read as ASCII was wrong.
    return "" if codec in _NOT_FOR_PAGES or codec.startswith(("utf-16", "utf-32")) else _LATIN.get(codec, codec)


def _guess(data: bytes) -> str:
    # Letters of a Cyrillic word stand side by side; the accents of a Western page stand alone among plain letters.
    runs = re.findall(rb"[\x80-\xff]{2,}", data)
    together = b"".join(runs)
    if 2 * len(together) < sum(byte > 127 for byte in data):
        return "cp1252"
    return max(_CYRILLIC_PAGES, key=lambda page: _common_letters(together, page))


def _common_letters(data: bytes, page: str) -> int:
    return sum(letter in _COMMON_LETTERS for letter in data.decode(page, errors="replace"))
