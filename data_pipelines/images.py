"""Pictures: from encoded bytes to RGB arrays of one size, and augmentation. The one place that decodes and resizes."""

import dataclasses
import math
from typing import Literal

import cv2
import numpy as np
import PIL.Image
from etils import epath
from jaxtyping import UInt8

from data_pipelines.examples import Image
from data_pipelines.image_files import PNG, damage, size_in_header
from vlm_jax.errors import UserError

Pixels = UInt8[np.ndarray, "h w 3"]

_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}
_FILTERS = {
    "pillow_bilinear": PIL.Image.Resampling.BILINEAR,
    "pillow_bicubic": PIL.Image.Resampling.BICUBIC,
    "pillow_lanczos": PIL.Image.Resampling.LANCZOS,
}
_TIFF = (b"II*\0", b"MM\0*")
_PAD_GREY = 128

FILE_LIMIT = 64 << 20
"""Bytes of a picture's file; larger ones are not read."""
PIXEL_LIMIT = 89_478_485
"""Pictures with more pixels are not decoded: 256 MiB of RGB, where Pillow too begins to speak of a bomb."""

# OpenCV writes its own lines about a bad picture to stderr; BadImage says what there is to say.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class BadImage(ValueError):  # noqa: N818
    """A picture that cannot be decoded; the message says why."""


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
    """

    resize: Literal["squash", "crop", "pad", "shortest"] = "squash"
    interpolation: Literal["bilinear", "bicubic", "area", "pillow_bilinear", "pillow_bicubic", "pillow_lanczos"] = (
        "pillow_bicubic"
    )
    shortest_edge: int = 0
    longest_edge: int = 0

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


def decode(image: Image) -> Pixels:
    """Decodes a picture into RGB.

    Grey becomes RGB, transparency is laid over white, 16 bits become 8, EXIF orientation is applied (to pictures
    without transparency); of an animation, the first frame.

    Raises:
        BadImage: if the file cannot be read, is truncated, is not a picture in a known format, or is damaged (a PNG
            anywhere; other formats where their decoder sees it), or has more than PIXEL_LIMIT pixels.
    """
    data = file_bytes(image)
    name = f"'{image.path}'" if image.path is not None else f"{len(data)} bytes"
    if not data:
        raise BadImage(f"{name}: the picture is empty")
    if reason := damage(data):
        raise BadImage(f"{name}: {reason}")
    _check_size(data, name)
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


def _check_size(data: bytes, name: str) -> None:
    size = size_in_header(data)
    if size is None:
        raise BadImage(f"{name}: not a picture in a known format (PNG, JPEG, WebP, …), or damaged")
    if math.prod(size) > PIXEL_LIMIT:
        raise BadImage(
            f"{name}: {size[0]} x {size[1]} pixels are more than the {PIXEL_LIMIT} that are decoded; scale it down"
        )


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
    if data.startswith(PNG):
        has_channel = data[25] in (4, 6)
        return has_channel or b"tRNS" in data[: max(data.find(b"IDAT"), 0)]
    return True
