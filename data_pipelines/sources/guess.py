"""Which source reads a path: from what lies there and how it is called, for commands that are given a path only."""

import os
from collections.abc import Callable, Mapping
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


def source_for(path: str) -> Any:
    """The config of the source that reads a path: a prepared set, a TFDS directory, or files of a known format.

    Raises:
        UserError: if nothing is there, or no source is known for it; it names what could be meant.
    """
    for suffix, config in BY_SUFFIX.items():
        if path.endswith(suffix):
            return config(path)
    place = epath.Path(path)
    if not place.is_dir():
        state = "its format is not known" if place.exists() else "there is no such file or directory"
        raise UserError(f"{path}: {state}; give a directory of a prepared set, or *{', *'.join(BY_SUFFIX)}")
    for marker, config in BY_MARKER.items():
        if (place / marker).exists():
            return config(path)
    inside = sorted(entry.name for entry in place.iterdir())
    for suffix, config in BY_SUFFIX.items():
        if any(name.endswith(suffix) for name in inside):
            return config(os.path.join(path, f"*{suffix}"))
    below = [name for name in inside if any((place / name / marker).exists() for marker in BY_MARKER)]
    hint = f"give one of those below it: {', '.join(below)}" if below else "give a path further down"
    raise UserError(f"{path}: no data of a known format lie here; {hint}")
