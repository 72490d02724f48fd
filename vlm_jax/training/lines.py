"""Files of JSON lines that a run appends to, and that a kill may leave with half a line at the end."""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from vlm_jax.checkpoints.retry import append_line

Line = dict[str, Any]


class MetricsFile:
    """A sink that appends lines to WORKDIR/metrics.jsonl."""

    def __init__(self, path: epath.Path, retry_seconds: float = 0.0) -> None:
        """Args:
        path: of the file.
        retry_seconds: how long a full disk is put up with.
        """
        self._path, self._retry_seconds = path, retry_seconds

    def __call__(self, line: Line) -> None:
        """Appends one line."""
        append_line(self._path, json.dumps(line, ensure_ascii=False), self._retry_seconds)


def read_lines(path: epath.Path) -> list[Line]:
    """Lines of such a file; half a line at the end is dropped."""
    if not path.exists():
        return []
    lines: list[Line] = []
    for text in path.read_bytes().split(b"\n"):
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def write_lines(path: epath.Path, lines: Sequence[Line]) -> None:
    """Puts these lines in the place of those that are there, at once."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    partial.replace(path)


def rewind_metrics(path: epath.Path, finished: Sequence[str], stage: str, step: int) -> Line | None:
    """Drops lines of steps that a resumed run will do again.

    Args:
        path: WORKDIR/metrics.jsonl.
        finished: stages that are done.
        stage: where the run goes on, after so many steps.
        step: see above.

    Returns:
        The last line that stays.
    """
    kept = [x for x in read_lines(path) if x["stage"] in finished or (x["stage"] == stage and x["step"] <= step)]
    write_lines(path, kept)
    return kept[-1] if kept else None
