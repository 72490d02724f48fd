"""The runner: lets a model answer every question of a task, and measures its controls the same way."""

from collections.abc import Callable, Sequence
from typing import Protocol

from data_pipelines.examples import Example, Image
from data_pipelines.quarantine import Quarantine
from data_pipelines.sources import SourceConfig, open_source
from vlm_jax.evaluation.metrics import METRICS
from vlm_jax.evaluation.questions import Question, list_questions, majority_answers, wrong_images
from vlm_jax.evaluation.results import Answer, TaskResult, summarise
from vlm_jax.generation import question as as_prompt

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


class Model(Protocol):
    """Whatever answers prompts: `vlm_jax.generation.Engine`."""

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
    quarantine: Quarantine | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Generates an answer to every question of the task's source and scores it.

    Controls, scored by the same metric on the same questions:
        majority: the most common answer to this type of question in the source's training split, whatever the picture.
        shuffled_image: the same model, each question asked about a fixed, randomly chosen other picture. Left out where
            there is only one picture.

    Args:
        task: what to ask and how to score.
        model: answers prompts.
        controls: whether to measure the controls too.
        seed: chooses the wrong pictures.
        quarantine: counts records that cannot be used; one in memory, with the usual limit, if None is given.
        progress: called as answers come.

    Raises:
        UserError: if no question is usable, or too many records are not.
    """
    questions = list_questions(open_source(task.source), Quarantine() if quarantine is None else quarantine)

    def answer(what: str, images: Sequence[Image]) -> list[str]:
        prompts = [
            as_prompt(question.record["question"], [image], question.id)
            for question, image in zip(questions, images, strict=True)
        ]
        report = None if progress is None else lambda done, total: progress(what, done, total)
        return model.generate(prompts, max_new_tokens=task.max_new_tokens, progress=report)

    predictions = answer(task.name, [question.image for question in questions])
    control_predictions: dict[str, list[str]] = {}
    if controls and questions:
        answers = majority_answers(task.source, questions)
        control_predictions["majority"] = [answers[question.kind] for question in questions]
        if len({question.picture for question in questions}) > 1:
            wrong = answer(f"{task.name}, shuffled_image", wrong_images(questions, seed))
            control_predictions["shuffled_image"] = wrong
    return summarise(task.name, task.metric, _score(task, questions, predictions, control_predictions))


def _score(
    task: Task, questions: Sequence[Question], predictions: Sequence[str], controls: dict[str, list[str]]
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
                image=question.image.path or "",
                language=language,
                type=kind,
                question=record["question"],
                answer=record["answer"],
                prediction=prediction,
                score=metric(prediction, record),
                controls={
                    name: (answers[number], metric(answers[number], record)) for name, answers in controls.items()
                },
            )
        )
    return scored
