"""Reads the pages of GIMP's manual: DocBook's HTML, one directory a language, the same file names in each."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.prepare.corpora.manuals.dom import LEAVES, classes_of, has_blocks, heading_level, parse, text_of
from data_pipelines.prepare.corpora.manuals.pages import Page, Passage, Picture, large_enough

_SKIPPED = frozenset(
    [
        "navheader",
        "navfooter",
        "toc",
        "indexdiv",
        "index",
        "footnotes",
        "revhistory",
        "list-of-figures",
        "list-of-examples",
    ]
)
_NOTES = frozenset(["note", "tip", "warning", "caution", "important"])
_TERM_LEVEL = 8
"""Terms of a list of definitions count as headings below all others: without its definition, a term goes too."""
_NUMBER = re.compile(
    r"^(?:(?:Figure|Рисунок|Example|Пример|Table|Таблица|Chapter|Глава|Appendix|Приложение|Part|Часть)\s+)?"
    r"(?:[IVX]+|[A-Z]|\d+)(?:\.\d+)*\.\s+"
)


def read_page(path: Path, language: str) -> Page:
    """A page of the manual. Numbers of sections and figures are left out; so are pictures inside sentences.

    Args:
        path: the HTML file.
        language: 'en' or 'ru'.
    """
    tree = parse(path)
    for mark in tree.css("sup.footnote"):
        mark.decompose()
    reader = _Reader(path.parent)
    reader.read(tree.body)
    title = tree.css_first("title")
    return Page(path.stem, language, _unnumbered(text_of(title)) if title else "", tuple(reader.blocks), path.parent)


class _Reader:
    """Walks down the tree and keeps what it meets."""

    def __init__(self, root: Path) -> None:
        self.blocks: list[Passage | Picture] = []
        self._root = root
        self._heading = ""
        self._item = False
        """The next paragraph is the first of a list's item."""

    def read(self, node: Any) -> None:
        """Adds what the node holds."""
        for child in node.iter(include_text=True):
            if child.tag == "-text":
                # Loose text among blocks is the indentation of the file.
                continue
            kind = classes_of(child)
            if _SKIPPED.intersection(kind) or child.tag in ("script", "style", "hr", "img"):
                continue
            if _NOTES.intersection(kind):
                for cell in child.css("td"):
                    self.read(cell)
            elif "figure" in kind or "informalfigure" in kind:
                self._figure(child)
            elif "mediaobject" in kind or "screenshot" in kind:
                self._media(child, "", alone=True)
            elif child.tag in LEAVES or not has_blocks(child):
                self._leaf(child)
            else:
                self._item = child.tag == "li"
                self.read(child)

    def _leaf(self, node: Any) -> None:
        if node.tag == "pre":
            self._add(node.text().strip("\n"), "code")
        elif level := heading_level(node.tag):
            self._heading = _unnumbered(text_of(node))
            self._add(self._heading, "heading", level)
        elif node.tag == "dt":
            self._add(_unnumbered(text_of(node)), "heading", _TERM_LEVEL)
        elif "title" in classes_of(node):
            self._add(_unnumbered(text_of(node)), "paragraph")
        else:
            self._add(text_of(node), "item" if self._item or node.tag == "li" else "paragraph")
            self._item = False

    def _figure(self, node: Any) -> None:
        title = node.css_first("p.title")
        text = _unnumbered(text_of(title)) if title else ""
        media = node.css("div.mediaobject")
        if text:
            self._add(text, "caption")
        for each in media:
            self._media(each, text, alone=len(media) == 1)

    def _media(self, node: Any, title: str, alone: bool) -> None:
        """A picture with the caption under it. A title that several pictures share says nothing of one by itself."""
        caption = " ".join(text_of(each) for each in node.css("div.caption"))
        about = _sentences(title, caption) if caption or alone else ""
        for image in node.css("img"):
            source = image.attributes.get("src") or ""
            if large_enough(self._root / source):
                self.blocks.append(Picture(source, about, self._heading))
        if caption:
            self._add(caption, "caption")

    def _add(self, text: str, role: Any, level: int = 0) -> None:
        if text.strip():
            self.blocks.append(Passage(text, role, level))


def _unnumbered(text: str) -> str:
    return _NUMBER.sub("", text)


def _sentences(*texts: str) -> str:
    """The texts one after the other; each but the last ends like a sentence."""
    kept = [text for text in dict.fromkeys(texts) if text]
    return " ".join([*(text if text[-1] in ".!?:…" else f"{text}." for text in kept[:-1]), *kept[-1:]])


def read_pages(directory: Path, language: str) -> Iterator[Page]:
    """Every page of a language, by name."""
    for path in sorted(directory.glob("*.html")):
        if path.stem not in ("index", "gimp-help-index"):
            yield read_page(path, language)
