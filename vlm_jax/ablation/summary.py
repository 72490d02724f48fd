"""All figures of a study, from the files of its runs: ablation.json, which the table and the plots show."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from vlm_jax.ablation.conduct import FAILURE_FILE
from vlm_jax.ablation.costs import Costs, context_tokens, read_costs
from vlm_jax.ablation.places import TEXT_FILE, Run, decoder_directory, is_done, read_json, run_of, write_json
from vlm_jax.ablation.study import Arm, Study
from vlm_jax.evaluation.results import Answer, read_predictions
from vlm_jax.evaluation.statistics import Estimate, clustered_mean

SUMMARY_FILE = "ablation.json"


@dataclasses.dataclass(frozen=True)
class Score:
    """The arm's quality. Intervals are 95%."""

    by_seed: dict[int, float]
    mean: float
    over_seeds: Estimate | None
    """By the spread of seeds (t): what another seed would give. None with one seed, or where all are the same."""
    over_questions: Estimate
    """By the spread of questions, clustered by picture, all seeds together: what other pictures would give."""
    shuffled: float
    """The same models with wrong pictures; nan where that was not measured."""
    above_shuffled: Estimate | None
    """Question by question, clustered by picture."""

    @property
    def says_something(self) -> bool:
        """Whether the arm is better than with wrong pictures beyond chance."""
        return self.above_shuffled is not None and self.above_shuffled.low > 0


@dataclasses.dataclass(frozen=True)
class TextLoss:
    """Cross-entropy on one held-out text, nats a token."""

    before: float | None
    """Of the LLM that all started from."""
    by_seed: dict[int, float]
    mean: float
    change: Estimate | None
    """Mean less before, with its interval over seeds; None without a before, or with one seed."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Quality of an arm less that of the study's first, on the same seeds and questions."""

    mean: float
    over_seeds: Estimate | None
    over_questions: Estimate


@dataclasses.dataclass(frozen=True)
class ArmFigures:
    """What is known of an arm."""

    name: str
    note: str
    context_tokens: int
    matched: bool
    """It spends the study's budget, or there is none."""
    costs: Costs
    score: Score | None
    """None while no seed is done."""
    difference: Difference | None
    """None for the first arm."""
    texts: dict[str, TextLoss]
    seconds: dict[int, float]
    """Training and evaluation of each seed, compilation included."""
    failures: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A study as far as it has come."""

    study: Study
    arms: tuple[ArmFigures, ...]
    same_examples: bool | None
    """Whether the arms whose costs were measured drew the very same examples for their batches; None if fewer than two
    were."""


def summarise(study: Study, workdir: epath.PathLike) -> Summary:
    """Reads what the runs left.

    Raises:
        UserError: if a file is damaged.
    """
    path = epath.Path(workdir).resolve()
    costs, plain = read_costs(path), read_json(path / "costs.json") or {}
    before = (read_json(decoder_directory(path) / TEXT_FILE) or {}).get("texts", {})
    answers = {arm.name: _answers(study, path, arm) for arm in study.arms}
    reference = answers[study.arms[0].name]
    arms = []
    for arm in study.arms:
        every = [run_of(study, path, arm, seed) for seed in range(study.seeds)]
        done = [run for run in every if run.seed in answers[arm.name]]
        spent = context_tokens(arm.experiment.model)
        measured = {run.seed: read_json(run.directory / TEXT_FILE) for run in done}
        arms.append(
            ArmFigures(
                name=arm.name,
                note=arm.note,
                context_tokens=spent,
                matched=study.budget in (0, spent),
                costs=costs.get(arm.name, Costs()),
                score=_score(answers[arm.name]) if done else None,
                difference=None if arm is study.arms[0] else _difference(reference, answers[arm.name]),
                texts=_texts({seed: found["texts"] for seed, found in measured.items()}, before),
                seconds={seed: float(found["seconds"]) for seed, found in measured.items()},
                failures=_failures(every),
            )
        )
    drawn = [plain[arm.name]["example_ids"] for arm in study.arms if "example_ids" in plain.get(arm.name, {})]
    return Summary(study, tuple(arms), all(ids == drawn[0] for ids in drawn) if len(drawn) > 1 else None)


def _answers(study: Study, workdir: epath.Path, arm: Arm) -> dict[int, list[Answer]]:
    """Seed -> answers of the task that the study is about, of runs that are done."""
    every = [run_of(study, workdir, arm, seed) for seed in range(study.seeds)]
    return {run.seed: read_predictions(run.directory, study.task) for run in every if is_done(run)}


def _score(answers: dict[int, list[Answer]]) -> Score:
    by_seed = {seed: _mean([answer.score for answer in found]) for seed, found in answers.items()}
    pooled = [answer for found in answers.values() for answer in found]
    shown = [(x.score, x.controls["shuffled_image"][1], x.picture) for x in pooled if "shuffled_image" in x.controls]
    return Score(
        by_seed=by_seed,
        mean=_mean(list(by_seed.values())),
        over_seeds=_over_seeds(list(by_seed.values()), (0.0, 1.0)),
        over_questions=clustered_mean([x.score for x in pooled], [x.picture for x in pooled]),
        shuffled=_mean([wrong for _, wrong, _ in shown]) if shown else math.nan,
        above_shuffled=clustered_mean([a - b for a, b, _ in shown], [picture for *_, picture in shown], bounds=(-1, 1))
        if shown
        else None,
    )


def _difference(first: dict[int, list[Answer]], second: dict[int, list[Answer]]) -> Difference | None:
    """On seeds that both have, and questions that both were asked."""
    by_seed, pooled, pictures = [], [], []
    for seed in sorted(first.keys() & second.keys()):
        there = {answer.id: answer for answer in first[seed]}
        differences = [answer.score - there[answer.id].score for answer in second[seed] if answer.id in there]
        if differences:
            by_seed.append(_mean(differences))
            pooled += differences
            pictures += [answer.picture for answer in second[seed] if answer.id in there]
    if not by_seed:
        return None
    over_questions = clustered_mean(pooled, pictures, bounds=(-1, 1))
    return Difference(_mean(by_seed), _over_seeds(by_seed, (-1.0, 1.0)), over_questions)


def _texts(found: dict[int, dict[str, Any]], before: dict[str, Any]) -> dict[str, TextLoss]:
    losses: dict[str, dict[int, float]] = {}
    for seed, texts in found.items():
        for title, figures in texts.items():
            losses.setdefault(title, {})[seed] = figures["loss"]
    result = {}
    for title, by_seed in losses.items():
        start = before[title]["loss"] if title in before else None
        changes = [] if start is None else [loss - start for loss in by_seed.values()]
        change = _over_seeds(changes, (-math.inf, math.inf))
        result[title] = TextLoss(start, by_seed, _mean(list(by_seed.values())), change)
    return result


def _over_seeds(values: Sequence[float], bounds: tuple[float, float]) -> Estimate | None:
    """Mean and t interval over seeds; None where there is no spread to judge by."""
    if len(values) < 2 or max(values) == min(values):
        return None
    return clustered_mean(values, range(len(values)), bounds=bounds)


def _failures(every: Sequence[Run]) -> dict[int, str]:
    found = {run.seed: read_json(run.directory / FAILURE_FILE) for run in every}
    return {seed: str(failure["message"]) for seed, failure in found.items() if failure}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def write_summary(summary: Summary, workdir: epath.PathLike) -> epath.Path:
    """Writes WORKDIR/ablation.json and returns its path.

    Raises:
        UserError: if it cannot be written.
    """
    study = summary.study
    path = epath.Path(workdir) / SUMMARY_FILE
    plain = {
        "study": study.name,
        "task": study.task,
        "seeds": study.seeds,
        "budget": study.budget,
        "first_arm": study.arms[0].name,
        "same_examples": summary.same_examples,
        "notes": study.notes,
        "arms": {arm.name: _plain(arm) for arm in summary.arms},
    }
    write_json(path, _without_nan(plain))
    return path


def _plain(arm: ArmFigures) -> dict[str, Any]:
    found = dataclasses.asdict(arm)
    if arm.score is not None:
        found["score"]["says_something"] = arm.score.says_something
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
