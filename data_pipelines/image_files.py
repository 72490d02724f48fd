"""What a picture's file says before it is decoded: whether it is whole, and how large the picture is."""

import io
import struct
import zlib
from collections.abc import Callable

import PIL.Image

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"

_LENGTH = struct.Struct(">I")
_SEEN = (b"tRNS", b"eXIf")
"""Chunks of a PNG that may be left out by the standard, and change what is seen."""
_ORIENTATION = 0x0112
"""EXIF's tag of how a picture is to be turned."""
_SCANS = 500
"""A progressive JPEG with more scans is no photograph, but made to keep a decoder busy: each goes over all pixels."""


class BadImage(ValueError):  # noqa: N818
    """A picture that cannot be decoded; the message says why."""


def whole(data: bytes) -> bytes:
    """What is to be decoded of a file: all of it or, of a PNG, the chunks that say what is seen.

    Colour profiles, comments and further frames are left out: they are where bombs hide, and of some of them libpng
    complains on stderr.

    Raises:
        BadImage: if the file is not whole. OpenCV fills the missing part of a truncated picture and says nothing.
    """
    if data.startswith(PNG):
        return _whole_png(data)
    if data.startswith(JPEG):
        # An embedded thumbnail has an end mark of its own, so the mark must come after the last start of a scan.
        if not data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") > 0:
            raise BadImage("the JPEG is truncated")
        if data.count(b"\xff\xda") > _SCANS:
            raise BadImage(f"the JPEG has more than {_SCANS} scans")
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) < 8 + struct.unpack("<I", data[4:8])[0]:
        raise BadImage("the WebP is truncated")
    return data


def _whole_png(data: bytes) -> bytes:
    at = start = len(PNG)
    kept: list[bytes | memoryview] = [PNG]
    view = memoryview(data)
    while at + 12 <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != _LENGTH.unpack_from(data, end - 4)[0]:
            raise BadImage(f"the PNG is damaged (checksum of its {kind!r} chunk)")
        # A small first letter: a decoder may pass the chunk over.
        if kind[0] & 0x20 and kind not in _SEEN:
            kept.append(view[start:at])
            start = end
        at = end
        if kind == b"IEND":
            return data if len(kept) == 1 and at == len(data) else b"".join([*kept, view[start:at]])
    raise BadImage("the PNG is truncated")


def size_in_header(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels as the file's header says, or None where no header is understood."""
    for start, read in _HEADERS.items():
        if data.startswith(start):
            try:
                return read(data)
            except (struct.error, IndexError):
                return None
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            return picture.size
    except PIL.Image.DecompressionBombError:
        return _IMMENSE
    except (OSError, ValueError, SyntaxError, KeyError, OverflowError, RuntimeError, Warning):
        return None


def is_turned(data: bytes) -> bool | None:
    """Whether height and width change places when the picture is decoded (its EXIF orientation); None = not known."""
    if data.startswith((b"GIF8", b"BM")):
        return False
    if data.startswith(PNG):
        return None if b"eXIf" in data else False
    if data.startswith(b"RIFF"):
        return None if b"EXIF" in data else False
    if not data.startswith(JPEG):
        return None
    if b"Exif\0" not in data[: 1 << 16]:
        return False
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            return int(picture.getexif().get(_ORIENTATION, 1)) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, TypeError):
        return None


_IMMENSE = (1 << 31, 1 << 31)
"""Stands for a size that Pillow refuses to name."""


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the start of the frame; segments before it, thumbnails too, are passed over by their length."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD7 or marker == 0x01:
            at += 1 if marker == 0xFF else 2  # a fill byte, or a marker without a segment
            continue
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return None


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack("<HH", data[6:10])
    return width, height


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack("<I", data[14:18])
    width, height = struct.unpack("<HH", data[18:22]) if header == 12 else struct.unpack("<ii", data[18:26])
    return abs(width), abs(height)


def _riff_size(data: bytes) -> tuple[int, int] | None:
    """WebP: the canvas of the extended format, else the frame of the lossy or lossless bit stream."""
    kind, body = data[8:16], data[20:]
    if kind == b"WEBPVP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"WEBPVP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"WEBPVP8L":
        (bits,) = struct.unpack("<I", body[1:5])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


_HEADERS: dict[bytes, Callable[[bytes], tuple[int, int] | None]] = {
    PNG: _png_size,
    JPEG: _jpeg_size,
    b"GIF8": _gif_size,
    b"BM": _bmp_size,
    b"RIFF": _riff_size,
}
"""Formats that are common enough to be read without Pillow, by how their files begin."""
