"""Instruct triplets say what the corpus says, with wrong answers that are wrong, and held-out wordings held out."""

import collections
from typing import Any

import numpy as np
import pytest

from data_pipelines.examples import Image
from data_pipelines.kinds import Instruct, to_example
from data_pipelines.prepare.corpora.instruct.distractors import Distractors, may_mean_the_same, stems
from data_pipelines.prepare.corpora.instruct.form import as_sentence
from data_pipelines.prepare.corpora.instruct.triplets import instruct_set, triplets
from data_pipelines.prepare.corpora.instruct.wordings import LETTERS, TASKS, WORDINGS, YES_NO, held_out
from data_pipelines.prepare.corpora.sets import CorpusSet
from data_pipelines.prepare.splits import SPLITS

THINGS = [
    ("duck", "утка"), ("red umbrella", "красный зонтик"), ("lighthouse", "маяк"), ("violin", "скрипка"),
    ("steam engine", "паровоз"), ("birthday cake", "торт"), ("saw", "пила"), ("green apple", "зелёное яблоко"),
    ("red apple", "красное яблоко"), ("camel", "верблюд"), ("oak leaf", "дубовый лист"), ("kettle", "чайник"),
]  # fmt: skip


def caption_record(number: int) -> dict[str, Any]:
    english, russian = THINGS[number % len(THINGS)]
    return {
        "id": f"c/{number}",
        "image": Image(data=bytes([number])),
        "captions": [
            {"text": english, "language": "en", "name": True},
            {"text": russian, "language": "ru", "name": True},
            {
                "text": f"This is a {english}, seen from the front on a bright day in spring.",
                "language": "en",
                "heading": f"Chapter {number}",
                "title": "Things",
            },
        ],
        "keywords": {"en": ["thing", english], "ru": ["вещь", russian]},
        "topic": f"t{number % 3}",
        "real": [f"c/{number} en 0", f"c/{number} ru 0", f"c/{number} en 1"],
    }


@pytest.fixture(scope="module")
def records() -> list[tuple[str, dict[str, Any]]]:
    return [(SPLITS[number % 3 if number < 60 else 0], caption_record(number)) for number in range(150)]


@pytest.fixture(scope="module")
def made(records: Any) -> list[tuple[str, dict[str, Any]]]:
    return list(triplets(records))


def questions(made: Any, *tasks: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    return [
        (split, record, each)
        for split, record in made
        for each in record.get("questions", ())
        if not tasks or each["task"] in tasks
    ]


def test_the_same_whatever_the_order(records: Any, made: Any) -> None:
    def by_id(found: Any) -> dict[str, Any]:
        return {record["id"]: (split, record) for split, record in found}

    assert by_id(triplets(records[::-1])) == by_id(made)


def test_every_task_comes_in_both_languages_where_the_corpus_has_what_it_needs(made: Any) -> None:
    counts = collections.Counter((each["task"], each["language"]) for _, _, each in questions(made))
    for task in TASKS:
        assert counts[task, "en"] > 20, task
        assert (counts[task, "ru"] > 20) == (task not in ("describe", "heading")), task


def test_answers_are_what_the_corpus_says(records: Any, made: Any) -> None:
    said = {f"instruct/{record['id']}": record for _, record in records}
    for _, record, each in questions(made, "name", "describe"):
        texts = [as_sentence(caption["text"]) for caption in said[record["id"]]["captions"]]
        assert each["answer"] in texts
    for _, record, each in questions(made, "keywords"):
        assert each["answer"].split(", ") == said[record["id"]]["keywords"][each["language"]]


def test_yes_and_no_are_right_and_about_as_frequent(records: Any, made: Any) -> None:
    said = {f"instruct/{record['id']}": [each["text"] for each in record["captions"]] for _, record in records}
    answers = collections.Counter()
    for _, record, each in questions(made, "fits"):
        true = any(text.removesuffix(".") in each["question"] for text in said[record["id"]])
        assert each["answer"] == YES_NO[each["language"]][not true]
        answers[each["answer"] in ("Yes.", "Да.")] += 1
    assert 0.4 < answers[True] / answers.total() < 0.65


def test_choices_have_one_right_answer_at_any_place(records: Any, made: Any) -> None:
    said = {f"instruct/{record['id']}": record for _, record in records}
    places = collections.Counter()
    for _, record, each in questions(made, "choose_letter"):
        texts = [as_sentence(caption["text"]) for caption in said[record["id"]]["captions"]]
        lines = [line for line in each["question"].splitlines() if line[1:3] == ". "]
        assert len(lines) == 4
        right = [line[0] for line in lines if line[3:] in texts]
        assert right == [each["answer"]]
        places[LETTERS[each["language"]].index(each["answer"])] += 1
    assert min(places[place] for place in range(4)) > 0.15 * places.total()


def test_wrong_answers_come_from_the_same_split(made: Any, records: Any) -> None:
    only_here = [("test", caption_record(3) | {"id": "c/x"}), *[each for each in records if each[0] == "train"]]
    found = {record["id"]: record for _, record in triplets(only_here)}
    tasks = {each["task"] for each in found["instruct/c/x"]["questions"]}
    assert "choose_letter" not in tasks  # no other picture in its split, so nothing to choose from
    assert {each["answer"] for each in found["instruct/c/x"]["questions"] if each["task"] == "fits"} <= {"Yes.", "Да."}


def test_held_out_wordings_never_stand_in_training(made: Any) -> None:
    for split, _, each in questions(made):
        begin = [
            wording.partition("{")[0]
            for wording in held_out(each["task"], each["language"])
            if wording.partition("{")[0]
        ]
        asked_so = any(each["question"].startswith(words) for words in begin)
        assert each["held_out"] == asked_so or (asked_so and not each["held_out"] and split != "train")
        if split == "train":
            assert not each["held_out"]
    later = collections.Counter(each["held_out"] for split, _, each in questions(made) if split != "train")
    assert 0.35 < later[True] / later.total() < 0.65


def test_every_task_has_wordings_of_both_sorts() -> None:
    for task in TASKS:
        for language in ("en", "ru"):
            assert 0 < len(held_out(task, language)) <= len(WORDINGS[task][language]) // 2


def test_a_heading_that_many_pages_have_gives_way_to_the_title(records: Any) -> None:
    common = []
    for number, (split, record) in enumerate(records):
        captions = [each | {"heading": "Options", "title": f"Tool {number}"} for each in record["captions"]]
        common.append((split, record | {"captions": captions}))
    answers = {each["answer"] for _, _, each in questions(triplets(common), "heading")}
    assert "Options." not in answers
    assert "Tool 5." in answers


def test_dialogues_name_things_in_both_languages_and_tell_pictures_apart(records: Any, made: Any) -> None:
    names = {record["image"].data: [each["text"] for each in record["captions"]] for _, record in records}
    splits = {record["image"].data: split for split, record in records}
    both = [each for each in made if each[1]["id"].endswith("/both")]
    two = [each for each in made if each[1]["id"].endswith("/two")]
    assert len(both) > 15
    assert len(two) > 15
    for _, record in both:
        picture = record["messages"][0]["content"][0]["image"]
        answers = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
        assert sorted(answers) == sorted(as_sentence(text) for text in names[picture.data][:2])
    for split, record in two:
        *pictures, question = record["messages"][0]["content"]
        first = any(word in record["messages"][1]["content"] for word in ("irst", "перв", "Перв"))
        shown = pictures[0 if first else 1]["image"].data
        assert any(f"“{name}”" in question["text"] or f"«{name}»" in question["text"] for name in names[shown])
        assert {splits[each["image"].data] for each in pictures} == {split}


def test_the_kind_reads_them(made: Any) -> None:
    for _, record in made[:5] + made[-5:]:
        example = to_example(record, Instruct(), np.random.default_rng(0))
        assert example.images


def test_the_set_over_a_caption_set(records: Any, tmp_path: Any) -> None:
    captions = CorpusSet("captions/c", "captions", ("p",), "CC0-1.0", lambda raw: iter(records))
    made = instruct_set(captions)
    assert (made.name, made.kind, made.packages, made.licence) == ("instruct/c", "instruct", ("p",), "CC0-1.0")
    assert {split for split, _ in made.build(tmp_path)} == set(SPLITS)


def test_stems_and_what_may_mean_the_same() -> None:
    assert sorted(stems("A sitting gnu, a duck")) == ["duck", "gnu", "sitt"]
    assert may_mean_the_same(stems("красный зонтик"), stems("красного цвета"))
    assert not may_mean_the_same(stems("A duck."), stems("A violin."))
    drawn = Distractors([("a", "red apple"), ("a", "green apple"), ("b", "a saw")])
    for seed in range(20):
        assert drawn.draw(["apple juice"], "a", 2, np.random.default_rng(seed)) == ["a saw"]
