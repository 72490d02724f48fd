"""The runner: lets a model answer every question of a task, and measures its controls the same way."""

from collections.abc import Callable, Sequence
from typing import Protocol

from data_pipelines.examples import Example, Image
from data_pipelines.images import decode
from data_pipelines.quarantine import Quarantine
from data_pipelines.sources import SourceConfig, open_source
from vlm_jax.evaluation.metrics import METRICS
from vlm_jax.evaluation.questions import Ask, Check, Question, choose, list_questions, majority_answers, wrong_images
from vlm_jax.evaluation.results import Answer, TaskResult, summarise
from vlm_jax.generation import question as as_prompt
from vlm_jax.generation.requests import Score

Progress = Callable[[str, int, int], None]
"""Called with (what is being answered, prompts answered, prompts in all)."""


class Task(Protocol):
    """A benchmark: `vlm_jax.config.EvaluationTask`, or anything with its fields."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> SourceConfig: ...
    @property
    def metric(self) -> str:
        """A name in `METRICS`."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def ask(self) -> Ask:
        """Whether the source's questions are asked, or its captions asked for."""

    @property
    def limit(self) -> int:
        """So many questions; 0 = all."""

    @property
    def likelihood(self) -> bool:
        """Whether the true answers' likelihood is measured."""


class Model(Protocol):
    """Whatever answers prompts: `vlm_jax.generation.Engine`."""

    def score(self, prompts: Sequence[Example], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        """How likely each of some answers to each prompt is."""

    def generate(
        self, prompts: Sequence[Example], *, max_new_tokens: int, progress: Callable[[int, int], None] | None
    ) -> list[str]:
        """Answers, greedily, in the order of the prompts."""


def evaluate(
    task: Task,
    model: Model,
    *,
    controls: bool = True,
    seed: int = 0,
    baseline: Model | None = None,
    quarantine: Quarantine | None = None,
    progress: Progress | None = None,
    check_picture: Check = decode,
) -> TaskResult:
    """Generates an answer to every question of the task's source and scores it.

    Controls, scored by the same metric on the same questions:
        majority: the most common answer to this type of question in the source's training split, whatever the picture.
        shuffled_image: the same model, each question asked about a fixed, randomly chosen other picture. Left out where
            there is only one picture.
        before: the baseline's answers.

    Args:
        task: what to ask and how to score.
        model: answers prompts.
        controls: whether to measure the controls too.
        seed: chooses the wrong pictures and, where the task has a limit, the questions.
        baseline: another model to ask the same.
        quarantine: counts records that cannot be used; one in memory, with the usual limit, if None is given.
        progress: called as answers come.
        check_picture: called with every picture first: a model that cuts pictures refuses those that suit no grid.

    Raises:
        UserError: if no question is usable, or too many records are not.
    """
    account = Quarantine() if quarantine is None else quarantine
    listed = list_questions(open_source(task.source), account, check_picture=check_picture, ask=task.ask)
    questions = choose(listed, task.limit, seed)

    def answer(who: Model, what: str, prompts: Sequence[Example]) -> list[str]:
        report = None if progress is None else lambda done, total: progress(what, done, total)
        return who.generate(prompts, max_new_tokens=task.max_new_tokens, progress=report)

    prompts = _prompts(questions, [question.image for question in questions])
    shown = {question.picture for question in questions if question.image is not None}
    shuffled = _prompts(questions, wrong_images(questions, seed)) if controls and len(shown) > 1 else []
    # All at once, so that the pictures, which are the same ones, are encoded once.
    given = answer(model, task.name, [*prompts, *shuffled])
    predictions, wrong = given[: len(prompts)], given[len(prompts) :]
    control_predictions: dict[str, list[str]] = {}
    likelihoods = {"model": _likelihoods(model, prompts, questions)} if task.likelihood else {}
    if controls and shown:
        answers = majority_answers(task.source, questions, task.ask)
        control_predictions["majority"] = [answers[question.kind] for question in questions]
        if shuffled:
            control_predictions["shuffled_image"] = wrong
    if baseline is not None:
        control_predictions["before"] = answer(baseline, f"{task.name}, before", prompts)
        if task.likelihood:
            likelihoods["before"] = _likelihoods(baseline, prompts, questions)
    return summarise(task.name, task.metric, _score(task, questions, predictions, control_predictions, likelihoods))


def _prompts(questions: Sequence[Question], images: Sequence[Image | None]) -> list[Example]:
    return [
        as_prompt(question.record["question"], [] if image is None else [image], question.id)
        for question, image in zip(questions, images, strict=True)
    ]


def _likelihoods(model: Model, prompts: Sequence[Example], questions: Sequence[Question]) -> list[tuple[float, int]]:
    """(log-likelihood, tokens) of every question's true answer."""
    scores = model.score(prompts, [[question.record["answer"]] for question in questions])
    return [(score.log_likelihood, score.tokens) for (score,) in scores]


def _score(
    task: Task,
    questions: Sequence[Question],
    predictions: Sequence[str],
    controls: dict[str, list[str]],
    likelihoods: dict[str, list[tuple[float, int]]],
) -> list[Answer]:
    metric = METRICS[task.metric]
    scored = []
    for number, (question, prediction) in enumerate(zip(questions, predictions, strict=True)):
        record = question.record
        language, kind = question.kind
        scored.append(
            Answer(
                id=question.id,
                picture=question.picture,
                image="" if question.image is None else question.image.path or "",
                language=language,
                type=kind,
                question=record["question"],
                answer=record["answer"],
                prediction=prediction,
                score=metric(prediction, record),
                controls={
                    name: (answers[number], metric(answers[number], record)) for name, answers in controls.items()
                },
                likelihood={who: values[number] for who, values in likelihoods.items()},
            )
        )
    return scored
