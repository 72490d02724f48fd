"""On a TPU, devices that are neighbours in the mesh are neighbours in its interconnect."""

import numpy as np
import pytest

from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.rehearsal.topology import absent_devices, parse_topology


def links(name, slices, axis, **sizes):
    """The largest number of links from a device to the next along an axis of the mesh."""
    layout = build_layout(MeshConfig(**sizes, slices=slices), absent_devices(parse_topology(name, slices)))
    places = np.vectorize(lambda device: np.array(device.coords), otypes=[object])(layout.mesh.devices)
    steps = np.diff(places, axis=layout.mesh.axis_names.index(axis))
    return max(int(np.abs(step).sum()) for step in steps.flat)


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x2", "v6e:4x4"])
@pytest.mark.parametrize("axis", ["tensor", "sequence"])
def test_pairs_are_neighbours(name, axis):
    assert links(name, 1, axis, data=1, fsdp=-1, **{axis: 2}) == 1


@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4"])
def test_an_axis_as_long_as_the_interconnect_s_goes_along_it(name):
    assert links(name, 1, "tensor", data=1, fsdp=-1, tensor=4) == 1
    assert links(name, 1, "sequence", data=1, fsdp=-1, sequence=4) == 1


def test_slices_are_told_apart():
    devices = absent_devices(parse_topology("v5p:2x2x2", 2))
    mesh = build_layout(MeshConfig(2, 4, 2, slices=2), devices).mesh.devices
    assert [{device.slice_index for device in part.flat} for part in mesh] == [{0}, {1}]
    assert links("v5p:2x2x2", 2, "tensor", data=2, fsdp=4, tensor=2) == 1
