"""Pictures of the corpora as they go into records: readable, visible on a plain ground, and of a sensible size."""

import functools
import math
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.examples import Image
from data_pipelines.image_files import PNG, size_in_header
from data_pipelines.images import PIXEL_LIMIT, BadImage, decode, file_bytes
from data_pipelines.optional import need

LONGEST_SIDE = 1024
"""Pixels; larger pictures are brought down to it."""

_GROUNDS = ((255, 255, 255), (128, 128, 128), (40, 60, 90))
"""Colours that transparency may be laid over, in order of preference (RGB)."""

_CONTRAST = 24.0
"""Mean distance, in units of 0..255, between what a picture shows and the ground, below which it cannot be seen."""

_SAMPLE = 20_000
"""About so many pixels are looked at to choose a ground."""

_VISIBLE = 64
"""Alpha from which on a pixel counts as shown."""


def fitted(picture: Image) -> Image:
    """The picture itself if it can be used as it is, else a PNG of it: smaller, or over a ground on which it shows.

    Loaders lay transparency over white, where a white cut-out is gone; such a one goes over grey here, once for all.

    Raises:
        BadImage: if it cannot be decoded.
    """
    data = file_bytes(picture)
    if (tidy := _without_stray_chunks(data)) != data:
        data, picture = tidy, Image(data=tidy)
    if math.prod(size_in_header(data) or (0,)) > PIXEL_LIMIT:
        raise BadImage(f"more than the {PIXEL_LIMIT} pixels that are decoded")
    rgba = _with_alpha(data)
    if rgba is None:
        pixels = decode(Image(data=data))
        return picture if max(pixels.shape[:2]) <= LONGEST_SIDE else png(_within(pixels))
    ground = ground_of(rgba)
    if ground == _GROUNDS[0] and max(rgba.shape[:2]) <= LONGEST_SIDE:
        return picture
    return png(_within(over_ground(rgba, ground)))


def header_pixels(path: Path) -> int:
    """How many pixels a picture's header speaks of; 0 if it is not read as a picture."""
    with open(path, "rb") as file:
        size = size_in_header(file.read(1 << 16))
    return math.prod(size) if size else 0


def ground_of(rgba: UInt8[np.ndarray, "h w 4"]) -> tuple[int, int, int]:
    """The first ground from which a picture with transparency stands out.

    Raises:
        BadImage: if nothing of it is opaque enough to be seen.
    """
    step = max(1, math.isqrt(rgba.shape[0] * rgba.shape[1] // _SAMPLE))
    sample = rgba[::step, ::step]
    if not (sample[..., 3] >= _VISIBLE).any():
        sample = rgba
    shown = sample[..., 3] >= _VISIBLE
    if not shown.any():
        raise BadImage("nothing can be seen in the picture: it is transparent all over")
    if shown.all():
        return _GROUNDS[0]
    colours = sample[shown][:, :3].astype(np.int16)
    for ground in _GROUNDS:
        if np.abs(colours - np.array(ground, np.int16)).max(axis=1).mean() >= _CONTRAST:
            break
    return ground


def over_ground(rgba: UInt8[np.ndarray, "h w 4"], ground: tuple[int, int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Lays a picture with transparency over a colour."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.rint(rgba[..., :3] * alpha + np.array(ground, np.float32) * (1 - alpha)).astype(np.uint8)


def png(pixels: UInt8[np.ndarray, "h w c"]) -> Image:
    """An RGB or RGBA picture as a PNG."""
    order = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, order), [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not done:
        raise BadImage("the picture cannot be written as PNG")
    return Image(data=data.tobytes())


def drawn(path: Path, longest: int = 512) -> Image:
    """A vector drawing (SVG) as a picture with transparency, its longer side brought to `longest` pixels.

    Raises:
        BadImage: if the drawing is broken.
        UserError: if the library that draws is not installed.
    """
    draw = _drawer()
    text = path.read_text(encoding="utf-8", errors="replace")
    for sides in ({"width": longest}, {"height": longest}):
        try:
            data = draw(svg_string=text, skip_system_fonts=True, dpi=96.0, **sides)
        except Exception as error:  # the library has a type of its own
            raise BadImage(f"{path}: cannot be drawn ({error})") from None
        if max(size_in_header(data) or (0,)) <= longest:
            break
    return Image(data=data)


@functools.cache
def _drawer():
    return need("resvg_py", "prepare").svg_to_bytes


def _without_stray_chunks(data: bytes) -> bytes:
    """A PNG without colour profiles that stand where none may; decoders would warn of them with every reading."""
    if not data.startswith(PNG):
        return data
    kept, place, late = [PNG], len(PNG), False
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        name = data[place + 4 : place + 8]
        late = late or name in (b"PLTE", b"IDAT")
        if not (late and name in (b"sRGB", b"iCCP", b"gAMA", b"cHRM")):
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _with_alpha(data: bytes) -> UInt8[np.ndarray, "h w 4"] | None:
    """RGBA of a picture that has transparency, else None."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4:
        return None
    if pixels.dtype == np.uint16:
        pixels = (pixels // 256).astype(np.uint8)
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)


def _within(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    height, width = pixels.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
