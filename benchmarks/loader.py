"""How fast the loader is: beside a torch DataLoader on the same files, and beside the training step that it feeds.

    python benchmarks/loader.py torch data/prepared/captions/*/train      # needs torch, for the other side
    python benchmarks/loader.py step --experiment experiments/mu.py
    python benchmarks/loader.py torch DIR … --interpolation pillow_bicubic --json loader.json

torch: pictures of caption sets lie as files in one folder, with their records as JSON lines. Both sides read these,
decode with OpenCV, lay transparency over white, resize and tokenise the same captions with the same tokenizer, in
random order; each measurement is a process of its own. The DataLoader is tried with several numbers of workers, and the
best of them then takes turns with ours. It is measured twice over: decoding as one writes it by hand, without checks,
and with the function of ours, which leaves the machinery as the only difference. "Later epochs" are those after the
first where data.keep_pictures is so large that nothing is decoded again; torch has nothing of the kind.

step: for every stage of an experiment, batches a second that the loader gives when nothing else runs, and steps a
second of the compiled training step on one batch that stays on the device.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich
from etils import epath
from loader_sides import LATER, RECORDS, Job, decode_as_we_do, decode_by_hand
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_pipelines.image_files import PNG
from data_pipelines.images import BadImage, decode, file_bytes
from data_pipelines.kinds.captions import REQUESTS
from data_pipelines.loader import make_loader
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import open_source, source_for
from data_pipelines.template import Processor
from data_pipelines.tokenizers import SentencePieceConfig, train_sentencepiece
from vlm_jax.checkpoints import initialise_missing
from vlm_jax.config import Stage, load_experiment
from vlm_jax.errors import UserError
from vlm_jax.parallel import build_layout, use_layout
from vlm_jax.training.program import StageProgram, build_program
from vlm_jax.training.workdir import build_processor

SIDES = Path(__file__).with_name("loader_sides.py")
HAND, SHARED = "torch", "torch, our decoding"


def lay_out(paths: Sequence[str], folder: Path, most: int, seed: int = 0) -> dict[str, Any]:
    """Writes a random choice of the sets' records as files that both sides read, and a tokenizer; says what they are.

    Pictures that cannot be decoded are left out: by hand nobody would notice, or everything would stop.
    """
    sources = [open_source(source_for(path)) for path in paths]
    numbers = [(source, index) for source in sources for index in range(len(source))]
    lines: list[str] = []
    texts: list[str] = []
    sizes: list[tuple[int, int]] = []
    transparent = 0
    for place in np.random.default_rng(seed).permutation(len(numbers))[:most]:
        source, index = numbers[int(place)]
        with contextlib.suppress(BadRecord, BadImage):
            record = source[index]
            pixels, data = decode(record["image"]), file_bytes(record["image"])
            captions = [dict(caption) for caption in record["captions"] if caption["language"] in REQUESTS]
            if captions:
                name = f"{len(lines):06d}" + (".png" if data.startswith(PNG) else ".jpg")
                (folder / name).write_bytes(data)
                lines.append(json.dumps({"id": record["id"], "image": name, "captions": captions}))
                texts += [caption["text"] for caption in captions]
                sizes.append((pixels.shape[0] * pixels.shape[1], len(data)))
                transparent += data.startswith(PNG) and (data[25] in (4, 6) or b"tRNS" in data[:4096])
    if not lines:
        raise UserError(f"{', '.join(paths)}: no picture with a caption; give sets like data/prepared/captions/*/train")
    (folder / RECORDS).write_text("\n".join(lines) + "\n")
    texts += itertools.chain.from_iterable(REQUESTS.values())
    train_sentencepiece(texts, SentencePieceConfig(vocabulary_size=4000)).save(epath.Path(folder))
    pixels_each, bytes_each = np.mean(sizes, axis=0)
    return {
        "pictures": len(lines),
        "transparent": transparent / len(lines),
        "megapixels": float(pixels_each) / 1e6,
        "kilobytes": float(bytes_each) / 1e3,
    }


def largest_difference(folder: Path, job: Job, pictures: int = 100) -> int:
    """Levels of 255 by which the two ways to decode differ at most, so that neither is let off any work."""
    names = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))[:pictures]
    pairs = ((decode_by_hand(str(name), job), decode_as_we_do(str(name), job)) for name in names)
    return max(int(np.abs(a.astype(int) - b).max()) for a, b in pairs)


def run_side(job: Job) -> dict[str, float]:
    """One measurement, in a process of its own."""
    command = [sys.executable, str(SIDES), json.dumps(vars(job))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job.side}, {job.workers} workers failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def against_torch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours, and both of torch's, in turns."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "torch is not installed; install the extra [parity] (`make test-parity` does), for the other side"
        )
    with tempfile.TemporaryDirectory(prefix="loader-") as directory:
        folder = Path(directory)
        console = Console(stderr=True)
        with console.status("writing the pictures as files"):
            data = lay_out(arguments.data, folder, arguments.records)
        results: dict[str, Any] = {}
        for interpolation in arguments.interpolation:
            results[interpolation] = _in_turns(str(folder), interpolation, arguments, console)
    return {"data": data, "cores": len(os.sched_getaffinity(0)), "seconds": arguments.seconds, "results": results}


def _in_turns(folder: str, interpolation: str, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    def job(side: Any, workers: int, seconds: float = arguments.seconds) -> Job:
        return Job(side, folder, interpolation, workers, seconds, arguments.size)  # type: ignore[arg-type]

    workers: dict[str, dict[int, float]] = {HAND: {}, SHARED: {}}
    tried = list(itertools.product(workers, arguments.workers))
    for side, number in track(tried, f"{interpolation}: workers of torch", console=console):
        workers[side][number] = run_side(job(side, number, arguments.seconds / 2))["images_per_second"]
    best = {side: max(rates, key=lambda number: rates[number]) for side, rates in workers.items()}
    turns = [("ours", arguments.threads), *best.items(), (LATER, arguments.threads)] * arguments.repeats
    rates: dict[str, list[dict[str, float]]] = {}
    for side, number in track(turns, f"{interpolation}: in turns", console=console):
        rates.setdefault(side, []).append(run_side(job(side, number)))
    ratios = {
        side: [ours["images_per_second"] / theirs["images_per_second"] for ours, theirs in pairs]
        for side in best
        for pairs in [list(zip(rates["ours"], rates[side], strict=True))]
    }
    difference = largest_difference(Path(folder), job("ours", 0))
    return {"workers": workers, "best": best, "rates": rates, "ratios": ratios, "largest_difference": difference}


def show_torch(figures: dict[str, Any]) -> None:
    """The table."""
    data = figures["data"]
    rich.print(
        f"{data['pictures']:,} pictures of {data['megapixels']:.2f} megapixels and {data['kilobytes']:.0f} kB, "
        f"{data['transparent']:.0%} of them with transparency; {figures['cores']} cores"
    )
    table = Table("resize", "side", "pictures/s", "tokens/s", "ours is … times as fast (each turn)")
    for interpolation, result in figures["results"].items():
        for side, rates in result["rates"].items():
            images, tokens = (
                statistics.median(rate[name] for rate in rates) for name in ("images_per_second", "tokens_per_second")
            )
            label = side if side.startswith("ours") else f"{side}, {result['best'][side]} workers"
            ratios = result["ratios"].get(side, [])
            times = f"{statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})" if ratios else ""
            table.add_row(interpolation, label, f"{images:,.0f}", f"{tokens:,.0f}", times)
        table.add_section()
    rich.print(table)
    differences = {name: result["largest_difference"] for name, result in figures["results"].items()}
    rich.print(f"both ways of decoding give the same pictures, up to so many levels of 255: {differences}")


def loader_rate(stage: Stage, processor: Processor, seed: int, batches: int) -> float:
    """Batches a second of the loader alone, after the first ones."""
    with contextlib.closing(make_loader(stage, processor, seed=seed)) as loader:
        for _ in itertools.islice(loader, 5):
            pass
        start = time.perf_counter()
        for _ in itertools.islice(loader, batches):
            pass
        return batches / (time.perf_counter() - start)


def step_rate(program: StageProgram, processor: Processor, seed: int, steps: int) -> float:
    """Steps a second on a batch that is already there."""
    state = program.create_state(initialise_missing(program.model, program.layout, seed))
    step = program.whole_step
    with contextlib.closing(make_loader(program.stage, processor, seed=seed)) as loader:
        batch = jax.device_put(next(loader)[0])
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return steps / (time.perf_counter() - start)


def against_step(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of every stage."""
    experiment = load_experiment(arguments.experiment)
    layout = build_layout(experiment.mesh)
    processor, seed = build_processor(experiment), experiment.seed
    figures = {}
    with use_layout(layout):
        for index, stage in enumerate(experiment.stages):
            fed = loader_rate(stage, processor, seed, arguments.batches)
            used = step_rate(build_program(experiment, index, layout), processor, seed, arguments.steps)
            figures[stage.name] = {"loader_batches_per_second": fed, "steps_per_second": used, "ratio": fed / used}
    return figures


def show_step(figures: dict[str, dict[str, float]]) -> None:
    """The table."""
    table = Table("stage", "loader, batches/s", "step, batches/s", "ratio")
    for name, values in figures.items():
        table.add_row(name, *(f"{value:.1f}" for value in values.values()))
    rich.print(table)


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    torch = commands.add_parser("torch", help="beside a torch DataLoader")
    torch.add_argument("data", nargs="+", help="caption sets, such as data/prepared/captions/tuxpaint/train")
    torch.add_argument("--records", type=int, default=3000, help="at most so many (3000)")
    ways = ["area", "bilinear", "bicubic", "pillow_bicubic"]
    torch.add_argument(
        "--interpolation",
        nargs="+",
        choices=ways,
        help="how to resize (three of them)",
        default=["bilinear", "area", "pillow_bicubic"],
    )
    torch.add_argument("--size", type=int, default=224, help="height and width that pictures get (224)")
    torch.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4], help="of torch, to choose from")
    torch.add_argument("--threads", type=int, default=0, help="of our loader (0: by its default)")
    torch.add_argument("--seconds", type=float, default=5, help="of one measurement (5)")
    torch.add_argument("--repeats", type=int, default=3, help="turns (3)")
    step = commands.add_parser("step", help="beside the training step")
    step.add_argument("--experiment", default="experiments/quickstart.py", help="experiment file (quickstart)")
    step.add_argument("--batches", type=int, default=200, help="timed batches of the loader (200)")
    step.add_argument("--steps", type=int, default=30, help="timed training steps (30)")
    for command in (torch, step):
        command.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def main() -> None:
    """Runs the benchmark."""
    arguments = parse()
    logging.getLogger("jax").setLevel(logging.ERROR)
    try:
        figures = against_torch(arguments) if arguments.command == "torch" else against_step(arguments)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    (show_torch if arguments.command == "torch" else show_step)(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
