import json

import pytest

from data_pipelines.images import BadImage
from data_pipelines.quarantine import Quarantine
from data_pipelines.sources import EasyVQA, JSONLines, open_source
from vlm_jax.errors import UserError
from vlm_jax.evaluation.questions import list_questions, majority_answers, training_source, wrong_images


def test_questions_know_their_picture_and_their_kind(lab):
    questions = list_questions(lab.Source(records=2, languages=("en", "ru")))
    assert [question.id for question in questions[:5]] == [*(f"colors/test/0#{n}" for n in range(4)), "colors/test/1#0"]
    assert questions[3].kind == ("ru", "yes_no_color")
    assert questions[4].image == lab.picture(1)
    assert questions[4].picture == "colors/test/1"


def test_what_cannot_be_asked_is_quarantined_with_its_reason(lab):
    source = lab.Source(bad_records=(1,), bad_pictures=(2,), empty_records=(3,))
    quarantine = Quarantine()
    questions = list_questions(source, quarantine)
    assert {question.picture for question in questions} == {f"colors/test/{n}" for n in (0, *range(4, 12))}
    reasons = [reason for _, reason in quarantine.reasons().items()]
    assert list(quarantine.reasons()) == [("colors", f"colors/test/{n}") for n in (1, 2, 3)]
    assert reasons[0] == "it is torn"
    assert "not a picture" in reasons[1]
    assert reasons[2] == "no question"
    with pytest.raises(UserError, match="4 of 12 records are unusable"):
        list_questions(lab.Source(bad_records=(1, 2, 3, 4)), Quarantine())


def test_a_picture_that_the_model_does_not_take_is_quarantined_and_named(lab):
    def refuse_the_first(image):
        if image == lab.picture(0):
            raise BadImage("4 x 4 pixels take a grid that is not there")

    quarantine = Quarantine(limit=0.2)
    questions = list_questions(lab.Source(), quarantine, check_picture=refuse_the_first)
    assert len({question.picture for question in questions}) == 11
    assert quarantine.reasons() == {("colors", "colors/test/0"): "4 x 4 pixels take a grid that is not there"}


def test_a_caption_in_a_language_without_a_request_is_quarantined(tmp_path):
    path = tmp_path / "captions.jsonl"
    lines = [
        {"id": str(n), "captions": [{"text": "Eine Ente.", "language": language}]}
        for n, language in ((0, "de"), (1, "en"))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    quarantine = Quarantine()
    questions = list_questions(open_source(JSONLines(str(path))), quarantine, ask="captions")
    assert [question.record["language"] for question in questions] == ["en"]
    assert list(quarantine.reasons().values()) == ["a caption in 'de', for which there is no request"]


def test_the_majority_is_that_of_the_training_split(lab):
    source = lab.Source(languages=("en", "ru"))
    majority = majority_answers(source, list_questions(source))
    # The test's own majority is the other one.
    assert majority == {
        ("en", "color"): "red",
        ("en", "yes_no_color"): "yes",
        ("ru", "color"): "красный",
        ("ru", "yes_no_color"): "да",
    }
    assert training_source(EasyVQA(split="test", languages=("ru",))) == EasyVQA(languages=("ru",))


def test_without_a_training_split_the_questions_themselves_are_counted(lab, monkeypatch):
    monkeypatch.setattr("vlm_jax.evaluation.questions.training_source", lambda config: None)
    source = lab.Source(records=12)
    assert majority_answers(source, list_questions(source)) == {("en", "color"): "blue", ("en", "yes_no_color"): "no"}


def test_every_question_gets_a_fixed_wrong_picture(lab):
    questions = list_questions(lab.Source())
    wrong = wrong_images(questions, seed=0)
    assert all(question.image != image for question, image in zip(questions, wrong, strict=True))
    assert set(wrong) == {question.image for question in questions}
    assert wrong[::2] == wrong[1::2]
    assert wrong_images(questions, seed=0) == wrong
    assert wrong_images(questions, seed=1) != wrong
    with pytest.raises(ValueError, match="two or more"):
        wrong_images(questions[:2], seed=0)
