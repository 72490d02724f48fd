"""`vlm data inspect` and `vlm data stats`: packed batches of an experiment, or raw records of any source."""

import argparse
import itertools
from pathlib import Path
from typing import Any

from vlm_jax.commands.common import (
    add_command,
    add_experiment,
    experiment_of,
    listed_overrides,
    progress_bar,
    table_console,
)
from vlm_jax.errors import UserError

_INSPECT = """Of an experiment: prints the first packed rows of a stage, token by token, as the model will get them, and
writes one HTML page a row with the pictures and the attention mask drawn.

  vlm data inspect experiments/quickstart.py --stage instruct --rows 2 --output runs/inspect

Of data (a prepared set, a TFDS directory, .parquet, .tar, .jsonl): prints some records, from random places, and writes
one HTML page with their pictures and texts.

  vlm data inspect data/prepared/captions/tuxpaint/train --records 40 --output runs/inspect"""

_STATS = """Of an experiment: draws some batches of a stage and counts examples by source, lengths, padding, pictures,
words and answers, and tokens a word in each language. Writes a page with plots.

  vlm data stats experiments/quickstart.py --stage captions --batches 50 --output runs/stats

Of data (a prepared set, a TFDS directory, .parquet, .tar, .jsonl): counts texts, words and languages, pictures and
their sizes, and what is bad or repeated.

  vlm data stats data/prepared/captions/tuxpaint/train --output runs/stats"""


def add_parsers(commands: Any, prepare: Any) -> None:
    """Adds the subcommands to `vlm data`, and none to `vlm data prepare`."""
    del prepare
    for name, run, help, text in (
        ("inspect", inspect, "Show packed rows (tokens, branches, loss, pictures, mask), or raw records.", _INSPECT),
        ("stats", stats, "Count what a stage or a data set is made of, with plots.", _STATS),
    ):
        parser = add_command(commands, name, help, text, overrides=True)
        add_experiment(parser, metavar="EXPERIMENT|DATA", or_else="data in any format that can be read")
        parser.add_argument("--stage", metavar="NAME", help="stage of the experiment; by default the first")
        parser.add_argument("--output", metavar="DIR", default="runs/data", help="where pages go (runs/data)")
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data: chooses the records (0)")
        parser.set_defaults(run=run)
        if name == "inspect":
            parser.add_argument("--rows", type=int, default=1, metavar="N", help="of a stage: how many rows (1)")
            parser.add_argument("--records", type=int, default=24, metavar="N", help="of data: how many records (24)")
        else:
            parser.add_argument("--batches", type=int, default=20, metavar="N", help="of a stage: how many (20)")
            parser.add_argument(
                "--records",
                type=int,
                default=5000,
                metavar="N",
                help="of data: how many records at most; 0 = all (5000)",
            )
            parser.add_argument("--tokenizer", metavar="REF", help="of data: also measure this model's tokenizer on it")


def inspect(arguments: argparse.Namespace) -> None:
    """Prints rows or records and writes their pages."""
    if not _is_experiment(arguments):
        return _inspect_records(arguments)
    if listed_overrides(arguments):
        return None
    from rich.console import Console

    from data_pipelines.look.rows import describe_row, draw_row

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
    return None


def stats(arguments: argparse.Namespace) -> None:
    """Prints the figures and writes the page."""
    if not _is_experiment(arguments):
        return _count_records(arguments)
    if listed_overrides(arguments):
        return None
    import rich

    from data_pipelines.look.stage_stats import stats as count
    from data_pipelines.look.stage_stats import stats_page

    stage, processor, loader, output = _open(arguments)
    figures = count(stage, processor, itertools.islice(loader, arguments.batches))
    loader.close()
    page = _write(output, f"{stage.name}-stats", figures, stats_page(figures))
    rich.print({key: value for key, value in figures.items() if not isinstance(value, dict)})
    print(page)
    return None


def _is_experiment(arguments: argparse.Namespace) -> bool:
    if Path(arguments.experiment).suffix == ".py":
        return True
    if arguments.overrides or arguments.list_overrides:
        what = arguments.overrides[0] if arguments.overrides else "--overrides"
        raise UserError(
            f"{what}: {arguments.experiment} is data, which has no fields to override; give an experiment (.py), or "
            "leave this out"
        )
    return False


def _open(arguments: argparse.Namespace) -> tuple[Any, Any, Any, Path]:
    from data_pipelines.loader import make_loader
    from vlm_jax.training.workdir import build_processor

    experiment = experiment_of(arguments)
    names = [stage.name for stage in experiment.stages]
    if arguments.stage is not None and arguments.stage not in names:
        raise UserError(f"--stage {arguments.stage}: this experiment's stages are {', '.join(names)}")
    stage = experiment.stages[names.index(arguments.stage) if arguments.stage else 0]
    output = _output(arguments)
    processor = build_processor(experiment)
    return stage, processor, make_loader(stage, processor, seed=experiment.seed), output


def _inspect_records(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from data_pipelines.look.gallery import describe_record, draw_records
    from data_pipelines.look.record_parts import sampled_records

    source, name = _source(arguments)
    if arguments.records < 1:
        raise UserError(f"--records {arguments.records}: give at least 1")
    output = _output(arguments)
    records = list(sampled_records(source, arguments.records, arguments.seed))
    console = Console(highlight=False, soft_wrap=True)
    for index, record in records:
        console.print(describe_record(index, record))
    page = output / f"{name}-records.html"
    page.write_text(draw_records(source.name, len(source), records), encoding="utf-8")
    print(page)


def _count_records(arguments: argparse.Namespace) -> None:
    from data_pipelines.look.record_parts import sampled_records
    from data_pipelines.look.record_stats import record_stats, records_page
    from data_pipelines.look.record_tables import figure_tables

    source, name = _source(arguments)
    if arguments.records < 0:
        raise UserError(f"--records {arguments.records}: give a number, or 0 for all")
    output = _output(arguments)
    tokenizer = None
    if arguments.tokenizer:
        from vlm_jax.checkpoints.reference import load_reference_tokenizer

        tokenizer = load_reference_tokenizer(arguments.tokenizer)
    total = min(arguments.records or len(source), len(source))
    with progress_bar("records", total) as advance:
        records = sampled_records(source, arguments.records, arguments.seed)
        figures = record_stats(source.name, len(source), records, tokenizer, advance)
    table_console().print(*figure_tables(figures))
    print(_write(output, f"{name}-stats", figures, records_page(figures)))


def _source(arguments: argparse.Namespace) -> tuple[Any, str]:
    """The source of a path, and what its pages are called."""
    from data_pipelines.sources import open_source, source_for

    source = open_source(source_for(arguments.experiment))
    parts = [part for part in Path(arguments.experiment).with_suffix("").parts if part not in ("/", "..", ".")]
    return source, "-".join(parts[-3:])


def _output(arguments: argparse.Namespace) -> Path:
    output = Path(arguments.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); choose another directory") from None
    return output


def _write(output: Path, name: str, figures: dict[str, Any], page: str) -> Path:
    import json

    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    (output / f"{name}.json").write_text(text, encoding="utf-8", errors="replace")
    path = output / f"{name}.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path
