"""What a workdir holds for a report: each file is read if it is there, and what is damaged is noted, not hidden."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.evaluation.results import RESULTS_FILE, Answer, read_predictions, read_results
from vlm_jax.evaluation.statistics import Estimate
from vlm_jax.serialise import from_plain

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of eval.json with the answers that lie beside it."""

    name: str
    metric: str
    score: Estimate
    controls: Mapping[str, float]
    groups: Mapping[str, Estimate]
    answers: tuple[Answer, ...]
    """None of them where predictions/TASK.jsonl is missing or damaged."""
    differences: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    """Score less that of a control, question by question."""
    perplexity: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of the true answers: "model", and "before" where a baseline was asked."""

    def only(self, wanted: Callable[[Answer], bool]) -> "Task":
        """The task with these of its answers."""
        return dataclasses.replace(self, answers=tuple(answer for answer in self.answers if wanted(answer)))


@dataclasses.dataclass(frozen=True)
class Contents:
    """What there is to show."""

    workdir: epath.Path
    config: Mapping[str, Any] | None
    """config.json as it stands there."""
    experiment: Experiment | None
    """The same as an Experiment; None where this version of the code cannot read it."""
    lines: tuple[Line, ...]
    """Of metrics.jsonl, stage after stage, each step once."""
    model: str
    """The model that was evaluated, as eval.json names it."""
    tasks: tuple[Task, ...]
    quarantine: tuple[Mapping[str, str], ...]
    """{"source", "id", "reason"} each."""
    notes: tuple[str, ...]
    """What could not be read, a line each."""

    @property
    def name(self) -> str:
        """Of the experiment, or else of the directory."""
        return str((self.config or {}).get("name") or self.workdir.name)

    @property
    def planned(self) -> dict[str, int]:
        """Stage -> steps, as the config has them."""
        return _planned(self.config)


def read_contents(workdir: epath.PathLike) -> Contents:
    """Reads what there is.

    Raises:
        UserError: if the workdir is not a directory, or holds nothing of a run.
    """
    path = epath.Path(workdir)
    known = ("config.json", "metrics.jsonl", RESULTS_FILE)
    if not any((path / name).exists() for name in known):
        raise UserError(f"--workdir {path}: holds none of {', '.join(known)}; name the workdir of a run")
    notes: list[str] = []
    config, experiment = _read_config(path / "config.json", notes)
    model, tasks = _read_tasks(path, notes)
    return Contents(
        workdir=path,
        config=config,
        experiment=experiment,
        lines=_in_order(_read_lines(path / "metrics.jsonl", _is_metrics, notes), config),
        model=model,
        tasks=tasks,
        quarantine=tuple(_read_lines(path / "quarantine.jsonl", _is_bad_record, notes)),
        notes=tuple(notes),
    )


def _read_config(path: epath.Path, notes: list[str]) -> tuple[Mapping[str, Any] | None, Experiment | None]:
    if not path.exists():
        return None, None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError) as error:
        notes.append(f"config.json is damaged ({error}).")
        return None, None
    try:
        return config, from_plain(Experiment, config)
    except UserError as error:
        notes.append(f"config.json was written by another version of the code ({error}).")
        return config, None


def _read_lines(path: epath.Path, sound: Callable[[Any], bool], notes: list[str]) -> list[Line]:
    """Lines of JSON that are sound. A kill can leave half a line; what follows it is still good."""
    if not path.exists():
        return []
    lines, damaged = [], 0
    for text in path.read_bytes().split(b"\n"):
        if not text.strip():
            continue
        try:
            line = json.loads(text.decode("utf-8"))
        except ValueError:
            line = None
        if sound(line):
            lines.append(line)
        else:
            damaged += 1
    if damaged:
        notes.append(f"{path.name}: {damaged} damaged {'line is' if damaged == 1 else 'lines are'} left out.")
    return lines


def _is_metrics(line: Any) -> bool:
    """Whether a line names its step, and its nested figures are such."""
    if not isinstance(line, dict) or not isinstance(line.get("stage"), str) or type(line.get("step")) is not int:
        return False
    sources = line.get("sources", {})
    nested = [sources, line.get("validation", {}), *(sources.values() if isinstance(sources, dict) else ())]
    return all(isinstance(entry, dict) for entry in nested)


def _is_bad_record(line: Any) -> bool:
    return isinstance(line, dict) and all(key in line for key in ("source", "id", "reason"))


def _planned(config: Mapping[str, Any] | None) -> dict[str, int]:
    stages = (config or {}).get("stages")
    stages = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    return {str(stage.get("name")): stage["steps"] for stage in stages if type(stage.get("steps")) is int}


def _in_order(lines: list[Line], config: Mapping[str, Any] | None) -> tuple[Line, ...]:
    stages = list(dict.fromkeys([*_planned(config), *(line["stage"] for line in lines)]))
    # A step that a resumed run did again counts as the last time it was done.
    latest = {(stages.index(line["stage"]), line["step"]): line for line in lines}
    return tuple(latest[key] for key in sorted(latest))


def _read_tasks(path: epath.Path, notes: list[str]) -> tuple[str, tuple[Task, ...]]:
    if not (path / RESULTS_FILE).exists():
        return "", ()
    try:
        results = read_results(path)
    except UserError as error:
        notes.append(f"{error}.")
        return "", ()
    tasks = []
    for name, plain in results["tasks"].items():
        try:
            task = _task(name, plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            notes.append(f"{RESULTS_FILE}: task {name} is damaged ({type(error).__name__}: {error}).")
            continue
        try:
            task = dataclasses.replace(task, answers=tuple(read_predictions(path, name)))
        except UserError as error:
            notes.append(f"{error}.")
        tasks.append(task)
    return str(results.get("model", "")), tuple(tasks)


def _task(name: str, plain: Mapping[str, Any]) -> Task:
    return Task(
        name=name,
        metric=str(plain["metric"]),
        score=_estimate(plain),
        controls={control: float(score) for control, score in plain.get("controls", {}).items()},
        groups={group: _estimate(estimate) for group, estimate in plain.get("groups", {}).items()},
        answers=(),
        differences={control: _estimate(estimate) for control, estimate in plain.get("differences", {}).items()},
        perplexity={who: float(value) for who, value in plain.get("perplexity", {}).items()},
    )


def _estimate(plain: Mapping[str, Any]) -> Estimate:
    return Estimate(float(plain["score"]), float(plain["low"]), float(plain["high"]), int(plain["n"]))
