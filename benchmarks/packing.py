"""Share of positions that hold a real token in an experiment's stages, beside padding and first-fit.

    python benchmarks/packing.py
    python benchmarks/packing.py --experiment experiments/mu.py --json packing.json

Every way gets the same examples in the same order. A share below 100% is compute spent on nothing.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import rich
import rich.table
import tyro

from data_pipelines.loader import make_loader
from data_pipelines.packing import Budget, Packer, Size
from data_pipelines.shard import Item, Shard
from data_pipelines.sources import open_source
from data_pipelines.template import Processor
from vlm_jax.config import Stage, load_experiment
from vlm_jax.training.workdir import build_processor

BINS = 64
ROWS = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure."""

    experiment: str = "experiments/quickstart.py"
    """Its stages are measured."""
    examples: int = 4000
    """Examples a stage."""
    batches: int = 60
    """Batches that the loader itself gives."""
    json: Path | None = None
    """Also write the figures to this file."""


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


def measure(stage: Stage, processor: Processor, options: Options) -> dict[str, Any]:
    """All ways of filling rows on one stage's examples, drawn as its first virtual shard draws them."""
    data = stage.data
    shard = Shard(data, [open_source(entry.source) for entry in data.mixture], processor, 0, 0, [])
    start = time.perf_counter()
    items = [item for item in map(shard.draw, range(options.examples)) if item is not None]
    rendered = len(items) / (time.perf_counter() - start)
    share, packed = ours(items, data.budget, data.window)
    lengths = [item.size.length for item in items]
    return {
        "length": data.length,
        "tokens_per_example": {"mean": float(np.mean(lengths)), "least": min(lengths), "most": max(lengths)},
        "left_out": options.examples - len(items),
        "share": {
            "one example a row, padded to the row": padded_to_row(items, data.budget),
            f"one example a row, padded to the longest of {ROWS}": padded_to_longest(items, data.budget),
            "first-fit, one open row": one_open_row(items, data.budget),
            f"first-fit, {BINS} open rows (grain)": first_fit(items, data.budget),
            "best subset (ours)": share,
        },
        "examples_per_second": {"draw and render": rendered, "pack": packed},
        "loader": measure_loader(stage, processor, options.batches),
    }


def measure_loader(stage: Stage, processor: Processor, batches: int) -> dict[str, float]:
    """The share in the batches that the loader really gives, and how fast it gives them."""
    loader = make_loader(stage, processor, seed=0)
    next(loader)
    start = time.perf_counter()
    shares = [float((batch.segment_ids > 0).mean()) for batch, _ in (next(loader) for _ in range(batches))]
    seconds = time.perf_counter() - start
    loader.close()
    return {"share": float(np.mean(shares)), "batches_per_second": batches / seconds}


def main(options: Options) -> None:
    """Measures the stages, prints a table, writes the JSON file."""
    experiment = load_experiment(options.experiment)
    processor = build_processor(experiment)
    results = {stage.name: measure(stage, processor, options) for stage in experiment.stages}
    table = rich.table.Table(title="Positions that hold a real token")
    table.add_column("way of filling rows")
    for name in results:
        table.add_column(name, justify="right")

    def add(title: str, value: Callable[[dict[str, Any]], str], **style: Any) -> None:
        table.add_row(title, *(value(result) for result in results.values()), **style)

    for title in next(iter(results.values()))["share"]:
        add(title, lambda result, title=title: f"{result['share'][title]:.2%}")
    add("the loader's batches", lambda result: f"{result['loader']['share']:.2%}", style="bold", end_section=True)
    add("positions a row", lambda result: str(result["length"]))
    add("tokens an example", lambda result: f"{result['tokens_per_example']['mean']:.0f}")
    add("draw and render, examples/s", lambda result: f"{result['examples_per_second']['draw and render']:,.0f}")
    add("pack, examples/s", lambda result: f"{result['examples_per_second']['pack']:,.0f}")
    add("loader, batches/s", lambda result: f"{result['loader']['batches_per_second']:.1f}")
    rich.print(table)
    if options.json is not None:
        report = {"options": dataclasses.asdict(options) | {"json": str(options.json)}, "stages": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
