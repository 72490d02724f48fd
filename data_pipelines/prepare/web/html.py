"""The main content of a web page: its passages and pictures in reading order, without menus, footers and the like.

Boilerplate is recognised by what elements say of themselves (their tag, role, class and id), and the rest is kept as it
stands. Readers that score blocks instead lose most pictures and every sixth word of manuals: see
`benchmarks/html_readers.py`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from urllib.parse import urljoin

from selectolax.lexbor import LexborHTMLParser, LexborNode

from data_pipelines.prepare.web.html_encoding import decode_html


@dataclasses.dataclass(frozen=True)
class Passage:
    """A stretch of text, in one line but for line breaks of the page."""

    text: str
    block: int
    """Number of the block (paragraph, heading, list item, row of a table) that it is of. An inline picture parts a
    block into several passages of the same number."""
    heading: int = 0
    """Level of a heading, 1..6; 0 = none."""
    links: float = 0.0
    """Share of its characters that stand in links, 0..1."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A reference to a picture where it stands in the page."""

    url: str
    """Absolute."""
    block: int
    """The block that it stands in or, if it stands between two, the one before it."""
    alt: str = ""
    width: int = 0
    """As the page says, in pixels; 0 = it does not."""
    height: int = 0
    caption: str = ""
    """The caption of the figure around it; it is a passage of the page as well."""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page's main content."""

    url: str
    title: str
    language: str
    """What the page says of itself ('ru', 'en-us'), in lower case; '' = nothing."""
    segments: tuple[Passage | Picture, ...]

    @property
    def text(self) -> str:
        """All passages, blocks apart by a line break."""
        blocks: dict[int, list[str]] = {}
        for segment in self.segments:
            if isinstance(segment, Passage):
                blocks.setdefault(segment.block, []).append(segment.text)
        return "\n".join(" ".join(parts) for parts in blocks.values())


def extract_page(html: bytes | str, url: str, charset: str = "") -> Page:
    """Reads a page.

    Args:
        html: The file. Anything is accepted; what is no page has no segments.
        url: Where it is from; pictures' addresses are resolved against it, or against the page's <base>.
        charset: What the server's header said of the encoding.
    """
    text = html if isinstance(html, str) else decode_html(html, charset)
    tree = LexborHTMLParser(text.replace("\x00", ""))
    root, body = tree.root, tree.body
    if root is None or body is None:
        return Page(url, "", "", ())
    base = tree.css_first("base[href]")
    reader = _Reader(_joined(url, base.attributes.get("href") or "") if base is not None else url)
    reader.read(_main_part(body))
    title = tree.css_first("title")
    language = root.attributes.get("lang") or root.attributes.get("xml:lang") or ""
    return Page(
        url, "" if title is None else " ".join(title.text().split()), language.strip().lower(), tuple(reader.segments)
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SKIPPED = _words(
    """script style noscript template svg math iframe object embed canvas audio video nav footer aside select option
    button input textarea dialog menu head map datalist"""
)
_SKIPPED_ROLES = _words("navigation banner contentinfo search complementary menu menubar dialog alert toolbar")
_BOILERPLATE = re.compile(
    r"(?:^|[\s_-])(?:nav(?:bar|header|footer|igation|menu)?|menus?|breadcrumbs?|sidebar|footer|foot|cookies?|consent|"
    r"share|sharing|social|comments?|disqus|related(?:topics|posts)?|adverts?|advertisement|ads?|promo|sponsored|popup|"
    r"modal|newsletter|subscribe|subscription|pagination|pager|skip|searchbox|search|login|signup|masthead|"
    r"toolbar|reportbug|donation|editsection)(?:$|[\s_-])",
    re.I,
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_BLOCKS = _words(
    """address article blockquote body caption center dd details div dl dt fieldset figcaption figure form h1 h2 h3 h4
    h5 h6 header hgroup hr legend li main ol p pre section summary table tbody tfoot thead tr ul"""
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_MAIN = "main, [role=main], article, [itemprop=articleBody], [itemprop=mainContentOfPage]"
_SPACE = re.compile(r"[ \t\r\f\v\xa0]*\n\s*|[ \t\r\f\v\xa0]+")
_SOURCES = ("src", "data-src", "data-original", "data-lazy-src", "data-url")
_PLACEHOLDER = "data:"
_WEIGHED = 1000
"""So many elements with the names of boilerplate are looked into, a page."""


def _main_part(body: LexborNode) -> LexborNode:
    """The element that says that it is the main content, if it holds most of the text; else the body."""
    candidates = body.css(_MAIN)
    if not candidates:
        return body
    largest = max(candidates, key=lambda node: len(node.text()))
    return largest if len(largest.text()) > 0.5 * _content_length(body) else body


def _content_length(body: LexborNode) -> int:
    skipped = sum(len(node.text()) for node in body.css("script, style, noscript, nav, footer, aside"))
    return len(body.text()) - skipped


class _Reader:
    """Goes over the elements in order and gathers segments. No recursion: pages may be nested thousands deep."""

    def __init__(self, base: str) -> None:
        self.segments: list[Passage | Picture] = []
        self._base = base
        self._parts: list[str] = []
        self._linked = 0
        self._links = 0
        self._heading = 0
        self._block = 0
        self._preformatted = 0
        self._whole = 0
        self._weighed = 0

    def read(self, root: LexborNode) -> None:
        self._whole = len(root.text())
        for node, opens in _walk(root, self._skipped):
            tag = node.tag or ""
            if tag == "-text":
                self._add_text(node.text_content or "")
            elif opens:
                self._open(tag, node)
            else:
                self._close(tag)
        self._end_block()

    def _open(self, tag: str, node: LexborNode) -> None:
        if tag in _BLOCKS:
            self._end_block()
            self._heading = _HEADINGS.get(tag, self._heading)
            self._preformatted += tag == "pre"
        elif tag == "a":
            self._links += 1
        elif tag == "br":
            self._parts.append("\n")
        elif tag in ("td", "th") and any(part.strip() for part in self._parts):
            self._parts.append(" | ")
        elif tag == "img":
            self._add_picture(node)

    def _close(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._end_block()
            if tag in _HEADINGS:
                self._heading = 0
            self._preformatted -= tag == "pre"
        elif tag == "a":
            self._links -= 1

    def _add_text(self, text: str) -> None:
        if not self._preformatted:
            text = text.replace("\n", " ")
        self._parts.append(text)
        if self._links:
            self._linked += len(text.strip())

    def _add_picture(self, node: LexborNode) -> None:
        attributes = node.attributes
        source = _picture_source(attributes)
        if not source:
            return
        self._end_passage()
        figure = _figure_around(node)
        self.segments.append(
            Picture(
                url=_joined(self._base, source),
                block=self._block,
                alt=" ".join((attributes.get("alt") or "").split()),
                width=_pixels(attributes.get("width")),
                height=_pixels(attributes.get("height")),
                caption="" if figure is None else _caption_of(figure),
            )
        )

    def _end_passage(self) -> None:
        if not self._parts:
            return
        text = _SPACE.sub(lambda space: "\n" if "\n" in space[0] else " ", "".join(self._parts)).strip(" \n|")
        if text:
            links = min(1.0, self._linked / len(text))
            self.segments.append(Passage(text, self._block, self._heading, links))
        self._parts, self._linked = [], 0

    def _end_block(self) -> None:
        self._end_passage()
        self._block += 1

    def _skipped(self, node: LexborNode) -> bool:
        """Whether an element and all in it is boilerplate. What holds most of the page never is, whatever its name."""
        tag = node.tag
        if tag in _SKIPPED:
            return True
        attributes = node.attributes
        if not attributes:
            return False
        if "hidden" in attributes or (attributes.get("aria-hidden") or "") == "true":
            return True
        if _HIDDEN.search(attributes.get("style") or ""):
            return True
        named = f"{attributes.get('class') or ''} {attributes.get('id') or ''}"
        if (attributes.get("role") or "") in _SKIPPED_ROLES or _BOILERPLATE.search(named):
            self._weighed += 1  # each look costs the element's size, so a page of nested menus gets only so many
            return self._weighed > _WEIGHED or 2 * len(node.text()) < self._whole
        return False


def _walk(root: LexborNode, skipped: Callable[[LexborNode], bool]) -> Iterator[tuple[LexborNode, bool]]:
    """(node, whether it opens) of everything under the root in document order; texts only open."""
    depth = 0
    node = root.child
    while node is not None:
        tag = node.tag or ""
        if tag == "-text":
            yield node, True
        elif not tag.startswith(("-", "!", "_")) and not skipped(node):
            yield node, True
            if node.child is not None:
                node, depth = node.child, depth + 1
                continue
            yield node, False
        while depth and node is not None and node.next is None:
            node, depth = node.parent, depth - 1
            if node is not None:
                yield node, False
        node = None if node is None else node.next


def _is_figure(node: LexborNode) -> bool:
    return node.tag == "figure" or (node.tag == "div" and "figure" in (node.attributes.get("class") or "").split())


def _figure_around(node: LexborNode, levels: int = 6) -> LexborNode | None:
    parent = node.parent
    while parent is not None and levels:
        if _is_figure(parent):
            return parent
        parent, levels = parent.parent, levels - 1
    return None


def _caption_of(figure: LexborNode) -> str:
    caption = figure.css_first("figcaption, .caption, .title")
    return "" if caption is None else " ".join(caption.text().split())


def _picture_source(attributes: dict[str, str | None]) -> str:
    """Pages that load pictures late give a placeholder as `src` and the address elsewhere."""
    for name in _SOURCES:
        source = (attributes.get(name) or "").strip()
        if source and not source.startswith(_PLACEHOLDER):
            return source
    return _largest(attributes.get("srcset") or attributes.get("data-srcset") or "")


def _largest(candidates: str) -> str:
    """The address with the largest width or density in a `srcset`."""
    best, most = "", -1.0
    for candidate in re.split(r",\s+", candidates.strip()):
        address, _, size = candidate.strip().partition(" ")
        try:
            value = float(size.strip().rstrip("wxh") or 1)
        except ValueError:
            continue
        if address and not address.startswith(_PLACEHOLDER) and value > most:
            best, most = address.rstrip(","), value
    return best


def _pixels(value: str | None) -> int:
    found = re.fullmatch(r"\s*(\d{1,6})(?:\.\d+)?\s*(?:px)?\s*", value or "")
    return int(found[1]) if found else 0


def _joined(base: str, address: str) -> str:
    try:
        return urljoin(base, address)
    except ValueError:  # such as an unclosed bracket of an IPv6 address
        return address
