"""A picture's questions become branches."""

import numpy as np
import pytest

from data_pipelines.examples import Example, Image, Text
from data_pipelines.kinds import Instruct, to_example
from data_pipelines.quarantine import BadRecord
from vlm_jax.errors import UserError

QUESTIONS = [
    {"question": "what color is the shape?", "answer": "blue"},
    {"question": "Есть ли здесь круг?", "answer": "да"},
    {"question": "is there a circle?", "answer": "yes"},
]
RECORD = {"id": "r/1", "image": Image(path="a.png"), "questions": QUESTIONS}


def example(record=None, seed=0, **options):
    return to_example(RECORD if record is None else record, Instruct(**options), np.random.default_rng(seed), "source")


def test_every_question_is_a_branch_in_its_order():
    branches = tuple(
        (Text(entry["question"], role="user"), Text(entry["answer"], loss=True, role="assistant"))
        for entry in QUESTIONS
    )
    assert example() == Example((RECORD["image"],), branches, "source", "r/1")


def test_fewer_questions_are_drawn_by_the_generator():
    assert example(seed=3, questions=1) == example(seed=3, questions=1)
    assert len({example(seed=seed, questions=1).branches for seed in range(50)}) == 3
    assert len(example(questions=2).branches) == 2
    assert len(example(questions=9).branches) == 3


@pytest.mark.parametrize(
    ("questions", "reason"),
    [
        ([], "no question"),
        (None, "no question"),
        ([{"question": " ", "answer": "a"}], "without a question"),
        ([{"question": "q", "answer": ""}], "without an answer"),
        ([{"question": "q"}], "without an answer"),
    ],
)
def test_a_record_without_a_question_is_bad(questions, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        example(RECORD | {"questions": questions})
    assert caught.value.record_id == "r/1"


def test_a_negative_number_is_the_users_error():
    with pytest.raises(UserError, match="questions -1"):
        Instruct(questions=-1)


def test_a_record_without_a_picture_is_text_only():
    record = {"id": "r/2", "questions": QUESTIONS[:1]}
    assert example(record).trunk == ()
    assert example(record).branches == example(questions=0).branches[:1]
