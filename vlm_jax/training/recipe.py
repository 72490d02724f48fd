"""Training from end to end, to be read from top to bottom: one log line an act."""

import contextlib
import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import optax
from etils import epath
from rich.console import Console

from data_pipelines.loader import Loader, make_loader
from data_pipelines.quarantine import Quarantine
from data_pipelines.template import Processor
from vlm_jax.batch import Batch
from vlm_jax.checkpoints import (
    CheckpointManager,
    abstract_params,
    initialise_missing,
    keep_masters,
    load_params,
    logical_axes,
    newest_step,
    step_directory,
    widen,
)
from vlm_jax.checkpoints.files import read_files
from vlm_jax.checkpoints.parts import load_decoder, load_encoder, load_whole
from vlm_jax.checkpoints.reference import is_own
from vlm_jax.config import OWN_STARTS, Experiment, Stage
from vlm_jax.errors import UserError
from vlm_jax.losses.next_token import next_token_objective
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import Rule, assign_rules, build_optimizer, split
from vlm_jax.parallel import Layout, build_layout, check_fits, replicated, use_layout
from vlm_jax.serialise import to_json
from vlm_jax.training.displays import ProgressDisplay, TensorBoard
from vlm_jax.training.features import FrozenEncoder, check_cached_features, encoder_is_frozen, open_features
from vlm_jax.training.hooks import CheckpointHook, Preemption, ValidationHook
from vlm_jax.training.loop import Hook, Step, run_stage
from vlm_jax.training.recorder import MetricsFile, Recorder, rewind_metrics
from vlm_jax.training.state import TrainState, abstract_optimizer, create_state
from vlm_jax.training.step import Objective, compile_step, train_step
from vlm_jax.training.workdir import open_workdir, prepare_processor

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    experiment: Experiment
    workdir: epath.Path
    processor: Processor
    model: VLM
    layout: Layout
    quarantine: Quarantine
    leaving: Preemption
    console: Console


def train(
    experiment: Experiment,
    workdir: epath.PathLike,
    *,
    allow_config_change: bool = False,
    console: Console | None = None,
) -> None:
    """Runs the stages of an experiment, from where the workdir says that it stopped.

    Args:
        experiment: what to run.
        workdir: a directory, made if need be; gs:// works.
        allow_config_change: go on even where the config differs from the one that the workdir was begun with.
        console: where progress is shown.

    Raises:
        UserError: the workdir cannot be used, belongs to another experiment, or its checkpoint is damaged.
        RunError: a loss or gradient is not finite.
        Preempted: SIGTERM or Ctrl-C; everything is saved.
    """
    console = console or Console(stderr=True)
    path = open_workdir(experiment, workdir, allow_config_change)
    log.info("workdir %s", path)
    layout = build_layout(experiment.mesh)
    abstract = abstract_params(VLM(experiment.model), layout)
    check_fits(abstract, layout)
    for stage in experiment.stages:
        check_rows(stage, layout)
        check_cached_features(stage, assign_rules(stage.optimizer.table, abstract))
    log.info("devices: %d %s, mesh %s", jax.device_count(), jax.default_backend(), dict(layout.shape))
    processor = prepare_processor(experiment, path)
    log.info(
        "tokenizer: %d pieces; %d visual tokens an image slot",
        processor.tokenizer.vocabulary_size,
        processor.prompt_tokens,
    )
    quarantine = Quarantine(path / "quarantine.jsonl", experiment.bad_record_limit)
    with Preemption() as leaving, use_layout(layout):
        run = Run(experiment, path, processor, VLM(experiment.model), layout, quarantine, leaving, console)
        params = None
        for index, stage in enumerate(experiment.stages):
            params = train_stage(run, index, stage, params)
    log.info("done: %d stages, %d steps", len(experiment.stages), experiment.total_steps())


def train_stage(run: Run, index: int, stage: Stage, previous: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Runs one stage, or what is left of it.

    Returns:
        The parameters at its end; None if a later stage has begun already, which then restores its own.
    """
    if any(newest_step(checkpoint_directory(run, later)) is not None for later in run.experiment.stages[index + 1 :]):
        log.info("stage %s: done, and a later stage has begun", stage.name)
        return None
    checkpoints = run.experiment.checkpoints
    manager = CheckpointManager(checkpoint_directory(run, stage), checkpoints.keep_last, checkpoints.keep_every)
    try:
        abstract = abstract_params(run.model, run.layout)
        rules = assign_rules(stage.optimizer.table, abstract)
        optimizer = build_optimizer(stage.optimizer, rules, stage.steps, logical_axes(run.model))
        done = manager.latest_step()
        if done is None:
            params = starting_params(run, index, abstract, previous)
            keep_frozen_masters(run, index, params, rules, abstract)
            state = create_state(params, rules, optimizer, run.experiment.model.precision.compute, run.layout)
            done, data_state = 0, None
        else:
            state, data_state = restore_state(run, manager, done, abstract, rules, optimizer)
            log.info("stage %s: resumed after step %d of %d", stage.name, done, stage.steps)
        if done < stage.steps:
            describe_parameters(stage, state)
            frozen = FrozenEncoder(run.model, run.layout) if encoder_is_frozen(rules) else None
            with open_batches(run, stage, frozen, state, data_state) as batches:
                state = run_steps(run, index, state, optimizer, batches, manager, done)
        return state.params
    finally:
        manager.close()


@dataclasses.dataclass(frozen=True)
class StageData:
    """What a stage's steps and its validation read, and the encoder's program where the encoder is frozen."""

    loader: Loader
    held_out: tuple[Batch, ...]
    """Batches of the validation, on the host."""
    frozen: FrozenEncoder | None


@contextlib.contextmanager
def open_batches(
    run: Run, stage: Stage, frozen: FrozenEncoder | None, state: TrainState, position: dict[str, Any] | None
) -> Iterator[StageData]:
    """The stage's loader, at a position, and its validation batches; features are made first if it caches them."""
    seed, features = run.experiment.seed, None
    if stage.cache_features:
        assert frozen is not None
        features = open_features(run.experiment, stage, run.workdir, run.processor, frozen, state.params, run.console)

    def load(data: Any) -> Loader:
        return make_loader(data, run.processor, seed=seed, quarantine=run.quarantine, features=features)

    with contextlib.closing(load(stage)) as loader:
        if position is not None:
            loader.set_state(position)
        held_out: tuple[Batch, ...] = ()
        if stage.validation is not None:
            # The shares of the training's kinds and sizes are not those of the validation, which has its own weights.
            data = dataclasses.replace(stage.data, mixture=stage.validation.mixture, kinds=(), temperature=0.0)
            aside = dataclasses.replace(stage, name=f"{stage.name}/validation", data=data)
            with contextlib.closing(load(aside)) as others:
                held_out = tuple(batch for batch, _ in itertools.islice(others, stage.validation.batches))
        yield StageData(loader, held_out, frozen)


def run_steps(
    run: Run,
    index: int,
    state: TrainState,
    optimizer: Any,
    batches: StageData,
    manager: CheckpointManager,
    done: int,
) -> TrainState:
    """Builds the step and the hooks of a stage and runs the loop."""
    experiment, stages = run.experiment, run.experiment.stages
    stage = stages[index]
    names = [entry.title for entry in stage.data.mixture]
    step = build_step(run, stage, optimizer, state, batches.frozen)
    finished = [s.name for s in stages[:index]]
    last_line = rewind_metrics(run.workdir / "metrics.jsonl", finished, stage.name, done)
    board = TensorBoard(run.workdir, sum(s.steps for s in stages[:index]), done)
    with ProgressDisplay(run.console, stage.name, stage.steps, done) as display:
        recorder = Recorder(
            run.workdir,
            stage.name,
            names,
            (experiment.log_every, experiment.checkpoints.every),
            (MetricsFile(run.workdir / "metrics.jsonl"), board, display),
            last_line,
        )
        files = checkpoint_files(run)
        saving = CheckpointHook(manager, experiment.checkpoints.every, files, recorder, run.leaving)
        hooks: list[Hook] = [*validation_hooks(run, stage, batches), recorder, saving]
        try:
            return run_stage(state, step, batches.loader, run.layout, done, stage.steps, hooks)
        finally:
            board.close()


def build_step(
    run: Run,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: FrozenEncoder | None = None,
) -> Step:
    """The stage's step under jit; it gives up the state that it is given, which lies on the devices as `state` does.

    A frozen encoder has a program of its own, that runs before it.
    """
    pure = functools.partial(
        train_step,
        objective=build_objective(run, stage, len(stage.data.mixture)),
        optimizer=optimizer,
        rate=stage.optimizer.schedule.build(stage.steps),
        accumulation=stage.accumulation,
    )
    step = compile_step(pure, state)
    return step if frozen is None else lambda state, batch: step(state, frozen(state.frozen, batch))


def check_rows(stage: Stage, layout: Layout) -> None:
    """Raises UserError if the rows of a batch, or of a part of it, do not divide among the devices that take rows."""
    devices, rows = layout.devices("batch"), stage.data.rows // stage.accumulation
    if rows % devices:
        raise UserError(
            f"stage {stage.name}: {rows} rows (data.rows / accumulation) do not divide among "
            f"{' x '.join(layout.axes('batch'))} = {devices} devices; change the rows or the mesh"
        )


def build_objective(run: Run, stage: Stage, sources: int) -> Objective:
    """The stage's objective as a function of all parameters and a part of a batch."""
    chunk = stage.objective.chunk
    return lambda params, part: next_token_objective(run.model.apply, params, part, sources, chunk)


def starting_params(run: Run, index: int, abstract: Any, previous: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Parameters before a stage's first step, in full precision: handed over, loaded, or drawn."""
    stage = run.experiment.stages[index]
    if stage.start_from == "previous" and previous is not None:
        log.info("stage %s: starts from the stage before", stage.name)
        return widen(previous, abstract, masters_directory(run, run.experiment.stages[index - 1]))
    if stage.start_from in OWN_STARTS:
        loaded = load_parts(run, abstract) if stage.start_from == "previous" else {}
        rest = "random parameters" if not loaded else f"{' and '.join(loaded)}, and random parameters for the rest"
        log.info("stage %s: starts from %s", stage.name, rest)
        return initialise_missing(run.model, run.layout, run.experiment.seed, loaded)
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


def keep_frozen_masters(
    run: Run, index: int, params: Mapping[str, Any], rules: Mapping[str, Rule], abstract: Any
) -> None:
    """Writes down in full precision what this stage freezes in the compute dtype and a later stage trains."""
    precision, later = run.experiment.model.precision, run.experiment.stages[index + 1 :]
    if precision.compute == precision.parameters:
        return
    tables = [assign_rules(stage.optimizer.table, abstract) for stage in later]
    frozen = split(params, rules)[1]
    if any(table[name].rate for table in tables for name, rule in rules.items() if not rule.rate):
        keep_masters(masters_directory(run, run.experiment.stages[index]), frozen)


def masters_directory(run: Run, stage: Stage) -> epath.Path:
    """WORKDIR/masters/STAGE."""
    return run.workdir / "masters" / stage.name


def restore_state(
    run: Run, manager: CheckpointManager, step: int, abstract: Any, rules: Any, optimizer: Any
) -> tuple[TrainState, dict[str, Any]]:
    """The state after `step` steps, and the loader's position there."""
    trained, frozen = split(abstract, rules)
    compute = run.experiment.model.precision.compute
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, compute, sharding=x.sharding), frozen)
    whole = TrainState(step=step, trained=trained, frozen=cast, optimizer=None)  # type: ignore[arg-type]
    snapshot = manager.restore(step, whole.params, abstract_optimizer(optimizer, trained, run.layout))
    trained, frozen = split(snapshot.params, rules)
    counter = jax.device_put(jax.numpy.int32(step), replicated(run.layout))  # as in a new state
    return TrainState(counter, trained, frozen, snapshot.optimizer), snapshot.data


def validation_hooks(run: Run, stage: Stage, batches: StageData) -> list[ValidationHook]:
    """The stage's validation, if it has one."""
    if stage.validation is None:
        return []
    names = [entry.title for entry in stage.validation.mixture]
    objective, frozen = build_objective(run, stage, len(names)), batches.frozen
    sums = jax.jit(lambda params, batch: objective(params, batch)[1])
    measure = sums if frozen is None else lambda params, batch: sums(params, frozen(params, batch))
    return [ValidationHook(batches.held_out, measure, names, stage.validation.every, run.layout)]


def checkpoint_files(run: Run) -> dict[str, bytes]:
    """What makes a step directory self-contained besides arrays and data position."""
    processor = {f"processor/{name}": content for name, content in read_files(run.workdir / "processor").items()}
    return {"config.json": to_json(run.experiment).encode(), **processor}


def checkpoint_directory(run: Run, stage: Stage) -> epath.Path:
    """WORKDIR/checkpoints/STAGE."""
    return run.workdir / "checkpoints" / stage.name


def describe_parameters(stage: Stage, state: TrainState) -> None:
    """Logs how many parameters there are and how many train."""
    trained, frozen = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.trained, state.frozen))
    log.info("stage %s: %s parameters, %s of them trained", stage.name, f"{trained + frozen:,}", f"{trained:,}")
