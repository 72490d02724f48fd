"""What a stage freezes in a narrow dtype is trained by a later stage from its full-precision values."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from vlm_jax.checkpoints import initialise_missing, step_directory
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.config import load_experiment
from vlm_jax.models.layers import Precision
from vlm_jax.models.vlm import VLM
from vlm_jax.optim import OptimizerConfig, Rule, Schedule
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.training.recipe import train

TINY = Path(__file__).with_name("tiny_experiment.py")


def test_a_parameter_frozen_in_bfloat16_is_handed_on_in_float32(tmp_path: Path) -> None:
    """The first stage freezes the encoder, the second trains it at rate zero: it must end as it was drawn."""
    tiny = load_experiment(str(TINY))
    frozen = OptimizerConfig(table=(Rule("^encoder/", rate=0), Rule(".*")), schedule=Schedule(peak=1e-3))
    still = OptimizerConfig(schedule=Schedule(peak=0.0, shape="constant"))
    first, second = tiny.stages
    experiment = dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, precision=Precision(compute="bfloat16")),
        stages=(
            dataclasses.replace(first, steps=1, optimizer=frozen),
            dataclasses.replace(second, steps=1, optimizer=still, validation=None),
        ),
    )
    train(experiment, tmp_path)

    drawn = initialise_missing(VLM(experiment.model), build_layout(MeshConfig()), experiment.seed)["encoder"]
    narrow = load_model(str(tmp_path / "checkpoints" / "captions" / "1")).params["encoder"]
    full = load_model(str(step_directory(str(tmp_path)))).params["encoder"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(narrow)} == {"bfloat16"}
    for before, after in zip(jax.tree.leaves(drawn), jax.tree.leaves(full), strict=True):
        np.testing.assert_array_equal(before, after)
