"""A study from beginning to end, to be read from top to bottom; what was done before is not done again."""

import dataclasses
import logging
import time
from collections.abc import Sequence

from etils import epath
from rich.console import Console

from vlm_jax.ablation.costs import measure_costs
from vlm_jax.ablation.places import TEXT_FILE, Run, decoder_directory, is_done, read_json, runs, write_json
from vlm_jax.ablation.study import Study
from vlm_jax.ablation.text_loss import text_losses
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.errors import Preempted, UserError
from vlm_jax.evaluation.report import write_report
from vlm_jax.evaluation.suite import run_suite
from vlm_jax.training.recipe import train

log = logging.getLogger(__name__)

FAILURE_FILE = "failure.json"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that came to nothing."""

    title: str
    message: str


def conduct(study: Study, workdir: epath.PathLike, console: Console | None = None) -> list[Failure]:
    """Trains and evaluates every arm with every seed, then measures what each arm costs.

    Args:
        study: what to run.
        workdir: its directory, local; what is done there is not done again.
        console: where progress is shown.

    Returns:
        Runs that failed; the others went on.

    Raises:
        UserError: if the directory holds runs by another config, or the study's decoder cannot be trained.
        Preempted: SIGTERM or Ctrl-C in a run; it is saved, and the same command goes on there.
    """
    console = console or Console(stderr=True)
    path = epath.Path(workdir).resolve()
    todo = [run for run in runs(study, path) if not is_done(run)]
    log.info("study %s: %d of %d runs are to be done", study.name, len(todo), len(study.arms) * study.seeds)
    if todo:
        prepare_decoder(study, path, console)
    failures = carry_out(study, todo, len(study.arms) * study.seeds, console)
    measure_costs(study, path)
    return failures


def prepare_decoder(study: Study, workdir: epath.Path, console: Console) -> None:
    """Trains the text LLM that all arms start from, or goes on with it, and measures its loss on held-out text.

    Where the study trains none, the loss is that of the decoder which the first arm's parts name, if they name one.
    """
    where = decoder_directory(workdir)
    reference = study.arms[0].experiment.parts.decoder
    if study.decoder is not None:
        log.info("study %s: the text LLM that all arms start from", study.name)
        train(study.decoder, where, console=console)
        write_report(where)
        reference = str(where)
    if reference and study.texts is not None and not (where / TEXT_FILE).exists():
        write_json(where / TEXT_FILE, {"texts": text_losses(load_model(reference), study.texts)})


def carry_out(study: Study, todo: Sequence[Run], total: int, console: Console) -> list[Failure]:
    """Runs what is to be done, one after the other; one that fails is reported, and the next begins."""
    failures: list[Failure] = []
    seconds: list[float] = []
    done = total - len(todo)
    for number, run in enumerate(todo, done + 1):
        left = f"; about {_minutes(seconds, len(todo) - (number - done) + 1)} left" if seconds else ""
        console.print(f"run {number} of {total}: {run.title}{left}", style="bold", highlight=False)
        start = time.monotonic()
        try:
            carry_out_run(study, run, console)
        except Preempted:
            raise
        except Exception as error:
            log.debug("run %s", run.title, exc_info=True)
            message = " ".join(str(error).split()) or type(error).__name__
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            failures.append(Failure(run.title, f"{kind}{message}"))
            write_json(run.directory / FAILURE_FILE, dataclasses.asdict(failures[-1]))
            console.print(f"run {number} of {total}: {run.title} failed: {kind}{message}", style="red", highlight=False)
            continue
        seconds.append(time.monotonic() - start)
    return failures


def carry_out_run(study: Study, run: Run, console: Console) -> None:
    """Trains a run, lets it answer its questions, and measures its loss on held-out text."""
    start = time.monotonic()
    (run.directory / FAILURE_FILE).unlink(missing_ok=True)
    train(run.experiment, run.directory, console=console)
    run_suite(run.experiment, str(run.directory), run.directory)
    write_report(run.directory)
    texts = {} if study.texts is None else text_losses(load_model(str(run.directory)), study.texts)
    before = read_json(run.directory / TEXT_FILE) or {}
    spent = before.get("seconds", 0.0) + time.monotonic() - start
    write_json(run.directory / TEXT_FILE, {"texts": texts, "seconds": spent})


def _minutes(seconds: Sequence[float], runs_left: int) -> str:
    left = sum(seconds) / len(seconds) * runs_left
    return f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
