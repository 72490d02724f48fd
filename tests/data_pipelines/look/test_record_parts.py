"""Records of every kind fall into parts in reading order, and samples come from all over a source."""

import pytest

from data_pipelines.examples import Image
from data_pipelines.look.record_parts import Unreadable, kinds_of, other_fields, parts_of, sampled_records
from data_pipelines.quarantine import BadRecord

duck, goose = Image(path="duck.png"), Image(path="goose.png")


class Records(list):
    name = "records"

    def __getitem__(self, index):
        if super().__getitem__(index) is None:
            raise BadRecord("damaged")
        return super().__getitem__(index)


RECORDS = {
    "interleaved": (
        {"language": "en", "segments": [{"text": "Birds"}, {"image": duck}, {"text": "Утка", "language": "ru"}]},
        [("text", "Birds", "en"), ("picture", duck, ""), ("text", "Утка", "ru")],
    ),
    "captions": (
        {"captions": [{"text": "Утка.", "language": "ru"}], "image": duck},
        [("picture", duck, ""), ("caption", "Утка.", "ru")],
    ),
    "instruct": (
        {"images": [duck, goose], "questions": [{"question": "Which?", "answer": "Both", "language": "en"}]},
        [("picture", duck, ""), ("picture", goose, ""), ("question", "Which?", "en"), ("answer", "Both", "en")],
    ),
    "dialogue": (
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": [{"image": duck}, {"text": "What?"}]},
                {"role": "assistant", "content": "A duck."},
            ]
        },
        [("system", "Be short.", ""), ("picture", duck, ""), ("user", "What?", ""), ("assistant", "A duck.", "")],
    ),
    "text_only": ({"text": "Слова", "language": "ru"}, [("text", "Слова", "ru")]),
    "preference": (
        {"image": duck, "prompt": "What?", "chosen": "A duck", "rejected": [{"role": "assistant", "content": "A fox"}]},
        [("picture", duck, ""), ("user", "What?", ""), ("chosen", "A duck", ""), ("rejected", "A fox", "")],
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_parts_in_reading_order(name):
    record, expected = RECORDS[name]
    assert [(p.role, p.image or p.text, p.language) for p in parts_of({"id": "x", **record})] == expected
    assert kinds_of(record) == [{"dialogue": "instruct"}.get(name, name)]


def test_the_docstrings_example():
    assert [part.role for part in parts_of({"captions": [{"text": "Утка.", "language": "ru"}], "image": duck})] == [
        "picture",
        "caption",
    ]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"captions": "none", "segments": 3, "questions": [None], "messages": {}, "images": None, "image": "path"},
        {"messages": [{"role": 5, "content": [1, None, {"image": "x"}]}], "chosen": [3]},
    ],
)
def test_malformed_records_have_no_parts_and_raise_nothing(record):
    assert parts_of(record) == []


def test_a_part_without_a_language_goes_by_its_script():
    latin, named = parts_of({"captions": [{"text": "Duck"}, {"text": "Duck", "language": "de"}]})
    assert (latin.language_or_script, named.language_or_script) == ("latin", "de")


def test_other_fields_are_those_that_no_kind_reads():
    record = {"id": "1", "image": duck, "text": "x", "licence": "MIT", "empty": "", "size": [1, 2], "long": "x" * 500}
    assert other_fields(record).keys() == {"licence", "size", "long"}
    assert len(other_fields(record)["long"]) < 200
    assert other_fields({"mask": duck, "raw": b"x" * 5000, "more": {"a": [1, b"xy"]}}) == {
        "mask": "a picture",
        "raw": "5,000 bytes",
        "more": "a: 1, 2 bytes",
    }


def test_samples_are_distinct_in_order_from_all_over_and_the_same_for_a_seed():
    source = Records({"id": str(n)} for n in range(1000))
    indices = [index for index, _ in sampled_records(source, 100, seed=1)]
    assert indices == sorted(set(indices))
    assert len(indices) == 100
    assert indices[0] < 100 < 900 < indices[-1]
    assert indices == [index for index, _ in sampled_records(source, 100, seed=1)]
    assert indices != [index for index, _ in sampled_records(source, 100, seed=2)]
    assert len(list(sampled_records(source, 0, seed=1))) == len(list(sampled_records(source, 5000, 1))) == 1000


def test_a_record_that_cannot_be_read_is_named():
    assert list(sampled_records(Records([{"id": "a"}, None]), 0, 0)) == [
        (0, {"id": "a"}),
        (1, Unreadable("records[1]", "damaged")),
    ]
