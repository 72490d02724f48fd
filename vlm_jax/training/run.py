"""What all stages of a run share, and where it keeps things."""

import dataclasses

from etils import epath
from rich.console import Console

from data_pipelines.quarantine import Quarantine
from data_pipelines.template import Processor
from vlm_jax.checkpoints.files import read_files
from vlm_jax.config import Experiment, Stage
from vlm_jax.parallel import Layout
from vlm_jax.serialise import to_json
from vlm_jax.training.hooks import Preemption
from vlm_jax.training.profile import ProfiledSteps
from vlm_jax.training.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    experiment: Experiment
    workdir: epath.Path
    processor: Processor
    layout: Layout
    quarantine: Quarantine
    leaving: Preemption
    watchdog: Watchdog
    console: Console
    began: float
    """When the run began, in its first process, in seconds since 1970."""
    process_began: float
    """When this process did."""
    profile: ProfiledSteps | None = None
    """Steps to be traced."""


def checkpoint_directory(run: Run, stage: Stage) -> epath.Path:
    """WORKDIR/checkpoints/STAGE."""
    return run.workdir / "checkpoints" / stage.name


def masters_directory(run: Run, stage: Stage) -> epath.Path:
    """WORKDIR/masters/STAGE."""
    return run.workdir / "masters" / stage.name


def checkpoint_files(run: Run) -> dict[str, bytes]:
    """What makes a step directory self-contained besides arrays and data position."""
    processor = {f"processor/{name}": content for name, content in read_files(run.workdir / "processor").items()}
    return {"config.json": to_json(run.experiment).encode(), **processor}
