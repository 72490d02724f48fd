"""From a topology and a mesh upon it to the wires that each group of mesh axes has for itself."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vlm_jax.rehearsal.program import Machine, Ring
from vlm_jax.rehearsal.topology import Topology

_TORUS = "xyz"


def build_machine(topology: Topology, mesh: Mesh) -> Machine:
    """What the counting of costs must know of the hardware.

    Args:
        topology: the slices.
        mesh: of their devices.
    """
    chip = topology.chip
    groups = {"+".join(axes): group_rings(topology, mesh, axes) for axes in axis_groups(mesh)}
    return Machine(
        peak_flops=chip.peak_flops,
        hbm_bandwidth=chip.hbm_bandwidth,
        ici=groups,
        ici_default=chip.link_bandwidth,
        dcn_bandwidth=chip.dcn_bandwidth / topology.chips_of_a_host,
        host_bandwidth=chip.host_link_bandwidth,
        mxu=chip.mxu,
    )


def axis_groups(mesh: Mesh) -> list[tuple[str, ...]]:
    """Every set of axes along which devices may talk, in the mesh's order."""
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    return [group for size in range(1, len(axes) + 1) for group in itertools.combinations(axes, size)]


def group_rings(topology: Topology, mesh: Mesh, axes: Sequence[str]) -> tuple[Ring, ...]:
    """Along which axes of the torus the chips of a group lie, and what they send there; none if slices part them all.

    A ring around a whole torus axis uses both directions; a line, or a ring of every k-th chip, does not reach as far:
    the chip at the end of a line has one link, and k groups that lie interleaved share the links between them. Rings
    along several torus axes run at the same time ("How to Scale Your Model", part 3).

    Args:
        topology: gives links and torus.
        mesh: of its devices.
        axes: of the mesh; their group holds the devices that differ in nothing else.
    """
    link, shape, wraps = topology.chip.link_bandwidth, topology.shape, topology.chip.wraps(topology.shape)
    members = np.moveaxis(mesh.devices, [mesh.axis_names.index(axis) for axis in axes], range(len(axes)))
    members = members.reshape(*members.shape[: len(axes)], -1)[..., 0].reshape(-1)
    coordinates = [list(device.coords)[: len(shape)] for device in members if _slice(device) == _slice(members[0])]
    along = [sorted({place[axis] for place in coordinates}) for axis in range(len(shape))]
    spread = [axis for axis, places in enumerate(along) if len(places) > 1]
    if math.prod(len(places) for places in along) != len(coordinates):
        # No grid: at least one link leads to some other member.
        return tuple(Ring(_TORUS[axis], len(along[axis]), link / len(spread)) for axis in spread)
    rings = []
    for axis in spread:
        places = along[axis]
        stride = max(b - a for a, b in itertools.pairwise(places))
        closed = wraps[axis] and len(places) * stride == shape[axis]
        rings.append(Ring(_TORUS[axis], len(places), (2 if closed else 1) * link / stride))
    return tuple(rings)


def slice_numbers(mesh: Mesh) -> list[int]:
    """The slice of every device, in the order of `mesh.devices.flat`."""
    return [_slice(device) for device in mesh.devices.flat]


def _slice(device: Any) -> int:
    return int(getattr(device, "slice_index", 0) or 0)
