"""`vlm train`."""

import argparse
from typing import Any

from vlm_jax.commands.common import add_command, add_experiment, experiment_of, listed_overrides
from vlm_jax.errors import UserError

_DESCRIPTION = """The workdir keeps everything: config.json, metrics.jsonl, tensorboard/, checkpoints/STAGE/STEP/,
report.html. If it holds a checkpoint, the run goes on from there, and ends with the same parameters as a run that
was never interrupted. SIGTERM and Ctrl-C save first and exit with 75: start the same command again.

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
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Trains, then writes the report."""
    if listed_overrides(arguments):
        return
    if not arguments.workdir:
        raise UserError("--workdir is missing; name a directory for this run, such as --workdir runs/first")
    experiment = experiment_of(arguments)

    from vlm_jax.evaluation.report import write_report
    from vlm_jax.training.recipe import train

    train(experiment, arguments.workdir, allow_config_change=arguments.allow_config_change)
    print(write_report(arguments.workdir))
