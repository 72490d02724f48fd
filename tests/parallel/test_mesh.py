"""The mesh and what it says when the devices do not fit it."""

import dataclasses
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from vlm_jax.checkpoints import abstract_params, logical_axes
from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.models.presets import PRESETS
from vlm_jax.models.vlm import VLM
from vlm_jax.parallel import Layout, MeshConfig, build_layout, check_fits
from vlm_jax.parallel.rules import AXES, TABLE
from vlm_jax.training.recipe import check_rows

MU = Path(__file__).parents[2] / "experiments" / "mu.py"


def test_what_is_left_of_the_devices_goes_to_data():
    alone = {"data": jax.device_count(), "fsdp": 1, "sequence": 1, "tensor": 1}
    assert dict(build_layout(MeshConfig()).shape) == alone


@pytest.mark.parametrize("config", [MeshConfig(3), MeshConfig(fsdp=2), MeshConfig(tensor=2), MeshConfig(1, 1, 5)])
def test_axes_that_do_not_make_the_devices_are_a_user_error(config):
    with pytest.raises(UserError, match=r"mesh: .*does not make 1 devices"):
        build_layout(config)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (1, 0, 1), (-1, 1, -1), (-1, -1, -1)])
def test_sizes_below_one_are_a_user_error(sizes):
    with pytest.raises(UserError, match="mesh"):
        MeshConfig(*sizes)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_axis_of_a_parameter_has_a_rule(name):
    """A misspelt axis would leave a parameter whole on every device, without a word."""
    axes = {axis for names in logical_axes(VLM(PRESETS[name]())).values() for axis in names}
    assert axes - {None} <= {axis for axis, _ in TABLE}


def devices(data: int, fsdp: int, tensor: int, sequence: int = 1) -> Layout:
    """A layout over devices that are not there."""
    return Layout(AbstractMesh((data, fsdp, sequence, tensor), AXES, axis_types=(AxisType.Auto,) * 4), TABLE)


def test_a_parameter_that_does_not_divide_is_named():
    model = VLM(PRESETS["mu"]())
    check_fits(abstract_params(model, devices(1, 4, 2)), devices(1, 4, 2))
    with pytest.raises(UserError, match=r"2 of decoder/.*/key/kernel does not divide among tensor = 4 devices"):
        check_fits(abstract_params(model, devices(1, 1, 4)), devices(1, 1, 4))


def test_rows_that_do_not_divide_are_a_user_error():
    stage = load_experiment(str(MU)).stages[0]
    check_rows(stage, devices(2, 2, 1))
    for accumulation, mesh in ((1, devices(8, 1, 1)), (2, devices(2, 2, 1))):
        with pytest.raises(UserError, match=rf"stage captions: {4 // accumulation} rows .* data x fsdp = "):
            check_rows(dataclasses.replace(stage, accumulation=accumulation), mesh)
