"""`vlm train`."""

import argparse
import logging
from typing import Any

from vlm_jax.commands.common import (
    add_command,
    add_compile_cache,
    add_experiment,
    experiment_of,
    listed_overrides,
    set_tpu_flags,
)
from vlm_jax.errors import UserError

_DESCRIPTION = """The workdir keeps everything: config.json, metrics.jsonl, tensorboard/, checkpoints/STAGE/STEP/,
report.html. If it holds a checkpoint, the run goes on from there, and ends with the same parameters as a run that
was never interrupted. SIGTERM and Ctrl-C save first and exit with 75: start the same command again.

On the hosts of a TPU slice, start it on each: they find each other. Elsewhere say which process each one is:
  vlm train FILE --workdir DIR --coordinator 10.0.0.2:8476 --processes 2 --process 0
  vlm train FILE --workdir DIR --coordinator 10.0.0.2:8476 --processes 2 --process 1

  vlm train experiments/quickstart.py --workdir runs/quickstart
  vlm train experiments/quickstart.py --workdir runs/short --stages.0.steps 50 --stages.1.steps 50"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(
        subparsers, "train", "Train a model in stages, or go on where a run stopped.", _DESCRIPTION, True
    )
    add_experiment(parser)
    parser.add_argument("--workdir", metavar="DIR", help="where the run is kept; local or gs://")
    parser.add_argument(
        "--allow-config-change", action="store_true", help="go on even if the workdir was begun with another config"
    )
    parser.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        help="trace these steps (STAGE:FIRST:LAST if not of the first stage) into WORKDIR/profile, for xprof",
    )
    add_compile_cache(parser)
    several = parser.add_argument_group("several processes, each with devices of its own")
    several.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 waits for the others (JAX_COORDINATOR_ADDRESS)"
    )
    several.add_argument("--processes", type=int, metavar="N", help="how many there are (JAX_NUM_PROCESSES)")
    several.add_argument("--process", type=int, metavar="I", help="which one this is, from 0 (JAX_PROCESS_ID)")
    several.add_argument(
        "--silence", type=float, metavar="SECONDS", help="end if another gives no sign of life for so long (30)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Trains, then writes the report."""
    if listed_overrides(arguments):
        return
    if not arguments.workdir:
        raise UserError("--workdir is missing; name a directory for this run, such as --workdir runs/first")
    experiment = experiment_of(arguments)

    from vlm_jax.parallel import processes

    set_tpu_flags([experiment])
    place = processes.find_place(arguments.coordinator, arguments.processes, arguments.process)
    silence = processes.SILENCE_S if arguments.silence is None else arguments.silence
    if not 5 <= silence <= 50:
        raise UserError(f"--silence is {silence:g}: give 5 to 50 seconds")
    with processes.joined(place, silence):
        if not processes.is_first():
            logging.getLogger("vlm_jax").setLevel(logging.WARNING)

        from vlm_jax.evaluation.report import write_report
        from vlm_jax.generation import keep_compiled
        from vlm_jax.training.recipe import train

        keep_compiled(arguments.compile_cache)
        options = {"allow_config_change": arguments.allow_config_change, "profile": arguments.profile}
        train(experiment, arguments.workdir, **options)
        if processes.is_first():
            print(write_report(arguments.workdir))
