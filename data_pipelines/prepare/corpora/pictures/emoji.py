"""Emoji: Noto's colour pictures, with the names and keywords that Unicode's locale data give them in both languages."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from data_pipelines.examples import Image
from data_pipelines.prepare.corpora.packages import package_path
from data_pipelines.prepare.corpora.pictures.captioned import captioned
from data_pipelines.prepare.corpora.pictures.cldr import Annotation, annotations
from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.splits import Split
from vlm_jax.errors import UserError

_FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
_SIZE = 109
"""Pixels: the one size of the font's bitmaps."""

_CANVAS = (136, 128)
_SKIN_TONES = "🏻🏼🏽🏾🏿"
_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"
_LANGUAGES = ("en", "ru")


def records(raw: Path) -> Iterator[tuple[Split, Record]]:
    """A record an emoji that the font draws in a picture of its own: captions are its names, 'keywords' by language.

    Skin tones, and men and women of one occupation, are a family and stand in one split.

    Raises:
        UserError: if a package is not there, or Pillow lacks the library that joins emoji ("raqm").
    """
    if not PIL.features.check("raqm"):
        raise UserError("Pillow was built without raqm, which joins emoji: install Pillow's wheel, which has it")
    path = package_path(raw, "fonts-noto-color-emoji", _FONT)
    font = PIL.ImageFont.truetype(str(path), _SIZE, layout_engine=PIL.ImageFont.Layout.RAQM)
    names = {language: annotations(raw, language) for language in _LANGUAGES}
    unknown = _drawn("\ue000", font)
    first: dict[bytes, str] = {}
    for emoji in sorted(names["en"]):
        pixels = _drawn(emoji, font)
        if pixels is None or (unknown is not None and np.array_equal(pixels, unknown)):
            continue
        if first.setdefault(pixels.tobytes(), emoji) != emoji:
            continue  # drawn like one before it
        captions = _captions(emoji, names)
        name = "-".join(f"{ord(character):x}" for character in emoji)
        keywords = {language: list(table[emoji].keywords) for language, table in names.items() if emoji in table}
        yield captioned("emoji", name, _png(pixels), captions, _family(emoji), "emoji", keywords=keywords)


def _captions(emoji: str, names: Mapping[str, Mapping[str, Annotation]]) -> list[dict[str, object]]:
    return [
        {"text": table[emoji].name, "language": language, "name": True}
        for language, table in names.items()
        if emoji in table
    ]


def _family(emoji: str) -> str:
    """The emoji without its skin tones, and without what says man or woman of an occupation."""
    parts = "".join(character for character in emoji if character not in _SKIN_TONES).split(_JOINER)
    kept = [part for part in parts if part not in ("♂", "♀")]
    if len(kept) > 1 and kept[0] in "👨👩🧑":
        kept = kept[1:] if kept[1:] else kept
    return _JOINER.join(kept)


def _drawn(emoji: str, font: PIL.ImageFont.FreeTypeFont) -> np.ndarray | None:
    """The emoji's picture (RGBA); None if the font has none, or draws it as several beside each other."""
    canvas = PIL.Image.new("RGBA", (4 * _CANVAS[0], 2 * _CANVAS[1]))
    PIL.ImageDraw.Draw(canvas).text((0, 0), emoji, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None or box[2] > _CANVAS[0] + 8:
        return None
    left, top = (box[0] + box[2] - _CANVAS[0]) // 2, (box[1] + box[3] - _CANVAS[1]) // 2
    return np.asarray(canvas.crop((left, top, left + _CANVAS[0], top + _CANVAS[1])))


def _png(pixels: np.ndarray) -> Image:
    file = io.BytesIO()
    ground = PIL.Image.new("RGBA", _CANVAS, (255, 255, 255, 255))
    ground.alpha_composite(PIL.Image.fromarray(pixels))
    ground.convert("RGB").save(file, "PNG", optimize=True)
    return Image(data=file.getvalue())


SETS = (
    CorpusSet(
        name="captions/emoji",
        kind="captions",
        packages=("fonts-noto-color-emoji", "unicode-cldr-core"),
        licence="OFL-1.1 AND Unicode-DFS-2016",
        build=records,
        about="Noto's colour emoji at size 109, with Unicode's names and keywords; emoji that look alike come once",
    ),
)
