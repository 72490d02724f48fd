"""Fertility: tokens a word by the usual count, and bytes of characters that a vocabulary lacks."""

import pytest

from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from data_pipelines.tokenizers.comparison import compare_tokenizers, tokenizers_page
from data_pipelines.tokenizers.fertility import Fertility, fertility

ENGLISH = ["a red circle", "a blue square", "is the circle red?"] * 30
RUSSIAN = ["красный круг", "синий квадрат", "круг красный?"] * 30


@pytest.fixture(scope="module")
def english():
    return train_sentencepiece(ENGLISH, SentencePieceConfig(280))


@pytest.fixture(scope="module")
def both():
    return train_sentencepiece(ENGLISH + RUSSIAN, SentencePieceConfig(297))


def test_counts_are_those_of_the_texts(english):
    texts = ["a red circle", "is it?\nред"]
    measured = fertility(english, texts)
    assert (measured.texts, measured.words) == (2, 6)
    assert measured.characters == sum(map(len, texts))
    assert measured.bytes == sum(len(text.encode()) for text in texts)
    assert measured.tokens == sum(len(english.encode(text)) for text in texts)
    assert measured.tokens_per_word == measured.tokens / 6
    assert measured.bytes_per_token == measured.bytes / measured.tokens


def test_a_foreign_language_costs_more_and_is_spelled_in_bytes(english, both):
    foreign, own = fertility(english, RUSSIAN), fertility(both, RUSSIAN)
    assert foreign.tokens_per_word > 2 * own.tokens_per_word
    assert foreign.byte_tokens == sum(len(text.replace(" ", "").replace("?", "").encode()) for text in RUSSIAN)
    assert own.byte_tokens == 0
    assert fertility(english, ENGLISH).byte_tokens == 0


def test_a_line_break_is_a_whole_character(english):
    assert fertility(english, ["red\nred"]).byte_tokens == 0


def test_sums_are_those_of_the_texts_together(both):
    first, second = ["круг", "a circle"], ["квадрат?"]
    assert fertility(both, first) + fertility(both, second) == fertility(both, first + second)
    assert fertility(both, []) == Fertility()
    assert Fertility().tokens_per_word == 0


def test_lone_surrogates_are_passed_over(both):
    assert fertility(both, ["red\ud800"]).tokens == fertility(both, ["red"]).tokens


def test_tokenizers_side_by_side(english, both):
    texts = [*ENGLISH[:20], *RUSSIAN[:20], "12"]
    figures = compare_tokenizers({"english": english, "both": both}, texts, seen_share=0.25)
    languages = figures["tokenizers"]["english"]["languages"]
    assert languages["cyrillic"] == fertility(english, texts[20:40]).plain()
    assert languages["latin"]["texts"] == 20
    assert "other" not in languages
    pieces = figures["tokenizers"]["both"]["pieces"]
    assert sum(pieces.values()) == 297
    assert (pieces["bytes"], pieces["control"]) == (256, 7)
    assert pieces["cyrillic"] > 0 < pieces["latin"]
    assert figures["tokenizers"]["english"]["pieces"].get("cyrillic", 0) == 0
    for sample in figures["samples"]:
        assert sample["text"] in texts
        assert "".join(sample["pieces"]["both"]) == sample["text"]
    page = tokenizers_page(figures, "Tokenizer <of> birds")
    assert "Tokenizer &lt;of&gt; birds" in page
    assert "training saw 25 %" in page
    assert f"{languages['cyrillic']['tokens_per_word']:.2f}" in page
    assert "&lt;0xD0&gt;" in page
