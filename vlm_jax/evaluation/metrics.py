"""Metrics: how right one answer is, 0..1. A benchmark names its metric; `METRICS` finds it."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

Metric = Callable[[str, Mapping[str, Any]], float]
"""(prediction, the question's record with its true 'answer') -> score in 0..1."""

_FINAL_PUNCTUATION = ".,;:!?…。！？"


def normalise(text: str) -> str:
    """The text without what does not make an answer another one: case, space around and doubled, final punctuation.

    'A  Red circle. ' -> 'a red circle', 'ЖЁЛТЫЙ' -> 'жёлтый'. Letters stay apart as Unicode has them: ё is not е, which
    never makes a wrong answer right, and whoever answers as the training data do loses nothing.
    """
    words = unicodedata.normalize("NFC", text).casefold().split()
    # NFC again, because casefold may take a letter apart.
    return unicodedata.normalize("NFC", " ".join(words)).rstrip(_FINAL_PUNCTUATION + " ")


def exact_match(prediction: str, record: Mapping[str, Any]) -> float:
    """1 if prediction and true answer are the same after `normalise`, else 0."""
    return float(normalise(prediction) == normalise(record["answer"]))


def contains(prediction: str, record: Mapping[str, Any]) -> float:
    """1 if one of record["expected"] (by default the true answer) stands in the prediction as words, else 0."""
    said = f" {_words(prediction)} "
    return float(any(f" {_words(word)} " in said for word in record.get("expected") or (record["answer"],)))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", normalise(text)))


METRICS: Mapping[str, Metric] = {"exact_match": exact_match, "contains": contains}
