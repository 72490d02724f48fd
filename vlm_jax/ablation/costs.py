"""What each arm costs, measured in one process on the shapes that it trains on; and what formulas say."""

import dataclasses
import gc
import hashlib
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from etils import epath

from vlm_jax.ablation.decode_speed import AnswerSpeed
from vlm_jax.ablation.places import Run, is_done, read_json, runs, write_json
from vlm_jax.ablation.step_costs import StepCost
from vlm_jax.ablation.study import Study
from vlm_jax.checkpoints import abstract_params
from vlm_jax.models.flops import decoder_flops, forward_flops
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.models.work import Work
from vlm_jax.serialise import to_json

log = logging.getLogger(__name__)

T = TypeVar("T")

COSTS_FILE = "costs.json"

_REPEATS = 3
"""Times that an arm's answers are decoded."""


def measure_costs(study: Study, workdir: epath.Path) -> None:
    """Writes WORKDIR/costs.json for all arms of which a run is done; nothing is measured that is there already.

        {ARM: {"config": digest, "parameters", "context_tokens", "memory_tokens", "positions_per_example",
               "pictures_per_example", "flops_per_example", "example_ids": [...],
               "step_seconds": [each timed step], "peak_bytes", "argument_bytes", "temporary_bytes",
               "tokens_per_second": [each repeat], "first_token_seconds": [...], "answers": rows}}

    An arm that cannot be measured has {"config", "error"}. Where one arm is missing all are measured anew, since only
    figures that were taken side by side can be compared.
    """
    path = workdir / COSTS_FILE
    first = {run.arm.name: run for run in reversed(runs(study, workdir)) if is_done(run)}
    chosen = [first[arm.name] for arm in study.arms if arm.name in first]
    kept = read_json(path) or {}
    if all(_is_measured(kept.get(run.arm.name, {}), _digest(study, run)) for run in chosen):
        return
    log.info("study %s: costs of %s", study.name, ", ".join(run.arm.name for run in chosen))
    found: dict[str, dict[str, Any]] = {run.arm.name: {"config": _digest(study, run)} for run in chosen}
    groups = [chosen] if study.costs.in_turn else [[run] for run in chosen]
    for group in groups:
        _measure_steps(study, group, found)
        _measure_answers(study, group, found)
    others = {name: costs for name, costs in kept.items() if name not in found}
    write_json(path, others | found)


def _is_measured(costs: Mapping[str, Any], digest: str) -> bool:
    return costs.get("config") == digest and "error" not in costs


def _digest(study: Study, run: Run) -> str:
    """Names what costs depend on besides the machine."""
    parts = (run.experiment.model, run.experiment.stages[-1], study.costs, run.experiment.mesh)
    return hashlib.sha256("\n".join(map(to_json, parts)).encode()).hexdigest()[:16]


def _measure_steps(study: Study, group: Sequence[Run], found: dict[str, dict[str, Any]]) -> None:
    """Times the steps of some arms in turn."""

    def prepare(run: Run) -> StepCost:
        cost = StepCost(run)
        by_config = by_formula(run.experiment.model, cost.positions, cost.pictures, cost.slots)
        found[run.arm.name] |= {**cost.figures, **by_config}
        return cost

    def measure(cost: StepCost) -> dict[str, float]:
        return {"step_seconds": cost.advance()}

    _in_turn(group, prepare, measure, study.costs.steps, found)


def _measure_answers(study: Study, group: Sequence[Run], found: dict[str, dict[str, Any]]) -> None:
    """Times answers of some arms in turn."""

    def prepare(run: Run) -> AnswerSpeed:
        speed = AnswerSpeed(run, study.task, study.costs.prompts, study.costs.new_tokens)
        found[run.arm.name]["answers"] = speed.rows
        return speed

    _in_turn(group, prepare, AnswerSpeed.answer, _REPEATS, found)


def _in_turn(
    group: Sequence[Run],
    prepare: Callable[[Run], T],
    measure: Callable[[T], dict[str, float]],
    times: int,
    found: dict[str, dict[str, Any]],
) -> None:
    """Measures each arm of a group once, and again, …; the first time does not count. One that fails drops out."""
    prepared: dict[str, T] = {}
    for run in group:
        try:
            prepared[run.arm.name] = prepare(run)
        except Exception as error:
            _note(found, run.arm.name, error)
    for number in range(times + 1):
        for name in list(prepared):
            try:
                figures = measure(prepared[name])
            except Exception as error:
                _note(found, name, error)
                del prepared[name]
                continue
            for key, value in figures.items() if number else ():
                found[name].setdefault(key, []).append(value)
    prepared.clear()
    gc.collect()


def _note(found: dict[str, dict[str, Any]], name: str, error: Exception) -> None:
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    log.warning("costs of %s: %s", name, message)
    log.debug("costs of %s", name, exc_info=True)
    found[name]["error"] = message


def by_formula(config: VLMConfig, positions: float, pictures: float, slots: int) -> dict[str, Any]:
    """What follows from the config alone.

    Args:
        config: of the model.
        positions: of an example, visual tokens included, on average.
        pictures: image slots of an example, on average.
        slots: image slots of a row, which blocks of cross-attention see.

    Returns:
        "parameters" that the adapter adds; "context_tokens" and "memory_tokens" of an image slot; "flops_per_example",
        of the forward pass behind the encoder: adapter, decoder, and blocks of cross-attention.
    """
    params = abstract_params(VLM(config))
    adapter, encoder = config.adapter, config.encoder
    figures: dict[str, Any] = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params.get("adapter", {}))),
        "context_tokens": context_tokens(config),
        "memory_tokens": 0,
    }
    flops = positions * decoder_flops(config, round(positions), slots)
    if adapter is not None and encoder is not None:
        features = encoder.features
        figures["memory_tokens"] = adapter.memory_tokens(features)
        flops += forward_flops(config, Work(slots=pictures), features_given=True)
    return figures | {"flops_per_example": flops}


def context_tokens(config: VLMConfig) -> int:
    """Positions of the sequence that an image slot takes: its visual tokens, or where there are none, one marker."""
    return config.prompt_tokens or int(config.encoder is not None)


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a table shows of one arm; None where it was not measured."""

    parameters: int | None = None
    context_tokens: int | None = None
    flops_per_example: float | None = None
    step_seconds: float | None = None
    """Median."""
    peak_bytes: int | None = None
    tokens_per_second: float | None = None
    """Median."""
    first_token_seconds: float | None = None
    error: str = ""


def read_costs(workdir: epath.Path) -> dict[str, Costs]:
    """What costs.json says of each arm."""
    found = {}
    for name, plain in (read_json(workdir / COSTS_FILE) or {}).items():

        def median(key: str, plain: dict[str, Any] = plain) -> float | None:
            return statistics.median(plain[key]) if plain.get(key) else None

        found[name] = Costs(
            parameters=plain.get("parameters"),
            context_tokens=plain.get("context_tokens"),
            flops_per_example=plain.get("flops_per_example"),
            step_seconds=median("step_seconds"),
            peak_bytes=plain.get("peak_bytes"),
            tokens_per_second=median("tokens_per_second"),
            first_token_seconds=median("first_token_seconds"),
            error=plain.get("error", ""),
        )
    return found
