"""Compiling as far as is needed: the compiler works in another process, which is ended once memory and schedule stand.

Generating code takes most of the compiler's time, minutes for a large step. Without it two things are missing: the size
of the code in the peak, some megabytes, and what only that finds, such as a kernel that needs too much fast memory.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.rehearsal.compiler import Compiled, explained, read_dump
from vlm_jax.rehearsal.topology import Topology
from vlm_jax.serialise import to_plain

_LAST_FILE = "*-memory-usage-report.txt"
"""What the compiler dumps before it generates code."""

_SETTLED_SECONDS = 2.0
"""So long no file of the dump has grown when it is taken to be whole."""


def compile_quickly(
    experiment: Experiment, index: int, topology: Topology, name: str, options: Mapping[str, Any]
) -> Compiled:
    """Traces and compiles a program of a stage in a process of its own, up to its schedule.

    Args:
        experiment: what would be trained.
        index: of the stage.
        topology: where.
        name: "encoder" or "step".
        options: flags of the compiler.

    Returns:
        What the compiler's dump says; the size of the program's code is missing in its peak.

    Raises:
        DoesNotFitError: too much HBM.
        UserError: the compiler refuses it, in its own words.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vlm-rehearse-") as directory:
        dump, request = Path(directory) / "dump", Path(directory) / "request.json"
        asked = {
            "experiment": to_plain(experiment),
            "index": index,
            "topology": [f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}", topology.slices],
            "program": name,
            "options": {**options, "xla_dump_to": str(dump), "xla_dump_hlo_as_text": True},
        }
        request.write_text(json.dumps(asked), encoding="utf-8")
        words = Path(directory) / "words"
        with words.open("wb") as stderr:
            command = [sys.executable, "-m", "vlm_jax.rehearsal.worker", str(request)]
            worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
            try:
                while worker.poll() is None and not _is_whole(dump):
                    time.sleep(0.2)
            finally:
                worker.kill()
                worker.wait()
        seconds = time.monotonic() - start
        if any(dump.glob(_LAST_FILE)) and not any(dump.glob("*oom_intermediate_module.txt")):
            return read_dump(dump, seconds)
        message = words.read_text(errors="replace")
        _, exhausted, rest = message.partition("RESOURCE_EXHAUSTED")
        if not message.strip():
            raise UserError(f"the process that compiled the {name} ended without a word; it may have lacked memory")
        raise explained(exhausted + rest or message[-4000:], dump, seconds)


def _is_whole(dump: Path) -> bool:
    """Whether the report is there, and no file has grown for a while."""
    if not any(dump.glob(_LAST_FILE)) or any(dump.glob("*oom_intermediate_module.txt")):
        return False  # what does not fit says so by itself
    newest = max(file.stat().st_mtime for file in dump.iterdir())
    return time.time() - newest > _SETTLED_SECONDS
