"""`vlm data prepare web`: raw web pages become interleaved documents."""

import argparse
from typing import Any

from vlm_jax.commands.common import add_command
from vlm_jax.errors import UserError

_HELP = """Turns WARC files, or folders of HTML with their pictures, into shards of interleaved documents: main content
with pictures where they stood, language, quality, exact and near duplicates of pages and pictures, and nothing of the
evaluation sets that are named. Writes shards, manifest.json, funnel.json, and report.html with what every rule dropped.

  vlm data prepare web crawl/CC-MAIN-0001.warc.gz pages/ --output data/prepared/web
  vlm data prepare web pages/ --output data/prepared/web --decontaminate data/prepared/captions/gimp/test

What stands after -- goes to Apache Beam; without a runner there, all runs in this process:

  vlm data prepare web gs://crawl/ --output gs://data/web -- --runner=DataflowRunner --project=P --temp_location=gs://t

The same command goes on with a run that was stopped, and does nothing where its output is there and whole."""


def add_parsers(commands: Any, prepare: Any) -> None:
    """Adds the subcommand to `vlm data prepare`, and none to `vlm data`."""
    del commands
    parser = add_command(prepare, "web", "Make interleaved documents of web pages.", _HELP)
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="WARC files (.warc, .warc.gz) and directories of pages"
    )
    parser.add_argument("--output", metavar="DIR", help="where shards, manifest and report go")
    parser.add_argument(
        "--config", metavar="FILE.json", help="rules and thresholds; fields left out keep their defaults"
    )
    parser.add_argument("--print-config", action="store_true", help="print the config with all its fields, and stop")
    parser.add_argument(
        "--decontaminate",
        metavar="PATH",
        action="append",
        default=[],
        help="an evaluation set, in any format that sources read; may be given several times",
    )
    parser.set_defaults(run=web, takes_overrides=True)


def web(arguments: argparse.Namespace) -> None:
    """Runs the pipeline and prints the funnel."""
    import json

    from data_pipelines.prepare.web.config import load_web_config, plain_config
    from data_pipelines.prepare.web.run import prepare_web

    config = load_web_config(arguments.config)
    if arguments.print_config:
        print(json.dumps(plain_config(config), indent=2, ensure_ascii=False))
        return
    # argparse takes what stands behind -- for further inputs where those come last.
    flags = [*(word for word in arguments.inputs if word.startswith("-")), *arguments.overrides]
    inputs = [word for word in arguments.inputs if not word.startswith("-")]
    if not inputs:
        raise UserError("no INPUT; give WARC files or directories of pages, see `vlm data prepare web --help`")
    if not arguments.output:
        raise UserError("--output DIR is missing; say where the shards go")
    flags = [word for word in flags if word != "--"]
    outcome = _with_progress(
        lambda progress: prepare_web(inputs, arguments.output, config, arguments.decontaminate, flags, progress)
    )
    _show(outcome, arguments.output)


def _with_progress(run: Any) -> Any:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        return run(
            lambda what, done, of: bar.update(
                task, description=f"{what} {done:,}/{of:,}" if of else what, completed=done, total=of or None
            )
        )


def _show(outcome: Any, output: str) -> None:
    from rich.console import Console
    from rich.table import Table

    funnel = outcome.funnel
    console = Console()
    if outcome.skipped:
        console.print(
            f"{output}: already there, from the same input, config and code, and whole", highlight=False, soft_wrap=True
        )
    table = Table("rule", "pages", "passages", "pictures", "words", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("read", *_cells(funnel["read"]))
    for rule in funnel["rules"]:
        if any(rule["dropped"].values()):
            table.add_row(rule["name"], *_cells(rule["dropped"], "-"))
    table.add_row("kept", *_cells(funnel["written"]), style="bold")
    for language, counts in funnel["languages"].items():
        table.add_row(f"  {language}", *_cells(counts))
    console.print(table)
    for text in funnel["cut_inputs"]:
        console.print(f"damaged input: {text}", markup=False, highlight=False, soft_wrap=True)
    shards = outcome.manifest.files
    console.print(
        f"{outcome.manifest.records:,} records in {len(shards)} shards, {outcome.manifest.bytes / 2**20:,.1f} MiB; "
        f"{output.rstrip('/')}/report.html shows samples",
        highlight=False,
        soft_wrap=True,
    )


def _cells(counts: dict[str, int], sign: str = "") -> list[str]:
    return [f"{sign}{counts[unit]:,}" if counts[unit] else "" for unit in ("pages", "passages", "pictures", "words")]
