"""`vlm data tokenizer`: trains an experiment's tokenizer by itself, and compares it with others."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_jax.commands.common import add_command, add_experiment, experiment_of, listed_overrides, table_console
from vlm_jax.errors import UserError

_HELP = """Trains the tokenizer that the experiment would get, on a sample of its stages' texts, and writes it with a
report: tokens a word, bytes a token and the share of byte tokens, by language, beside those of other models'
tokenizers. An experiment takes it over with --parts.tokenizer DIR.

  vlm data tokenizer experiments/quickstart.py --output runs/tokenizer --tokenizer.vocabulary-size 600
  vlm data tokenizer experiments/quickstart.py --output runs/tokenizer --compare models/SmolLM2-135M"""

_MEASURED = 500_000
"""Characters that tokenizers are compared on."""


def add_parsers(commands: Any, prepare: Any) -> None:
    """Adds the subcommand to `vlm data`, and none to `vlm data prepare`."""
    del prepare
    parser = add_command(commands, "tokenizer", "Train a tokenizer, and compare tokenizers.", _HELP, overrides=True)
    add_experiment(parser)
    parser.add_argument("--output", metavar="DIR", default="runs/tokenizer", help="where it goes (runs/tokenizer)")
    parser.add_argument(
        "--compare",
        metavar="REF",
        nargs="+",
        default=[],
        help="models, or directories with a tokenizer, to set beside it",
    )
    parser.set_defaults(run=tokenizer)


def tokenizer(arguments: argparse.Namespace) -> None:
    """Trains, compares, prints the table and writes the page."""
    if listed_overrides(arguments):
        return
    from rich.console import Console

    from data_pipelines.template import Processor
    from data_pipelines.text_sample import LONGEST_TEXT
    from data_pipelines.tokenizers import train_sentencepiece
    from data_pipelines.tokenizers.comparison import compare_tokenizers, tokenizers_page
    from vlm_jax.checkpoints.reference import load_reference_tokenizer
    from vlm_jax.training.workdir import texts

    experiment = experiment_of(arguments)
    names = [reference.rstrip("/").rpartition("/")[2] for reference in arguments.compare]
    clear = len({*names, experiment.name}) == 1 + len(names)
    others = {
        name if clear else reference: load_reference_tokenizer(reference)
        for name, reference in zip(names, arguments.compare, strict=True)
    }
    output = Path(arguments.output)
    status = Console(stderr=True).status
    with status("sampling texts"):
        sample = list(texts(experiment))
    with status(f"training on {sum(map(len, sample)):,} characters"):
        trained = train_sentencepiece(sample, experiment.tokenizer)
    model = experiment.model
    processor = Processor(
        trained, experiment.template, experiment.images, model.image_size, model.prompt_tokens, model.pictures
    )
    try:
        processor.save(output)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); choose another directory") from None
    with status("measuring"):
        measured = list(_up_to(_MEASURED, texts(experiment, experiment.seed + 1)))
        known = {*sample}
        seen = sum(text in known or len(text) >= LONGEST_TEXT for text in measured) / len(measured)
        figures = compare_tokenizers({experiment.name: trained, **others}, measured, seen)
    (output / "report.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (output / "report.html").write_text(tokenizers_page(figures, f"Tokenizer of {experiment.name}"), encoding="utf-8")
    table_console().print(_table(figures))
    print(output / "report.html")


def _up_to(characters: int, texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _table(figures: dict[str, Any]) -> Any:
    from rich.table import Table

    from data_pipelines.words import SCRIPTS

    table = Table(box=None, header_style="dim")
    table.add_column("tokenizer", overflow="fold")
    table.add_column("language", no_wrap=True)
    for name in ("vocabulary", "words", "tokens a word", "bytes a token", "byte tokens"):
        table.add_column(name, justify="right")
    for name, each in figures["tokenizers"].items():
        for language, measured in each["languages"].items():
            numbers = (f"{each['vocabulary_size']:,}", f"{measured['words']:,}", f"{measured['tokens_per_word']:.2f}")
            more = (f"{measured['bytes_per_token']:.2f}", f"{measured['byte_share']:.2%}")
            table.add_row(name, SCRIPTS[language].removesuffix(" script"), *numbers, *more)
    return table
