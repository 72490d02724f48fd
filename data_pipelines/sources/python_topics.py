"""The chapters behind Python's own `help()`: half a megabyte of English prose that every installation has.

For runs that need some general text and nothing downloaded. The chapters are the language reference's (PSF licence).
"""

import dataclasses
import hashlib
import re
import textwrap
from typing import Any, Literal

from vlm_jax.errors import UserError

_PARTS = 10
"""One chapter of so many is kept for validation."""


@dataclasses.dataclass(frozen=True)
class PythonTopics:
    """Which chapters to list, and in pieces of what size.

    split: about a tenth of the chapters, chosen by their names, are 'validation'.
    characters: a record is some paragraphs of a chapter, up to so many characters; longer paragraphs are cut
        between words.
    name: of the source.
    """

    split: Literal["train", "validation"] = "train"
    characters: int = 1_000
    name: str = "python_topics"


class PythonTopicsSource:
    """Records of running text: {'id': 'python_topics/assert/0', 'text': 'The "assert" statement …'}."""

    def __init__(self, config: PythonTopics) -> None:
        """Raises UserError if this Python comes without the chapters, or the config asks for what there is not."""
        if config.split not in ("train", "validation"):
            raise UserError(f"source '{config.name}': there is no split '{config.split}'; choose train or validation")
        if config.characters < 1:
            raise UserError(f"source '{config.name}': characters is {config.characters}; give a positive number")
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise UserError(
                f"source '{config.name}': this Python comes without pydoc_data; install its documentation package"
            ) from None
        self.config = config
        self.name = config.name
        held_out = config.split == "validation"
        chapters = {name: text for name, text in sorted(topics.items()) if _is_held_out(name) == held_out}
        self._records = [
            (f"python_topics/{name}/{number}", piece)
            for name, text in chapters.items()
            for number, piece in enumerate(_pieces(text, config.characters))
        ]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one piece."""
        record_id, text = self._records[index]
        return {"id": record_id, "text": text}


def _pieces(text: str, characters: int) -> list[str]:
    """The text in pieces of whole paragraphs, lines joined and rulers dropped."""
    paragraphs = [
        re.sub(r"\s+", " ", re.sub(r"(?m)^[ \t]*[*=\-~^]{3,}$", "", part)).strip() for part in text.split("\n\n")
    ]
    pieces: list[str] = []
    for paragraph in filter(None, paragraphs):
        for part in textwrap.wrap(paragraph, characters, break_on_hyphens=False):
            if pieces and len(pieces[-1]) + 1 + len(part) <= characters:
                pieces[-1] = f"{pieces[-1]}\n{part}"
            else:
                pieces.append(part)
    return pieces


def _is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % _PARTS == 0
