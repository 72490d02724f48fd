"""From a picture's encoded bytes to RGB, by OpenCV: transparency over white, EXIF orientation, 8 bits, first frame."""

import io

import cv2
import numpy as np
import PIL.Image
from jaxtyping import UInt8

from data_pipelines.image_files import JPEG, PNG, BadImage

Pixels = UInt8[np.ndarray, "h w 3"]

_TIFF = (b"II*\0", b"MM\0*")
_ORIENTATION = 0x0112
"""EXIF's tag of how a picture is to be turned."""
_REDUCED = {
    1: cv2.IMREAD_COLOR_RGB,
    # With the flag for RGB, "grey" only says by how much to reduce.
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

# OpenCV writes its own lines about a bad picture to stderr; BadImage says what there is to say.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# The loader's threads take a picture each; threads of OpenCV's own within a picture would only wait for them.
cv2.setNumThreads(1)


def decode_bytes(data: bytes, reduction: int = 1) -> Pixels:
    """Decodes a picture whose header has been looked at (see `image_files`).

    Args:
        data: the file's bytes.
        reduction: 1, 2, 4 or 8: a JPEG comes out at this fraction of its size, for a fraction of the work.

    Raises:
        BadImage: if OpenCV cannot decode it, or it has something that OpenCV decodes wrongly.
    """
    try:
        if _may_be_transparent(data):
            return _decode_over_white(data)
        return _imdecode(data, _REDUCED[reduction if data.startswith(JPEG) else 1])
    except cv2.error as error:
        raise BadImage(f"cannot be decoded ({error.err})") from None


def _imdecode(data: bytes, flags: int) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise BadImage("not a picture in a known format (PNG, JPEG, WebP, …), or damaged")
    return pixels


def _decode_over_white(data: bytes) -> Pixels:
    pixels = _imdecode(data, cv2.IMREAD_UNCHANGED)
    if data.startswith(PNG) and pixels.ndim == 2:
        return cv2.cvtColor(_grey_over_white(pixels, data), cv2.COLOR_GRAY2RGB)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise BadImage(f"pixels of type {pixels.dtype}; whole numbers of 8 or 16 bits are read: convert it to PNG")
    if pixels.ndim < 3 or pixels.shape[2] != 4:
        return _imdecode(data, cv2.IMREAD_COLOR_RGB)
    if data.startswith(_TIFF):
        if _pillow_mode(data) == "CMYK":
            return _imdecode(data, cv2.IMREAD_COLOR_RGB)
        raise BadImage("transparency in a TIFF, which is not read rightly: convert it to PNG")
    return _turned(_over_white(pixels), data)


def _over_white(pixels: np.ndarray) -> Pixels:
    """Of [h, w, 4] blue, green, red and opacity: 255 - (255 - colour) · opacity, rounded."""
    if pixels.dtype == np.uint16:
        share = pixels[:, :, 3:] / 65535.0
        return np.rint(pixels[:, :, 2::-1] * (share / 257.0) + 255.0 * (1.0 - share)).astype(np.uint8)
    # In 8 bits throughout, where NumPy would make arrays of floats: twenty times faster, and the same to the bit.
    opacity = cv2.cvtColor(cv2.extractChannel(pixels, 3), cv2.COLOR_GRAY2RGB)
    colour = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB)
    cv2.bitwise_not(colour, dst=colour)
    cv2.multiply(colour, opacity, dst=colour, scale=1 / 255)
    return cv2.bitwise_not(colour, dst=colour)


def _grey_over_white(pixels: np.ndarray, data: bytes) -> UInt8[np.ndarray, "h w"]:
    """Of a grey PNG that names one level as transparent, which OpenCV passes over."""
    at, bits = data.find(b"tRNS") + 4, data[24]
    level = int.from_bytes(data[at : at + 2], "big") * (255 // (2**bits - 1) if bits < 8 else 1)
    eight = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return np.where(pixels == level, np.uint8(255), eight)


def _pillow_mode(data: bytes) -> str:
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            return picture.mode
    except (OSError, ValueError, SyntaxError, TypeError):
        return ""


def _turned(pixels: np.ndarray, data: bytes) -> Pixels:
    """As its EXIF orientation says; OpenCV turns only what it decodes without transparency."""
    in_png = data.startswith(PNG) and b"eXIf" in data
    if not in_png and not (data.startswith(b"RIFF") and b"EXIF" in data):
        return pixels
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            orientation = int(picture.getexif().get(_ORIENTATION, 1))
    except (OSError, ValueError, SyntaxError, TypeError):
        return pixels
    if not 2 <= orientation <= 8:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _may_be_transparent(data: bytes) -> bool:
    """Whether it must be decoded with its opacity to see: not where the header says that there is none."""
    if data.startswith(JPEG):
        return False
    if data.startswith(PNG):
        has_channel = data[25] in (4, 6)
        return has_channel or b"tRNS" in data[: max(data.find(b"IDAT"), 0)]
    if data.startswith(b"RIFF"):
        kind = data[12:16]
        return bool(data[20] & 0x10) if kind == b"VP8X" else kind != b"VP8 " and bool(data[24] & 0x10)
    return True
