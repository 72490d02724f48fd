"""Wires of mesh axes, from where their devices are on the torus."""

from typing import Any

import pytest

from vlm_jax.parallel import MeshConfig, build_layout
from vlm_jax.rehearsal.collectives import Collective
from vlm_jax.rehearsal.hlo import Instruction
from vlm_jax.rehearsal.machine import axis_groups, build_machine, slice_numbers
from vlm_jax.rehearsal.steps import Begin
from vlm_jax.rehearsal.timeline import Timeline
from vlm_jax.rehearsal.topology import absent_devices, parse_topology


def wires(text: str, slices: int = 1, **axes: Any) -> dict[str, float]:
    """Links (one direction each) that a chip sends over, by group of mesh axes."""
    topology = parse_topology(text, slices)
    layout = build_layout(MeshConfig(**axes, slices=slices), absent_devices(topology))
    machine = build_machine(topology, layout.mesh)
    link = topology.chip.link_bandwidth
    return {group: sum(ring.bandwidth for ring in rings) / link for group, rings in machine.ici.items()}


def test_a_ring_has_two_directions_on_every_axis_of_the_torus() -> None:
    assert wires("v5p:4x4x4", data=1, fsdp=64) == {"fsdp": 6}
    assert wires("v5p:4x4x4", data=1, fsdp=16, tensor=4) == {"fsdp": 4, "tensor": 2, "fsdp+tensor": 6}
    assert wires("v6e:16x16", data=16, fsdp=16) == {"data": 2, "fsdp": 2, "data+fsdp": 4}


def test_a_line_has_one_link_at_its_end() -> None:
    assert wires("v5e:4x4", data=1, fsdp=16) == {"fsdp": 2}
    assert wires("v5p:2x2x4", data=1, fsdp=16) == {"fsdp": 3}


def test_groups_that_lie_interleaved_share_their_links() -> None:
    """16 chips around, 4 in a row for each tensor group: every fourth chip makes a ring of fsdp."""
    rates = wires("v5e:16x16", data=16, fsdp=4, tensor=4)
    assert rates["tensor"] + rates["fsdp"] == pytest.approx(1 + 2 / 4)


def test_two_axes_of_the_mesh_on_one_of_the_torus_take_turns_on_its_links() -> None:
    topology = parse_topology("v6e:16x16")
    machine = build_machine(topology, build_layout(MeshConfig(data=2, fsdp=128), absent_devices(topology)).mesh)
    begun = [
        Begin(
            Instruction("x", "", "all-gather", "", ""), Collective("all-gather", axes, "ici", members, 0.0, 1e9), axes
        )
        for axes, members in (("data", 2), ("fsdp", 128))
    ]
    alone = [Timeline(machine).run([one]) for one in begun]
    assert Timeline(machine).run(begun) == pytest.approx(sum(alone))


def test_only_axes_that_devices_are_spread_over_are_groups() -> None:
    layout = build_layout(MeshConfig(data=1, fsdp=4), absent_devices(parse_topology("v5e:2x2")))
    assert axis_groups(layout.mesh) == [("fsdp",)]


def test_every_device_is_in_its_slice_and_the_network_between_them_is_shared_by_the_chips_of_a_host() -> None:
    topology = parse_topology("v5e:2x4", 2)
    layout = build_layout(MeshConfig(data=2, fsdp=8, slices=2), absent_devices(topology))
    numbers = slice_numbers(layout.mesh)
    assert sorted(numbers) == [0] * 8 + [1] * 8
    assert numbers[:8] == [0] * 8, "data is the axis that goes between slices"
    machine = build_machine(topology, layout.mesh)
    assert machine.dcn_bandwidth * topology.chips_of_a_host == topology.chip.dcn_bandwidth
