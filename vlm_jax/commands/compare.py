"""`vlm compare`."""

import argparse
from typing import Any

from vlm_jax.commands.common import add_command

_DESCRIPTION = """A and B are directories that `vlm eval` wrote to. Answers to the same questions are compared pair by
pair, with a 95% interval clustered by picture.

  vlm compare runs/first runs/second"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(subparsers, "compare", "Compare two evaluation results question by question.", _DESCRIPTION)
    parser.add_argument("a", metavar="A", help="directory with eval.json and predictions/")
    parser.add_argument("b", metavar="B", help="directory with eval.json and predictions/")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints the comparison."""
    import rich

    from vlm_jax.evaluation.compare import compare
    from vlm_jax.evaluation.suite import comparison_table

    rich.print(comparison_table(arguments.a, arguments.b, compare(arguments.a, arguments.b)))
