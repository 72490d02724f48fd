"""Which source reads a path: from what lies there and how it is called, for commands that are given a path only."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.manifest import MANIFEST
from data_pipelines.sources.array_records import ArrayRecords
from data_pipelines.sources.guess_layout import json_lines_for, parquet_for, webdataset_for
from data_pipelines.sources.tfds import TFDS
from vlm_jax.errors import UserError

BY_MARKER: Mapping[str, Callable[[str], Any]] = {
    MANIFEST: ArrayRecords,
    "features.json": TFDS,
}
"""A directory with such a file -> the config of the source that reads it."""

BY_SUFFIX: Mapping[str, Callable[[str], Any]] = {
    ".arrayrecord": lambda path: ArrayRecords(path, unchecked=True),
    ".parquet": parquet_for,
    ".tar": webdataset_for,
    ".jsonl": json_lines_for,
    ".ndjson": json_lines_for,
    ".json": json_lines_for,
}
"""How a file or a pattern ends -> the config of the source that reads it."""

_SHOWN = 8


def source_for(path: str) -> Any:
    """The config of the source that reads a path: a prepared set, a TFDS directory, or files of a known format.

    Raises:
        UserError: if nothing is there, or no source is known for it; it names what could be meant.
    """
    for suffix, config in BY_SUFFIX.items():
        if path.endswith(suffix):
            return config(path)
    place = epath.Path(path)
    try:
        if not place.is_dir():
            state = "its format is not known" if place.exists() else "there is no such file or directory"
            raise UserError(f"{path}: {state}; give a directory of a prepared set, or *{', *'.join(BY_SUFFIX)}")
        return _in_directory(place, path)
    except UserError:
        raise
    except Exception as error:  # clients of object stores raise what they like, also where one is not installed
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); mend the path, or install what reads it") from None


def _in_directory(place: epath.Path, path: str) -> Any:
    for marker, config in BY_MARKER.items():
        if (place / marker).exists():
            return config(path)
    inside = sorted(entry.name for entry in place.iterdir())
    for suffix, config in BY_SUFFIX.items():
        if any(name.endswith(suffix) for name in inside):
            return config(os.path.join(path, f"*{suffix}"))
    below = _sets_below(place)
    hint = f"give one of those below it: {', '.join(below)}" if below else "give another path"
    raise UserError(f"{path}: no data of a known format lie here; {hint}")


def _sets_below(place: epath.Path) -> list[str]:
    if "://" in os.fspath(place):
        return []  # a listing of everything below may be long
    root = Path(place)
    found = {os.fspath(file.parent.relative_to(root)) for marker in BY_MARKER for file in root.rglob(marker)}
    below = sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))
    return [*below[:_SHOWN], f"and {len(below) - _SHOWN} more"] if len(below) > _SHOWN else below
