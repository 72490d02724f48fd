"""The figures of a run: what each stage did and saw, and how many parameters the model has."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.evaluation.report.contents import Contents, Line
from vlm_jax.optim import assign_rules, split

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class SourceFigures:
    """What a stage took from one entry of its mixture."""

    name: str
    tokens: int
    examples_seen: int
    epochs_seen: float
    loss: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class StageFigures:
    """One stage so far. What is unknown is None."""

    name: str
    steps: int
    planned: int | None
    seconds: float
    tokens: int
    images: int
    padding_share: float | None
    """Mean over steps."""
    loss: float | None
    """Of the last line, like accuracy."""
    accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    trained: int | None
    """Parameters."""
    sources: tuple[SourceFigures, ...]

    @property
    def finished(self) -> bool:
        """Whether all planned steps were done."""
        return self.planned is None or self.steps >= self.planned

    @property
    def tokens_per_second(self) -> float | None:
        """Over the whole stage, compilation, validation and saving included."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def images_per_second(self) -> float | None:
        """Likewise."""
        return self.images / self.seconds if self.seconds else None


def stage_figures(contents: Contents, model: Tree | None) -> list[StageFigures]:
    """Figures of all stages that have begun or are planned, in their order.

    Args:
        contents: of the workdir.
        model: the model's abstract parameters, if they are known.
    """
    planned = contents.planned
    by_stage: dict[str, list[Line]] = {name: [] for name in planned}
    for line in contents.lines:
        by_stage.setdefault(line["stage"], []).append(line)
    trained = _trained(contents.experiment, model)
    found, before = [], Totals()
    for name, lines in by_stage.items():
        after = Totals.after(lines[-1], before) if lines else before
        found.append(_stage(name, planned.get(name), lines, before, after, trained.get(name)))
        before = after
    return found


@dataclasses.dataclass(frozen=True)
class Totals:
    """Since the beginning of the run; metrics.jsonl keeps these running."""

    seconds: float = 0.0
    tokens: int = 0
    images: int = 0

    @classmethod
    def after(cls, line: Line, otherwise: "Totals") -> "Totals":
        """As a line has them."""
        return cls(
            number(line, "seconds") or otherwise.seconds,
            int(number(line, "tokens_seen") or otherwise.tokens),
            int(number(line, "images_seen") or otherwise.images),
        )


def _stage(
    name: str, planned: int | None, lines: Sequence[Line], before: Totals, after: Totals, trained: int | None
) -> StageFigures:
    last = lines[-1] if lines else {}
    validations = [line["validation"] for line in lines if isinstance(line.get("validation"), dict)]
    validation = validations[-1] if validations else {}
    return StageFigures(
        name=name,
        steps=last.get("step", 0),
        planned=planned,
        seconds=after.seconds - before.seconds,
        tokens=after.tokens - before.tokens,
        images=after.images - before.images,
        padding_share=_mean_over_steps(lines, "padding_share"),
        loss=number(last, "loss"),
        accuracy=number(last, "accuracy"),
        validation_loss=number(validation, "loss"),
        validation_accuracy=number(validation, "accuracy"),
        trained=trained,
        sources=tuple(_source(source, lines) for source in last.get("sources", {})),
    )


def _source(name: str, lines: Sequence[Line]) -> SourceFigures:
    own = [line["sources"][name] for line in lines if name in line.get("sources", {})]
    return SourceFigures(
        name=name,
        tokens=int(sum(number(entry, "tokens") or 0 for entry in own)),
        examples_seen=int(number(own[-1], "examples_seen") or 0),
        epochs_seen=number(own[-1], "epochs_seen") or 0.0,
        loss=number(own[-1], "loss"),
        accuracy=number(own[-1], "accuracy"),
    )


def _mean_over_steps(lines: Sequence[Line], key: str) -> float | None:
    """A line stands for the steps since the line before."""
    total, steps, previous = 0.0, 0, 0
    for line in lines:
        value = number(line, key)
        if value is not None:
            total += value * (line["step"] - previous)
            steps += line["step"] - previous
        previous = line["step"]
    return total / steps if steps else None


def number(values: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or None."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def parameters(model: Tree | None) -> dict[str, int]:
    """Parameters of the model's parts (encoder, adapter, decoder) from its abstract ones; empty if there are none."""
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in (model or {}).items()}
    order = [name for name in ("encoder", "adapter", "decoder") if name in counts]
    return {name: counts[name] for name in [*order, *sorted(counts.keys() - set(order))]}


def _trained(experiment: Experiment | None, model: Tree | None) -> dict[str, int]:
    """Stage -> parameters that it trains."""
    if experiment is None or model is None:
        return {}
    counts = {}
    for stage in experiment.stages:
        try:
            trained, _ = split(model, assign_rules(stage.optimizer.table, model))
        except UserError:
            continue
        counts[stage.name] = sum(leaf.size for leaf in jax.tree.leaves(trained))
    return counts
