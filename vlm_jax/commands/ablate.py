"""`vlm ablate`."""

import argparse
from typing import Any

from vlm_jax.commands.common import add_command, add_compile_cache, set_tpu_flags, table_console
from vlm_jax.errors import RunError, UserError

_DESCRIPTION = """Trains every arm of a study with every seed, lets each answer its questions, measures what each
costs, and puts it all into one table, ablation.json and report.html. What is done is not done again: after a kill the
same command goes on. A run that fails is reported, and the others go on.

  vlm ablate experiments/ablate_adapter.py --workdir runs/adapters
  vlm ablate experiments/ablate_adapter.py --workdir runs/adapters --only mlp,qformer --seeds 1

What follows is a field of every arm's experiment, such as --stages.0.steps 10."""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(subparsers, "ablate", "Compare choices: arms of a study, over paired seeds.", _DESCRIPTION)
    parser.add_argument("study", metavar="STUDY", help="Python file that defines study(), see experiments/ablate_*.py")
    parser.add_argument("--workdir", metavar="DIR", help="where the study is kept")
    parser.add_argument("--size", help="which of the study's sizes, where it has several: study(size)")
    parser.add_argument("--only", metavar="ARM,ARM", help="only these arms; the table shows all that are done")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds of each arm, 0 to N - 1; by default the study's")
    add_compile_cache(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(arguments: argparse.Namespace) -> None:
    """Runs the study and prints its table; RunError if a run failed."""
    if not arguments.workdir:
        raise UserError("--workdir is missing; name a directory for this study, such as --workdir runs/adapters")

    from vlm_jax.ablation.conduct import conduct
    from vlm_jax.ablation.page import write_page
    from vlm_jax.ablation.study import load_study, with_overrides
    from vlm_jax.ablation.summary import summarise, write_summary
    from vlm_jax.ablation.table import remarks, terminal_table
    from vlm_jax.generation import keep_compiled

    whole = with_overrides(load_study(arguments.study, arguments.size), arguments.overrides, arguments.seeds)
    chosen = whole.only(arguments.only.split(",")) if arguments.only else whole
    set_tpu_flags([arm.experiment for arm in whole.arms])
    keep_compiled(arguments.compile_cache)
    failures = conduct(chosen, arguments.workdir)
    summary = summarise(whole, arguments.workdir)
    write_summary(summary, arguments.workdir)
    console = table_console()
    console.print(terminal_table(summary))
    for remark in remarks(summary):
        console.print(remark, soft_wrap=True)
    print(write_page(summary, arguments.workdir))
    if failures:
        first = failures[0]
        raise RunError(
            f"{len(failures)} of {len(chosen.arms) * chosen.seeds} runs failed, first {first.title}: {first.message}; "
            "mend it and run the same command again"
        )
