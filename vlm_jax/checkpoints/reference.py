"""A model by reference: what `--model REF` means."""

import dataclasses
from typing import Any

import jax
from etils import epath

from data_pipelines.template import Processor, load_processor
from vlm_jax.checkpoints.converted import read_config, require_whole
from vlm_jax.checkpoints.handoff import abstract_params, load_params, step_directory
from vlm_jax.checkpoints.manager import read_step_files
from vlm_jax.config import Experiment
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.parallel import MeshConfig, build_mesh


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be used, and where it came from."""

    config: VLMConfig
    params: dict[str, Any]
    processor: Processor
    experiment: Experiment | None
    """By which it was trained; None if it was converted from another format."""
    directory: epath.Path
    """The step directory."""


def load_model(reference: str) -> LoadedModel:
    """Loads a model from a workdir (its newest step) or a step directory, which needs nothing besides itself.

    Raises:
        UserError: if there is no checkpoint, or it is damaged.
    """
    where = step_directory(reference)
    stored, experiment = read_config(read_step_files(where)["config.json"], where)
    config = require_whole(stored, where)
    mesh = build_mesh(MeshConfig(data=jax.device_count()))
    params = load_params(where, abstract_params(VLM(config), mesh))
    processor = load_processor(where / "files" / "processor")
    return LoadedModel(config, params, processor, experiment, where)
