"""The easy-VQA source lists what the data set holds, splits it by picture, and names what is wrong with it."""

import collections
import json
import pickle
import sys

import pytest

from data_pipelines.images import BadImage, decode
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import EasyVQA, open_source
from data_pipelines.sources.easy_vqa_questions import COLORS, SHAPES
from vlm_jax.errors import UserError

VALIDATION = ["easy_vqa/train/2", "easy_vqa/train/760", "easy_vqa/train/3056", "easy_vqa/train/3061"]


def records(**options):
    source = open_source(EasyVQA(**options))
    return [source[index] for index in range(len(source))]


@pytest.fixture
def data(tmp_path):
    """make(rows, pictures) -> a directory laid out like the package's, its pictures empty files."""

    def make(rows, pictures=(0,)):
        images = tmp_path / "train" / "images"
        images.mkdir(parents=True)
        for number in pictures:
            (images / f"{number}.png").write_bytes(b"")
        text = rows if isinstance(rows, str) else json.dumps(rows)
        (tmp_path / "train" / "questions.json").write_text(text)
        return EasyVQA(directory=str(tmp_path), validation_images=0)

    return make


def test_a_record():
    first = records(validation_images=0)[0]
    assert first["id"] == "easy_vqa/train/0"
    assert first["questions"][0] == {
        "question": "what is the blue shape?",
        "answer": "rectangle",
        "language": "en",
        "type": "shape",
    }
    assert {"text": "A blue rectangle.", "language": "en"} in first["captions"]
    assert decode(first["image"]).shape == (64, 64, 3)


def test_captions_may_be_held_to_one_phrasing_a_language():
    (first, *_), (all_of_them, *_) = (
        records(validation_images=0, languages=("en", "ru"), phrasings=phrasings) for phrasings in (1, 0)
    )
    assert [caption["text"] for caption in first["captions"]] == ["A blue rectangle.", "Синий прямоугольник."]
    assert len(all_of_them["captions"]) == 8
    with pytest.raises(UserError, match="phrasings is -1"):
        records(phrasings=-1)


def test_the_official_test_split_by_type():
    kinds = collections.Counter(entry["type"] for record in records(split="test") for entry in record["questions"])
    assert kinds == {"yes_no_color": 5201, "yes_no_shape": 1935, "color": 1280, "shape": 1257}


def test_validation_is_carved_out_of_train_by_picture():
    train, validation, test = (
        {record["id"] for record in records(split=split)} for split in ("train", "validation", "test")
    )
    assert (len(train), len(validation), len(test)) == (3600, 400, 1000)
    assert not train & validation
    assert all(id.startswith("easy_vqa/train/") for id in train | validation)
    assert all(id.startswith("easy_vqa/test/") for id in test)
    fewer = {record["id"] for record in records(split="validation", validation_images=100)}
    assert len(fewer) == 100
    assert fewer < validation


def test_the_choice_of_validation_pictures_never_changes():
    ids = [record["id"] for record in records(split="validation", validation_images=4)]
    assert ids == VALIDATION


@pytest.mark.parametrize(("split", "described", "captioned"), [("train", 3578, 3971), ("test", 888, 988)])
def test_how_many_pictures_have_captions(split, described, captioned):
    counts = {}
    for pictures in ("described", "captioned", "all"):
        found = records(split=split, pictures=pictures, validation_images=0, languages=("en", "ru"))
        counts[pictures] = len(found)
        for record in found:
            assert [c["language"] for c in record["captions"]] == sorted(c["language"] for c in record["captions"])
            assert len(record["captions"]) in {"described": (8,), "captioned": (6, 8), "all": (0, 6, 8)}[pictures]
    assert counts == {"described": described, "captioned": captioned, "all": 4000 if split == "train" else 1000}


def test_captions_agree_with_every_direct_answer():
    for record in records(split="train", validation_images=0) + records(split="test"):
        colors = {entry["answer"] for entry in record["questions"]} & set(COLORS)
        shapes = {entry["answer"] for entry in record["questions"]} & set(SHAPES)
        for caption in record["captions"]:
            assert all(word in caption["text"] for word in colors | shapes)


def test_languages_follow_one_another():
    record = records(languages=("ru", "en"))[5]
    half = len(record["questions"]) // 2
    assert {entry["language"] for entry in record["questions"][:half]} == {"ru"}
    assert {entry["language"] for entry in record["questions"][half:]} == {"en"}


def test_a_source_can_be_sent_to_a_worker():
    source = open_source(EasyVQA(split="test"))
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_a_picture_nobody_asks_about_is_a_record_without_a_question(data):
    source = open_source(data([["is there a circle?", "yes", 1]], pictures=(0, 1)))
    assert source[0]["questions"] == []
    assert source[0]["captions"] == []
    assert len(source[1]["questions"]) == 1


def test_a_question_about_a_missing_picture_fails_where_it_is_decoded(data):
    source = open_source(data([["is there a circle?", "yes", 7]], pictures=()))
    with pytest.raises(BadImage, match=r"7\.png.*cannot be read"):
        decode(source[0]["image"])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([["", "yes", 0]], "without text"),
        ([[None, "yes", 0]], "without text"),
        ([["how old is the circle?", "yes", 0]], "unknown form.*how old"),
        ([["is there a circle?", "blue", 0]], "'blue' is no answer"),
        ([["is there a circle?", ["yes"], 0]], "is no answer"),
        ([["is there a circle?", "yes", 0], ["is no circle present?", "yes", 0]], "contradict"),
    ],
)
@pytest.mark.parametrize("pictures", ["all", "described"])
def test_a_bad_record_is_met_and_named_whatever_is_listed(data, rows, reason, pictures):
    config = data(rows)
    source = open_source(EasyVQA(directory=config.directory, validation_images=0, pictures=pictures))
    with pytest.raises(BadRecord, match=reason) as caught:
        source[0]
    assert caught.value.record_id == "easy_vqa/train/0"


@pytest.mark.parametrize("rows", ["{", "[1]", '[["q", "a"]]', '[["q", "a", "0"]]', "7"])
def test_a_damaged_question_file_is_the_users_error(data, rows):
    with pytest.raises(UserError, match=r"questions\.json"):
        open_source(data(rows))


def test_what_is_not_there_is_the_users_error(data, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"questions\.json: cannot be read"):
        open_source(EasyVQA(directory=str(tmp_path)))
    with pytest.raises(UserError, match="validation_images 4000"):
        open_source(EasyVQA(validation_images=4000))
    with pytest.raises(UserError, match="no language"):
        open_source(EasyVQA(languages=()))
    with pytest.raises(UserError, match="no picture is left"):
        open_source(EasyVQA(split="validation", validation_images=0))
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(UserError, match="easy-vqa is not installed"):
        open_source(EasyVQA())


@pytest.mark.parametrize("options", [{}, {"split": "test"}, {"pictures": "described"}])
def test_a_limit_is_a_fixed_choice_of_pictures(options):
    every = [record["id"] for record in records(**options)]
    few, more = ([record["id"] for record in records(limit=limit, **options)] for limit in (20, 50))
    assert (len(few), len(more)) == (20, 50)
    assert set(few) < set(more) < set(every)
    assert few == sorted(few, key=every.index) != every[:20]
    assert records(limit=len(every) + 1, **options)[-1]["id"] == every[-1]


def test_a_negative_limit_is_the_users_error():
    with pytest.raises(UserError, match="limit is -1"):
        records(limit=-1)
