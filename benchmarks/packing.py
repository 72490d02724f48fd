"""Share of positions that hold a real token on easy-VQA, for our packer beside padding and first-fit.

    python benchmarks/packing.py [--length 512] [--json FILE]

Every way gets the same examples in the same order. A share below 100% is compute spent on nothing.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grain
import numpy as np
import rich
import rich.table
import tyro

from data_pipelines.images import ImagePreprocessing
from data_pipelines.kinds import Captions, Instruct, KindConfig
from data_pipelines.loader import make_loader
from data_pipelines.mixture import DataConfig, MixtureEntry
from data_pipelines.packing import Budget, Packer, Size
from data_pipelines.shard import Item, Shard
from data_pipelines.sources import EasyVQA, open_source
from data_pipelines.template import Processor, TemplateConfig
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece

BINS = 64
ROWS = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure."""

    length: int = 512
    """Positions a row."""
    images: int = 12
    """Image slots a row."""
    prompt_tokens: int = 16
    """Positions a picture takes."""
    vocabulary_size: int = 384
    """Of the tokenizer that is trained for the measurement."""
    examples: int = 4000
    """Examples a stage."""
    window: int = 64
    """Pending examples that our packer considers."""
    json: Path | None = None
    """Also write the figures to this file."""


def mixture(kind: KindConfig) -> tuple[MixtureEntry, ...]:
    """English and Russian, an entry each."""
    pictures = "captioned" if isinstance(kind, Captions) else "all"
    return tuple(
        MixtureEntry(EasyVQA(languages=(language,), pictures=pictures, name=f"easy_vqa_{language}"), kind)
        for language in ("en", "ru")
    )


def make_processor(options: Options) -> Processor:
    """A processor with a tokenizer that is trained on every ninth picture's texts."""
    source = open_source(EasyVQA(languages=("en", "ru")))
    texts = []
    for index in range(0, len(source), 9):
        record = source[index]
        texts += [text for entry in record["questions"] for text in (entry["question"], entry["answer"])]
        texts += [caption["text"] for caption in record["captions"]]
    tokenizer = train_sentencepiece(texts, SentencePieceConfig(vocabulary_size=options.vocabulary_size))
    return Processor(tokenizer, TemplateConfig(), ImagePreprocessing(), (64, 64), options.prompt_tokens)


def padded_to_row(items: Sequence[Item], budget: Budget) -> float:
    """One example a row, all rows S long."""
    return sum(item.size.length for item in items) / (len(items) * budget.length)


def padded_to_longest(items: Sequence[Item], budget: Budget) -> float:
    """One example a row, rows as long as the longest of their batch."""
    lengths = np.array([item.size.length for item in items[: len(items) // ROWS * ROWS]]).reshape(-1, ROWS)
    return float(lengths.sum() / (lengths.max(1) * ROWS).sum())


def one_open_row(items: Sequence[Item], budget: Budget) -> float:
    """Fills one row after another in the drawn order."""
    rows, length, images = 1, 0, 0
    for item in items:
        length, images = length + item.size.length, images + item.size.images
        if budget.misfit(Size(length, images)):
            rows, length, images = rows + 1, *item.size
    return sum(item.size.length for item in items) / (rows * budget.length)


def first_fit(items: Sequence[Item], budget: Budget) -> float:
    """Grain's first-fit packing with 64 open rows."""
    elements = [{"tokens": np.ones(i.size.length, np.int8), "images": np.ones(i.size.images, np.int8)} for i in items]
    source = grain.MapDataset.source(elements).to_iter_dataset(grain.ReadOptions(num_threads=1))
    rows = grain.experimental.FirstFitPackIterDataset(
        source,
        length_struct={"tokens": budget.length, "images": budget.images},
        num_packing_bins=BINS,
        shuffle_bins=False,
    )
    # The last group of rows is left out: it is only half full because the data end.
    filled = [float(row["tokens"].mean()) for row in rows][: -BINS or None]
    return float(np.mean(filled))


def ours(items: Sequence[Item], budget: Budget, window: int) -> tuple[float, float]:
    """(share, examples a second of packing alone), as long as the window can be kept full."""
    packer = Packer(lambda number: items[number], budget, window)
    lengths, count, start = [], 0, time.perf_counter()
    while packer.get_state()["next"] + budget.examples < len(items):
        row = packer.next_row()
        lengths.append(sum(item.size.length for item in row))
        count += len(row)
    return float(np.mean(lengths)) / budget.length, count / (time.perf_counter() - start)


def measure(name: str, kind: KindConfig, processor: Processor, options: Options) -> dict[str, Any]:
    """All ways of filling rows on one stage's examples."""
    data = DataConfig(mixture(kind), ROWS, options.length, options.images, window=options.window)
    shard = Shard(data, [open_source(entry.source) for entry in data.mixture], processor, 0, 0, [])
    start = time.perf_counter()
    items = [item for item in map(shard.draw, range(options.examples)) if item is not None]
    rendered = len(items) / (time.perf_counter() - start)
    share, packed = ours(items, data.budget, options.window)
    lengths = [item.size.length for item in items]
    return {
        "tokens_per_example": {"mean": float(np.mean(lengths)), "least": min(lengths), "most": max(lengths)},
        "left_out": options.examples - len(items),
        "share": {
            "one example a row, padded to the row": padded_to_row(items, data.budget),
            "one example a row, padded to the longest of 16": padded_to_longest(items, data.budget),
            "first-fit, one open row": one_open_row(items, data.budget),
            f"first-fit, {BINS} open rows (grain)": first_fit(items, data.budget),
            f"best subset, window {options.window} (ours)": share,
        },
        "examples_per_second": {"draw and render": rendered, "pack": packed},
        "loader": measure_loader(name, data, processor),
    }


def measure_loader(name: str, data: DataConfig, processor: Processor, batches: int = 40) -> dict[str, float]:
    """The share in the batches that the loader really gives, and how fast it gives them."""
    loader = make_loader(SimpleNamespace(name=name, data=data), processor, seed=0)
    next(loader)
    start = time.perf_counter()
    shares = [float((batch.segment_ids > 0).mean()) for batch, _ in (next(loader) for _ in range(batches))]
    seconds = time.perf_counter() - start
    loader.close()
    return {"share": float(np.mean(shares)), "batches_per_second": batches / seconds}


def main(options: Options) -> None:
    """Measures both stages, prints a table, writes the JSON file."""
    processor = make_processor(options)
    stages = {"captions": Captions(), "instruct": Instruct()}
    results = {name: measure(name, kind, processor, options) for name, kind in stages.items()}
    table = rich.table.Table(title=f"Positions that hold a real token, rows of {options.length}")
    table.add_column("way of filling rows")
    for name in results:
        table.add_column(name, justify="right")

    def add(title: str, value: Callable[[dict[str, Any]], str], **style: Any) -> None:
        table.add_row(title, *(value(result) for result in results.values()), **style)

    for title in next(iter(results.values()))["share"]:
        add(title, lambda result, title=title: f"{result['share'][title]:.2%}")
    add("the loader's batches", lambda result: f"{result['loader']['share']:.2%}", style="bold", end_section=True)
    add("tokens an example", lambda result: f"{result['tokens_per_example']['mean']:.0f}")
    add("draw and render, examples/s", lambda result: f"{result['examples_per_second']['draw and render']:,.0f}")
    add("pack, examples/s", lambda result: f"{result['examples_per_second']['pack']:,.0f}")
    add(f"loader, batches of {ROWS} rows/s", lambda result: f"{result['loader']['batches_per_second']:.1f}")
    rich.print(table)
    if options.json is not None:
        report = {"options": dataclasses.asdict(options) | {"json": str(options.json)}, "stages": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
