import dataclasses
import math

import pytest

from data_pipelines.examples import Text
from data_pipelines.kinds.captions import REQUESTS
from data_pipelines.quarantine import Quarantine
from data_pipelines.sources import EasyVQA, TextQuestion, TextQuestions
from vlm_jax.config import EvaluationTask
from vlm_jax.errors import UserError
from vlm_jax.evaluation.questions import list_questions, wrong_images
from vlm_jax.evaluation.runner import evaluate
from vlm_jax.generation.requests import Score


def test_scores_groups_and_controls_are_those_that_can_be_counted(lab):
    source = lab.Source(languages=("en", "ru"))
    model = lab.Looker(blind_to=(0, 1))
    result = evaluate(lab.Task("colors", source), model, seed=3)
    assert (result.name, result.metric, result.score.n) == ("colors", "exact_match", 48)
    assert result.score.score == pytest.approx(10 / 12)
    assert result.score.low < 10 / 12 < result.score.high <= 1
    assert set(result.groups) == {"color", "yes_no_color", "yes_no", "en", "ru"}
    assert all(group.score == pytest.approx(10 / 12) and group.n == 24 for group in result.groups.values())
    # 4 of the 12 test pictures are red, and red is the training split's majority.
    assert result.controls["majority"].score == pytest.approx(4 / 12)
    questions = list_questions(source)
    shown = wrong_images(questions, 3)
    alike = [
        image not in model.blind and model.answer(image, asked) == lab.Looker().answer(question.image, asked)
        for question, image in zip(questions, shown, strict=True)
        for asked in [_as_turn(question)]
    ]
    assert result.controls["shuffled_image"].score == pytest.approx(sum(alike) / 48)
    assert model.asked[4] == 96


def _as_turn(question):
    return Text(question.record["question"], role="user")


def test_answers_say_everything_about_a_question(lab):
    result = evaluate(lab.Task("colors", lab.Source()), lab.Looker(blind_to=(0,)))
    first = result.answers[0]
    assert (first.id, first.picture, first.language, first.type) == ("colors/test/0#0", "colors/test/0", "en", "color")
    assert (first.question, first.answer, first.prediction, first.score) == ("what color?", "red", "?", 0.0)
    assert first.controls["majority"] == ("red", 1.0)
    assert set(first.controls) == {"majority", "shuffled_image"}


def test_without_controls_and_with_one_picture(lab):
    model = lab.Looker()
    result = evaluate(lab.Task("colors", lab.Source()), model, controls=False)
    assert result.controls == {}
    assert model.asked[4] == 24
    alone = evaluate(lab.Task("colors", lab.Source(records=1)), lab.Looker())
    assert set(alone.controls) == {"majority"}


def test_progress_and_quarantine_are_the_callers(lab):
    told, quarantine = [], Quarantine()
    source = lab.Source(bad_pictures=(5,))
    result = evaluate(
        lab.Task("colors", source), lab.Looker(), quarantine=quarantine, progress=lambda *step: told.append(step)
    )
    assert result.score.n == 22
    assert quarantine.counts() == {"colors": 1}
    assert told == [("colors", 44, 44)]  # with the wrong pictures
    with pytest.raises(UserError, match="task colors: its source has no usable question"):
        evaluate(lab.Task("colors", lab.Source(records=2, empty_records=(0, 1))), lab.Looker())


class SaysYes:
    def generate(self, prompts, *, max_new_tokens, progress=None):
        return ["да" if "а" in prompt.trunk[1].text else "yes" for prompt in prompts]


@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_official_test_split_is_asked_in_full(lab, monkeypatch, language):
    monkeypatch.undo()
    result = evaluate(lab.Task("easy_vqa", EasyVQA(split="test", languages=(language,))), SaysYes())
    counts = {name: group.n for name, group in result.groups.items()}
    assert counts == {"color": 1280, "shape": 1257, "yes_no_color": 5201, "yes_no_shape": 1935, "yes_no": 7136}
    assert result.score.n == 9673
    assert result.controls["majority"].score == pytest.approx(0.4238, abs=1e-4)
    assert result.score.score == pytest.approx(result.controls["shuffled_image"].score)
    assert len({answer.picture for answer in result.answers}) == 1000


class Reader:
    """Answers and scores prompts without a picture: `words` to each, at so many nats a letter."""

    def __init__(self, words, nats):
        self.words, self.nats = words, nats

    def generate(self, prompts, *, max_new_tokens, progress=None):
        assert not any(prompt.images for prompt in prompts)
        return [self.words for _ in prompts]

    def score(self, prompts, answers):
        return [[Score(-self.nats * len(text), len(text), False) for text in texts] for texts in answers]


CAPITALS = TextQuestions(
    (
        TextQuestion("What is the capital of France?", "It is Paris.", ("Paris",)),
        TextQuestion("What is the capital of Italy?", "It is Rome.", ("Rome", "Roma")),
    )
)


def test_a_baseline_is_asked_the_same_text_questions():
    task = EvaluationTask("capitals", CAPITALS, "contains", likelihood=True)
    result = evaluate(task, Reader("Paris or Rome", 0.5), baseline=Reader("I think it is rome, yes", 2.0))
    assert result.score.score == 1
    assert set(result.controls) == {"before"}
    assert result.controls["before"].score == 0.5
    assert result.differences["before"].score == 0.5
    assert result.perplexity == pytest.approx({"model": math.exp(0.5), "before": math.exp(2.0)})
    assert result.answers[0].likelihood == {"model": (-6.0, 12), "before": (-24.0, 12)}
    assert all(answer.image == "" for answer in result.answers)


def test_likelihood_is_measured_only_where_it_is_asked_for():
    result = evaluate(EvaluationTask("capitals", CAPITALS, "contains"), Reader("Rome", 1.0))
    assert result.perplexity == {}
    assert result.controls == {}


def test_so_many_questions_are_a_fixed_choice_by_seed(lab):
    source = lab.Source()

    def ids(limit, seed=0):
        task = dataclasses.replace(lab.Task("colors", source), limit=limit)
        return [answer.id for answer in evaluate(task, lab.Looker(), seed=seed).answers]

    assert len(ids(0)) == len(ids(99)) == 24
    assert len(ids(7)) == 7
    assert ids(7) == ids(7) != ids(7, seed=1)
    assert set(ids(7)) < set(ids(0))


def test_captions_can_be_asked_for():
    source = EasyVQA("test", pictures="described", phrasings=1, limit=5)

    class Captioner:
        def generate(self, prompts, *, max_new_tokens, progress=None):
            assert {prompt.trunk[1].text for prompt in prompts} == {REQUESTS["en"][0]}
            return ["a red circle" for _ in prompts]

    result = evaluate(EvaluationTask("captions", source, ask="captions"), Captioner())
    assert [answer.type for answer in result.answers] == ["caption"] * 5
    assert all(answer.answer.startswith("A ") and answer.image for answer in result.answers)
    assert set(result.controls) == {"majority", "shuffled_image"}
