"""Pages of raw records: everything is shown or said to be left out, nothing in the data can harm a page or hide."""

import base64
import re

import cv2
import numpy as np
from rich.text import Text as RichText

from data_pipelines.examples import Image
from data_pipelines.look.gallery import card_of, describe_record, draw_records, visible
from data_pipelines.look.record_parts import Unreadable


def png(width=300, height=200, colour=(255, 0, 0)):
    pixels = np.full((height, width, 3), colour[::-1], np.uint8)
    return Image(data=cv2.imencode(".png", pixels)[1].tobytes())


def page_of(*records, **options):
    return draw_records("set", 99, list(enumerate(records)), **options)


def pixels(uri):
    data = base64.b64decode(uri.partition("base64,")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def test_pictures_are_shown_small_and_in_their_colours():
    card = card_of(0, {"id": "a", "images": [png(1600, 400, (200, 30, 10)), png(20, 10, (1, 2, 250))]})
    large, small = (part.picture for part in card.parts)
    assert pixels(large.uri).shape == (120, 480, 3)
    assert np.abs(pixels(large.uri).astype(int) - (200, 30, 10)).max() < 8
    assert (pixels(small.uri) == (1, 2, 250)).all()
    assert (large.small, small.small) == (False, True)
    assert large.about.startswith("1600 × 400")


def test_the_page_holds_every_text_and_asks_for_nothing():
    page = page_of(
        {
            "id": "bird",
            "image": png(),
            "captions": [{"text": "A duck.", "language": "en"}, {"text": "Утка.", "language": "ru"}],
        },
        {"id": "q", "questions": [{"question": "Какая?", "answer": "Серая", "language": "ru"}], "licence": "CC0"},
    )
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(" not in page
    for text in ("bird", "A duck.", "Утка.", "Какая?", "Серая", "CC0", "of 99 records"):
        assert text in page
    assert page.count('type="checkbox"') == 2, "one a language"
    assert page == page_of(
        {
            "id": "bird",
            "image": png(),
            "captions": [{"text": "A duck.", "language": "en"}, {"text": "Утка.", "language": "ru"}],
        },
        {"id": "q", "questions": [{"question": "Какая?", "answer": "Серая", "language": "ru"}], "licence": "CC0"},
    )


def test_chosen_and_rejected_stand_side_by_side():
    page = page_of({"id": "p", "prompt": "What?", "chosen": "A duck", "rejected": "A fox"})
    sides = page[page.index('class="sides"') :]
    assert sides.index("A duck") < sides.index("A fox")
    assert page.count("A duck") == page.count("A fox") == 1


def test_markup_in_the_data_is_harmless():
    nasty = "<script>alert(1)</script> [bold] [/]"
    page = page_of({"id": nasty, "text": nasty, "note": nasty}, Unreadable(nasty, nasty))
    assert "<script" not in page
    for record in ({"id": nasty, "text": nasty}, Unreadable(nasty, nasty)):
        assert nasty in RichText.from_markup(describe_record(0, record)).plain


def test_hidden_characters_are_written_out():
    assert visible("a\u200bb\x00\u202ec\ud800\n\tй") == "a‹U+200B›b‹U+0000›‹U+202E›c‹U+D800›\n\tй"
    page = page_of({"id": "\ud800", "text": "שלום \u202e \ud800"})
    assert "שלום" in page
    page.encode("utf-8")


def test_long_texts_and_documents_say_what_they_leave_out():
    page = page_of(
        {"id": "x", "text": "слово " * 1000}, {"id": "y", "segments": [{"text": f"part{n}"} for n in range(100)]}
    )
    assert "4,500 more characters" in page
    assert "and 40 more parts" in page
    assert "part59" in page
    assert "part60" not in page


def test_immense_names_and_texts_are_shown_in_part():
    record = {"id": "x" * 10**6, "text": "слово " * 10**6}
    assert len(page_of(record)) < 30_000
    assert len(describe_record(0, record)) < 1_000


def test_pictures_and_records_that_cannot_be_read_are_named_with_the_reason(tmp_path):
    missing = Image(path=str(tmp_path / "missing.png"))
    page = page_of(
        {"id": "a", "image": Image(data=b"junk")}, {"id": "b", "image": missing}, Unreadable("c", "no question")
    )
    assert "not a picture in a known format" in page
    assert "missing.png" in page
    assert "no question" in page
    assert "no picture in a known format" in describe_record(0, {"id": "a", "image": Image(data=b"junk")})


def test_a_page_of_quarantine_shows_reason_and_record():
    page = page_of({"id": "a", "text": "kept text"}, Unreadable("b", "gone"), reasons=["too long", "no caption"])
    assert "in quarantine" in page
    for text in ("too long", "kept text", "no caption"):
        assert text in page


def test_a_description_is_a_few_lines():
    record = {"id": "doc", "segments": [{"image": png()}, *({"text": "много слов " * 50} for _ in range(20))]}
    plain = RichText.from_markup(describe_record(7, record)).plain
    assert "300 × 200" in plain
    assert "and 13 more parts" in plain
    assert max(map(len, plain.splitlines())) < 140
