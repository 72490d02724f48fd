"""LibreOffice's help in English and Russian: text. Its pictures are in other packages."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.prepare.corpora.manuals.dom import LEAVES, classes_of, has_blocks, heading_level, parse, text_of
from data_pipelines.prepare.corpora.manuals.pages import Page, Passage, page_records
from data_pipelines.prepare.corpora.packages import package_path
from data_pipelines.prepare.corpora.sets import CorpusSet, Record
from data_pipelines.prepare.splits import Split

_PACKAGES = {"en": ("libreoffice-help-en-us", "en-US"), "ru": ("libreoffice-help-ru", "ru")}
_SKIPPED = frozenset(("relatedtopics", "noteicon", "iconcell", "howtogetheader"))
_CODE = frozenset(("code", "codeintable", "smathcode"))
_FRAGMENTS = "00"
"""Folders of fragments that other pages include: ways to a command, one beside the other."""


def pages(raw: Path, language: str) -> Iterator[Page]:
    """The help's pages in a language, by name.

    Raises:
        UserError: if its package is not there.
    """
    package, folder = _PACKAGES[language]
    root = package_path(raw, package, f"usr/share/libreoffice/help/{folder}/text")
    for path in sorted(root.rglob("*.html")):
        name = path.relative_to(root).with_suffix("")
        if _FRAGMENTS not in name.parts:
            yield read_page(path, name.as_posix(), language, root)


def read_page(path: Path, name: str, language: str, root: Path) -> Page:
    """A page of the help.

    Args:
        path: the HTML file.
        name: the same in every language.
        language: 'en' or 'ru'.
        root: of the language.
    """
    tree = parse(path)
    content = tree.css_first("#DisplayArea")
    if content is None:
        return Page(name, language, "", (), root)
    for switch in content.css("span.switch, span.switchinline"):
        _choose(switch)
    title = tree.css_first("title")
    return Page(name, language, text_of(title) if title else "", tuple(_passages(content)), root)


def _choose(switch: Any) -> None:
    """Leaves one of the texts for different systems and programs: the default one or, without it, the first."""
    texts = [child for child in switch.iter() if child.tag == "span"]
    chosen = next((child for child in texts if (child.attributes.get("id") or "").startswith("default")), None)
    for child in texts:
        if child is not (chosen or texts[0]):
            child.decompose()


def _passages(node: Any, item: bool = False) -> Iterator[Passage]:
    for child in node.iter():
        kind = classes_of(child)
        if kind & _SKIPPED or child.tag in ("img", "br", "script", "style", "meta"):
            continue
        if child.tag == "tr":
            cells = [text_of(cell) for cell in child.css("td, th")]
            if any(cells):
                yield Passage(" | ".join(cells), "row")
        elif child.tag in LEAVES or not has_blocks(child):
            yield from _leaf(child, kind, item or child.tag == "li")
            item = False
        else:
            yield from _passages(child, item=child.tag == "li")


def _leaf(node: Any, kind: frozenset[str], item: bool) -> Iterator[Passage]:
    level = heading_level(node.tag)
    code = node.tag == "pre" or bool(kind & _CODE)
    text = node.text().strip("\n") if code else text_of(node)
    if text.strip():
        yield Passage(text, "heading" if level else "code" if code else "item" if item else "paragraph", level)


def _build(raw: Path, *, language: str) -> Iterator[tuple[Split, Record]]:
    return page_records(list(pages(raw, language)), "libreoffice", "text_only")


SETS = tuple(
    CorpusSet(
        f"text/libreoffice_{language}",
        "text_only",
        (_PACKAGES[language][0],),
        "MPL-2.0 AND Apache-2.0",
        functools.partial(_build, language=language),
        "Pages of LibreOffice's help; passages in another language are left out",
    )
    for language in _PACKAGES
)
