"""Topologies: which there are, what is said of those there are not, and the devices of those there are."""

import math
import sys

import jax
import pytest

from vlm_jax.errors import UserError
from vlm_jax.rehearsal.chips import CHIPS
from vlm_jax.rehearsal.topology import absent_devices, parse_topology, use_absent_tpus


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v9:2x2", "there are v4, v5e, v5p, v6e"),
        ("v5e:3x3", "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e:16x32", "choose another shape"),
        ("v5p:8x4x4", "write v5p:4x4x8"),
        ("v5p:6x6x6", "multiples of 4"),
        ("v5p:4x4", "multiples of 4"),
        ("v5p:32x32x32", "up to 6144 chips"),
        ("v5p", "GENERATION:SHAPE"),
        ("v5p:4x4x", "GENERATION:SHAPE"),
        ("v5e:0x4", "there is no v5e:0x4"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused_with_those_that_do(text: str, said: str) -> None:
    with pytest.raises(UserError, match="topology") as caught:
        parse_topology(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slices_are_counted_from_one() -> None:
    with pytest.raises(UserError, match="--slices is 0"):
        parse_topology("v5e:4x4", 0)


def test_the_compiler_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)  # as Python sees what cannot be imported
    with pytest.raises(UserError, match=r"pip install 'vlm-jax\[tpu-rehearsal\]'"):
        use_absent_tpus()


@pytest.mark.parametrize(
    ("text", "slices", "hosts"),
    [("v5e:1x1", 1, 1), ("v5e:2x2", 1, 1), ("v6e:16x16", 1, 64), ("v4:4x4x4", 1, 16), ("v5p:2x2x4", 2, 8)],
)
def test_there_is_one_device_a_chip_and_the_cpu_stays_the_backend(text: str, slices: int, hosts: int) -> None:
    topology = parse_topology(text, slices)
    devices = absent_devices(topology)
    assert len(devices) == topology.chips == slices * math.prod(topology.shape)
    assert {device.platform for device in devices} == {"tpu"}
    assert {getattr(device, "slice_index", 0) for device in devices} == set(range(slices))
    assert len({tuple(device.coords) for device in devices}) == math.prod(topology.shape)
    assert topology.hosts == hosts
    assert topology.hosts * topology.chips_of_a_host == topology.chips
    assert jax.default_backend() == "cpu"


@pytest.mark.parametrize(
    ("text", "rings"),
    [
        ("v5e:8x16", (False, True)),
        ("v5e:8x8", (False, False)),
        ("v6e:16x16", (True, True)),
        ("v5p:4x4x8", (True, True, True)),
        ("v5p:2x2x4", (False, False, False)),
    ],
)
def test_an_axis_wraps_around_where_the_documentation_says_so(text: str, rings: tuple[bool, ...]) -> None:
    topology = parse_topology(text)
    assert topology.chip.wraps(topology.shape) == rings


@pytest.mark.parametrize("chip", CHIPS.values(), ids=str)
def test_figures_of_a_chip_are_in_plausible_proportion(chip) -> None:
    """Wires are slower than memory, memory slower than compute, by about the same in every generation."""
    assert 100 < chip.peak_flops / chip.hbm_bandwidth < 600
    assert 15 < chip.hbm_bandwidth / chip.link_bandwidth < 35
    assert 3 < chip.link_bandwidth / (chip.dcn_bandwidth / chip.chips_per_host) < 20
    assert chip.host_memory > chip.chips_per_host * chip.hbm_bytes
    assert all(math.prod(shape) <= chip.max_chips for shape in chip.small_slices)
