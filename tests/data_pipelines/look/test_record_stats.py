"""Figures about raw records agree with the records, and their page with the figures."""

import json
import re

import cv2
import numpy as np
import pytest

from data_pipelines.examples import Image
from data_pipelines.look import record_stats as stats_module
from data_pipelines.look.record_parts import Unreadable
from data_pipelines.look.record_stats import record_stats, records_page
from data_pipelines.look.record_tables import figure_tables
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece


def image(width, height, suffix=".png", shade=0):
    pixels = np.full((height, width, 3), shade, np.uint8)
    return Image(data=cv2.imencode(suffix, pixels)[1].tobytes())


RECORDS = [
    {
        "id": "duck",
        "image": image(40, 20),
        "captions": [{"text": "A grey duck", "language": "en"}, {"text": "Серая утка", "language": "ru"}],
    },
    {
        "id": "goose",
        "image": image(30, 30, ".jpg"),
        "captions": [{"text": "A grey goose", "language": "en"}, {"text": "A grey goose", "language": "ru"}],
    },
    {"id": "duck again", "image": image(40, 20), "captions": [{"text": "A grey duck", "language": "en"}]},
    {"id": "page", "segments": [{"text": "Без языка"}, {"image": Image(data=b"junk")}]},
    Unreadable("bad/1", "no\n caption"),
    Unreadable("bad/2", "no caption"),
]


@pytest.fixture(scope="module")
def figures():
    return record_stats("birds", 60, enumerate(RECORDS))


def test_records_and_kinds(figures):
    assert (figures["records"], figures["counted"], figures["bad_records"]) == (60, 6, 2)
    assert figures["bad"] == {"no caption": 2}
    assert figures["kinds"] == {"captions": 3, "interleaved": 1}


def test_texts_by_language_and_purpose(figures):
    assert figures["languages"]["en"] == {"texts": 3, "words": 9, "characters": 34}
    assert figures["languages"]["ru"]["texts"] == 2
    assert figures["languages"]["cyrillic"] == {"texts": 1, "words": 2, "characters": 9}
    assert figures["scripts"]["ru"] == {"cyrillic": 1, "latin": 1}, "a caption was left in English"
    assert {role: each["texts"] for role, each in figures["roles"].items()} == {"caption": 5, "text": 1}
    assert (figures["texts"], figures["distinct_texts"], figures["words"]) == (6, 4, 16)
    assert figures["words_per_text"]["en"] == {"3": 3}
    assert figures["frequent_words"]["en"] == {"grey": 3, "duck": 2, "goose": 1}
    assert figures["repeated_texts"]["caption"] == {"A grey duck": 2, "A grey goose": 2}


def test_pictures(figures):
    pictures = figures["pictures"]
    assert (pictures["pictures"], pictures["distinct"], pictures["unreadable"]) == (4, 3, 1)
    assert pictures["formats"] == {"PNG": 2, "JPEG": 1, "other": 1}
    assert sorted(pictures["sizes"]) == [[30, 30], [40, 20], [40, 20]]
    assert pictures["aspect"]["most"] == 2
    assert pictures["per_record"] == {"1": 4}


def test_real_pairs_are_counted_once(figures):
    assert figures["pairs"] == 3, "the second duck is the first one, and both languages of the goose say the same"
    real = [{"id": str(n), "text": "x", "real": ["a", "b", str(n)]} for n in range(3)]
    assert record_stats("set", 3, enumerate(real))["pairs"] == 5


def test_fertility_where_a_tokenizer_is_given(figures):
    assert figures["fertility"] == {}
    tokenizer = train_sentencepiece(["A grey duck", "A grey goose"] * 20, SentencePieceConfig(277))
    measured = record_stats("birds", 60, enumerate(RECORDS), tokenizer)["fertility"]
    assert measured["en"]["words"] == 9
    assert measured["en"]["tokens"] == sum(
        len(tokenizer.encode(t)) for t in ("A grey duck", "A grey duck", "A grey goose")
    )
    assert measured["cyrillic"]["byte_share"] > 0.8 > 0 == measured["en"]["byte_share"]


def test_the_page_is_self_contained_after_a_round_trip_through_json(figures):
    page = records_page(json.loads(json.dumps(figures)))
    assert page == records_page(figures)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "6 of 60 records" in page
    assert "from random places" in page
    assert "no caption" in page


def test_texts_without_pictures_and_nothing_at_all_have_a_page_too():
    for records in ([{"id": "x", "text": "Слова, слова", "language": "ru"}], []):
        figures = record_stats("texts", len(records), enumerate(records))
        assert "Pictures" not in records_page(figures)
        assert list(figure_tables(figures))


def test_progress_is_told_of_every_record():
    steps = []
    record_stats("birds", 6, enumerate(RECORDS), progress=lambda: steps.append(1))
    assert len(steps) == len(RECORDS)


def test_odd_texts_and_immense_pictures_are_counted():
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (50_000).to_bytes(4, "big") * 2
    records = [{"id": "x", "image": Image(data=header), "captions": [{"text": "\ud800 \x00 \u202e$x$"}]}]
    figures = record_stats("odd", 1, enumerate(records))
    assert figures["pictures"]["megapixels"]["most"] == 2500
    records_page(figures).encode("utf-8", "replace")


def test_memory_of_repeated_texts_is_bounded(monkeypatch):
    monkeypatch.setattr(stats_module, "_MOST_TEXTS", 10)
    texts = (f"once {n}" if n % 5 else "often" for n in range(200))
    figures = record_stats("set", 200, enumerate({"id": "x", "text": text} for text in texts))
    assert figures["repeated_texts"]["text"] == {"often": 40}
    assert figures["texts"] == 200
