"""How much of a page's main content readers of HTML keep: of its words and of its pictures, and how fast.

    python benchmarks/html_readers.py data/raw
    python benchmarks/html_readers.py data/raw --pages 500 --json readers.json

What the main content is, is known for two manuals: GIMP's pages but their navigation bars, LibreOffice's <div> of that
name. Recall is the share of the words (or pictures) there that a reader gives, precision the share of what it gives
that is there. trafilatura is measured beside `extract_page` where it can be imported.
"""

import argparse
import collections
import importlib.util
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich
from rich.table import Table
from selectolax.lexbor import LexborHTMLParser

from data_pipelines.prepare.web.html import Passage, extract_page

Bag = collections.Counter[str]
Content = tuple[Bag, Bag]
"""Words, and sources of pictures."""

_WORD = re.compile(r"\w+")
_KNOWN = {
    "gimp-help-en": ("body", "div.navheader, div.navfooter, script, style"),
    "gimp-help-ru": ("body", "div.navheader, div.navfooter, script, style"),
    "libreoffice-help-en-us": ("#DisplayArea", "script, style, [hidden]"),
    "libreoffice-help-ru": ("#DisplayArea", "script, style, [hidden]"),
}
"""Package -> (element with the main content, what in it does not belong)."""

_COLUMNS = ("words recall", "words precision", "pictures recall", "pictures precision", "pages/s")


def known_content(html: bytes, where: str, without: str) -> Content | None:
    """What a reader should give; None where the page has no such element."""
    node = LexborHTMLParser(html).css_first(where)
    if node is None:
        return None
    for other in node.css(without):
        other.decompose()
    sources = collections.Counter(image.attributes.get("src") or "" for image in node.css("img"))
    return collections.Counter(_WORD.findall(node.text(separator=" "))), sources


def ours(html: bytes) -> Content:
    """`extract_page`."""
    segments = extract_page(html, "").segments
    texts = " ".join(segment.text for segment in segments if isinstance(segment, Passage))
    pictures = collections.Counter(segment.url for segment in segments if not isinstance(segment, Passage))
    return collections.Counter(_WORD.findall(texts)), pictures


def trafilatura_reader(**options: Any) -> Callable[[bytes], Content]:
    """trafilatura with pictures and tables."""
    import trafilatura

    def read(html: bytes) -> Content:
        document: Any = trafilatura.bare_extraction(html, include_images=True, include_tables=True, **options)
        if document is None:
            return collections.Counter(), collections.Counter()
        sources = collections.Counter(node.get("src") for node in document.body.iter("graphic"))
        return collections.Counter(_WORD.findall(" ".join(document.body.itertext()))), sources

    return read


def measure(pages: list[tuple[bytes, Content]], read: Callable[[bytes], Content]) -> dict[str, float]:
    """Recall and precision over all pages together, and pages a second."""
    totals: collections.Counter[str] = collections.Counter()
    seconds = 0.0
    for html, known in pages:
        start = time.perf_counter()
        given = read(html)
        seconds += time.perf_counter() - start
        for name, wanted, got in zip(("words", "pictures"), known, given, strict=True):
            totals.update({f"{name} both": (wanted & got).total(), f"{name} wanted": wanted.total()})
            totals.update({f"{name} given": got.total()})
    shares = {
        f"{name} {kind}": totals[f"{name} both"] / max(1, totals[f"{name} {of}"])
        for name in ("words", "pictures")
        for kind, of in (("recall", "wanted"), ("precision", "given"))
    }
    return {**shares, "pages/s": len(pages) / seconds}


def main() -> None:
    """Measures all readers on all manuals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="directory of unpacked packages")
    parser.add_argument("--pages", type=int, default=120, help="pages of each manual (120)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    readers: dict[str, Callable[[bytes], Content]] = {"extract_page": ours}
    if importlib.util.find_spec("trafilatura"):
        readers["trafilatura"] = trafilatura_reader()
        readers["trafilatura, favor_recall"] = trafilatura_reader(favor_recall=True)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    table = Table("manual", "reader", *_COLUMNS, box=None)
    for column in table.columns:
        column.no_wrap = True
    for package, (where, without) in _KNOWN.items():
        files = sorted((options.raw / package).rglob("*.html"))
        chosen = [path.read_bytes() for path in random.Random(0).sample(files, min(options.pages, len(files)))]
        pages = [(html, known) for html in chosen if (known := known_content(html, where, without))]
        figures[package] = {name: measure(pages, read) for name, read in readers.items()}
        for name, values in figures[package].items():
            cells = [f"{value:.0f}" if key == "pages/s" else f"{value:.1%}" for key, value in values.items()]
            table.add_row(package, name, *cells)
    rich.print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
