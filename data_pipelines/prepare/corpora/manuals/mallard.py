"""Reads pages in Mallard, the XML of GNOME's help (projectmallard.org/1.0)."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.prepare.corpora.manuals.pages import Page, Passage, Picture, large_enough
from vlm_jax.errors import UserError

_TEST = "{http://projectmallard.org/if/1.0/}test"
_SKIPPED = frozenset(("info", "comment", "links", "include", "credit"))
_JOINED = {"keyseq": "+", "guiseq": " → "}
_INLINE_PARENTS = frozenset(("p", "gui", "key", "em", "code", "file", "title", "link", "span"))
_VERBATIM = frozenset(("code", "screen"))

Titles = Mapping[str, str]
"""Titles of pages ('files-copy') and sections ('files-copy#rename'): what links without a text say."""


def read_pages(book: Path, language: str) -> Iterator[Page]:
    """Every page of a book, by name; a page's name is 'BOOK/ID'.

    Args:
        book: directory with .page files in one language, and their figures.
        language: 'en' or 'ru'.

    Raises:
        UserError: if a file is not XML.
    """
    trees = {path.stem: _parse(path) for path in sorted(book.glob("*.page"))}
    titles = dict(pair for name, root in trees.items() for pair in _titles(name, root))
    for name, root in trees.items():
        reader = _Reader(book, titles)
        reader.read(root, level=1)
        yield Page(f"{book.name}/{name}", language, titles.get(name, ""), tuple(reader.blocks), book)


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise UserError(f"{path}: not a page of GNOME's help ({error}); fetch its package again") from None


def _titles(name: str, root: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for node in root.iter():
        title = next((child for child in node if _tag(child) == "title"), None)
        if title is not None and _tag(node) in ("page", "section"):
            yield (name if node is root else f"{name}#{node.get('id')}"), _line(_text(title, {}))


class _Reader:
    """Walks down the tree and keeps what it meets."""

    def __init__(self, book: Path, titles: Titles) -> None:
        self.blocks: list[Passage | Picture] = []
        self._book, self._titles = book, titles
        self._heading = ""

    def read(self, node: ElementTree.Element, level: int, item: bool = False) -> None:
        """Adds what the node holds.

        Args:
            node: of the tree; its own tag is not looked at.
            level: of the headings in it.
            item: its first paragraph is the first of a list's item.
        """
        for child in _shown(node):
            tag = _tag(child)
            if tag == "title" and _tag(node) in ("page", "section"):
                self._heading = _line(_text(child, self._titles))
                self._add(self._heading, "heading", level)
            elif tag in ("p", "title", "desc", "cite") or (tag == "code" and _tag(node) in _INLINE_PARENTS):
                self._paragraph(child, item)
                item = False
            elif tag in _VERBATIM:
                self._add(_text(child, self._titles).strip("\n"), "code")
            elif tag == "figure":
                self._figure(child)
            elif tag == "media":
                self._picture(child, "")
            elif tag == "tr":
                cells = [_line(_text(cell, self._titles)) for cell in child]
                self._add(" | ".join(cells) if any(cells) else "", "row")
            else:
                self.read(child, level + (tag == "section"), item=tag == "item")

    def _paragraph(self, node: ElementTree.Element, item: bool) -> None:
        self._add(_line(_text(node, self._titles)), "item" if item else "paragraph")

    def _figure(self, node: ElementTree.Element) -> None:
        about = [_line(_text(child, self._titles)) for child in node if _tag(child) in ("title", "desc")]
        caption = " ".join(about)
        for media in node.iter():
            if _tag(media) == "media":
                self._picture(media, caption)
        self._add(caption, "caption")

    def _picture(self, node: ElementTree.Element, caption: str) -> None:
        """Drawings in SVG and films are left out: nothing here can draw them."""
        source = node.get("src") or ""
        if source.endswith((".png", ".jpg")) and large_enough(self._book / source):
            self.blocks.append(Picture(source, caption, self._heading))

    def _add(self, text: str, role: Any, level: int = 0) -> None:
        if text.strip():
            self.blocks.append(Passage(text, role, level))


def _shown(node: ElementTree.Element) -> Iterable[ElementTree.Element]:
    """The children that a full desktop shows: of alternatives the first of those."""
    alternatives = _tag(node) == "choose"
    for child in node:
        if _tag(child) in _SKIPPED or not _holds(child.get("test") or child.get(_TEST) or ""):
            continue
        yield child
        if alternatives:
            return


def _holds(test: str) -> bool:
    """Whether conditions hold (any of those with spaces between, all of those with commas) on a desktop computer."""
    return not any(re.match(r"(platform:gnome-classic|target:mobile)", each.strip()) for each in test.split(","))


def _text(node: ElementTree.Element, titles: Titles) -> str:
    """What a paragraph says. A link without a text says the title of what it points to."""
    if _tag(node) in _JOINED:
        return _JOINED[_tag(node)].join(_line(_text(child, titles)) for child in node)
    text = node.text or ""
    for child in _shown(node):
        text += _text(child, titles) + (child.tail or "")
    if not text.strip() and _tag(node) == "link":
        return titles.get(node.get("xref") or "", "")
    return text


def _line(text: str) -> str:
    return " ".join(text.split())


def _tag(node: ElementTree.Element) -> str:
    """The tag without its namespace; '' for a comment."""
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""
