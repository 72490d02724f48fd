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


def test_all_pictures_of_a_record_come_first():
    pictures = [Image(path="b.png"), Image(path="c.png")]
    made = example(RECORD | {"images": pictures})
    assert made.trunk == (RECORD["image"], *pictures)
    assert made.branches == example().branches


def dialogue(*messages, **options):
    record = {"id": "d", "messages": [{"role": role, "content": content} for role, content in messages]}
    return example(record, **options)


def test_a_dialogue_is_one_trunk_and_the_assistant_is_learned():
    made = dialogue(
        ("system", "Be brief."),
        ("user", [{"image": Image(path="a.png")}, {"image": Image(path="b.png")}]),
        ("assistant", "Two ducks."),
        ("user", "Уверен?"),
        ("assistant", [{"text": "Да."}]),
        ("user", "Спасибо."),
    )
    assert made.branches == ()
    assert made.trunk == (
        Text("Be brief.", role="system"),
        Image(path="a.png"),
        Image(path="b.png"),
        Text("", role="user"),
        Text("Two ducks.", loss=True, role="assistant"),
        Text("Уверен?", role="user"),
        Text("Да.", loss=True, role="assistant"),
        Text("Спасибо.", role="user"),
    )
    assert made.when_long == "refuse"
    assert dialogue(("user", "a"), ("assistant", "b"), when_long="cut").when_long == "cut"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([("user", "a")], "without an answer"),
        ([("human", "a"), ("assistant", "b")], "role 'human'"),
        ([("user", " "), ("assistant", "b")], "empty message of the user"),
        ([("user", "a"), ("assistant", "")], "empty message of the assistant"),
        ([("user", "a"), ("assistant", [{"image": RECORD["image"]}])], "picture in a message of the assistant"),
        ([("user", [{"image": "a.png"}]), ("assistant", "b")], "neither"),
        ([("user", [{"audio": "a.wav"}]), ("assistant", "b")], "neither"),
        ([("user", ["a"]), ("assistant", "b")], "neither"),
        ([("user", 7), ("assistant", "b")], "content is of type int"),
    ],
)
def test_what_is_no_dialogue_is_bad(messages, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        dialogue(*messages)
    assert caught.value.record_id == "d"
