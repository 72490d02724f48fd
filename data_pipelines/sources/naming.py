"""What a source is called in metrics, reports and quarantine where its config says nothing."""

import re
from typing import Any

from data_pipelines.prepare.splits import SPLITS

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SUFFIXES = (".parquet", ".tar", ".jsonl", ".json", ".arrayrecord")


def source_name(config: Any) -> str:
    """The config's `name`, or else one made from its `path` (of several, the first).

    'prepared/captions/birds/train' -> 'captions/birds'
    'photos.jsonl'                  -> 'photos'
    """
    if config.name:
        return str(config.name)
    path = config.path if isinstance(config.path, str) else next(iter(config.path), "")
    parts = [part for part in path.split("://")[-1].split("/") if part and part not in (".", "..")]
    if len(parts) > 1 and (parts[-1] in SPLITS or _VERSION.fullmatch(parts[-1])):
        parts.pop()
    if parts:
        for suffix in _SUFFIXES:
            parts[-1] = parts[-1].removesuffix(suffix)
        if not parts[-1].strip("*?") and len(parts) > 1:
            parts.pop()
    return "/".join(parts[-2:]) or type(config).__name__
