import collections

import manuals_on_disk as manuals
import pytest

from data_pipelines.prepare.corpora.manuals import gimp
from data_pipelines.prepare.corpora.manuals.gimp_pages import read_page
from data_pipelines.prepare.corpora.manuals.pages import Passage, Picture
from data_pipelines.prepare.splits import split_of
from vlm_jax.errors import UserError

SETS = {each.name: each for each in gimp.SETS}


def read(path, body, title="4.4. Crop"):
    path.write_text(f"<html><head><title>{title}</title></head><body>{body}</body></html>")
    return read_page(path, "en")


def test_a_page_in_reading_order(tmp_path):
    manuals.write_gimp(tmp_path, "en")
    (page,) = gimp.pages(tmp_path, "en")
    assert (page.name, page.language, page.title) == ("crop", "en", "crop")
    sentence = manuals.SENTENCE["en"].strip()
    caption = "The crop window. Before"
    assert page.blocks == (
        Passage("crop The t".strip(), "heading", 2),
        Passage(" ".join([sentence] * 3)),
        Passage(sentence),
        Passage("The crop window", "caption"),
        Picture("images/crop.png", caption, "crop The t"),
        Passage("Before", "caption"),
        Passage(f"Tools {sentence}", "item"),
    )


def test_a_title_over_several_pictures_is_no_caption_of_one(tmp_path):
    for name in ("a", "b", "c"):
        manuals.write_picture(tmp_path / f"{name}.png")
    media = "".join(f'<div class="mediaobject"><img src="{name}.png"/></div>' for name in "ab")
    media += '<div class="mediaobject"><img src="c.png"/><div class="caption"><p>The result.</p></div></div>'
    page = read(
        tmp_path / "x.html",
        f'<div class="figure"><p class="title">Figure 3. Three steps</p><div>{media}</div></div>',
    )
    assert [picture.caption for picture in page.pictures] == ["", "", "Three steps. The result."]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("4.4. Crop", "Crop"),
        ("Figure 14.127. Crop tool", "Crop tool"),
        ("Рисунок 17.70. «Мозаика»", "«Мозаика»"),
        ("Chapter 3. First steps", "First steps"),
        ("3D transformations", "3D transformations"),
        ("2.10 is out", "2.10 is out"),
        ("I like it", "I like it"),
    ],
)
def test_numbers_of_sections_are_left_out(tmp_path, text, plain):
    assert read(tmp_path / "x.html", f"<h2>{text}</h2>", text).title == plain


def test_terms_go_with_their_definitions(tmp_path):
    manuals.write_picture(tmp_path / "a.png")
    page = read(tmp_path / "x.html", "<dl><dt>Size</dt><dd><p>How large.</p></dd><dt>Empty</dt><dd></dd></dl>")
    assert [block.text for block in page.blocks] == ["Size", "How large.", "Empty"]
    assert [block.role for block in page.blocks] == ["heading", "paragraph", "heading"]


def test_footnotes_and_their_marks_are_left_out(tmp_path):
    body = '<p>Drawing<a href="#x"><sup class="footnote">[4]</sup></a>.</p><div class="footnotes"><p>Or not.</p></div>'
    assert read(tmp_path / "x.html", body).blocks == (Passage("Drawing."),)


def test_missing_and_tiny_pictures_are_no_pictures(tmp_path):
    manuals.write_picture(tmp_path / "tiny.png", size=(40, 40))
    manuals.write_picture(tmp_path / "flat.png", size=(20, 400))
    manuals.write_picture(tmp_path / "good.png", size=(40, 70))
    (tmp_path / "text.png").write_text("not a picture")
    names = ("tiny", "flat", "good", "text", "absent")
    page = read(
        tmp_path / "x.html", "".join(f'<div class="mediaobject"><img src="{name}.png"/></div>' for name in names)
    )
    assert [picture.path for picture in page.pictures] == ["good.png"]


def test_captions_of_both_languages_share_a_record_where_the_picture_is_the_same(tmp_path):
    names = tuple(f"page{n}" for n in range(30))
    for language in ("en", "ru"):
        manuals.write_gimp(tmp_path, language, names)
    records = list(SETS["captions/gimp"].build(tmp_path))
    assert len(records) == len(names)
    for split, record in records:
        page = record["id"].removeprefix("gimp/images/").removesuffix(".png")
        assert split == split_of(f"gimp/{page}")
        assert [(caption["language"], caption["text"]) for caption in record["captions"]] == [
            ("en", "The crop window. Before"),
            ("ru", "Окно обрезки. Исходный вид"),
        ]
        assert len(record["real"]) == 2
    pages = {name: collections.Counter(split for split, _ in SETS[name].build(tmp_path)) for name in SETS}
    assert pages["interleaved/gimp_en"] == pages["interleaved/gimp_ru"]
    assert pages["text/gimp_en"] == collections.Counter()
    assert {"train", "test"} <= set(pages["interleaved/gimp_en"])


def test_a_screenshot_in_another_language_is_another_picture_of_the_same_split(tmp_path):
    manuals.write_gimp(tmp_path, "en")
    manuals.write_gimp(tmp_path, "ru", colour=200)
    (english, russian) = SETS["captions/gimp"].build(tmp_path)
    assert english[0] == russian[0]
    assert english[1]["id"] != russian[1]["id"]
    assert "gimp-help-en" in english[1]["image"].path
    assert [caption["language"] for caption in english[1]["captions"]] == ["en"]
    assert "gimp-help-ru" in russian[1]["image"].path
    assert [caption["language"] for caption in russian[1]["captions"]] == ["ru"]


def test_russian_captions_that_are_english_are_left_out(tmp_path, monkeypatch):
    manuals.write_gimp(tmp_path, "en")
    monkeypatch.setitem(manuals.CAPTIONS, "ru", ("Рисунок 3. Crop window", "Before"))
    manuals.write_gimp(tmp_path, "ru")
    ((_, record),) = SETS["captions/gimp"].build(tmp_path)
    assert [caption["language"] for caption in record["captions"]] == ["en"]


def test_a_stock_photograph_of_many_pages_is_no_caption_pair(tmp_path):
    names = tuple(f"page{n}" for n in range(5))
    for language in ("en", "ru"):
        root = manuals.write_gimp(tmp_path, language, names)
        for name in names[1:]:
            page = root / f"{name}.html"
            page.write_text(page.read_text().replace(f"images/{name}.png", "images/page0.png"))
    assert list(SETS["captions/gimp"].build(tmp_path)) == []


def test_two_builds_are_the_same(tmp_path):
    for language in ("en", "ru"):
        manuals.write_gimp(tmp_path, language, ("a", "b", "c"))
    for each in gimp.SETS:
        assert list(each.build(tmp_path)) == list(each.build(tmp_path))


def test_a_missing_package_is_one_line(tmp_path):
    manuals.write_gimp(tmp_path, "en")
    with pytest.raises(UserError, match="gimp-help-ru was not unpacked here"):
        list(SETS["captions/gimp"].build(tmp_path))
