"""The process in which `quick` lets the compiler work: `python -m vlm_jax.rehearsal.worker REQUEST`."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import jax

from vlm_jax.config import Experiment
from vlm_jax.rehearsal.stage import layout_on
from vlm_jax.rehearsal.topology import parse_topology
from vlm_jax.serialise import from_plain
from vlm_jax.training.program import build_program


def main(request: str) -> None:
    """Compiles what the request says; what the compiler raises goes to stderr, and the process ends with 1."""
    asked: dict[str, Any] = json.loads(Path(request).read_text(encoding="utf-8"))
    experiment = from_plain(Experiment, asked["experiment"])
    layout = layout_on(experiment, parse_topology(*asked["topology"]))
    lowered = build_program(experiment, asked["index"], layout).lower()[asked["program"]]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        lowered.compile(compiler_options=asked["options"])
    except Exception as error:  # of XLA, whose exceptions have no common type
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
