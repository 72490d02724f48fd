"""`vlm data fetch` and `vlm data prepare corpora`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from vlm_jax.commands.common import add_command
from vlm_jax.errors import UserError

_FETCH = """Downloads the Debian packages that the real corpora are made from, through the machine's own apt, compares
each with a pinned version and checksum, and unpacks it: nothing is installed. Packages that are there are left as they
are. DIR/LICENCES.md says under which licence each is.

  vlm data fetch --output data/raw
  vlm data fetch --output data/raw --only gimp-help-en gimp-help-ru
  vlm data fetch --output data/raw --debs Downloads  # from .deb files, without a network"""

_CORPORA = """Makes training sets of the packages that `vlm data fetch` has brought: interleaved documents, captions,
instructions, texts; each in train, validation and test, with a manifest. A set that is there is left as it is; one that
was interrupted is built again. report.html shows counts and samples of every set.

  vlm data prepare corpora data/raw data/prepared
  vlm data prepare corpora data/raw data/prepared --only captions/gimp interleaved
  vlm data inspect data/prepared/captions/gimp/train"""


_TABLE_WIDTH = 130
"""Of the table where the terminal is narrower: it wraps whole lines rather than cutting columns short."""


def add_parsers(commands: Any, prepare: Any) -> None:
    """Adds `fetch` to `vlm data`, and `corpora` to `vlm data prepare`."""
    parser = add_command(commands, "fetch", "Fetch the packages that the bilingual corpora are made from.", _FETCH)
    parser.add_argument("--output", metavar="DIR", default="data/raw", help="where they are unpacked (data/raw)")
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="these packages only")
    parser.add_argument("--debs", metavar="DIR", help="take .deb files from here rather than from apt's mirror")
    parser.add_argument(
        "--any-version", action="store_true", help="take another version where the pinned one is not to be had"
    )
    parser.set_defaults(run=fetch)
    parser = add_command(prepare, "corpora", "Make training sets of the fetched packages.", _CORPORA)
    parser.add_argument("raw", metavar="RAW", help="where `vlm data fetch` unpacked the packages")
    parser.add_argument("output", metavar="OUT", help="where the sets go")
    parser.add_argument(
        "--only", metavar="SET", nargs="+", default=[], help="these sets only; captions = all that begin with captions/"
    )
    parser.add_argument(
        "--format",
        choices=("array_record", "tfds"),
        default="array_record",
        help="array_record = shards of this package; tfds = also TensorFlow Datasets in OUT/tfds, for other programs",
    )
    parser.set_defaults(run=corpora)


def fetch(arguments: argparse.Namespace) -> None:
    """Fetches and says what came."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from data_pipelines.prepare.corpora import fetch as fetching
    from data_pipelines.prepare.corpora.packages import PACKAGES

    raw = Path(arguments.output)
    debs = Path(arguments.debs) if arguments.debs else None
    if debs is not None and not debs.is_dir():
        raise UserError(f"--debs {debs}: no such directory; give the one that holds the .deb files")
    came = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_stderr(), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("fetching packages", total=len(arguments.only) or len(PACKAGES))
        for taken in fetching.fetch(raw, arguments.only, debs=debs, any_version=arguments.any_version):
            came += taken.new
            version = taken.version or "unpacked by hand, version unknown"
            progress.console.out(f"{taken.name} {version}: {'unpacked' if taken.new else 'already there'}")
            progress.advance(bar)
    print(f"{came} packages new in {raw}; licences: {raw / fetching.LICENCES}")


def corpora(arguments: argparse.Namespace) -> None:
    """Builds the sets, prints the table, writes the report."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from data_pipelines.prepare.corpora.build import build_sets, chosen_sets
    from data_pipelines.prepare.corpora.report import figures_of, report_page, report_table

    raw, output = Path(arguments.raw), Path(arguments.output)
    if not raw.is_dir():
        raise UserError(f"{raw}: no such directory; run `vlm data fetch --output {raw}` first")
    sets, missing = chosen_sets(raw, arguments.only)
    for name, packages in missing.items():
        print(f"left out: {name}, which needs {', '.join(packages)} (vlm data fetch)", file=sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    figures = []
    with Progress(*columns, console=_stderr(), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("preparing")
        for built in build_sets(
            sets,
            raw,
            output,
            lambda name, records: progress.update(bar, description=f"{name}: {records:,} records"),
        ):
            progress.update(bar, description=f"{built.corpus.name}: counting")
            figures.append(figures_of(built, output / built.corpus.name))
            done = "built" if built.new else "already there"
            progress.console.out(f"{built.corpus.name}: {built.records:,} records, {done}")
            if arguments.format == "tfds":
                progress.update(bar, description=f"{built.corpus.name}: writing as TFDS")
                _write_tfds(built, output)
    width = max(Console().width, _TABLE_WIDTH)
    Console(highlight=False, width=width).print(report_table(figures), soft_wrap=True)
    page = output / "report.html"
    try:
        page.write_text(report_page(figures), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: cannot be written ({error.strerror}); the sets are all there") from None
    print(page)


def _write_tfds(built: Any, output: Path) -> None:
    from data_pipelines.prepare.tfds_builder import write_tfds

    write_tfds(output / built.corpus.name, output / "tfds", kind=built.corpus.kind)


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False)
