"""Writes WORKDIR/report.html: scores, answers with their pictures, curves, throughput, bad records and the config."""

import collections
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import platform
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from etils import epath

from vlm_jax.checkpoints import abstract_params
from vlm_jax.errors import UserError
from vlm_jax.evaluation.report.cards import CARDS, Card, choose, commonest_mistakes, with_pictures
from vlm_jax.evaluation.report.contents import Contents, Task, read_contents
from vlm_jax.evaluation.report.figures import StageFigures, parameters, stage_figures
from vlm_jax.evaluation.report.plots import plots, throughput_plots
from vlm_jax.evaluation.results import groups_of
from vlm_jax.evaluation.statistics import Estimate
from vlm_jax.models.vlm import VLM

REPORT_FILE = "report.html"
_CONTROLS = {"majority": "majority answer", "shuffled_image": "wrong picture", "before": "before training"}
_LANGUAGES = {"en": "English", "ru": "Russian"}
_LISTED_RECORDS = 200


def write_report(workdir: epath.PathLike) -> epath.Path:
    """Writes WORKDIR/report.html from what lies in the workdir: one file that asks for nothing from outside.

    config.json, metrics.jsonl, eval.json with predictions/, quarantine.jsonl: any of them may be missing; what is
    damaged is left out, and the page says so.

    Returns:
        The page's path.

    Raises:
        UserError: if there is nothing of a run, or the page cannot be written.
    """
    contents = read_contents(workdir)
    path = contents.workdir / REPORT_FILE
    page = _render(contents)
    part = path.with_name(path.name + ".part")
    try:
        # A reader must never meet half a page.
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or mend the path") from None
    return path


def _render(contents: Contents) -> str:
    model = None if contents.experiment is None else abstract_params(VLM(contents.experiment.model))
    stages, counts = stage_figures(contents, model), parameters(model)
    questions = [task.only(lambda x: x.type != "caption" and "before" not in x.controls) for task in contents.tasks]
    cards = with_pictures(choose(questions), contents)
    captions = [
        Card(task.name, answer) for task in contents.tasks for answer in task.answers if answer.type == "caption"
    ]
    return _template().render(
        contents=contents,
        summary=_summary(stages, counts),
        facts=_facts(stages, counts),
        scores=[_score_rows(task) for task in contents.tasks],
        cards=cards,
        cards_note=_cards_note(cards, questions),
        captions=with_pictures(captions[:CARDS], contents),
        before_and_after=[task for task in contents.tasks if "before" in task.controls and task.answers],
        mistakes=[
            (task, commonest_mistakes(task)) for task in contents.tasks if any(x.score <= 0 for x in task.answers)
        ],
        plots=plots(contents.lines),
        throughput=throughput_plots(contents.lines),
        stages=stages,
        quarantine=_quarantine(contents),
        met_in_training=_met_in_training(contents),
        listed_records=_LISTED_RECORDS,
        config=None if contents.config is None else json.dumps(contents.config, indent=2, ensure_ascii=False),
        versions=_versions(),
        written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    )


def _summary(stages: Sequence[StageFigures], counts: dict[str, int]) -> str:
    """One sentence on what was trained."""
    what = "A vision-language model" if "encoder" in counts else "A language model" if counts else "A model"
    if counts:
        parts = ", ".join(f"{name} {short(count)}" for name, count in counts.items())
        what += f" of {short(sum(counts.values()))} parameters ({parts})"
    begun = [stage for stage in stages if stage.steps]
    if not begun:
        return f"{what}."
    names = ", then ".join(stage.name for stage in begun)
    sentence = f"{what}, trained in {len(begun)} {'stage' if len(begun) == 1 else 'stages'}: {names}."
    current = next((stage for stage in stages if not stage.finished), None)
    if current is not None:
        sentence += f" Not finished: stage {current.name} has done {current.steps:,} of {current.planned:,} steps."
    return sentence


def _facts(stages: Sequence[StageFigures], counts: dict[str, int]) -> list[tuple[str, str]]:
    """(figure, what it is), for the head of the page."""
    facts = []
    if counts:
        facts.append((short(sum(counts.values())), "parameters"))
    if any(stage.steps for stage in stages):
        facts += [
            (f"{sum(stage.steps for stage in stages):,}", "optimiser steps"),
            (duration(sum(stage.seconds for stage in stages)), "of training"),
            (short(sum(stage.tokens for stage in stages)), "tokens seen"),
            (short(sum(stage.images for stage in stages)), "pictures seen"),
        ]
    return facts


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """A line of the score table."""

    name: str
    depth: int
    estimate: Estimate
    controls: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Scores:
    """A task's part of the score table."""

    task: Task
    rows: list[ScoreRow]
    top: float
    """Right end of the bars' scale."""

    @property
    def controls(self) -> list[str]:
        """Names of the controls."""
        return list(self.task.controls)

    @property
    def language(self) -> str:
        """The task's language if it has one alone."""
        languages = {answer.language for answer in self.task.answers}
        code = languages.pop() if len(languages) == 1 else ""
        return _LANGUAGES.get(code, code)


def _score_rows(task: Task) -> Scores:
    estimates = [task.score, *task.groups.values()]
    top = 1.0 if max(estimate.high for estimate in estimates) <= 1 else max(estimate.high for estimate in estimates)
    rows = [ScoreRow("all", 0, task.score, dict(task.controls))]
    by_group = _group_controls(task)
    for group in sorted(task.groups):
        parents = [other for other in task.groups if group.startswith(f"{other}_")]
        rows.append(ScoreRow(group, 1 + len(parents), task.groups[group], by_group.get(group, {})))
    return Scores(task, rows, top)


def _group_controls(task: Task) -> dict[str, dict[str, float]]:
    """Group -> control -> mean score, from the answers."""
    several = len({answer.language for answer in task.answers}) > 1
    found: dict[str, dict[str, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for answer in task.answers:
        for group in groups_of(answer, several):
            for control, (_, score) in answer.controls.items():
                found[group][control].append(score)
    return {
        group: {control: sum(values) / len(values) for control, values in controls.items()}
        for group, controls in found.items()
    }


def _cards_note(cards: Sequence[Card], tasks: Sequence[Task]) -> str:
    wrong = sum(card.verdict != "right" for card in cards)
    answers = [answer for task in tasks for answer in task.answers]
    share = sum(answer.score < 1 for answer in answers) / max(len(answers), 1)
    return (
        f"Drawn with a fixed seed from {len(answers):,} answers, with every kind of question that has mistakes among "
        f"the wrong ones: {wrong} of these {len(cards)} are not right, of all answers {percent(share)}."
    )


def _quarantine(contents: Contents) -> list[tuple[str, str, int, str]]:
    """(source, reason, how many, an example's id), the most frequent first."""
    groups: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for record in contents.quarantine:
        # A reason that begins with the picture's path would make every record a reason of its own.
        reason = re.sub(r"^'[^']*': ", "", str(record["reason"]))
        groups[str(record["source"]), reason].append(str(record["id"]))
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(source, reason, len(ids), ids[0]) for (source, reason), ids in ranked]


def _met_in_training(contents: Contents) -> int:
    """Unusable records as the last line of metrics.jsonl counts them."""
    counted = contents.lines[-1].get("quarantined") if contents.lines else None
    return sum(counted.values()) if isinstance(counted, dict) else 0


def _versions() -> list[tuple[str, str]]:
    names = ("vlm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
    found = [("Python", platform.python_version())]
    for name in names:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return [*found, ("system", f"{platform.system()} {platform.machine()}")]


def percent(value: float | None, digits: int = 1) -> str:
    """A share as text, e.g. 98.1 %."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def score_text(value: float, top: float) -> str:
    """A score as it is shown: a share in percent, anything else as a number."""
    return f"{100 * value:.1f}" if top <= 1 else f"{value:,.1f}"


def signed_text(value: float, top: float) -> str:
    """A difference of scores, with its sign."""
    return f"{100 * value:+.1f}" if top <= 1 else f"{value:+,.1f}"


def short(count: float) -> str:
    """A count with three figures or so: 950, 42.1k, 1.05M, 8.03B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            scaled = count / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """A time as text: 42 s, 12 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits, or a dash."""
    return "–" if value is None else f"{value:#.{digits}g}".rstrip(".")


@functools.cache
def _template() -> jinja2.Template:
    # The style sheet of the data pages is the house's; this page adds to it.
    loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader("vlm_jax.evaluation.report", "."), jinja2.PackageLoader("data_pipelines", "look")]
    )
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Any] = {"percent": percent, "short": short, "duration": duration, "figure": figure}
    environment.filters.update(
        filters, score=score_text, signed=signed_text, control=lambda name: _CONTROLS.get(name, name)
    )
    environment.filters["thousands"] = lambda count: f"{count:,}"
    return environment.get_template("page.html.j2")
