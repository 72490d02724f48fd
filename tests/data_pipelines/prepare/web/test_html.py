"""The main content of pages: what stays, in which order, and what is left out."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.prepare.web.html import Page, Passage, Picture, extract_page

PAGE = """<!DOCTYPE html><html lang="ru-RU"><head><title> Кадрирование
изображения </title><style>p {}</style></head><body class="has-sidebar">
<div class="navheader"><a href="a.html">Назад</a> <img src="prev.png"></div>
<nav>Меню</nav>
<h2>Кадрирование</h2>
<p>Инструмент <b>«Кадрирование»</b>
   обрезает изображение.</p>
<figure><img src="img/crop.png" alt="Окно  инструмента" width="320px" height="200">
<figcaption>Параметры инструмента</figcaption></figure>
<p>Щёлкните <img src="/icon.png"/> на панели.</p>
<table><tr><th>Клавиша</th><td>Shift</td></tr></table>
<ul><li><a href="x">Другая страница</a></li></ul>
<p hidden>Скрытое</p><p style="display: none">Тоже</p><script>var x = "код";</script>
<div id="footer">Подвал</div></body></html>"""


def passages(page: Page) -> list[str]:
    return [segment.text for segment in page.segments if isinstance(segment, Passage)]


def pictures(page: Page) -> list[Picture]:
    return [segment for segment in page.segments if isinstance(segment, Picture)]


def test_passages_and_pictures_stand_in_reading_order_without_boilerplate() -> None:
    page = extract_page(PAGE.encode(), "https://example.org/help/crop.html")
    assert page.title == "Кадрирование изображения"
    assert page.language == "ru-ru"
    assert [getattr(segment, "text", None) or segment.url for segment in page.segments] == [
        "Кадрирование",
        "Инструмент «Кадрирование» обрезает изображение.",
        "https://example.org/help/img/crop.png",
        "Параметры инструмента",
        "Щёлкните",
        "https://example.org/icon.png",
        "на панели.",
        "Клавиша | Shift",
        "Другая страница",
    ]


def test_what_is_known_of_passages_and_pictures() -> None:
    page = extract_page(PAGE, "https://example.org/help/crop.html")
    heading, *_, before, after, _, link = [s for s in page.segments if isinstance(s, Passage)]
    assert (heading.heading, before.heading) == (2, 0)
    assert before.block == after.block != heading.block
    assert (link.links, before.links) == (1.0, 0.0)
    shot, icon = pictures(page)
    assert (shot.alt, shot.width, shot.height, shot.caption) == ("Окно инструмента", 320, 200, "Параметры инструмента")
    assert icon.block == before.block
    assert "Щёлкните на панели." in page.text.splitlines()


def test_the_element_that_calls_itself_main_is_taken_if_it_holds_most_of_the_text() -> None:
    story = "word " * 50
    assert passages(extract_page(f"<p>Before</p><main><p>{story}</p></main><p>After</p>", "")) == [story.strip()]
    assert passages(extract_page(f"<p>{story}</p><main><p>Small</p></main>", "")) == [story.strip(), "Small"]


def test_an_element_that_holds_most_of_the_page_is_no_menu_whatever_its_class() -> None:
    assert passages(extract_page(f"<div class='nav-wrapper'><p>{'text ' * 30}</p></div><p>End</p>", "")) == [
        ("text " * 30).strip(),
        "End",
    ]


def test_a_base_element_and_late_loaded_pictures() -> None:
    page = extract_page(
        '<base href="../../"><img src="data:image/gif;base64,R0" data-src="a.png"><img srcset="s.png 320w, l.png 640w">'
        '<img><img src="//[bad/x.png">',
        "https://example.org/en/text/page.html",
    )
    assert [picture.url for picture in pictures(page)][:2] == ["https://example.org/a.png", "https://example.org/l.png"]


@pytest.mark.parametrize(
    ("encoding", "head"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-16", ""),
        ("cp1251", '<meta charset="windows-1251">'),
        ("koi8-r", '<?xml version="1.0" encoding="koi8-r"?>'),
        ("cp1251", ""),
        ("koi8-r", ""),
        ("cp1251", '<meta charset="utf-8">'),
    ],
)
def test_encodings_declared_undeclared_and_declared_wrongly(encoding: str, head: str) -> None:
    text = "Выделение переднего плана позволяет отделить объект от фона изображения."
    assert passages(extract_page(f"{head}<p>{text}</p>".encode(encoding), "")) == [text]


def test_the_server_s_charset_goes_before_the_page_s() -> None:
    assert passages(extract_page("<meta charset=koi8-r><p>Слой</p>".encode("cp1251"), "", charset="cp1251")) == ["Слой"]


def test_western_pages_are_not_taken_for_cyrillic_ones() -> None:
    assert passages(extract_page("<p>Où est la forêt près du château ?</p>".encode("latin-1"), "")) == [
        "Où est la forêt près du château ?"
    ]


def test_a_utf8_page_with_a_foreign_part_keeps_the_rest() -> None:
    data = "<p>Первый абзац страницы.</p><p>".encode() + "плохо".encode("cp1251") + b"</p>"
    first, second = passages(extract_page(data, ""))
    assert first == "Первый абзац страницы."
    assert "\ufffd" in second


@pytest.mark.parametrize("data", [b"", b"\x00\x01\x02", b"<", b"\xff" * 100, b"<html>", b"plain text", b"<p>\x00a</p>"])
def test_anything_can_be_read(data: bytes) -> None:
    assert "\x00" not in extract_page(data, "x").text


def test_lone_surrogates_become_replacement_characters() -> None:
    assert passages(extract_page("<p>a&#xD800;b</p>", "")) == ["a\ufffdb"]


def test_right_to_left_and_line_breaks_are_kept() -> None:
    assert passages(extract_page("<p dir=rtl>שלום<br>عالم</p><pre>a\n  b</pre>", "")) == ["שלום\nعالم", "a\nb"]


_PIECES = st.sampled_from(
    [
        "<p>",
        "</p>",
        "<table><tr><td>",
        "<img src=a>",
        "<img srcset='a 1x,'>",
        "<base href='//[x'>",
        "<!--",
        "<title>",
        "<svg>",
        "<plaintext>",
        "&#0;",
        "&#xD800;",
        "<figure>",
        "<template>",
        "<frameset>",
        "<meta charset=hex>",
        "текст",
        "\x00",
        "<",
    ]
)


@given(st.lists(_PIECES | st.binary(max_size=5).map(lambda data: data.decode("latin-1")), max_size=30))
def test_markup_of_any_kind_is_read_without_an_error(pieces: list[str]) -> None:
    page = extract_page("".join(pieces).encode("utf-8"), "https://example.org/")
    assert all(segment.text for segment in page.segments if isinstance(segment, Passage))


def test_nesting_of_any_depth_is_read_in_reasonable_time() -> None:
    start = time.perf_counter()
    page = extract_page("<div class=menu>" * 20_000 + "deep" + "</div>" * 20_000, "")
    assert passages(page) in (["deep"], [])
    assert passages(extract_page("<div>" * 20_000 + "deep" + "</div>" * 20_000, "")) == ["deep"]
    assert time.perf_counter() - start < 10
