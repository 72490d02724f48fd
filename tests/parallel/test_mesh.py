"""The mesh: its sizes, which device stands where in it, and what it says when the devices do not fit it."""

import dataclasses

import jax
import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.parallel.mesh import build_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as the mesh looks at."""

    id: int
    process_index: int = 0
    platform: str = "cpu"


@dataclasses.dataclass(frozen=True)
class SliceDevice(Device):
    """One that says which slice it is of."""

    slice_index: int = 0


def numbers(config, devices):
    """The devices' numbers, [data, fsdp, sequence, tensor]."""
    return np.vectorize(lambda device: device.id)(build_mesh(config, devices).devices).tolist()


def test_what_is_left_of_the_devices_goes_to_data():
    alone = {"data": jax.device_count(), "fsdp": 1, "sequence": 1, "tensor": 1}
    assert dict(build_layout(MeshConfig()).shape) == alone


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor", "sequence"])
def test_any_axis_can_be_what_is_left(axis):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1, axis: -1}
    assert build_mesh(MeshConfig(**sizes), [Device(i) for i in range(6)]).shape[axis] == 6


@pytest.mark.parametrize("config", [MeshConfig(3), MeshConfig(fsdp=2), MeshConfig(tensor=2), MeshConfig(1, 1, 5)])
def test_axes_that_do_not_make_the_devices_are_a_user_error(config):
    with pytest.raises(UserError, match=r"mesh: .*does not make 1 devices"):
        build_layout(config)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (1, 0, 1), (-1, 1, -1), (-1, -1, -1)])
def test_sizes_below_one_and_two_that_are_left_are_a_user_error(sizes):
    with pytest.raises(UserError, match="mesh"):
        MeshConfig(*sizes)


def test_neighbours_are_neighbours_along_the_last_axes():
    devices = [Device(i) for i in range(8)]
    assert numbers(MeshConfig(1, 2, 2, 2), devices) == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]


def test_slices_split_the_data_axis_and_keep_the_others_together():
    devices = [Device(i) for i in range(8)]
    assert numbers(MeshConfig(2, 2, 2, slices=2), devices) == [[[[0, 1]], [[2, 3]]], [[[4, 5]], [[6, 7]]]]


def test_slices_can_split_the_fsdp_axis():
    devices = [Device(i) for i in range(8)]
    split = numbers(MeshConfig(2, 4, slices=4, across_slices="fsdp"), devices)
    # Each slice has two devices, one for each part of the batch; the parameters' four parts are on four slices.
    assert split == [[[[0]], [[2]], [[4]], [[6]]], [[[1]], [[3]], [[5]], [[7]]]]


def test_devices_say_which_slice_they_are_of():
    devices = [SliceDevice(i, slice_index=1 - i % 2) for i in range(4)]
    assert numbers(MeshConfig(2, 2, slices=2), devices) == [[[[1]], [[3]]], [[[0]], [[2]]]]
    with pytest.raises(UserError, match=r"mesh\.slices is 1, but the devices are of 2 slices"):
        build_mesh(MeshConfig(), devices)


def test_elsewhere_slices_are_processes_in_a_row():
    devices = [Device(i, process_index=i % 2) for i in range(4)]
    assert numbers(MeshConfig(4, slices=2), devices) == [[[[0]]], [[[2]]], [[[1]]], [[[3]]]]


def test_slices_that_cannot_share_the_axis_are_a_user_error():
    with pytest.raises(UserError, match="data is 2, which does not divide among 4 slices"):
        build_mesh(MeshConfig(2, 4, slices=4), [Device(i) for i in range(8)])
    with pytest.raises(UserError, match="slices is 0"):
        MeshConfig(slices=0)
