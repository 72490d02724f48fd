"""Text set into pictures: many faces, sizes, colours, grounds, turns and damage, all from one random stream."""

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import Float, UInt8

from data_pipelines.examples import Image
from data_pipelines.prepare.corpora.transcription.fonts import sized

Pixels = UInt8[np.ndarray, "h w 3"]

CONTRAST = 4.5
"""Between text and ground, at least, as in WCAG 2.1, success criterion 1.4.3 (1 = none, 21 = black on white)."""

_LONGEST = 448
"""Pixels: larger pictures are brought down to it."""


@dataclasses.dataclass(frozen=True)
class Style:
    """How a text is set. Sizes in pixels, colours as RGB."""

    face: Path
    size: int
    ink: tuple[int, int, int]
    ground: tuple[int, int, int]
    pattern: str
    aspect: float
    spacing: float
    centred: bool
    turn: float
    """Degrees."""
    blur: float
    noise: float
    quality: int
    """Of the JPEG; 0 = PNG, which is for what has no noise."""


PATTERNS = ("plain", "gradient", "grain", "lines", "squares", "stains")


def draw_style(rng: np.random.Generator, face: Path, length: int) -> Style:
    """A random style for a text of `length` characters; short texts are set larger, damaged ones are the fewer."""
    ink, ground = _colours(rng)
    pattern = PATTERNS[0] if rng.random() < 0.4 else PATTERNS[int(rng.integers(1, len(PATTERNS)))]
    noise = float(rng.uniform(2, 14)) if rng.random() < 0.35 else 0.0
    smallest, largest = (24, 64) if length < 24 else (16, 36)
    return Style(
        face=face,
        size=int(rng.integers(smallest // 4, largest // 4 + 1)) * 4,  # few sizes, so that open fonts are used again
        ink=ink,
        ground=ground,
        pattern=pattern,
        aspect=float(rng.uniform(1.0, 2.2)),
        spacing=float(rng.uniform(1.05, 1.5)),
        centred=bool(rng.random() < 0.35),
        turn=float(rng.normal(0, 3)) if rng.random() < 0.4 else 0.0,
        blur=float(rng.uniform(0.3, 0.9)) if rng.random() < 0.25 else 0.0,
        noise=noise,
        quality=int(rng.integers(40, 91)) if noise or pattern == "grain" or rng.random() < 0.6 else 0,
    )


def render(text: str, style: Style, rng: np.random.Generator) -> Image:
    """A picture of the whole text in a style; `rng` draws margins, the ground's pattern and noise."""
    mask = _turned(_set(text, style, rng), style.turn)
    ground = _ground(mask.shape, style, rng)
    alpha = mask[..., None]
    pixels = ground * (1 - alpha) + np.array(style.ink, np.float32) * alpha
    if style.blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), style.blur)
    if style.noise:
        pixels = pixels + rng.standard_normal(mask.shape, dtype=np.float32)[..., None] * np.float32(style.noise)
    return _encoded(_within(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), style.quality)


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """The contrast of two colours as WCAG 2.1 defines it: 1 for equal ones, 21 for black and white."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: tuple[int, int, int]) -> float:
    linear = [
        value / 255 / 12.92 if value / 255 <= 0.04045 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _colours(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Ink and ground, well apart."""
    if rng.random() < 0.3:
        return (10, 10, 10), (255, 255, 255)
    while True:
        ink, ground = _colour(rng), _colour(rng)
        if contrast(ink, ground) >= CONTRAST + 1:  # patterns take some of it
            return ink, ground


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


def _set(text: str, style: Style, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """How much ink there is at each pixel, 0..1; lines broken so that the block has about the style's aspect."""
    font = sized(style.face, style.size)
    step = style.size * style.spacing
    words = [(word, font.getlength(word)) for word in text.split()]
    blank = font.getlength(" ")
    total = sum(length + blank for _, length in words)
    lines = _broken(words, blank, max(math.sqrt(total * step * style.aspect), max(length for _, length in words)))
    lengths = [length for _, length in lines]
    margin = [int(value) for value in rng.integers(style.size // 3, style.size + style.size // 2, 4)]
    canvas = PIL.Image.new(
        "L", (math.ceil(max(lengths)) + margin[0] + margin[1], math.ceil(step * len(lines)) + margin[2] + margin[3])
    )
    draw = PIL.ImageDraw.Draw(canvas)
    for number, (line, length) in enumerate(lines):
        left = margin[0] + ((max(lengths) - length) / 2 if style.centred else 0)
        draw.text((left, margin[2] + number * step + step / 2), line, fill=255, font=font, anchor="lm")
    return np.asarray(canvas, np.float32) / 255


def _broken(words: list[tuple[str, float]], blank: float, width: float) -> list[tuple[str, float]]:
    """Lines with their lengths in pixels, none longer than `width` unless it is one word."""
    lines: list[tuple[str, float]] = []
    for word, length in words:
        if lines and lines[-1][1] + blank + length <= width:
            line, before = lines[-1]
            lines[-1] = (f"{line} {word}", before + blank + length)
        else:
            lines.append((word, length))
    return lines


def _turned(mask: Float[np.ndarray, "h w"], degrees: float) -> Float[np.ndarray, "h2 w2"]:
    """Turned about its middle, on a canvas that holds all of it."""
    if not degrees:
        return mask
    height, width = mask.shape
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    size = (math.ceil(width * cosine + height * sine), math.ceil(width * sine + height * cosine))
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    turn[0, 2] += (size[0] - width) / 2
    turn[1, 2] += (size[1] - height) / 2
    return cv2.warpAffine(mask, turn, size, flags=cv2.INTER_LINEAR)


def _ground(shape: tuple[int, int], style: Style, rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """The ground: its colour with a pattern of small contrast, away from the ink's brightness."""
    height, width = shape
    away = 1.0 if _luminance(style.ground) > _luminance(style.ink) else -1.0
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    shade: np.ndarray
    if style.pattern == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        shade = x / width * math.cos(angle) + y / height * math.sin(angle)
    elif style.pattern == "grain":
        small = rng.standard_normal((height // 6 + 2, width // 6 + 2), dtype=np.float32)
        shade = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) / 2
    elif style.pattern == "lines":
        shade = np.broadcast_to(y % (style.size * style.spacing) < 1.5, shape).astype(np.float32)
    elif style.pattern == "squares":
        side = int(rng.integers(6, 24))
        shade = ((x // side + y // side) % 2).astype(np.float32)
    elif style.pattern == "stains":
        shade = np.zeros(shape, np.float32)
        for _ in range(int(rng.integers(2, 6))):
            middle = (int(rng.integers(width)), int(rng.integers(height)))
            cv2.circle(shade, middle, int(rng.integers(8, max(9, min(shape) // 2))), float(rng.uniform(0.3, 1)), -1)
        shade = cv2.GaussianBlur(shade, (0, 0), 4)
    else:
        shade = np.zeros(shape, np.float32)
    strength = np.float32(away * rng.uniform(10, 30))
    return np.array(style.ground, np.float32) + (shade * strength)[..., None]


def _within(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = _LONGEST / max(height, width)
    if scale >= 1:
        return pixels
    return cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def _encoded(pixels: Pixels, quality: int) -> Image:
    ending, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality]) if quality else (".png", [])
    done, data = cv2.imencode(ending, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    assert done
    return Image(data=data.tobytes())
