"""`vlm data inspect` and `vlm data stats`."""

import argparse
import itertools
from pathlib import Path
from typing import Any

from vlm_jax.commands.common import add_command, add_experiment, experiment_of, listed_overrides
from vlm_jax.errors import UserError

_INSPECT = """Prints the first packed rows of a stage, token by token, as the model will get them, and writes one
HTML page a row with the pictures and the attention mask drawn.

  vlm data inspect experiments/quickstart.py --stage instruct --rows 2 --output runs/inspect"""

_STATS = """Draws some batches of a stage and counts: examples by source, lengths, padding, pictures, words and answers.
Writes stats.html with plots.

  vlm data stats experiments/quickstart.py --stage captions --batches 50 --output runs/stats"""


def add_parsers(commands: Any, prepare: Any) -> None:
    """Adds the subcommands to `vlm data`, and none to `vlm data prepare`."""
    del prepare
    for name, run, help, text in (
        ("inspect", inspect, "Show packed rows: tokens, branches, loss, pictures, mask.", _INSPECT),
        ("stats", stats, "Count what a stage is made of, with plots.", _STATS),
    ):
        parser = add_command(commands, name, help, text, overrides=True)
        add_experiment(parser)
        parser.add_argument("--stage", metavar="NAME", help="stage of the experiment; by default the first")
        parser.add_argument("--output", metavar="DIR", default="runs/data", help="where pages go (runs/data)")
        parser.set_defaults(run=run)
        if name == "inspect":
            parser.add_argument("--rows", type=int, default=1, metavar="N", help="how many rows (1)")
        else:
            parser.add_argument("--batches", type=int, default=20, metavar="N", help="how many batches (20)")


def _open(arguments: argparse.Namespace) -> tuple[Any, Any, Any, Path]:
    from data_pipelines.loader import make_loader
    from vlm_jax.training.workdir import build_processor

    experiment = experiment_of(arguments)
    names = [stage.name for stage in experiment.stages]
    if arguments.stage is not None and arguments.stage not in names:
        raise UserError(f"--stage {arguments.stage}: this experiment's stages are {', '.join(names)}")
    stage = experiment.stages[names.index(arguments.stage) if arguments.stage else 0]
    output = Path(arguments.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); choose another directory") from None
    processor = build_processor(experiment)
    return stage, processor, make_loader(stage, processor, seed=experiment.seed), output


def inspect(arguments: argparse.Namespace) -> None:
    """Prints rows and writes their pages."""
    if listed_overrides(arguments):
        return
    from rich.console import Console

    from data_pipelines.inspect import describe_row, draw_row

    stage, processor, loader, output = _open(arguments)
    shown = 0
    for batch, info in loader:
        for row in range(min(batch.tokens.shape[0], arguments.rows - shown)):
            Console(highlight=False).print(describe_row(batch, row, info, processor))
            page = output / f"{stage.name}-{shown}.html"
            page.write_text(draw_row(batch, row, info, processor))
            print(page)
            shown += 1
        if shown >= arguments.rows:
            break
    loader.close()


def stats(arguments: argparse.Namespace) -> None:
    """Prints the figures and writes the page."""
    if listed_overrides(arguments):
        return
    import json

    import rich

    from data_pipelines.stats import stats as count
    from data_pipelines.stats import stats_page

    stage, processor, loader, output = _open(arguments)
    figures = count(stage, processor, itertools.islice(loader, arguments.batches))
    loader.close()
    (output / f"{stage.name}-stats.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    page = output / f"{stage.name}-stats.html"
    page.write_text(stats_page(figures))
    rich.print({key: value for key, value in figures.items() if not isinstance(value, dict)})
    print(page)
