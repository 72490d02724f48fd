"""Results: scores with intervals, and the predictions beside them from which every figure can be computed again."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from vlm_jax.errors import UserError
from vlm_jax.evaluation.statistics import Estimate, clustered_mean

RESULTS_FILE = "eval.json"
PREDICTIONS_DIRECTORY = "predictions"


@dataclasses.dataclass(frozen=True)
class Answer:
    """One question with the model's answer: a line of predictions/TASK.jsonl."""

    id: str
    picture: str
    """The cluster."""
    image: str
    """Where the picture's file is, '' if it has none: for showing it."""
    language: str
    type: str
    question: str
    answer: str
    """The true one."""
    prediction: str
    score: float
    controls: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    """Name of a control -> (its answer, the score of that)."""
    likelihood: Mapping[str, tuple[float, int]] = dataclasses.field(default_factory=dict)
    """"model", or a control that has one -> (log-likelihood of the true answer in nats, tokens that it is over)."""


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What a model made of a task."""

    name: str
    metric: str
    score: Estimate
    controls: dict[str, Estimate]
    groups: dict[str, Estimate]
    answers: tuple[Answer, ...]
    differences: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    """Of each control: score less that of the control, question by question."""
    perplexity: dict[str, float] = dataclasses.field(default_factory=dict)
    """"model", or a control -> exp(-log-likelihood a token) of the true answers, where it was measured."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in eval.json."""
        return {
            "metric": self.metric,
            **self.score.to_json(),
            "controls": {name: estimate.score for name, estimate in self.controls.items()},
            "differences": {name: estimate.to_json() for name, estimate in self.differences.items()},
            **({"perplexity": self.perplexity} if self.perplexity else {}),
            "groups": {name: estimate.to_json() for name, estimate in self.groups.items()},
        }


def summarise(name: str, metric: str, answers: Sequence[Answer]) -> TaskResult:
    """Scores of the answers, overall, of each control and of each group, clustered by picture.

    Raises:
        UserError: if there is no answer.
    """
    if not answers:
        raise UserError(f"task {name}: its source has no usable question; choose another source or split")

    def estimate(chosen: Iterable[tuple[Answer, float]], lowest: float = 0.0) -> Estimate:
        pairs = list(chosen)
        pictures = [answer.picture for answer, _ in pairs]
        return clustered_mean([score for _, score in pairs], pictures, bounds=(lowest, 1.0))

    groups: dict[str, list[Answer]] = {}
    languages = {answer.language for answer in answers}
    for answer in answers:
        for group in groups_of(answer, len(languages) > 1):
            groups.setdefault(group, []).append(answer)
    return TaskResult(
        name=name,
        metric=metric,
        score=estimate((answer, answer.score) for answer in answers),
        controls={
            control: estimate((answer, answer.controls[control][1]) for answer in answers)
            for control in answers[0].controls
        },
        groups={
            group: estimate((answer, answer.score) for answer in members) for group, members in sorted(groups.items())
        },
        answers=tuple(answers),
        differences={
            control: estimate(((answer, answer.score - answer.controls[control][1]) for answer in answers), -1.0)
            for control in answers[0].controls
        },
        perplexity={who: _perplexity([answer.likelihood[who] for answer in answers]) for who in answers[0].likelihood},
    )


def _perplexity(likelihoods: Sequence[tuple[float, int]]) -> float:
    return math.exp(-sum(value for value, _ in likelihoods) / sum(tokens for _, tokens in likelihoods))


def groups_of(answer: Answer, several_languages: bool = False) -> list[str]:
    """The groups an answer counts in: its type, yes_no for every yes_no_… type, its language if there are several."""
    groups = [answer.type] if answer.type else []
    if answer.type.startswith("yes_no_"):
        groups.append("yes_no")
    if several_languages:
        groups.append(answer.language)
    return groups


def write_results(directory: epath.PathLike, model: str, results: Sequence[TaskResult]) -> None:
    """Writes predictions/TASK.jsonl for every task, and then eval.json.

    Args:
        directory: where they go; made if it is not there.
        model: what eval.json says about which model this was.
        results: of the tasks; those of an earlier evaluation in the same directory are replaced.

    Raises:
        UserError: if the directory cannot be written.
    """
    directory = epath.Path(directory)
    summary = {"model": model, "tasks": {result.name: result.to_json() for result in results}}
    try:
        (directory / PREDICTIONS_DIRECTORY).mkdir(parents=True, exist_ok=True)
        for result in results:
            lines = (json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n" for answer in result.answers)
            _write(directory / PREDICTIONS_DIRECTORY / f"{result.name}.jsonl", "".join(lines))
        _write(directory / RESULTS_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{directory}: cannot write the results ({error}); free space or mend the path") from None


def _write(path: epath.Path, text: str) -> None:
    # A reader, or a kill, must never meet half a file.
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def read_results(directory: epath.PathLike) -> dict[str, Any]:
    """What eval.json says; `directory` may also name the file itself.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    path = _results_path(directory)
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: there are no results here; run `vlm eval` first, or name its workdir") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); run `vlm eval` again") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("tasks"), dict):
        raise UserError(f"{path}: not the results of `vlm eval`; name a workdir that holds some")
    return plain


def read_predictions(directory: epath.PathLike, task: str) -> list[Answer]:
    """The answers that lie beside eval.json.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = _results_path(directory).parent / PREDICTIONS_DIRECTORY / f"{task}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError:
        raise UserError(f"{path}: the predictions of task {task} are missing; run `vlm eval` again") from None
    answers = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            plain = json.loads(line)
            controls = {name: (str(text), float(score)) for name, (text, score) in plain.pop("controls").items()}
            found = plain.pop("likelihood", {})
            likelihood = {name: (float(value), int(tokens)) for name, (value, tokens) in found.items()}
            answers.append(Answer(**plain, controls=controls, likelihood=likelihood))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: line {number} is damaged ({error}); run `vlm eval` again") from None
    return answers


def _results_path(directory: epath.PathLike) -> epath.Path:
    path = epath.Path(directory)
    return path if path.suffix == ".json" else path / RESULTS_FILE
