import pytest

from data_pipelines.examples import Image
from data_pipelines.kinds.interleaved import Interleaved
from data_pipelines.prepare.corpora.manuals import pages
from data_pipelines.prepare.corpora.manuals.pages import (
    Page,
    Passage,
    Picture,
    joined,
    page_record,
    page_records,
    translated,
)
from data_pipelines.prepare.scripts import is_written_in, script_share
from data_pipelines.prepare.splits import split_of
from vlm_jax.errors import UserError

LONG = "A sentence with quite a few words that says what the tool does to an image. " * 3
RUSSIAN = "Предложение о том, что делает этот инструмент с изображением и зачем он нужен. " * 4


def page(*blocks, name="crop", language="en", root=None):
    return Page(name, language, "Crop", blocks, root)


def everything(_):
    return True


def name_in(split, tag="page"):
    """A page's name that belongs to a split."""
    return next(f"{tag}{n}" for n in range(10_000) if split_of(f"manual/{tag}{n}") == split)


def test_script_share_is_of_letters():
    assert script_share("Нажмите OK", "ru") == 7 / 9
    assert script_share("Нажмите OK", "en") == 2 / 9
    assert script_share("12 + 3 = 15", "ru") == script_share("", "en") == 1
    assert is_written_in("Ещё один слой в GIMP", "ru")
    assert not is_written_in("The Crop tool", "ru")
    assert not is_written_in("Ёж", "en")


def test_passages_between_pictures_are_one_text_and_captions_stand_alone():
    record = page_record(
        page(
            Passage("Crop", "heading", 1),
            Passage(LONG.strip()),
            Passage("The crop tool", "caption"),
            Picture("crop.png", "The crop tool"),
            Passage("First", "item"),
            Passage("Second", "item"),
            root=pages.Path("/raw/en"),
        ),
        "manual",
        everything,
    )
    assert record == {
        "id": "manual/crop:en",
        "language": "en",
        "title": "Crop",
        "segments": [
            {"text": f"Crop\n\n{LONG.strip()}"},
            {"text": "The crop tool"},
            {"image": Image(path="/raw/en/crop.png"), "text_index": 1},
            {"text": "- First\n- Second"},
        ],
        "real": ["manual/crop.png:en"],
    }


def test_a_picture_belongs_to_the_caption_beside_it_after_or_before():
    blocks = [
        Passage(LONG, "paragraph"),
        Passage("Before and after", "caption"),
        Picture("a.png", "Before and after. Before."),
        Passage("Before.", "caption"),
        Picture("b.png", "Before and after. After."),
        Passage("After.", "caption"),
        Picture("c.png"),
    ]
    segments = page_record(page(*blocks, root=pages.Path("/")), "manual", everything)["segments"]
    texts = [segment["text"] for segment in segments if "text" in segment]
    owners = [texts[segment["text_index"]] for segment in segments if "text_index" in segment]
    assert owners == ["Before.", "After."]
    assert "text_index" not in segments[-1]


def test_pages_without_a_shown_picture_are_text_and_short_ones_are_nothing():
    blocks = (Passage(LONG), Picture("a.png"))
    record = page_record(page(*blocks, root=pages.Path("/")), "manual", lambda picture: False)
    assert record is not None
    assert record["text"] == LONG
    assert "segments" not in record
    assert page_record(page(Passage("Too short.")), "manual", everything) is None


def test_lists_and_tables_are_lines_and_paragraphs_stand_apart():
    passages = [
        Passage("Steps:"),
        Passage("Open it", "item"),
        Passage("Close it", "item"),
        Passage("a | b", "row"),
        Passage("c | d", "row"),
        Passage("print 1", "code"),
    ]
    assert joined(passages) == "Steps:\n\n- Open it\n- Close it\n\na | b\nc | d\n\nprint 1"


def test_what_nobody_translated_is_left_out_with_the_headings_above_it():
    blocks = (
        Passage("Кадрирование", "heading", 1),
        Passage(RUSSIAN),
        Passage("Параметры", "heading", 2),
        Passage("Shrink Merged", "heading", 3),
        Passage("This option works the same with all visible layers."),
        Passage("Направляющие", "heading", 2),
        Passage("$ gimp --version", "code"),
        Picture("a.png", "Crop example", "Options"),
    )
    kept = translated(page(*blocks, language="ru"))
    assert [getattr(block, "text", "picture") for block in kept.blocks] == [
        "Кадрирование",
        RUSSIAN,
        "Направляющие",
        "$ gimp --version",
        "picture",
    ]
    assert kept.pictures == (Picture("a.png"),)
    assert kept.title == ""


def test_a_heading_above_a_deeper_heading_stays():
    blocks = (Passage("Mosaic", "heading", 1), Passage("Overview", "heading", 2), Passage(LONG))
    assert translated(page(*blocks)).blocks == blocks
    assert translated(page(*blocks[:2])).blocks == ()


@pytest.fixture
def manual(tmp_path):
    """Pages in train, validation and test with a picture of their own and one that all of them show, in a directory."""
    found = []
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.png").write_bytes(split.encode())
        blocks = (Passage(f"{split}: {LONG}"), Picture(f"{split}.png", "Own"), Picture("shared.png", "Shared"))
        found.append(page(*blocks, name=name_in(split), root=tmp_path))
    (tmp_path / "shared.png").write_bytes(b"shared")
    return found


def pictures_by_split(found):
    shown = {}
    for split, record in page_records(found, "manual", "interleaved"):
        images = (segment["image"].path for segment in record["segments"] if "image" in segment)
        shown[split] = {path.rpartition("/")[2] for path in images}
    return shown


def test_a_picture_that_training_shows_is_not_held_out(manual):
    assert pictures_by_split(manual) == {
        "train": {"train.png", "shared.png"},
        "validation": {"validation.png"},
        "test": {"test.png"},
    }


def test_the_same_bytes_under_another_name_are_the_same_picture(manual, tmp_path):
    (tmp_path / "test.png").write_bytes(b"train")
    assert pictures_by_split(manual)["train"] == {"train.png", "shared.png"}
    assert "test" not in pictures_by_split(manual)


def test_splits_do_not_depend_on_the_language(manual):
    russian = [
        Page(each.name, "ru", "Обрезка", (Passage(each.name + RUSSIAN), *each.pictures), each.root) for each in manual
    ]
    splits = {record["id"][:-3]: split for split, record in page_records(manual, "manual", "interleaved")}
    again = {record["id"][:-3]: split for split, record in page_records(russian, "manual", "interleaved")}
    assert splits == again
    assert set(splits.values()) == {"train", "validation", "test"}


def test_pages_that_are_mostly_in_another_language_are_left_out(manual):
    half = [Page(each.name, "ru", "", (Passage(LONG), Passage(each.name + RUSSIAN)), each.root) for each in manual]
    mostly = [Page(each.name, "ru", "", (Passage(LONG * 2), Passage(RUSSIAN)), each.root) for each in manual]
    assert all("A sentence" not in record["text"] for _, record in page_records(half, "manual", "text_only"))
    assert len(list(page_records(half, "manual", "text_only"))) == 3
    assert list(page_records(mostly, "manual", "text_only")) == []


def test_records_are_what_the_kind_reads(manual):
    import numpy as np

    for _, record in page_records(manual, "manual", "interleaved"):
        example = Interleaved()(record, np.random.default_rng(0))
        assert len(example.images) == sum("image" in segment for segment in record["segments"])


def test_no_page_at_all_is_one_line():
    with pytest.raises(UserError, match="manual: no page was found"):
        list(page_records([], "manual", "interleaved"))


def test_held_out_pages_leave_out_what_training_pages_say_word_for_word():
    own = "This long passage stands on the held-out page and on no other page of the manual. " * 3
    short = "Choose Format - Page."
    shared = [Passage(LONG.strip()), Passage(short)]
    train = page(*shared, name=name_in("train"))
    held_out = page(*shared, Passage(own.strip()), name=name_in("test"))
    found = dict(page_records([train, held_out], "manual", "text_only"))
    assert found["train"]["text"] == f"{LONG.strip()}\n\n{short}"
    assert found["test"]["text"] == f"{short}\n\n{own.strip()}"
