"""Rules for passages and pages, each by a page that it drops and one like it that it keeps, in both languages."""

import dataclasses
import random

import pytest

from data_pipelines.prepare.web.config import PageRules, WebConfig
from data_pipelines.prepare.web.documents import Document, document_of, record_of, text_of
from data_pipelines.prepare.web.html import extract_page
from data_pipelines.prepare.web.quality import bad_page, bad_passages, foreign_passages, language_of

ENGLISH = [
    "The crop tool removes areas from the edge of an image.",
    "Layers lie above each other like sheets of glass, and each may be moved alone.",
    "A gradient blends two colours along a path that you choose on the canvas.",
]
RUSSIAN = [
    "Инструмент кадрирования обрезает края изображения.",
    "Слои лежат друг над другом, как листы стекла, и каждый можно сдвинуть отдельно.",
    "Градиент плавно смешивает два цвета вдоль пути, который задаётся на холсте.",
]


def document(html: str, language: str = "en") -> Document:
    return {**document_of(extract_page(html, "https://example.org/"), ["x", -1]), "language": language}


def paragraphs(texts: list[str]) -> str:
    return "".join(f"<p>{text}</p>" for text in texts)


def test_bad_passages() -> None:
    menu = "<ul><li><a href=a>First page</a></li><li><a href=b>Second page</a></li></ul>"
    html = f"<h2><a href=x>Title</a></h2>{menu}" + paragraphs([*ENGLISH, ENGLISH[0], "Bad \ufffd byte"])
    page = document(html + "<dl><dt><a href=y>A term</a></dt><dd>what it means</dd></dl>")
    lines = text_of(page).split("\n")
    numbers = list(dict.fromkeys(segment["block"] for segment in page["segments"]))
    assert {lines[numbers.index(block)]: rule for block, rule in bad_passages(page, WebConfig().passages)} == {
        "First page": "links",
        "Second page": "links",
        ENGLISH[0]: "repeated_passage",
        "Bad \ufffd byte": "undecodable",
    }


@pytest.mark.parametrize(("language", "own", "foreign"), [("ru", RUSSIAN, ENGLISH), ("en", ENGLISH, RUSSIAN)])
def test_untranslated_passages_go_and_names_stay(language: str, own: list[str], foreign: list[str]) -> None:
    page = document(paragraphs([*own, "Ctrl+X", "F1 2024"]) + paragraphs(foreign), language)
    texts = [segment["text"] for segment in page["segments"]]
    blocks = [segment["block"] for segment in page["segments"]]
    assert [texts[blocks.index(block)] for block in foreign_passages(page, WebConfig().passages)] == foreign


def test_pages_in_scripts_that_are_not_known_keep_all_passages() -> None:
    assert list(foreign_passages(document(paragraphs(RUSSIAN), "el"), WebConfig().passages)) == []


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (ENGLISH, "en"),
        (RUSSIAN, "ru"),
        (["Це інструмент, який обрізає зображення. Шари лежать один над одним."] * 3, "uk"),
    ],
)
def test_languages_are_told_apart(texts: list[str], language: str) -> None:
    assert language_of(document(paragraphs(texts), ""), WebConfig()) == language


def test_a_short_page_is_believed_if_its_script_agrees() -> None:
    short = "Buffer. Named buffers, paste as."
    assert language_of(document(f"<p>{short}</p>", "en-us"), WebConfig()) == "en"
    assert language_of(document(paragraphs(ENGLISH), "ru"), WebConfig()) == "en"


SENTENCES = [
    " ".join(random.Random(seed).sample(" ".join(ENGLISH + RUSSIAN).split(), 20)) + f" {seed}" for seed in range(12)
]


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (ENGLISH, ""),
        (RUSSIAN, ""),
        (ENGLISH[:1], "too_short"),
        (["a b c d e f g h i j k l m n o p q r s t u v w"], "word_length"),
        (["Rindfleischetikettierungsüberwachungsaufgabe " * 25], "word_length"),
        (["word | = / * + - % # @ ! ? ; : { } [ ] ( ) word " * 12], "symbols"),
        ([*ENGLISH, "Please enable JavaScript to see this page."], "placeholder"),
        ([f"{text} and more …" for text in ENGLISH], "ellipses"),
        ([*ENGLISH[:2], *([ENGLISH[2]] * 3)], "repetition"),
        (["buy this now " * 40, "these are the other words that stand on the page"], "repetition"),
        (SENTENCES, ""),
    ],
)
def test_pages(texts: list[str], rule: str) -> None:
    assert bad_page(document(paragraphs(texts)), WebConfig()) == rule


def test_a_page_may_be_too_long() -> None:
    config = dataclasses.replace(WebConfig(), pages=PageRules(most_words=30))
    assert bad_page(document(paragraphs(ENGLISH)), config) == "too_long"


def test_invisible_characters_go_and_those_that_change_reading_stay() -> None:
    page = document("<p>\u200bза\u00adмок\ufeff e\u0301 \u202bשלום\u202c क्\u200dष</p>")
    assert text_of(page) == "замок é \u202bשלום\u202c क्\u200dष"


def test_a_picture_inside_a_paragraph_parts_it_only_while_it_is_there() -> None:
    page = document('<p>Click <img src="i.png"> here.</p><p>Then there.</p>')
    (url,) = [segment["image"] for segment in page["segments"] if "image" in segment]
    parted = record_of(page, {url: b"x"})["segments"]
    assert [segment.get("text") for segment in parted] == ["Click", None, "here.\nThen there."]
    page["segments"] = [segment for segment in page["segments"] if "text" in segment]
    assert record_of(page, {})["segments"] == [{"text": "Click here.\nThen there."}]
