"""`vlm data prepare web` over all HTML of the corpora that `vlm data fetch` brings: pages a second, and what is kept.

    python benchmarks/prepare_web.py data/raw
    python benchmarks/prepare_web.py data/raw --workers 2 --decontaminate data/prepared/captions/gimp/test

It runs twice into fresh directories, the second time in as many processes as --workers says, and compares the shards
byte by byte. GIMP's and LibreOffice's manuals in English and Russian are 6,492 pages; GNOME's are no HTML.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from data_pipelines.prepare.web.config import load_web_config
from data_pipelines.prepare.web.run import Outcome, prepare_web


def folders_with_pages(raw: Path) -> list[str]:
    """The packages that hold HTML."""
    return sorted(str(path) for path in raw.iterdir() if path.is_dir() and next(path.rglob("*.html"), None))


def run(inputs: list[str], output: Path, options: argparse.Namespace, workers: int) -> tuple[Outcome, float]:
    """One whole run, and its seconds."""
    flags = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"] if workers > 1 else []
    start = time.perf_counter()
    outcome = prepare_web(inputs, str(output), load_web_config(options.config), options.decontaminate, flags)
    return outcome, time.perf_counter() - start


def show(figures: dict[str, Any]) -> None:
    """Prints the funnel and the times."""
    table = Table("rule", "pages", "passages", "pictures", "words", box=None)
    for name, counts in figures["funnel"].items():
        table.add_row(name, *(f"{n:,}" if n else "" for n in counts.values()))
    rich.print(table)
    for one in figures["runs"]:
        rich.print(
            f"{one['workers']} worker(s): {one['seconds']:.1f} s, {one['pages_per_second']:.0f} pages/s, "
            f"{one['pictures_per_second']:.0f} pictures/s"
        )
    rich.print(f"largest memory of a process: {figures['peak_mib']:,} MiB")
    rich.print(f"shards of both runs identical: {figures['identical']}")


def main() -> None:
    """Runs twice, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="directory of unpacked packages")
    parser.add_argument("--config", help="as of `vlm data prepare web`")
    parser.add_argument("--decontaminate", action="append", default=[], help="as of `vlm data prepare web`")
    parser.add_argument("--workers", type=int, default=1, help="processes of the second run (1)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    inputs = folders_with_pages(options.raw)
    if not inputs:
        parser.error(f"{options.raw}: no package with HTML; run `vlm data fetch` first")
    with tempfile.TemporaryDirectory() as scratch:
        runs = []
        shards = []
        for number, workers in enumerate((1, options.workers)):
            outcome, seconds = run(inputs, Path(scratch) / f"run{number}", options, workers)
            shards.append([(file.name, file.records, file.sha256) for file in outcome.manifest.files])
            read = outcome.funnel["read"]
            runs.append(
                {
                    "workers": workers,
                    "seconds": seconds,
                    "pages_per_second": read["pages"] / seconds,
                    "pictures_per_second": read["pictures"] / seconds,
                }
            )
    dropped = {rule["name"]: rule["dropped"] for rule in outcome.funnel["rules"] if any(rule["dropped"].values())}
    languages = {f"kept {name}": counts for name, counts in outcome.funnel["languages"].items()}
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures = {
        "funnel": {"read": outcome.funnel["read"], **dropped, "kept": outcome.funnel["written"], **languages},
        "runs": runs,
        "shards": shards[0],
        "identical": shards[0] == shards[1],
        "peak_mib": max(usage) // 1024,
    }
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
