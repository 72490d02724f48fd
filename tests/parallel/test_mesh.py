"""The mesh and what it says when the devices do not fit it."""

import jax
import pytest

from vlm_jax.checkpoints import logical_axes
from vlm_jax.errors import UserError
from vlm_jax.models.presets import PRESETS
from vlm_jax.models.vlm import VLM
from vlm_jax.parallel import MeshConfig, build_mesh
from vlm_jax.parallel.mesh import RULES


def test_what_is_left_of_the_devices_goes_to_data():
    assert dict(build_mesh(MeshConfig()).shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("config", [MeshConfig(3), MeshConfig(fsdp=2), MeshConfig(tensor=2), MeshConfig(1, 1, 5)])
def test_axes_that_do_not_make_the_devices_are_a_user_error(config):
    with pytest.raises(UserError, match=r"mesh: .*does not make 1 devices"):
        build_mesh(config)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (1, 0, 1), (1, 1, -1), (-1, -1, -1)])
def test_sizes_below_one_are_a_user_error(sizes):
    with pytest.raises(UserError, match="mesh"):
        build_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_axis_of_a_parameter_has_a_rule(name):
    """A misspelt axis would leave a parameter whole on every device, without a word."""
    axes = {axis for names in logical_axes(VLM(PRESETS[name]())).values() for axis in names}
    assert axes - {None} <= {axis for axis, _ in RULES}
