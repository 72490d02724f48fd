"""Shows raw records to a person: in the terminal (`describe_record`) or as one page of cards (`draw_records`)."""

import base64
import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from rich.markup import escape

from data_pipelines.examples import Image
from data_pipelines.image_files import size_in_header
from data_pipelines.images import BadImage, decode, file_bytes
from data_pipelines.look.pages import page_template
from data_pipelines.look.plots import LANGUAGE_COLOURS
from data_pipelines.look.record_parts import Part, Unreadable, kinds_of, other_fields, parts_of
from data_pipelines.words import SCRIPTS

_THUMBNAIL = 480
_SMALL = 128
_SHOWN_CHARACTERS = 1500
_SHOWN_PARTS = 60
_LONGEST_ID = 200
_KNOWN = {"en": LANGUAGE_COLOURS[0], "latin": LANGUAGE_COLOURS[0], "ru": LANGUAGE_COLOURS[1]}
_KNOWN["cyrillic"] = LANGUAGE_COLOURS[1]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as a page shows it."""

    uri: str
    """Its thumbnail; '' where it cannot be read."""
    about: str
    """Its size and file format, or why it cannot be read."""
    small: bool = False
    """So small that it is shown enlarged, pixel by pixel."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A part of a record as a page shows it."""

    role: str
    text: str = ""
    left_out: int = 0
    """Characters that are not shown."""
    language: str = ""
    picture: Picture | None = None


@dataclasses.dataclass(frozen=True)
class Card:
    """A record as a page shows it."""

    index: int
    id: str
    parts: tuple[Shown, ...] = ()
    left_out: int = 0
    """Parts that are not shown."""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trouble: str = ""
    """Why it cannot be used."""

    @property
    def pairs(self) -> list[list[Shown]]:
        """Chosen and rejected answers, side by side, where there are some."""
        sides = [[part for part in self.parts if part.role == role] for role in ("chosen", "rejected")]
        return sides if all(sides) else []


def card_of(index: int, record: Mapping[str, Any] | Unreadable) -> Card:
    """What a page shows of a record; texts and long documents are cut, and say by how much."""
    if isinstance(record, Unreadable):
        return Card(index, _name_of(record), trouble=visible(record.reason))
    parts = parts_of(record)
    shown = tuple(_shown(part) for part in parts[:_SHOWN_PARTS])
    fields = {visible(key): visible(value) for key, value in other_fields(record).items()}
    return Card(index, _name_of(record), shown, max(0, len(parts) - _SHOWN_PARTS), fields)


def draw_records(
    name: str,
    size: int,
    records: Iterable[tuple[int, Mapping[str, Any] | Unreadable]],
    reasons: Sequence[str] = (),
) -> str:
    """One HTML page with a card a record, without outside requests.

    Args:
        name: the source's.
        size: how many records there are in all.
        records: (index, record) of those to show.
        reasons: why each of them is in quarantine; none = they are not.
    """
    cards = [card_of(index, record) for index, record in records]
    if reasons:
        cards = [dataclasses.replace(card, trouble=visible(why)) for card, why in zip(cards, reasons, strict=True)]
    languages = sorted({part.language for card in cards for part in card.parts if part.language})
    return page_template("gallery_page.html.j2").render(
        name=name,
        size=size,
        cards=cards,
        quarantine=bool(reasons),
        languages=[(language, SCRIPTS.get(language, language), _colour(language, languages)) for language in languages],
        pictures=sum(part.picture is not None for card in cards for part in card.parts),
        texts=sum(part.picture is None for card in cards for part in card.parts),
    )


def describe_record(index: int, record: Mapping[str, Any] | Unreadable) -> str:
    """A record as a few lines of rich markup for the terminal."""
    if isinstance(record, Unreadable):
        return (
            f"[bold]{index}  {escape(visible(record.id))}[/]  [red]cannot be read: {escape(visible(record.reason))}[/]"
        )
    parts = parts_of(record)
    kinds = ", ".join(kinds_of(record)) or "no kind reads it"
    lines = [f"[bold]{index}  {escape(_name_of(record))}[/]  [dim]{kinds}[/]"]
    for part in parts[:8]:
        if part.image is not None:
            lines.append(f"  [black on gold3] picture [/] {escape(_about(part.image))}")
        else:
            words = " ".join(visible(part.text[:400]).split())
            short = words if len(words) <= 100 else f"{words[:99]}…"
            lines.append(f"  [cyan]{part.role:<9}[/][dim]{part.language_or_script:<9}[/]{escape(short)}")
    if len(parts) > 8:
        lines.append(f"  [dim]… and {len(parts) - 8} more parts[/]")
    return "\n".join(lines)


def visible(text: str) -> str:
    """The text with characters that nobody sees, or that no page can hold, written out as ‹U+200B›."""
    return "".join(_written_out(text))


def _name_of(record: Mapping[str, Any] | Unreadable) -> str:
    name = record.id if isinstance(record, Unreadable) else str(record.get("id", ""))
    return visible(name if len(name) <= _LONGEST_ID else f"{name[: _LONGEST_ID - 1]}…")


def _written_out(text: str) -> Iterator[str]:
    for character in text:
        hidden = character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn")
        yield f"‹U+{ord(character):04X}›" if hidden else character


def _shown(part: Part) -> Shown:
    if part.image is not None:
        return Shown(part.role, picture=_thumbnail(part.image))
    cut = part.text[:_SHOWN_CHARACTERS]
    return Shown(part.role, visible(cut), len(part.text) - len(cut), part.language_or_script)


def _thumbnail(image: Image) -> Picture:
    try:
        pixels = decode(image)
    except BadImage as error:
        return Picture("", visible(str(error)))
    height, width = pixels.shape[:2]
    small = max(height, width) <= _SMALL
    scale = _THUMBNAIL / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    suffix, options = (".png", []) if small else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 82])
    encoded = cv2.imencode(suffix, np.ascontiguousarray(pixels[:, :, ::-1]), options)[1].tobytes()
    uri = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(encoded).decode()}"
    return Picture(uri, _about(image, (width, height)), small)


def _about(image: Image, size: tuple[int, int] | None = None) -> str:
    try:
        data = file_bytes(image)
    except BadImage as error:
        return visible(str(error))
    size = size or size_in_header(data)
    pixels = f"{size[0]} × {size[1]}" if size else "no picture in a known format"
    return f"{pixels}, {max(1, round(len(data) / 1024)):,} KB"


def _colour(language: str, languages: Sequence[str]) -> str:
    others = [each for each in languages if each not in _KNOWN]
    return _KNOWN.get(language) or LANGUAGE_COLOURS[2 + others.index(language) % (len(LANGUAGE_COLOURS) - 2)]
