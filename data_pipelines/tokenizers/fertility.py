"""How dearly a tokenizer spells a language: tokens a word, bytes a token, and tokens that are bytes, not characters.

Fertility, the mean number of tokens a word, is the usual measure (Rust et al., 2021, https://arxiv.org/abs/2012.15613,
section 4.1). A model pays it in length and time for every text of that language.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from data_pipelines.tokenizers.protocol import Tokenizer
from data_pipelines.words import words_of

_BYTE = re.compile(r"<0x[89A-F][0-9A-F]>")
"""A byte of a character of several. The others, such as a line break's, are whole characters."""


@dataclasses.dataclass(frozen=True)
class Fertility:
    """Counts over some texts; two of them can be added."""

    texts: int = 0
    words: int = 0
    characters: int = 0
    bytes: int = 0
    """In UTF-8."""
    tokens: int = 0
    byte_tokens: int = 0
    """Tokens that are a part of a character, one byte or more, since the vocabulary lacks it."""

    def __add__(self, other: "Fertility") -> "Fertility":
        return Fertility(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def tokens_per_word(self) -> float:
        """Fertility; words are runs of letters and digits, so that punctuation counts among the tokens only."""
        return self.tokens / max(1, self.words)

    @property
    def bytes_per_token(self) -> float:
        """How much text a token holds."""
        return self.bytes / max(1, self.tokens)

    @property
    def byte_share(self) -> float:
        """Share of tokens that are a part of a character."""
        return self.byte_tokens / max(1, self.tokens)

    def plain(self) -> dict[str, Any]:
        """Counts and measures, JSON-able."""
        measures = ("tokens_per_word", "bytes_per_token", "byte_share")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in measures}


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> Fertility:
    """Measures a tokenizer on texts, each by itself."""
    total = Fertility()
    for text in texts:
        readable = text.encode("utf-8", "ignore").decode()
        total += spelled(tokenizer, readable, tokenizer.encode(readable))
    return total


def spelled(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> Fertility:
    """Counts of one text that became these ids."""
    in_bytes = _byte_ids(tokenizer)
    size = len(text.encode("utf-8", "ignore"))
    return Fertility(1, len(words_of(text)), len(text), size, len(ids), sum(id in in_bytes for id in ids))


@functools.lru_cache(maxsize=16)
def _byte_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(id for id in range(tokenizer.vocabulary_size) if _BYTE.search(tokenizer.id_to_piece(id)))
