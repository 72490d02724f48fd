"""Sentences are taken whole, once, and never from training into a test."""

from pathlib import Path
from typing import Any

import pytest

from data_pipelines.prepare.corpora.sets import CorpusSet
from data_pipelines.prepare.corpora.transcription import sentences as module
from data_pipelines.prepare.corpora.transcription.sentences import is_plain, sentences, split_sentences, text_sets


def test_splitting() -> None:
    assert split_sentences("Click OK. Now wait! It may take e.g. an hour.") == [
        "Click OK.",
        "Now wait!",
        "It may take e.g. an hour.",
    ]
    assert split_sentences("- Нажмите «ОК». Готово.") == ["Нажмите «ОК».", "Готово."]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Нажмите «ОК».", True),
        ("See https://example.org.", False),
        ("Press ⌘ now.", False),
        ("12.5", False),
        ("x" * 181, False),
        ("a = b", False),
        ("x", False),
    ],
)
def test_what_is_plain(text: str, plain: bool) -> None:
    assert is_plain(text) == plain


def test_the_sets_of_a_language() -> None:
    assert {each.name.rpartition("_")[2] for each in text_sets("ru")} == {"ru"}
    assert {each.kind for each in text_sets("ru")} == {"interleaved", "text_only"}


def test_each_once_in_training_if_it_stands_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[tuple[Any, dict[str, Any]]] = [
        ("test", {"id": "1", "language": "en", "text": "Held out. Common to both.\n\nНе по-английски."}),
        ("train", {"id": "2", "language": "en", "segments": [{"text": "Common to both."}, {"image": None}]}),
        ("validation", {"id": "3", "language": "en", "text": "Common to both. In between."}),
    ]
    corpus = CorpusSet("text/x_en", "text_only", (), "CC0-1.0", lambda raw: iter(records))
    monkeypatch.setattr(module, "text_sets", lambda language: (corpus,))
    assert list(sentences(tmp_path, "en")) == [
        ("train", "Common to both."),
        ("test", "Held out."),
        ("validation", "In between."),
    ]
