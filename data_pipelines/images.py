"""Pictures: from encoded bytes to RGB arrays of one size, and augmentation. The one place that decodes and resizes."""

import dataclasses
import math
import os
import stat
from typing import Literal

import cv2
import numpy as np
import PIL.Image
from etils import epath
from jaxtyping import UInt8

from data_pipelines.examples import Image
from data_pipelines.image_decoding import Pixels, decode_bytes
from data_pipelines.image_files import BadImage, is_turned, size_in_header, whole
from vlm_jax.errors import UserError

__all__ = [
    "FILE_LIMIT",
    "PIXEL_LIMIT",
    "Augmentation",
    "BadImage",
    "ImagePreprocessing",
    "Pixels",
    "augment",
    "decode",
    "file_bytes",
    "prepare",
    "resize",
    "size_as_seen",
]

_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}
_FILTERS = {
    "pillow_bilinear": PIL.Image.Resampling.BILINEAR,
    "pillow_bicubic": PIL.Image.Resampling.BICUBIC,
    "pillow_lanczos": PIL.Image.Resampling.LANCZOS,
}
_PAD_GREY = 128

FILE_LIMIT = 64 << 20
"""Bytes of a picture's file; larger ones are not read."""
PIXEL_LIMIT = 89_478_485
"""Pictures with more pixels are not decoded: 256 MiB of RGB, where Pillow too begins to speak of a bomb."""


@dataclasses.dataclass(frozen=True)
class ImagePreprocessing:
    """How a picture of any size becomes one of the model's size.

    resize: 'squash' ignores the aspect ratio; 'crop' keeps it and cuts what stands over, centred; 'pad' keeps it and
    fills the rest with mid-grey, centred; 'shortest' keeps it, brings the shorter side to `shortest_edge` and takes the
    centre, with black around it where there is too little, as image processors of CLIP, DINOv2 and ConvNeXt do.
    interpolation: bilinear, bicubic and area as OpenCV does them; of these only 'area' averages over what it leaves
    out, so choose it for large photographs that shrink a lot. The others as Pillow does them, which average too, and
    which image processors of transformers have, so that an exported model sees the same pixels.
    shortest_edge: in pixels, with 'shortest'; 0 = the shorter side of the model's size.
    longest_edge: in pixels, with 'squash'; the longer side is brought to this first, as Idefics 3 does; 0 = it is not.
    reduce_jpeg: a JPEG of more than twice the size that is asked for is decoded at 1/2, 1/4 or 1/8 of its own, down to
    that: several times faster for photographs, and not quite the same pixels.
    """

    resize: Literal["squash", "crop", "pad", "shortest"] = "squash"
    interpolation: Literal["bilinear", "bicubic", "area", "pillow_bilinear", "pillow_bicubic", "pillow_lanczos"] = (
        "pillow_bicubic"
    )
    shortest_edge: int = 0
    longest_edge: int = 0
    reduce_jpeg: bool = False

    def __post_init__(self) -> None:
        for name, edge, way in (
            ("shortest_edge", self.shortest_edge, "shortest"),
            ("longest_edge", self.longest_edge, "squash"),
        ):
            if type(edge) is not int or edge < 0 or (edge and self.resize != way):
                raise UserError(
                    f"{name} is {edge!r} with resize '{self.resize}'; it is a number of pixels, and for '{way}' only"
                )


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


def prepare(image: Image, size: tuple[int, int], preprocessing: ImagePreprocessing) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a picture and brings it to (height, width), all as `preprocessing` says.

    Raises:
        BadImage: as `decode` and `resize`.
    """
    height, width = size
    edge = max(preprocessing.shortest_edge, preprocessing.longest_edge)
    at_least = (2 * max(height, edge), 2 * max(width, edge)) if preprocessing.reduce_jpeg else None
    return resize(decode(image, at_least), size, preprocessing)


def decode(image: Image, at_least: tuple[int, int] | None = None) -> Pixels:
    """Decodes a picture into RGB.

    Grey and CMYK become RGB, transparency is laid over white, 16 bits become 8, EXIF orientation is applied; of an
    animation, the first frame.

    Args:
        image: the picture.
        at_least: (height, width); a JPEG with a multiple of that many pixels each way is decoded at 1/2, 1/4 or 1/8 of
            its size, as small as leaves that many. None decodes everything at its full size.

    Raises:
        BadImage: if the file cannot be read, is truncated, is not a picture in a known format, or is damaged (a PNG
            anywhere; other formats where their decoder sees it), or has more than PIXEL_LIMIT pixels.
    """
    data = file_bytes(image)
    name = f"'{image.path}'" if image.path is not None else f"{len(data)} bytes"
    if not data:
        raise BadImage(f"{name}: the picture is empty")
    size = _checked_size(data, name)
    try:
        return decode_bytes(whole(data), _reduction(size, at_least) if at_least else 1)
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from None


def size_as_seen(image: Image) -> tuple[int, int]:
    """(height, width) of what `decode` gives, from the file's header where that tells.

    Raises:
        BadImage: as `decode`, as far as the header shows it.
    """
    data = file_bytes(image)
    name = f"'{image.path}'" if image.path is not None else f"{len(data)} bytes"
    if not data:
        raise BadImage(f"{name}: the picture is empty")
    width, height = _checked_size(data, name)
    turned = is_turned(data)
    if turned is None:
        return decode(image).shape[:2]
    return (width, height) if turned else (height, width)


def resize(pixels: Pixels, size: tuple[int, int], preprocessing: ImagePreprocessing) -> UInt8[np.ndarray, "H W 3"]:
    """Brings a picture to (height, width) as `preprocessing` says; returns it as it is when it has that size.

    Raises:
        BadImage: if it is so narrow that, scaled and not yet cut, it would have more than PIXEL_LIMIT pixels.
    """
    height, width = size
    h, w = pixels.shape[:2]
    if preprocessing.resize == "shortest":
        return _take_centre(_scale_shortest(pixels, preprocessing.shortest_edge or min(size), preprocessing), size)
    if preprocessing.longest_edge:
        pixels = _scale_longest(pixels, preprocessing.longest_edge, preprocessing)
        h, w = pixels.shape[:2]
    if (h, w) == (height, width):
        return pixels
    if preprocessing.resize == "squash":
        return _scale(pixels, size, preprocessing)
    pick = max if preprocessing.resize == "crop" else min
    scale = pick(height / h, width / w)
    inner_h, inner_w = max(1, round(h * scale)), max(1, round(w * scale))
    scaled = _scale(pixels, (inner_h, inner_w), preprocessing)
    if preprocessing.resize == "crop":
        top, left = (inner_h - height) // 2, (inner_w - width) // 2
        return np.ascontiguousarray(scaled[top : top + height, left : left + width])
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    padded = np.full((height, width, 3), _PAD_GREY, np.uint8)
    padded[top : top + inner_h, left : left + inner_w] = scaled
    return padded


def _scale(pixels: Pixels, size: tuple[int, int], preprocessing: ImagePreprocessing) -> Pixels:
    height, width = size
    if height * width > PIXEL_LIMIT:
        raise BadImage(f"{pixels.shape[1]} x {pixels.shape[0]} pixels are too narrow: cut, or choose resize 'pad'")
    if preprocessing.interpolation in _FILTERS:
        picture = PIL.Image.fromarray(pixels).resize((width, height), _FILTERS[preprocessing.interpolation])
        return np.array(picture)
    return cv2.resize(pixels, (width, height), interpolation=_INTERPOLATIONS[preprocessing.interpolation])


def _scale_shortest(pixels: Pixels, edge: int, preprocessing: ImagePreprocessing) -> Pixels:
    """The longer side is rounded down, as torchvision and transformers do."""
    h, w = pixels.shape[:2]
    size = (int(edge * h / w), edge) if w <= h else (edge, int(edge * w / h))
    return pixels if (h, w) == size else _scale(pixels, size, preprocessing)


def _scale_longest(pixels: Pixels, edge: int, preprocessing: ImagePreprocessing) -> Pixels:
    """The shorter side is rounded down and then up to an even number, as Idefics 3's image processor does."""
    h, w = pixels.shape[:2]
    shorter = int(edge / (w / h)) if w >= h else int(edge * (w / h))
    shorter += shorter % 2
    shorter = max(shorter, 1)
    return _scale(pixels, (shorter, edge) if w >= h else (edge, shorter), preprocessing)


def _take_centre(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Crops, or pads with black, to (height, width); of an odd rest, what is cut or added is as in transformers."""
    over = [side - wanted for side, wanted in zip(pixels.shape[:2], size, strict=True)]
    if min(over) < 0:
        lacking = [max(0, -rest) for rest in over]
        around = [(math.ceil(rest / 2), rest // 2) for rest in lacking]
        pixels = np.pad(pixels, [*around, (0, 0)])
    top, left = (max(0, rest) // 2 for rest in over)
    return np.ascontiguousarray(pixels[top : top + size[0], left : left + size[1]])


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
        BadImage: if the file cannot be read, or has more than FILE_LIMIT bytes.
    """
    if image.data is not None:
        _check_bytes(len(image.data), "the record's picture")
        return image.data
    assert image.path is not None
    try:
        if "://" in image.path:
            path = epath.Path(image.path)
            _check_bytes(path.stat().length, f"'{image.path}'")
            return path.read_bytes()
        return _file_bytes(image.path)
    except OSError as error:
        raise BadImage(f"'{image.path}': cannot be read ({error.strerror or error})") from None


def _file_bytes(path: str) -> bytes:
    # Without blocking, so that a pipe without a writer is an error like others.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage(f"'{path}': not a file")
        _check_bytes(status.st_size, f"'{path}'")
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def _check_bytes(size: int, name: str) -> None:
    if size > FILE_LIMIT:
        raise BadImage(f"{name}: {size:,} bytes are more than the {FILE_LIMIT:,} that are read; scale it down")


def _checked_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) that the header tells."""
    size = size_in_header(data)
    if size is None:
        raise BadImage(f"{name}: not a picture in a known format (PNG, JPEG, WebP, …), or damaged")
    if math.prod(size) > PIXEL_LIMIT:
        raise BadImage(
            f"{name}: {size[0]} x {size[1]} pixels are more than the {PIXEL_LIMIT} that are decoded; scale it down"
        )
    return size


def _reduction(size: tuple[int, int], at_least: tuple[int, int]) -> int:
    """By its shorter side, since a picture may be turned when it is decoded."""
    return next((by for by in (8, 4, 2) if min(size) // by >= max(at_least)), 1)
