"""A document on its way through the pipeline: a plain dictionary, so that every runner can carry it.

    {"id": address, "site": host or folder, "language": code, "title": …, "origin": [file, offset],
     "segments": [{"text", "block", "heading", "links"} | {"image": address, "block", "alt", "caption", …}, …]}

Pictures travel as addresses; their bytes are read when they are measured and when they are written.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from data_pipelines.examples import Image
from data_pipelines.prepare.web.html import Page, Passage
from data_pipelines.words import words_of

Document = dict[str, Any]

_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Soft hyphens, zero-width spaces, byte order marks and control characters. Joiners and marks of direction, which
change how a text reads, are kept."""


def document_of(page: Page, origin: Sequence[Any]) -> Document:
    """A page as a document; texts are brought to Unicode's composed form, without invisible characters."""
    segments: list[dict[str, Any]] = []
    for segment in page.segments:
        if isinstance(segment, Passage):
            text = tidy(segment.text)
            if text:
                segments.append(
                    {"text": text, "block": segment.block, "heading": segment.heading, "links": segment.links}
                )
        else:
            segments.append(
                {
                    "image": segment.url,
                    "block": segment.block,
                    "width": segment.width,
                    "height": segment.height,
                    "alt": tidy(segment.alt),
                    "caption": tidy(segment.caption),
                }
            )
    return {
        "id": page.url,
        "site": parts_of(page.url).netloc,
        "language": page.language,
        "title": tidy(page.title),
        "origin": list(origin),
        "segments": segments,
    }


def tidy(text: str) -> str:
    """Composed form, without invisible characters and space around it."""
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).strip()


def parts_of(url: str) -> SplitResult:
    """The parts of an address; of what is none, empty ones."""
    try:
        return urlsplit(url)
    except ValueError:  # such as an unclosed bracket
        return SplitResult("", "", "", "", "")


def blocks_of(document: Document) -> dict[int, list[dict[str, Any]]]:
    """The text segments of every block, by its number."""
    blocks: dict[int, list[dict[str, Any]]] = {}
    for segment in document["segments"]:
        if "text" in segment:
            blocks.setdefault(segment["block"], []).append(segment)
    return blocks


def block_text(segments: Sequence[Mapping[str, Any]]) -> str:
    """One block's text, as if no picture stood in it."""
    return " ".join(segment["text"] for segment in segments)


def text_of(document: Document) -> str:
    """All text, a line a block."""
    return "\n".join(block_text(segments) for segments in blocks_of(document).values())


def word_count(segments: Sequence[Mapping[str, Any]]) -> int:
    """Words of the text segments among these."""
    return sum(len(words_of(segment["text"])) for segment in segments if "text" in segment)


def picture_count(segments: Sequence[Mapping[str, Any]]) -> int:
    """Pictures among these."""
    return sum("image" in segment for segment in segments)


def without_blocks(document: Document, blocks: Collection[int]) -> Document:
    """The document without the texts of some blocks; pictures stay."""
    kept = [segment for segment in document["segments"] if "image" in segment or segment["block"] not in blocks]
    return {**document, "segments": kept}


def record_of(document: Document, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """The interleaved record of a document. Texts between two pictures become one, a line a block.

    Args:
        document: With the pictures that stay.
        pictures: Address -> the bytes of the file.
    """
    segments: list[dict[str, Any]] = []
    last_block = -1
    for segment in document["segments"]:
        if "image" in segment:
            segments.append({"image": Image(data=pictures[segment["image"]]), "alt": segment["alt"]})
        elif segments and "text" in segments[-1]:
            segments[-1]["text"] += (" " if segment["block"] == last_block else "\n") + segment["text"]
        else:
            segments.append({"text": segment["text"]})
        last_block = segment["block"]
    return {
        "id": document["id"],
        "language": document["language"],
        "title": document["title"],
        "segments": segments,
    }
