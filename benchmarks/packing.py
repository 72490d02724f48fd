"""Share of positions that hold a real token, and of image slots that hold a picture, beside other ways of filling rows.

    python benchmarks/packing.py
    python benchmarks/packing.py --experiment experiments/mu.py --json packing.json
    python benchmarks/packing.py --data data/prepared

Every way gets the same examples in the same order, as the first virtual shard draws them. A share below 100% is compute
spent on nothing. With --data, it is one mixture of all training sets below a directory, more than half of the examples
pages and texts, at 2048 positions and 8 pictures a row, with a tokenizer trained on them.
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
from data_pipelines.kinds import KIND_NAMES
from data_pipelines.loader import make_loader
from data_pipelines.manifest import MANIFEST, read_manifest
from data_pipelines.mixture import DataConfig, KindShare, MixtureEntry, StageData
from data_pipelines.packing import Budget, Packer, Size
from data_pipelines.quarantine import Quarantine
from data_pipelines.shard import Item, Shard
from data_pipelines.sources import ArrayRecords, open_source
from data_pipelines.template import Processor, TemplateConfig
from data_pipelines.text_sample import sample_texts
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.config import load_experiment
from vlm_jax.training.workdir import build_processor

BINS = 64
ROWS = 16
STATE_SHARDS = 256
VOCABULARY = 16_000
SAMPLE = 2_000_000
DOCUMENTS = {"text_only": 0.35, "interleaved": 0.2}
"""Shares of the examples with --data. Pictures with a line of text have the rest; more of them run out of slots."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure."""

    experiment: str = "experiments/quickstart.py"
    """Its stages are measured."""
    data: Path | None = None
    """Measure a mixture of the prepared sets below this directory instead."""
    length: int = 2048
    """With --data: positions a row."""
    images: int = 8
    """With --data: image slots a row."""
    prompt_tokens: int = 64
    """With --data: positions a picture takes."""
    temperature: float = 2.0
    """With --data: sets weigh by their sizes to the power 1 / temperature."""
    examples: int = 4000
    """Records drawn a stage."""
    batches: int = 60
    """Batches that the loader itself gives."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclasses.dataclass(frozen=True)
class Filled:
    """Shares of the positions and of the image slots of all rows."""

    positions: float
    images: float

    @staticmethod
    def of(rows: Sequence[Size], budget: Budget) -> "Filled":
        """What rows hold together."""
        length, images = np.sum([row[:2] for row in rows], axis=0) / len(rows)
        return Filled(float(length / budget.length), float(images / max(1, budget.images)))


def padded_to_row(sizes: Sequence[Size], budget: Budget) -> Filled:
    """One example a row, all rows S long."""
    return Filled.of(sizes, budget)


def padded_to_longest(sizes: Sequence[Size], budget: Budget) -> Filled:
    """One example a row, rows as long as the longest of their batch."""
    whole = sizes[: len(sizes) // ROWS * ROWS]
    lengths = np.array([size.length for size in whole]).reshape(-1, ROWS)
    share = float(lengths.sum() / (lengths.max(1) * ROWS).sum())
    return dataclasses.replace(Filled.of(whole, budget), positions=share)


def one_open_row(sizes: Sequence[Size], budget: Budget) -> Filled:
    """Fills one row after another in the drawn order."""
    rows = [Size(0, 0, 0)]
    for size in sizes:
        together = Size(*np.add(rows[-1], size).tolist())
        rows = [*rows[:-1], together] if budget.misfit(together) is None else [*rows, size]
    return Filled.of(rows, budget)


def first_fit(sizes: Sequence[Size], budget: Budget) -> Filled:
    """Grain's first-fit packing with 64 open rows."""
    elements = [{"tokens": np.ones(size.length, np.int8), "images": np.ones(size.images, np.int8)} for size in sizes]
    source = grain.MapDataset.source(elements).to_iter_dataset(grain.ReadOptions(num_threads=1))
    rows = grain.experimental.FirstFitPackIterDataset(
        source,
        length_struct={"tokens": budget.length, "images": budget.images},
        num_packing_bins=BINS,
        shuffle_bins=False,
    )
    # The last group of rows is left out: it is only half full because the data end.
    filled = [Size(int(row["tokens"].sum()), int(row["images"].sum())) for row in rows]
    return Filled.of(filled[: -BINS or None], budget)


def ours(items: Sequence[Item], budget: Budget, window: int) -> tuple[Filled, float]:
    """(shares, examples a second of packing alone), as long as the window can be kept full."""
    waiting = iter(items)
    packer = Packer(lambda: None if (item := next(waiting, None)) is None else [item], budget, window)
    rows, count, start = [], 0, time.perf_counter()
    while len(row := packer.next_row()) + len(packer.pending) >= window:
        rows.append(Size(*np.sum([item.size for item in row], axis=0).tolist()))
        count += len(row)
    return Filled.of(rows, budget), count / (time.perf_counter() - start)


def measure(stage: StageData, processor: Processor, options: Options) -> dict[str, Any]:
    """All ways of filling rows on one stage's examples, drawn as its first virtual shard draws them."""
    data = stage.data
    rejected: list[Any] = []
    shard = Shard(data, [open_source(entry.source) for entry in data.mixture], processor, 0, 0, rejected)
    start = time.perf_counter()
    items = [item for _ in range(options.examples) for item in shard.draw() or ()]
    rendered = len(items) / (time.perf_counter() - start)
    filled, packed = ours(items, data.budget, data.window)
    sizes = [item.size for item in items]
    lengths = [size.length for size in sizes]
    for _ in range(3):
        shard.next_row()
    ways = {
        "one example a row, padded to the row": padded_to_row(sizes, data.budget),
        f"one example a row, padded to the longest of {ROWS}": padded_to_longest(sizes, data.budget),
        "first-fit, one open row": one_open_row(sizes, data.budget),
        f"first-fit, {BINS} open rows (grain)": first_fit(sizes, data.budget),
        "best subset (ours)": filled,
    }
    return {
        "length": data.length,
        "images": data.images,
        "sources": len(data.mixture),
        "tokens_per_example": {"mean": float(np.mean(lengths)), "least": min(lengths), "most": max(lengths)},
        "records": options.examples,
        "examples": len(items),
        "left_out": len(rejected),
        "share": {name: way.positions for name, way in ways.items()},
        "image_slots": {name: way.images for name, way in ways.items()},
        "examples_per_second": {"draw and render": rendered, "pack": packed},
        "state_bytes": STATE_SHARDS * len(json.dumps(shard.get_state())),
        "loader": measure_loader(stage, processor, options.batches),
    }


def measure_loader(stage: StageData, processor: Processor, batches: int) -> dict[str, float]:
    """The shares in the batches that the loader really gives, and how fast it gives them."""
    loader = make_loader(stage, processor, seed=0, quarantine=Quarantine(limit=1.0))
    next(loader)
    start = time.perf_counter()
    got = [(batch.segment_ids > 0, batch.image_ids) for batch, _ in (next(loader) for _ in range(batches))]
    seconds = time.perf_counter() - start
    loader.close()
    slots = [float((images > 0).mean()) for _, images in got if images is not None]
    return {
        "share": float(np.mean([real.mean() for real, _ in got])),
        "image_slots": float(np.mean(slots)) if slots else 0.0,
        "batches_per_second": batches / seconds,
    }


def prepared(directory: Path, options: Options) -> tuple[dict[str, StageData], Processor]:
    """One mixture of the training sets below a directory, and a processor for it."""
    mixture = []
    for path in sorted(directory.glob(f"*/*/train/{MANIFEST}")):
        kind = KIND_NAMES[read_manifest(path.parent).about["kind"]]
        mixture.append(MixtureEntry(ArrayRecords(str(path.parent)), kind()))
    present = {entry.kind.kind for entry in mixture}
    kinds = tuple(KindShare(kind, share) for kind, share in DOCUMENTS.items() if present > DOCUMENTS.keys())
    data = DataConfig(
        tuple(mixture),
        rows=8,
        length=options.length,
        images=options.images,
        temperature=options.temperature,
        kinds=kinds,
    )
    texts = list(sample_texts([(entry, 1.0) for entry in mixture], SAMPLE, seed=0))
    tokenizer = train_sentencepiece(texts, SentencePieceConfig(vocabulary_size=VOCABULARY, model_type="bpe"))
    processor = Processor(tokenizer, TemplateConfig(), ImagePreprocessing(), (128, 128), options.prompt_tokens)
    return {directory.name: SimpleNamespace(name=directory.name, data=data)}, processor


def main(options: Options) -> None:
    """Measures the stages, prints a table, writes the JSON file."""
    if options.data is not None:
        stages, processor = prepared(options.data, options)
    else:
        experiment = load_experiment(options.experiment)
        stages, processor = {stage.name: stage for stage in experiment.stages}, build_processor(experiment)
    results = {name: measure(stage, processor, options) for name, stage in stages.items()}
    table = rich.table.Table(title="Positions that hold a real token, and image slots that hold a picture")
    table.add_column("way of filling rows")
    for name in results:
        table.add_column(name, justify="right")

    def add(title: str, value: Callable[[dict[str, Any]], str], **style: Any) -> None:
        table.add_row(title, *(value(result) for result in results.values()), **style)

    for title in next(iter(results.values()))["share"]:
        add(title, lambda r, title=title: f"{r['share'][title]:.2%}, {r['image_slots'][title]:.0%}")
    add(
        "the loader's batches",
        lambda r: f"{r['loader']['share']:.2%}, {r['loader']['image_slots']:.0%}",
        style="bold",
        end_section=True,
    )
    add("positions, image slots a row", lambda r: f"{r['length']}, {r['images']}")
    add("sources", lambda r: str(r["sources"]))
    add("tokens an example: mean, most", lambda r: "{mean:.0f}, {most}".format(**r["tokens_per_example"]))
    add("examples of so many records", lambda r: f"{r['examples']:,} of {r['records']:,}")
    add("records left out", lambda r: str(r["left_out"]))
    add("draw and render, examples/s", lambda r: f"{r['examples_per_second']['draw and render']:,.0f}")
    add("pack, examples/s", lambda r: f"{r['examples_per_second']['pack']:,.0f}")
    add("loader, batches/s", lambda r: f"{r['loader']['batches_per_second']:.1f}")
    add(f"state at {STATE_SHARDS} virtual shards, KiB", lambda r: f"{r['state_bytes'] / 1024:,.0f}")
    rich.print(table)
    if options.json is not None:
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": plain, "stages": results}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
