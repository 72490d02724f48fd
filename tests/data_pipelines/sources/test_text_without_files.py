"""Sources of text that need no file: their splits share nothing, and their answers follow from their questions."""

import numpy as np
import pytest

from data_pipelines.kinds import Instruct, TextOnly
from data_pipelines.sources import PythonTopics, ShapeTexts, open_source
from vlm_jax.errors import UserError


def asked(split: str) -> dict[str, str]:
    source = open_source(ShapeTexts(split))
    return {entry["question"]: entry["answer"] for i in range(len(source)) for entry in source[i]["questions"]}


def test_shape_texts_keep_a_tenth_of_the_questions_for_validation() -> None:
    train, held_out = asked("train"), asked("validation")
    assert not train.keys() & held_out.keys()
    assert 0.07 < len(held_out) / (len(train) + len(held_out)) < 0.13


def test_answers_follow_from_what_the_sentence_says() -> None:
    source = open_source(ShapeTexts())
    for index in range(len(source)):
        record = source[index]
        _, color, shape, _ = record["id"].split("/")
        for entry in record["questions"]:
            sentence, _, question = entry["question"].partition(". ")
            assert color in sentence
            assert shape in sentence
            if entry["type"].startswith("yes_no"):
                there = f" {color} " in question if entry["type"] == "yes_no_color" else shape in question
                negated = " not " in question or " no " in question
                assert (entry["answer"] == "yes") == (there != negated)
            else:
                assert entry["answer"] in (color, shape, f"A {color} {shape}.")


def test_half_of_the_yes_no_answers_are_yes() -> None:
    answers = [answer for split in ("train", "validation") for answer in asked(split).values() if len(answer) < 4]
    yes_no = [answer for answer in answers if answer in ("yes", "no")]
    assert yes_no.count("yes") == pytest.approx(len(yes_no) / 2, abs=0.02 * len(yes_no))


def test_pythons_chapters_come_in_pieces_of_whole_paragraphs() -> None:
    train, held_out = (open_source(PythonTopics(split, 300)) for split in ("train", "validation"))
    chapters = [{source[i]["id"].split("/")[1] for i in range(len(source))} for source in (train, held_out)]
    assert not chapters[0] & chapters[1]
    assert all(chapters)
    texts = [train[i]["text"] for i in range(len(train))]
    assert max(map(len, texts)) <= 300
    assert np.mean([len(text) for text in texts]) > 100
    # Rulers below headings are gone.
    assert all(line.strip("*=-~^") and line == line.strip() for text in texts for line in text.split("\n"))


def test_kinds_read_them() -> None:
    rng = np.random.default_rng(0)
    example = Instruct(questions=3)(open_source(ShapeTexts())[0], rng)
    assert len(example.branches) == 3
    assert not example.images
    assert TextOnly()(open_source(PythonTopics())[0], rng).trunk[0].loss


@pytest.mark.parametrize("config", [ShapeTexts("test"), PythonTopics("test"), PythonTopics(characters=0)])  # type: ignore[arg-type]
def test_what_there_is_not_is_refused(config: ShapeTexts | PythonTopics) -> None:
    with pytest.raises(UserError, match=r"there is no split 'test'|characters is 0"):
        open_source(config)
