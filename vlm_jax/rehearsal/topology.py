"""Slices that are not there: from "v5p:4x4x4" to abstract devices that the TPU compiler compiles for."""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

import jax

from vlm_jax.errors import UserError
from vlm_jax.rehearsal.chips import Chip, find_chip

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server what machine this is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any that exists; the topology is asked for by name
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock file: a training run on this machine keeps its own
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""What libtpu reads when it is loaded. What the user has set stays."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several equal slices of one generation."""

    chip: Chip
    shape: tuple[int, ...]
    """Chips along each axis of a slice."""
    slices: int = 1

    @property
    def name(self) -> str:
        """As on the command line, "v5p:4x4x4", with "*2" for two slices."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}" + (f"*{self.slices}" if self.slices > 1 else "")

    @property
    def chips(self) -> int:
        """In all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Virtual machines that train together."""
        return self.slices * -(-math.prod(self.shape) // self.chip.chips_per_host)

    @property
    def chips_of_a_host(self) -> int:
        """Fewer than `Chip.chips_per_host` only on a slice of one chip."""
        return self.chips // self.hosts


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Reads GENERATION:SHAPE.

    Args:
        text: such as "v5p:4x4x4".
        slices: how many such slices train together over the data-centre network.

    Raises:
        UserError: if it is no topology, the generation is unknown, or no such slice exists; with those that do.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text.strip())
    if not found:
        raise UserError(f"topology: '{text}' is not GENERATION:SHAPE; write it as v5p:4x4x4 or v5e:16x16")
    chip, shape = find_chip(found[1]), tuple(int(size) for size in found[2].split("x"))
    if not chip.exists(shape):
        ordered = tuple(sorted(shape))
        hint = f"write {chip.name}:{'x'.join(map(str, ordered))}" if chip.exists(ordered) else "choose another shape"
        raise UserError(f"topology: there is no {text}; {chip.name} slices are {chip.describe_shapes()}; {hint}")
    if slices < 1:
        raise UserError(f"topology: --slices is {slices}; give at least 1")
    return Topology(chip, shape, slices)


def use_absent_tpus() -> None:
    """Prepares this process for compiling for TPUs that are not there; its own computations run on the CPU.

    Raises:
        UserError: if the TPU compiler is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "rehearsal needs the TPU compiler, which is not installed: run pip install 'vlm-jax[tpu-rehearsal]'"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


@functools.lru_cache(maxsize=8)
def absent_devices(topology: Topology) -> tuple[Any, ...]:
    """The devices of slices that are not there: one a chip.

    Raises:
        UserError: if the TPU compiler is not installed, or refuses the topology.
    """
    use_absent_tpus()
    from jax.experimental import topologies

    shape, chip = topology.shape, topology.chip
    options: dict[str, Any] = dict(chip.options)
    options["wrap"] = [*chip.wraps(shape), False][:3]
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{chip.name}:{'x'.join(map(str, shape))}"
    try:
        devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
    except Exception as error:  # of libtpu, whose exceptions have no common type
        reason = str(error).splitlines()[0]
        raise UserError(
            f"topology {topology.name}: the TPU compiler refuses it ({reason}); choose another one"
        ) from None
    assert len(devices) == topology.chips, "one device a chip"
    return tuple(devices)
