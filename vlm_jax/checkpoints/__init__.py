"""Self-contained checkpoints, and parameters handed from stage to stage."""

from vlm_jax.checkpoints.checks import DamagedError, read_step_files
from vlm_jax.checkpoints.handoff import (
    abstract_params,
    initialise_missing,
    keep_masters,
    load_params,
    logical_axes,
    newest_step,
    step_directory,
    widen,
)
from vlm_jax.checkpoints.manager import CheckpointManager, Snapshot

__all__ = [
    "CheckpointManager",
    "DamagedError",
    "Snapshot",
    "abstract_params",
    "initialise_missing",
    "keep_masters",
    "load_params",
    "logical_axes",
    "newest_step",
    "read_step_files",
    "step_directory",
    "widen",
]
