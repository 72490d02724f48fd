"""What stands in quarantine files: read, grouped by reason, and looked up in the sources that it came from."""

import collections
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.look.record_parts import Unreadable
from data_pipelines.quarantine import BadRecord
from data_pipelines.sources import Source
from vlm_jax.errors import UserError

FILE = "quarantine.jsonl"

_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*")
_INDEX = re.compile(r"\[(\d+)\]$")


@dataclasses.dataclass(frozen=True)
class SetAside:
    """A record in quarantine."""

    source: str
    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Records of one source that were set aside for the same reason, names and numbers apart."""

    source: str
    reason: str
    """With … in place of names and numbers that differ."""
    records: tuple[SetAside, ...]


def read_quarantine(path: epath.PathLike) -> list[SetAside]:
    """The records in a quarantine file, in a directory's (of a run, of a prepared set), or in all below a directory.

    A half-written last line, which a killed run leaves, is passed over.

    Raises:
        UserError: if there is no such place, or a file is no quarantine.
    """
    place = epath.Path(path)
    if place.is_dir():
        own = place / FILE
        if own.exists() or "://" in os.fspath(place):
            return _read(own) if own.exists() else []
        return [record for file in sorted(Path(place).rglob(FILE)) for record in _read(epath.Path(file))]
    if not place.exists():
        raise UserError(f"{path}: there is no such file or directory; give a workdir, a prepared set or a {FILE}")
    return _read(place)


def _read(file: epath.Path) -> list[SetAside]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); give a workdir or a {FILE}") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line) if line else None
            if entry is not None:
                records.append(SetAside(str(entry["source"]), str(entry["id"]), str(entry["reason"])))
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UserError(
                    f"{file}: line {number} is no record in quarantine; give a workdir or a {FILE}"
                ) from None
    return records


def grouped(records: Iterable[SetAside]) -> list[Group]:
    """Records by source and reason; the largest group of a source first."""
    groups: dict[tuple[str, str], list[SetAside]] = collections.defaultdict(list)
    for record in records:
        groups[record.source, _VARYING.sub("…", record.reason)].append(record)
    found = [
        Group(source, some[0].reason if len({each.reason for each in some}) == 1 else reason, tuple(some))
        for (source, reason), some in groups.items()
    ]
    return sorted(found, key=lambda group: (group.source, -len(group.records), group.reason))


def find_records(
    source: Source, ids: Sequence[str], most: int
) -> Mapping[str, tuple[int, Mapping[str, Any] | Unreadable]]:
    """Looks records up by id: id -> (index, record), of those among the source's first `most` records.

    An id that names a place, as of a record whose own id could not be read, is looked up there. Pieces of a record that
    was split are found by the record's id.
    """
    wanted = {record_id.partition("#")[0]: record_id for record_id in ids}
    places = {int(match[1]): name for name in wanted if (match := _INDEX.search(name))}
    found: dict[str, tuple[int, Mapping[str, Any] | Unreadable]] = {}
    for index in dict.fromkeys([*(place for place in places if place < len(source)), *range(min(most, len(source)))]):
        record: Mapping[str, Any] | Unreadable
        try:
            record = source[index]
            name = str(record.get("id", ""))
        except BadRecord as error:
            name = error.record_id or places.get(index, "")
            record = Unreadable(name, str(error))
        if name not in wanted:
            name = places.get(index, "")
        if name in wanted:
            found[wanted[name]] = (index, record)
        if len(found) == len(wanted):
            break
    return found
