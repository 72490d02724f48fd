"""Training from end to end, to be read from top to bottom: one log line an act."""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from rich.console import Console

from data_pipelines.loader import Loader, make_loader
from vlm_jax.batch import Batch
from vlm_jax.checkpoints import CheckpointManager, DamagedError, abstract_params, newest_step
from vlm_jax.checkpoints.retry import RefusedError
from vlm_jax.config import Experiment, Stage
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import assign_rules
from vlm_jax.parallel import build_layout, replicated, use_layout
from vlm_jax.parallel.processes import agree, count, is_first, of_first
from vlm_jax.parallel.together import compiled_together
from vlm_jax.serialise import to_json
from vlm_jax.training.displays import ProgressDisplay, TensorBoard
from vlm_jax.training.divisibility import check_layout
from vlm_jax.training.efficiency import Meter, peak_of_all, read_began
from vlm_jax.training.features import check_cached_features, open_features
from vlm_jax.training.hooks import CheckpointHook, Preemption, ValidationHook
from vlm_jax.training.host_memory import check_host_memory
from vlm_jax.training.lines import Line, MetricsFile, rewind_metrics
from vlm_jax.training.loop import Hook, run_stage
from vlm_jax.training.loss_policy import LossGuard, RollBack
from vlm_jax.training.profile import parse_profile, profiled
from vlm_jax.training.program import StageProgram, build_program
from vlm_jax.training.recorder import Recorder, Sink
from vlm_jax.training.run import Run, checkpoint_directory, checkpoint_files
from vlm_jax.training.share import SharedBatches, join_quarantines, open_quarantine, own_shards
from vlm_jax.training.starts import keep_frozen_masters, restore_state, starting_params
from vlm_jax.training.state import TrainState
from vlm_jax.training.watchdog import Watchdog
from vlm_jax.training.workdir import open_workdir, prepare_processor

log = logging.getLogger(__name__)


def train(
    experiment: Experiment,
    workdir: epath.PathLike,
    *,
    allow_config_change: bool = False,
    console: Console | None = None,
    profile: str | None = None,
) -> None:
    """Runs the stages of an experiment, from where the workdir says that it stopped.

    Args:
        experiment: what to run.
        workdir: a directory, made if need be; gs:// works.
        allow_config_change: go on even where the config differs from the one that the workdir was begun with.
        console: where progress is shown.
        profile: steps to be traced, as [STAGE:]FIRST:LAST.

    Raises:
        UserError: the workdir cannot be used, belongs to another experiment, or its checkpoint is damaged.
        RunError: a loss or gradient is not finite.
        Preempted: SIGTERM or Ctrl-C; everything is saved.
    """
    process_began, console = time.time(), console or Console(stderr=True, quiet=not is_first())
    traced = None if profile is None else parse_profile(profile, experiment)
    agree(hashlib.sha256(to_json(experiment).encode()).hexdigest()[:16], "the experiment with its overrides")
    path = open_workdir(experiment, workdir, allow_config_change)
    log.info("workdir %s", path)
    layout = build_layout(experiment.mesh)
    check_layout(experiment, layout)
    abstract = abstract_params(VLM(experiment.model), layout)
    check_host_memory(abstract, layout)
    for stage in experiment.stages:
        own_shards(stage.data, layout)
        check_cached_features(stage, assign_rules(stage.optimizer.table, abstract))
    where = f" of {count()} processes" if count() > 1 else ""
    log.info("devices: %d %s%s, mesh %s", jax.device_count(), jax.default_backend(), where, dict(layout.shape))
    processor = prepare_processor(experiment, path)
    log.info(
        "tokenizer: %d pieces; %d visual tokens an image slot",
        processor.tokenizer.vocabulary_size,
        processor.prompt_tokens,
    )
    quarantine = open_quarantine(path, experiment.bad_record_limit)
    with Preemption() as leaving, use_layout(layout):
        watchdog = Watchdog(experiment.watchdog_seconds, path, jax.process_index())
        began = of_first(read_began(path, process_began) if is_first() else None)
        clocks = (began, process_began)
        run = Run(experiment, path, processor, layout, quarantine, leaving, watchdog, console, *clocks, traced)
        params = None
        for index, stage in enumerate(experiment.stages):
            params = train_stage(run, index, stage, params)
    join_quarantines(path)
    log.info("done: %d stages, %d steps", len(experiment.stages), experiment.total_steps())


def train_stage(
    run: Run, index: int, stage: Stage, previous: Mapping[str, Any] | None, again: bool = False
) -> Mapping[str, Any] | None:
    """Runs one stage, or what is left of it.

    Args:
        run: what all stages share.
        index: of the stage.
        stage: what to run.
        previous: the parameters at the end of the stage before, if they are at hand.
        again: its end is wanted once more, though later stages have begun.

    Returns:
        The parameters at its end; None if a later stage has begun already, which then restores its own.
    """
    later = [checkpoint_directory(run, other) for other in run.experiment.stages[index + 1 :]]
    if not again and any(newest_step(directory) is not None for directory in later):
        log.info("stage %s: done, and a later stage has begun", stage.name)
        return None
    checkpoints, directory = run.experiment.checkpoints, checkpoint_directory(run, stage)
    keeping = (checkpoints.keep_last, checkpoints.keep_every, checkpoints.retry_seconds)
    manager = CheckpointManager(directory, *keeping, run.watchdog.alive)
    try:
        program = build_program(run.experiment, index, run.layout, run.processor.template)
        while True:
            state, done, position = where_to_begin(run, index, program, manager, previous)
            if done == stage.steps:
                return state.params
            describe_parameters(stage, state)
            try:
                with open_batches(run, program, state, position) as batches:
                    return run_steps(run, index, program, state, batches, manager, done).params
            except RollBack:
                run = dataclasses.replace(run, process_began=time.time())  # what was done since the checkpoint is lost
                del state  # two of them may not fit
                manager.wait()
    except RefusedError:
        manager.give_up()
        raise
    finally:
        manager.close()


def where_to_begin(
    run: Run, index: int, program: StageProgram, manager: CheckpointManager, previous: Mapping[str, Any] | None
) -> tuple[TrainState, int, dict[str, Any] | None]:
    """The state from which a stage goes on, its steps done, and the loader's position; None = that of a new one.

    If all that the stage saved is damaged, it begins anew from the end of the stage before, once that is at hand.

    Raises:
        DamagedError: if there is no stage before, or that cannot be used either; nothing is renamed then.
    """
    stage, stages = program.stage, run.experiment.stages
    try:
        restored = restore_state(manager, program)
    except DamagedError:
        if not index or newest_step(checkpoint_directory(run, stages[index - 1])) is None:
            raise
        restored, previous = None, train_stage(run, index - 1, stages[index - 1], None, again=True)
        manager.set_aside_all(f"stage {stage.name} begins anew")
    if restored is not None:
        log.info("stage %s: resumed after step %d of %d", stage.name, restored[1], stage.steps)
        return restored
    params = starting_params(run, index, program, previous)
    keep_frozen_masters(run, index, program, params)
    return program.create_state(params), 0, None


@dataclasses.dataclass(frozen=True)
class StageData:
    """What a stage's steps and its validation read."""

    batches: SharedBatches
    held_out: tuple[Batch, ...]
    """This process's rows of the validation's batches, on the host."""


@contextlib.contextmanager
def open_batches(
    run: Run, program: StageProgram, state: TrainState, position: dict[str, Any] | None
) -> Iterator[StageData]:
    """The stage's data, from a position on, and its validation batches; features are made first if it caches them.

    Each process reads the shards whose rows its devices hold.
    """
    stage, seed, features = program.stage, run.experiment.seed, None
    if stage.cache_features:
        frozen = program.encoder
        assert frozen is not None
        features = open_features(run.experiment, stage, run.workdir, run.processor, frozen, state.params, run.console)

    def load(data: Any) -> Loader:
        options: Any = {"quarantine": run.quarantine, "features": features, "one_path": program.one_path}
        return make_loader(data, run.processor, seed=seed, shards=own_shards(data.data, run.layout), **options)

    with contextlib.closing(load(stage)) as loader:
        if position is not None:
            loader.set_state(position)
        held_out: tuple[Batch, ...] = ()
        if stage.validation is not None:
            # The shares of the training's kinds and sizes are not those of the validation, which has its own weights.
            data = dataclasses.replace(stage.data, mixture=stage.validation.mixture, kinds=(), temperature=0.0)
            aside = dataclasses.replace(stage, name=f"{stage.name}/validation", data=data)
            with contextlib.closing(load(aside)) as others:
                shared = SharedBatches(others, run.quarantine)
                held_out = tuple(batch for batch, _ in itertools.islice(shared, stage.validation.batches))
        yield StageData(SharedBatches(loader, run.quarantine), held_out)


def run_steps(
    run: Run,
    index: int,
    program: StageProgram,
    state: TrainState,
    batches: StageData,
    manager: CheckpointManager,
    done: int,
) -> TrainState:
    """Builds the step and the hooks of a stage and runs the loop."""
    experiment, stage = run.experiment, program.stage
    names, checkpoints = [entry.title for entry in stage.data.mixture], experiment.checkpoints
    with contextlib.ExitStack() as stack:
        last_line, sinks = stack.enter_context(open_sinks(run, index, done))
        watchdog = stack.enter_context(run.watchdog)
        meter = Meter(program, run.began, run.process_began, last_line, peak_of_all())
        stack.callback(meter.close)
        guard = LossGuard(experiment.loss_policy, run.workdir, stage.name, done, checkpoints.retry_seconds)
        traces = profiled(program.whole_step, run.profile, stage.name, done, run.workdir / "profile", guard.left_out)
        step = meter.step(stack.enter_context(traces))
        every = (experiment.log_every, checkpoints.every)
        recorder = Recorder(guard, stage.name, names, every, sinks, last_line, [meter.figures])
        saving = CheckpointHook(manager, checkpoints.every, checkpoint_files(run), recorder, run.leaving)
        validating = [meter.hook("validation", hook) for hook in validation_hooks(program, batches)]
        hooks: list[Hook] = [*validating, recorder, meter.hook("checkpoint", saving)]
        if experiment.loss_policy.rolls_back and manager.latest_step() is None:
            saving.save(0, state, batches.batches.get_state(), wait=True)  # there must be something to go back to
        return run_stage(
            state,
            step,
            meter.batches(batches.batches),
            run.layout,
            done,
            stage.steps,
            hooks,
            left_out=guard.left_out,
            begin=watchdog.begin,
        )


@contextlib.contextmanager
def open_sinks(run: Run, index: int, done: int) -> Iterator[tuple[Line | None, tuple[Sink, ...]]]:
    """The last line of metrics.jsonl that stays, and where lines of a stage go; of several processes one writes them.

    Args:
        run: whose workdir and console.
        index: of the stage.
        done: steps of it that are done.
    """
    if not is_first():
        yield None, ()
        return
    stages, path = run.experiment.stages, run.workdir / "metrics.jsonl"
    stage, before = stages[index], stages[:index]
    last_line = rewind_metrics(path, [s.name for s in before], stage.name, done)
    board = TensorBoard(run.workdir, sum(s.steps for s in before), done)
    file = MetricsFile(path, run.experiment.checkpoints.retry_seconds)
    with ProgressDisplay(run.console, stage.name, stage.steps, done) as display, contextlib.closing(board):
        yield last_line, (file, board, display)


def validation_hooks(program: StageProgram, batches: StageData) -> list[ValidationHook]:
    """The stage's validation, if it has one."""
    stage = program.stage
    if stage.validation is None:
        return []
    names = [entry.title for entry in stage.validation.mixture]
    objective, frozen = program.objective(len(names)), program.encoder
    everywhere = replicated(program.layout)
    sums = compiled_together(jax.jit(lambda params, batch: objective(params, batch)[1], out_shardings=everywhere))
    measure = sums if frozen is None else lambda params, batch: sums(params, frozen(params, batch))
    return [ValidationHook(batches.held_out, measure, names, stage.validation.every, program.layout)]


def describe_parameters(stage: Stage, state: TrainState) -> None:
    """Logs how many parameters there are and how many train."""
    trained, frozen = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.trained, state.frozen))
    log.info("stage %s: %s parameters, %s of them trained", stage.name, f"{trained + frozen:,}", f"{trained:,}")
