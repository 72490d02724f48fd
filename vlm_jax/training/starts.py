"""The parameters and the state from which a stage goes on: handed over, loaded, drawn, or restored."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.checkpoints import (
    CheckpointManager,
    initialise_missing,
    keep_masters,
    load_params,
    step_directory,
    widen,
)
from vlm_jax.checkpoints.parts import load_decoder, load_encoder, load_whole
from vlm_jax.checkpoints.reference import is_own
from vlm_jax.config import OWN_STARTS
from vlm_jax.optim import assign_rules, split
from vlm_jax.parallel import put_same
from vlm_jax.training.loss_watch import FILE as WATCH_FILE
from vlm_jax.training.loss_watch import first_watch
from vlm_jax.training.program import StageProgram
from vlm_jax.training.run import Run, masters_directory
from vlm_jax.training.state import TrainState

log = logging.getLogger(__name__)


def starting_params(
    run: Run, index: int, program: StageProgram, previous: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """Parameters before a stage's first step, in full precision: handed over, loaded, or drawn."""
    stage, abstract = program.stage, program.abstract_params
    if stage.start_from == "previous" and previous is not None:
        log.info("stage %s: starts from the stage before", stage.name)
        return widen(previous, abstract, masters_directory(run, run.experiment.stages[index - 1]))
    if stage.start_from in OWN_STARTS:
        loaded = load_parts(run, abstract) if stage.start_from == "previous" else {}
        rest = "random parameters" if not loaded else f"{' and '.join(loaded)}, and random parameters for the rest"
        log.info("stage %s: starts from %s", stage.name, rest)
        return initialise_missing(program.model, run.layout, run.experiment.seed, loaded)
    if not is_own(stage.start_from):
        log.info("stage %s: starts from %s", stage.name, stage.start_from)
        return load_whole(stage.start_from, run.experiment.model, abstract, run.layout)
    where = step_directory(stage.start_from)
    log.info("stage %s: starts from %s", stage.name, where)
    return widen(load_params(where, abstract), abstract, where.parents[2] / "masters" / where.parent.name)


def load_parts(run: Run, abstract: Any) -> dict[str, Any]:
    """The parameters of the experiment's pre-trained parts, each straight into its place."""
    parts, model, loaded = run.experiment.parts, run.experiment.model, {}
    dtype = model.precision.parameters
    if parts.encoder and model.encoder is not None:
        log.info("encoder: %s", parts.encoder)
        loaded["encoder"] = load_encoder(parts.encoder, model.encoder, dtype, abstract["encoder"], run.layout)
    if parts.decoder:
        log.info("decoder: %s", parts.decoder)
        loaded["decoder"] = load_decoder(parts.decoder, model.decoder, dtype, abstract["decoder"], run.layout)
    return loaded


def keep_frozen_masters(run: Run, index: int, program: StageProgram, params: Mapping[str, Any]) -> None:
    """Writes down in full precision what this stage freezes in the compute dtype and a later stage trains."""
    precision, later = run.experiment.model.precision, run.experiment.stages[index + 1 :]
    if precision.compute == precision.parameters:
        return
    tables = [assign_rules(stage.optimizer.table, params) for stage in later]
    frozen = split(params, program.rules)[1]
    if any(table[name].rate for table in tables for name, rule in program.rules.items() if not rule.rate):
        keep_masters(masters_directory(run, program.stage), frozen)


def restore_state(manager: CheckpointManager, program: StageProgram) -> tuple[TrainState, int, dict[str, Any]] | None:
    """The state after the newest step that is whole, how many steps that are, and the loader's position there.

    Returns:
        None if the stage has saved nothing.
    """
    state = program.abstract_state()
    snapshot = manager.restore_newest(state.params, state.optimizer)
    if snapshot is None:
        return None
    trained, frozen = split(snapshot.params, program.rules)
    counter = put_same(np.int32(snapshot.step), state.step.sharding)  # as in a new state
    watch = first_watch(program.policy, program.layout, snapshot.files.get(WATCH_FILE))
    return TrainState(counter, trained, frozen, snapshot.optimizer, watch), snapshot.step, snapshot.data
