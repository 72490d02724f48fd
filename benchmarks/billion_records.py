"""A mixture of a billion records: how long it takes to start, and to go on from the middle, and in how much memory.

The records are made up when they are asked for, and everything else is the code that trains: order, mixture, kinds,
template, packing, loader. Each measurement is a process of its own. The middle is a state whose draws are moved on by
half an epoch; two processes restore it, and must give the same batches.

    python benchmarks/billion_records.py
    python benchmarks/billion_records.py --records 100000000 --shards 8 --json billion.json
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import jax
import numpy as np
import rich
import rich.table

import data_pipelines.loader as loader_module
from data_pipelines.examples import Image
from data_pipelines.images import ImagePreprocessing
from data_pipelines.kinds import Captions, Instruct, Interleaved, KindConfig, TextOnly
from data_pipelines.loader import DataConfig, Loader, MixtureEntry, make_loader
from data_pipelines.template import Processor, TemplateConfig, load_processor
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece

SHARES = {"text": 0.7, "captions": 0.2, "interleaved": 0.099, "instruct": 0.001}
"""Of the records; they are drawn alike often."""
KINDS: dict[str, KindConfig] = {
    "text": TextOnly(),
    "captions": Captions(),
    "interleaved": Interleaved(),
    "instruct": Instruct(),
}
BATCHES = 5
STATE_SHARDS = 256


class MadeUp:
    """Record n of a billion, with texts of 20 to 300 words and pictures of one colour; it is its own config."""

    def __init__(self, name: str, records: int) -> None:
        self.name, self._records = name, records
        pixels = np.full((48, 48, 3), 128, np.uint8)
        self._picture = Image(data=cv2.imencode(".png", pixels)[1].tobytes())

    def __len__(self) -> int:
        return self._records

    def __getitem__(self, index: int) -> dict[str, Any]:
        words = [f"word{n}" for n in range(20 + index % 281)]
        text = " ".join([str(index), *words])
        return {
            "id": f"{self.name}/{index}",
            "text": text,
            "image": self._picture,
            "captions": [{"text": text[:200], "language": "en"}],
            "segments": [{"text": text}, {"image": self._picture}, {"text": text[:100]}],
            "questions": [{"question": "which number?", "answer": str(index)}],
        }


def open_loader(processor: Processor, options: argparse.Namespace) -> Loader:
    """The loader of the mixture; the sources need no opening."""
    loader_module.open_source = lambda config: config  # type: ignore[assignment,return-value]
    mixture = tuple(
        MixtureEntry(MadeUp(name, int(share * options.records)), KINDS[name])  # type: ignore[arg-type]
        for name, share in SHARES.items()
    )
    data = DataConfig(mixture, rows=options.shards, length=2048, images=8, virtual_shards=options.shards)
    return make_loader(SimpleNamespace(name="pretrain", data=data), processor, seed=1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own does: start, or restore; some batches; figures."""
    processor = load_processor(options.processor)
    start = time.perf_counter()
    loader = open_loader(processor, options)
    if options.state:
        loader.set_state(json.loads(Path(options.state).read_text()))
        ready = time.perf_counter()
    batch, info = next(loader)
    first = time.perf_counter()
    digest = hashlib.sha256()
    for _ in range(BATCHES):
        digest.update(repr(info.example_ids).encode() + b"".join(x.tobytes() for x in jax.tree.leaves(batch)))
        batch, info = next(loader)
    seconds = time.perf_counter() - first
    if options.write_state:
        Path(options.write_state).write_text(json.dumps(moved_on(loader.get_state())))
    loader.close()
    return {
        "restored": ready - start if options.state else None,
        "first_batch": first - start,
        "rows_per_second": BATCHES * options.shards / seconds,
        "gibibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "state_bytes_per_shard": len(json.dumps(loader.get_state()["shards"])) / options.shards,
        "epochs_seen": {name: float(epochs) for name, epochs in info.epochs_seen.items()},
        "digest": digest.hexdigest(),
    }


def moved_on(state: dict[str, Any]) -> dict[str, Any]:
    """The state, half an epoch of every source later."""
    shards = len(state["shards"])
    for shard in state["shards"].values():
        by = [size // shards // 2 for *_, size in state["data"]["mixture"]]
        shard["drawn"] = [drawn + more for drawn, more in zip(shard["drawn"], by, strict=True)]
        shard["pending"] = [[entry, count + by[entry], piece] for entry, count, piece in shard["pending"] if not piece]
    return state


def child(options: argparse.Namespace, directory: Path, *arguments: str) -> dict[str, Any]:
    """Measures in a process of its own."""
    command = [sys.executable, __file__, "--processor", str(directory), "--records", str(options.records)]
    command += ["--shards", str(options.shards), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Measures, prints a table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10**9)
    parser.add_argument("--shards", type=int, default=64, help="virtual shards, all on this host (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    for hidden in ("--processor", "--state", "--write-state"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processor:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as name:
        directory, middle = Path(name), Path(name) / "middle.json"
        texts = [MadeUp("text", 1000)[n]["text"] for n in range(300)]
        tokenizer = train_sentencepiece(texts, SentencePieceConfig(vocabulary_size=512))
        Processor(tokenizer, TemplateConfig(), ImagePreprocessing(), (32, 32), 16).save(directory)
        started = child(options, directory, "--write-state", str(middle))
        restored, again = (child(options, directory, "--state", str(middle)) for _ in range(2))
    report(options, started, restored, restored["digest"] == again["digest"])


def report(options: argparse.Namespace, started: dict[str, Any], restored: dict[str, Any], same: bool) -> None:
    """Prints and writes what was measured."""
    title = f"{options.records:,} records in {len(SHARES)} sources, {options.shards} virtual shards on one host"
    table = rich.table.Table(title=title)
    for column in ("", "start", "from the middle"):
        table.add_column(column, justify="right" if column else "left")
    rows = (
        ("loader open, state restored, s", "restored", ".2f"),
        ("first batch after, s", "first_batch", ".2f"),
        ("rows a second", "rows_per_second", ",.0f"),
        ("peak memory of the process, GiB", "gibibytes", ".2f"),
    )
    for name, key, form in rows:
        table.add_row(name, *("" if r[key] is None else format(r[key], form) for r in (started, restored)))
    state = max(started["state_bytes_per_shard"], restored["state_bytes_per_shard"])
    table.add_row("epochs of the largest source", *(f"{r['epochs_seen']['text']:.6f}" for r in (started, restored)))
    table.add_row(f"state at {STATE_SHARDS} shards, window 64, KiB", "", f"{state * STATE_SHARDS / 1024:,.0f}")
    table.add_row("two restores give the same batches", "", "yes" if same else "NO")
    rich.print(table)
    if options.json is not None:
        figures = {"records": options.records, "shards": options.shards, "same": same}
        options.json.write_text(json.dumps(figures | {"start": started, "middle": restored}, indent=2) + "\n")
    if not same:
        sys.exit("two restores of one state gave different batches")


if __name__ == "__main__":
    main()
