"""What each arm costs, measured in one process on the shapes that it trains on; and what formulas say."""

import dataclasses
import gc
import hashlib
import logging
import statistics
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from vlm_jax.ablation.decode_speed import AnswerSpeed
from vlm_jax.ablation.places import Run, is_done, read_json, runs, write_json
from vlm_jax.ablation.step_costs import StepCost
from vlm_jax.ablation.study import Study
from vlm_jax.checkpoints import abstract_params
from vlm_jax.models.flops import decoder_flops
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.serialise import to_json

log = logging.getLogger(__name__)

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
    if all(kept.get(run.arm.name, {}).get("config") == _digest(study, run) for run in chosen):
        return
    log.info("study %s: costs of %s", study.name, ", ".join(run.arm.name for run in chosen))
    found: dict[str, dict[str, Any]] = {run.arm.name: {"config": _digest(study, run)} for run in chosen}
    groups = [chosen] if study.costs.in_turn else [[run] for run in chosen]
    for group in groups:
        _measure_steps(study, group, found)
        _measure_answers(study, group, found)
    others = {name: costs for name, costs in kept.items() if name not in found}
    write_json(path, others | found)


def _digest(study: Study, run: Run) -> str:
    """Names what costs depend on besides the machine."""
    parts = (run.experiment.model, run.experiment.stages[-1], study.costs, run.experiment.mesh)
    return hashlib.sha256("\n".join(map(to_json, parts)).encode()).hexdigest()[:16]


def _measure_steps(study: Study, group: Sequence[Run], found: dict[str, dict[str, Any]]) -> None:
    """Times the steps of some arms in turn."""
    prepared: list[tuple[Run, StepCost]] = []
    for run in group:
        try:
            prepared.append((run, StepCost(run)))
        except Exception as error:
            _note(found, run, error)
    for number in range(study.costs.steps + 1):
        for run, cost in prepared:
            seconds = cost.advance()
            if number:
                found[run.arm.name].setdefault("step_seconds", []).append(seconds)
    for run, cost in prepared:
        config = run.experiment.model
        found[run.arm.name] |= {**cost.figures, **by_formula(config, cost.positions, cost.pictures, cost.slots)}
    prepared.clear()
    gc.collect()


def _measure_answers(study: Study, group: Sequence[Run], found: dict[str, dict[str, Any]]) -> None:
    """Times answers of some arms in turn."""
    prepared: list[tuple[Run, AnswerSpeed]] = []
    for run in group:
        try:
            prepared.append((run, AnswerSpeed(run, study.task, study.costs.prompts, study.costs.new_tokens)))
        except Exception as error:
            _note(found, run, error)
    for number in range(_REPEATS + 1):
        for run, speed in prepared:
            figures = speed.answer()
            if number:
                for name, value in figures.items():
                    found[run.arm.name].setdefault(name, []).append(value)
    for run, speed in prepared:
        found[run.arm.name]["answers"] = speed.rows
    gc.collect()


def _note(found: dict[str, dict[str, Any]], run: Run, error: Exception) -> None:
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    log.warning("costs of %s: %s", run.arm.name, message)
    log.debug("costs of %s", run.arm.name, exc_info=True)
    found[run.arm.name]["error"] = message


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
    flops = positions * decoder_flops(config, round(positions))
    if adapter is not None and encoder is not None:
        features = encoder.features
        figures["memory_tokens"] = adapter.memory_tokens(features)
        flops += pictures * adapter.slot_flops(features, config.decoder)
        flops += positions * adapter.token_flops(features, config.decoder, slots)
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
