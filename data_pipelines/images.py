"""Pictures: from encoded bytes to RGB arrays of one size, and augmentation. The one place that decodes and resizes."""

import dataclasses
import struct
import zlib
from typing import Literal

import cv2
import numpy as np
from etils import epath
from jaxtyping import UInt8

from data_pipelines.examples import Image
from vlm_jax.errors import UserError

Pixels = UInt8[np.ndarray, "h w 3"]

_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_PAD_GREY = 128

# OpenCV writes its own lines about a bad picture to stderr; BadImage says what there is to say.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class BadImage(ValueError):  # noqa: N818
    """A picture that cannot be decoded; the message says why."""


@dataclasses.dataclass(frozen=True)
class ImagePreprocessing:
    """How a picture of any size becomes one of the model's size.

    resize: 'squash' ignores the aspect ratio; 'crop' keeps it and cuts what stands over, centred; 'pad' keeps it and
    fills the rest with mid-grey, centred.
    interpolation: as OpenCV does it. Only 'area' averages over what it leaves out, so choose it for large photographs
    that shrink a lot.
    """

    resize: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["bilinear", "bicubic", "area"] = "bicubic"


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes that keep what a picture shows: its colours, and its shapes up to position and direction.

    flip: mirror left to right, for half of the pictures.
    turn: by a random multiple of 90 degrees (of 180, where height and width differ).
    shift: by up to so many pixels each way; the edge is repeated into the gap.
    noise: standard deviation of normal noise, in units of 0..255.
    """

    flip: bool = False
    turn: bool = False
    shift: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0 or self.noise < 0:
            raise UserError(f"augmentation shift {self.shift}, noise {self.noise}: neither may be negative")


def decode(image: Image) -> Pixels:
    """Decodes a picture into RGB.

    Grey becomes RGB, transparency is laid over white, 16 bits become 8, EXIF orientation is applied (to pictures
    without transparency); of an animation, the first frame.

    Raises:
        BadImage: if the file cannot be read, is truncated, is not a picture in a known format, or is damaged (a PNG
            anywhere; other formats where their decoder sees it).
    """
    data = file_bytes(image)
    name = f"'{image.path}'" if image.path is not None else f"{len(data)} bytes"
    if not data:
        raise BadImage(f"{name}: the picture is empty")
    damage = _damage(data)
    if damage:
        raise BadImage(f"{name}: {damage}")
    try:
        pixels = _decode_over_white(data) if _may_be_transparent(data) else _imdecode(data, cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise BadImage(f"{name}: cannot be decoded ({error.err})") from None
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from None
    if pixels is None:
        raise BadImage(f"{name}: not a picture in a known format (PNG, JPEG, WebP, …), or damaged")
    return pixels


def resize(pixels: Pixels, size: tuple[int, int], preprocessing: ImagePreprocessing) -> UInt8[np.ndarray, "H W 3"]:
    """Brings a picture to (height, width) as `preprocessing` says; returns it as it is when it has that size."""
    height, width = size
    h, w = pixels.shape[:2]
    if (h, w) == (height, width):
        return pixels
    method = _INTERPOLATIONS[preprocessing.interpolation]
    if preprocessing.resize == "squash":
        return cv2.resize(pixels, (width, height), interpolation=method)
    pick = max if preprocessing.resize == "crop" else min
    scale = pick(height / h, width / w)
    inner_h, inner_w = max(1, round(h * scale)), max(1, round(w * scale))
    scaled = cv2.resize(pixels, (inner_w, inner_h), interpolation=method)
    if preprocessing.resize == "crop":
        top, left = (inner_h - height) // 2, (inner_w - width) // 2
        return np.ascontiguousarray(scaled[top : top + height, left : left + width])
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    padded = np.full((height, width, 3), _PAD_GREY, np.uint8)
    padded[top : top + inner_h, left : left + inner_w] = scaled
    return padded


def augment(pixels: Pixels, augmentation: Augmentation, rng: np.random.Generator) -> Pixels:
    """Applies random changes; the size stays. The same generator state gives the same picture."""
    height, width = pixels.shape[:2]
    if augmentation.flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if augmentation.turn:
        quarters = int(rng.integers(4)) if height == width else 2 * int(rng.integers(2))
        pixels = np.rot90(pixels, quarters)
    if augmentation.shift:
        most = augmentation.shift
        down, right = rng.integers(-most, most + 1, 2)
        framed = cv2.copyMakeBorder(np.ascontiguousarray(pixels), most, most, most, most, cv2.BORDER_REPLICATE)
        pixels = framed[most - down :, most - right :][:height, :width]
    if augmentation.noise:
        noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(augmentation.noise)
        pixels = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def file_bytes(image: Image) -> bytes:
    """The bytes of a picture's file, as they are.

    Raises:
        BadImage: if the file cannot be read.
    """
    if image.data is not None:
        return image.data
    assert image.path is not None
    try:
        if "://" in image.path:
            return epath.Path(image.path).read_bytes()
        with open(image.path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImage(f"'{image.path}': cannot be read ({error.strerror or error})") from None


def _imdecode(data: bytes, flags: int) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _decode_over_white(data: bytes) -> Pixels | None:
    pixels = _imdecode(data, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim < 3 or pixels.shape[2] != 4:
        return _imdecode(data, cv2.IMREAD_COLOR_RGB)
    if data.startswith(_TIFF) or pixels.dtype not in (np.uint8, np.uint16):
        raise BadImage("transparency in a TIFF or in floating point, which is not read rightly; convert it to PNG")
    top = float(np.iinfo(pixels.dtype).max)
    alpha = pixels[:, :, 3:] / top
    colour = pixels[:, :, 2::-1] * (255.0 / top)
    return np.rint(colour * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)


def _may_be_transparent(data: bytes) -> bool:
    if data.startswith(b"\xff\xd8"):
        return False
    if data.startswith(_PNG):
        has_channel = data[25] in (4, 6)
        return has_channel or b"tRNS" in data[: max(data.find(b"IDAT"), 0)]
    return True


def _damage(data: bytes) -> str:
    """Why the file is not whole, or ''. OpenCV fills the missing part of a truncated picture and says nothing."""
    if data.startswith(_PNG):
        return _png_damage(data)
    if data.startswith(b"\xff\xd8"):
        # An embedded thumbnail has an end mark of its own, so the mark must come after the last start of a scan.
        return "" if data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") > 0 else "the JPEG is truncated"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "" if len(data) >= 8 + struct.unpack("<I", data[4:8])[0] else "the WebP is truncated"
    return ""


def _png_damage(data: bytes) -> str:
    at = len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(data[at + 4 : end]) != struct.unpack(">I", data[end : end + 4])[0]:
            return f"the PNG is damaged (checksum of its {kind!r} chunk)"
        if kind == b"IEND":
            return ""
        at = end + 4
    return "the PNG is truncated"
