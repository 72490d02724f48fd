"""Where a study's runs lie, and which of them are done.

WORKDIR/decoder/          the text LLM that all arms start from, where the study trains one
WORKDIR/features/         the encoder's features of all pictures, shared by all runs
WORKDIR/ARM/SEED/         a run: an ordinary workdir, with eval.json, predictions/, report.html and text.json
WORKDIR/costs.json        what each arm costs
WORKDIR/ablation.json     all figures; report.html shows them
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from vlm_jax.ablation.study import Arm, Study
from vlm_jax.config import Experiment
from vlm_jax.errors import UserError
from vlm_jax.serialise import differences, to_plain
from vlm_jax.training.workdir import HARMLESS, HARMLESS_OF_STAGES

TEXT_FILE = "text.json"
"""The loss on held-out text: written when a run is done, so that it says that it is."""
MOVABLE = ("parts.decoder", "feature_cache.directory")
"""Fields that hold places inside the study's directory."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int
    experiment: Experiment
    """The arm's, with this seed, the study's decoder, and the shared features."""
    directory: epath.Path

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.arm.name}, seed {self.seed}"


def decoder_directory(workdir: epath.Path) -> epath.Path:
    """WORKDIR/decoder."""
    return workdir / "decoder"


def runs(study: Study, workdir: epath.Path) -> list[Run]:
    """All runs, seed by seed, so that a study that is stopped has compared all arms on the seeds that it came to."""
    return [run_of(study, workdir, arm, seed) for seed in range(study.seeds) for arm in study.arms]


def run_of(study: Study, workdir: epath.Path, arm: Arm, seed: int) -> Run:
    """An arm with a seed."""
    experiment = dataclasses.replace(arm.experiment, seed=seed, name=f"{study.name}: {arm.name}, seed {seed}")
    if study.decoder is not None:
        parts = dataclasses.replace(experiment.parts, decoder=str(decoder_directory(workdir)))
        experiment = dataclasses.replace(experiment, parts=parts)
    if any(stage.cache_features for stage in experiment.stages) and not experiment.feature_cache.directory:
        cache = dataclasses.replace(experiment.feature_cache, directory=str(workdir / "features"))
        experiment = dataclasses.replace(experiment, feature_cache=cache)
    return Run(arm, seed, experiment, workdir / arm.name / str(seed))


def is_done(run: Run) -> bool:
    """Whether a run is trained and evaluated, by the experiment as it is now.

    Raises:
        UserError: if it was done by another one.
    """
    changed = _changes(run)
    if changed is None or not (run.directory / TEXT_FILE).exists():
        return False
    grave = {field: pair for field, pair in changed.items() if not _harmless(field)}
    if grave:
        field, (old, new) = next(iter(grave.items()))
        raise UserError(
            f"{run.directory}: it was done with another config ({field}: {old!r} -> {new!r}); use another "
            "--workdir, or remove this directory"
        )
    return not any(field.startswith("evaluation") for field in changed)


def _changes(run: Run) -> Mapping[str, tuple[Any, Any]] | None:
    """Fields that differ from the config that a run was begun with; None if it was not."""
    try:
        old = json.loads((run.directory / "config.json").read_text())
    except (OSError, ValueError):
        return None
    found = differences(old, to_plain(run.experiment))
    return {field: pair for field, pair in found.items() if field not in MOVABLE}


def _harmless(field: str) -> bool:
    parts = field.split(".")
    return parts[0] in HARMLESS or (parts[0] == "stages" and any(part in HARMLESS_OF_STAGES for part in parts[2:3]))


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a file that is whole or not there.

    Raises:
        UserError: if it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or mend the path") from None


def read_json(path: epath.Path) -> Any:
    """What a file holds; None if there is none.

    Raises:
        UserError: if it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); remove it and run the study again") from None
