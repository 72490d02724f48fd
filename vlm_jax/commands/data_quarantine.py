"""`vlm data quarantine` lists records that could not be used; `vlm data verify` finds damaged shards."""

import argparse
from pathlib import Path
from typing import Any

from vlm_jax.commands.common import add_command, progress_bar, table_console
from vlm_jax.errors import UserError

_QUARANTINE = """Lists the records that a run, or the preparation of a data set, has set aside: how many of each source,
and for which reason.

  vlm data quarantine runs/quickstart
  vlm data quarantine runs/quickstart --source easy_vqa_en --all
  vlm data quarantine runs/quickstart --page runs/quickstart/quarantine.html"""

_VERIFY = """Compares the shards of every prepared set in a directory with their manifests, byte by byte.

  vlm data verify data/prepared"""

_LOOKED_THROUGH = 200_000
"""So many records of a source are looked through for those in quarantine."""

_SHOWN = 60
"""So many records of a source stand on the page."""


def add_parsers(commands: Any, prepare: Any) -> None:
    """Adds the subcommands to `vlm data`, and none to `vlm data prepare`."""
    del prepare
    parser = add_command(commands, "quarantine", "List records that could not be used, and why.", _QUARANTINE)
    parser.add_argument("place", metavar="WORKDIR|FILE", help="a run, a prepared set, or a quarantine.jsonl")
    parser.add_argument("--source", metavar="NAME", help="of this source only")
    parser.add_argument("--reason", metavar="TEXT", help="only those whose reason has this text in it")
    parser.add_argument("--all", action="store_true", help="every record, not counts alone")
    parser.add_argument("--page", metavar="FILE", help="of a workdir: write a page that shows the records themselves")
    parser.set_defaults(run=quarantine)
    parser = add_command(commands, "verify", "Find damaged or missing shards of prepared sets.", _VERIFY)
    parser.add_argument("directory", metavar="DIR", help="of a prepared set, or of several")
    parser.set_defaults(run=verify)


def quarantine(arguments: argparse.Namespace) -> None:
    """Prints counts, or every record, and writes the page if asked to."""
    from data_pipelines.look.quarantine_listing import grouped, read_quarantine

    records = read_quarantine(arguments.place)
    sources = sorted({record.source for record in records})
    if arguments.source is not None and arguments.source not in sources:
        known = f"those with some are {', '.join(sources)}" if sources else "no source has any"
        raise UserError(f"--source {arguments.source}: none of its records is in quarantine; {known}")
    records = [
        record
        for record in records
        if arguments.source in (None, record.source) and (arguments.reason or "").lower() in record.reason.lower()
    ]
    if arguments.all:
        for record in records:
            print(f"{record.source}\t{record.id}\t{record.reason}")
    else:
        _print_groups(grouped(records))
    if arguments.page:
        _write_page(Path(arguments.place), records, Path(arguments.page))


def verify(arguments: argparse.Namespace) -> None:
    """Checks every file; prints those that are damaged.

    Raises:
        UserError: if one is.
    """
    from data_pipelines import manifest

    if not Path(arguments.directory).is_dir():
        raise UserError(f"{arguments.directory}: there is no such directory; give one with prepared sets")
    sets = manifest.sets_under(arguments.directory)
    if not sets:
        raise UserError(
            f"{arguments.directory}: no {manifest.MANIFEST} in it or below; give a prepared set's directory"
        )
    manifests = {directory: manifest.read_manifest(directory) for directory in sets}
    files, damaged = 0, 0
    with progress_bar("files", sum(len(each.files) for each in manifests.values())) as advance:
        for directory in sets:
            for name, trouble in manifest.verify(directory):
                files += 1
                damaged += bool(trouble)
                if trouble:
                    print(f"{directory / name}: {trouble}")
                advance()
    records = sum(each.records for each in manifests.values())
    if damaged:
        raise UserError(
            f"{arguments.directory}: {damaged} of {files} files are not as written; prepare these sets again"
        )
    print(f"{len(sets)} sets, {files} files, {records:,} records: all as written")


def _print_groups(groups: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not groups:
        print("nothing is in quarantine")
        return
    table = Table(box=None, header_style="dim")
    table.add_column("source", overflow="fold")
    table.add_column("records", justify="right")
    table.add_column("reason", overflow="fold")
    table.add_column("such as", overflow="fold", style="dim")
    for group in groups:
        table.add_row(
            escape(group.source), f"{len(group.records):,}", escape(group.reason), escape(group.records[0].id)
        )
    table_console().print(table)
    print(f"{sum(len(group.records) for group in groups):,} records of {len({g.source for g in groups})} sources")


def _write_page(workdir: Path, records: Any, page: Path) -> None:
    """Shows the records of a run in quarantine as their sources give them, with the reasons."""
    from data_pipelines.look.gallery import draw_records
    from data_pipelines.look.quarantine_listing import find_records
    from data_pipelines.look.record_parts import Unreadable
    from data_pipelines.sources import open_source

    sources = _sources_of(workdir)
    shown = []
    for name in sorted({record.source for record in records}):
        reasons = {record.id: record.reason for record in records if record.source == name}
        ids = list(reasons)[:_SHOWN]
        found = find_records(open_source(sources[name]), ids, _LOOKED_THROUGH) if name in sources else {}
        shown += [(*found.get(id, (-1, Unreadable(id, "")))[:2], reasons[id]) for id in ids]
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        text = draw_records(
            f"Quarantine of {workdir}",
            len(records),
            [(index, record) for index, record, _ in shown],
            reasons=[reason for _, _, reason in shown],
        )
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--page {page}: cannot be written ({error.strerror}); choose another file") from None
    print(page)


def _sources_of(workdir: Path) -> dict[str, Any]:
    """Configs of a run's sources, by the names that its quarantine uses."""
    from vlm_jax.checkpoints.converted import read_config

    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"--page: {workdir} is no workdir, so the records cannot be looked up; give the run's workdir")
    _, experiment = read_config(path.read_bytes(), workdir)
    stages = experiment.stages if experiment else ()
    entries = [entry for stage in stages for entry in stage.data.mixture]
    entries += [entry for stage in stages if stage.validation for entry in stage.validation.mixture]
    return {entry.title: entry.source for entry in entries}
