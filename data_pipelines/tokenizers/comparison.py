"""Tokenizers side by side on the same texts: figures for a program, and a page for a person."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.look.pages import page_template
from data_pipelines.tokenizers.fertility import fertility
from data_pipelines.tokenizers.protocol import Tokenizer
from data_pipelines.words import SCRIPTS, script_of, words_of

_SAMPLES = 4
_SAMPLE_WORDS = (8, 26)
_SPACE = "▁"


def compare_tokenizers(tokenizers: Mapping[str, Tokenizer], texts: Sequence[str], seen_share: float) -> dict[str, Any]:
    """Measures tokenizers on texts, language by language (told apart by script; texts without a letter are left out).

    Args:
        tokenizers: by name.
        texts: to measure on.
        seen_share: share of the texts that the first tokenizer was trained on.

    Returns:
        JSON-able figures: 'tokenizers' {name: {'vocabulary_size', 'pieces': {script: n}, 'languages': {language:
        `Fertility.plain`}}}, and 'samples' [{'language', 'text', 'pieces': {name: [piece, …]}}].
    """
    by_language: dict[str, list[str]] = collections.defaultdict(list)
    for text in texts:
        by_language[script_of(text)].append(text)
    by_language.pop("other", None)
    figures: dict[str, Any] = {"texts": len(texts), "seen_share": seen_share, "tokenizers": {}, "samples": []}
    for name, tokenizer in tokenizers.items():
        measured = {language: fertility(tokenizer, some) for language, some in sorted(by_language.items())}
        figures["tokenizers"][name] = {
            "vocabulary_size": tokenizer.vocabulary_size,
            "pieces": _pieces_by_script(tokenizer),
            "languages": {language: each.plain() for language, each in measured.items()},
        }
    for language, some in sorted(by_language.items()):
        for text in _samples(some):
            pieces = {name: _pieces(tokenizer, text) for name, tokenizer in tokenizers.items()}
            figures["samples"].append({"language": language, "text": text, "pieces": pieces})
    return figures


def tokenizers_page(figures: Mapping[str, Any], title: str) -> str:
    """The figures as one HTML page without outside requests."""
    languages = sorted({language for each in figures["tokenizers"].values() for language in each["languages"]})
    most = max(
        (f["tokens_per_word"] for each in figures["tokenizers"].values() for f in each["languages"].values()),
        default=1.0,
    )
    return page_template("tokenizers_page.html.j2").render(
        figures=figures, title=title, languages=languages, scripts=SCRIPTS, most=most
    )


def _pieces_by_script(tokenizer: Tokenizer) -> dict[str, int]:
    count: collections.Counter[str] = collections.Counter()
    for id in range(tokenizer.vocabulary_size):
        piece = tokenizer.id_to_piece(id)
        if id in tokenizer.control_ids:
            count["control"] += 1
        elif piece.startswith("<0x") or not piece:
            count["bytes"] += 1
        else:
            count[script_of(piece)] += 1
    return dict(count)


def _samples(texts: Sequence[str]) -> list[str]:
    """Some short ones, from all over."""
    least, most = _SAMPLE_WORDS
    lines = dict.fromkeys(line.strip() for text in texts for line in text.splitlines())
    fitting = [line for line in lines if least <= len(words_of(line)) <= most] or list(lines)[:_SAMPLES]
    return fitting[:: max(1, len(fitting) // _SAMPLES)][:_SAMPLES]


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    readable = text.encode("utf-8", "ignore").decode()
    return [tokenizer.id_to_piece(id).replace(_SPACE, " ") for id in tokenizer.encode(readable)]
