"""Parts of HTML pages as the readers of manuals see them: what is a block, and what a block says."""

from pathlib import Path
from typing import Any

from data_pipelines.optional import need
from vlm_jax.errors import UserError

LEAVES = frozenset(("p", "pre", "dt", "h1", "h2", "h3", "h4", "h5", "h6"))
"""Blocks that hold no other blocks."""

_BLOCKS = LEAVES | {"div", "table", "tbody", "thead", "tr", "td", "th", "ul", "ol", "li", "dl", "dd", "blockquote"}


def parse(path: Path) -> Any:
    """The tree of an HTML file (selectolax).

    Raises:
        UserError: if the file cannot be read, or selectolax is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch its package again") from None
    tree = need("selectolax.lexbor", "prepare").LexborHTMLParser(data)
    for line_break in tree.css("br"):
        line_break.insert_before("\n")
    return tree


def has_blocks(node: Any) -> bool:
    """Whether there is a block somewhere in the node; if not, the node is one by itself."""
    return any(child.tag in _BLOCKS or has_blocks(child) for child in node.iter())


def text_of(node: Any) -> str:
    """What a block says, in one line; blocks inside it are words apart."""
    if has_blocks(node):
        return " ".join(filter(None, map(text_of, node.iter(include_text=True))))
    return " ".join(node.text().split())


def classes_of(node: Any) -> frozenset[str]:
    """The node's classes."""
    return frozenset((node.attributes.get("class") or "").split())


def heading_level(tag: str) -> int:
    """1 to 6, or 0 if the tag is no heading's."""
    return int(tag[1]) if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit() else 0
