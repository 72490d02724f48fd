"""`vlm eval`."""

import argparse
from typing import Any

from vlm_jax.commands.common import add_command, add_compile_cache, add_experiment, experiment_of, listed_overrides
from vlm_jax.errors import UserError

_DESCRIPTION = """The model writes an answer to every question of every task; answers are scored with a 95% interval,
beside controls measured the same way: the most common answer, and the same model shown a wrong
picture. Prints a table, writes eval.json, predictions/TASK.jsonl and report.html.

  vlm eval experiments/quickstart.py --workdir runs/quickstart
  vlm eval experiments/quickstart.py --model runs/quickstart --tasks easy_vqa_ru --output runs/russian"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(subparsers, "eval", "Let a model answer the experiment's test questions.", _DESCRIPTION, True)
    add_experiment(parser)
    parser.add_argument("--workdir", metavar="DIR", help="workdir of the run: its newest checkpoint is evaluated")
    parser.add_argument("--model", metavar="REF", help="model to evaluate instead of the workdir's")
    parser.add_argument("--tasks", metavar="NAME", nargs="+", help="only these tasks of the experiment")
    parser.add_argument("--output", metavar="DIR", help="where results go; by default the workdir")
    add_compile_cache(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Evaluates and prints the table."""
    if listed_overrides(arguments):
        return
    reference = arguments.model or arguments.workdir
    output = arguments.output or arguments.workdir
    if not reference:
        raise UserError("name the run with --workdir DIR, or a model with --model REF")
    if not output:
        raise UserError("--output is missing; name a directory for the results, such as --output runs/first")
    experiment = experiment_of(arguments)

    import rich

    from vlm_jax.evaluation.report import write_report
    from vlm_jax.evaluation.suite import run_suite
    from vlm_jax.generation import keep_compiled

    keep_compiled(arguments.compile_cache)
    rich.print(run_suite(experiment, reference, output, arguments.tasks))
    print(write_report(output))
