"""The mesh's sizes, and which device stands where in it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vlm_jax.errors import UserError
from vlm_jax.parallel.rules import AXES, resolve_rules


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis has; their product is the number of devices. One of them may be -1: what is left.

    Attributes are over all slices together: with 2 slices, data 4 is 2 in each.
    """

    data: int = -1
    """Copies of the parameters, each with its own rows."""
    fsdp: int = 1
    """Devices that share parameters and optimiser state, each with its own rows."""
    tensor: int = 1
    """Devices that share heads, feed-forward columns and vocabulary."""
    sequence: int = 1
    """Devices that share the positions of a row."""
    slices: int = 1
    """TPU slices, which are joined by the data-centre network and not by chip-to-chip links."""
    across_slices: Literal["data", "fsdp"] = "data"
    """The axis that is split over slices."""
    rules: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Logical axis -> mesh axes, in place of the table's own line (`parallel.rules.TABLE`)."""

    def __post_init__(self) -> None:
        sizes = self.sizes
        if any(size < 1 and size != -1 for size in sizes.values()):
            raise UserError(f"mesh: {_product(sizes)}: give sizes of at least 1, or -1 for what is left")
        if list(sizes.values()).count(-1) > 1:
            raise UserError(
                f"mesh: {_product(sizes)}: only one axis can be -1, and data is unless it is set; set it to 1"
            )
        if self.slices < 1:
            raise UserError(f"mesh: slices is {self.slices}; give at least 1")
        resolve_rules(self.rules)

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along every axis of the mesh, in its order; -1 = what is left."""
        return {axis: getattr(self, axis) for axis in AXES}


def build_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices of all processes, or over devices that may be those of an absent TPU.

    On a TPU neighbours along the last axes are neighbours in its interconnect, as far as the sizes allow.

    Raises:
        UserError: if the axes do not multiply to the number of devices, or the devices do not form the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = fill_sizes(config, len(devices))
    blocks = split_into_slices(devices, config.slices)
    axis = AXES.index(config.across_slices)
    inner = tuple(size // config.slices if i == axis else size for i, size in enumerate(sizes.values()))
    arranged = np.concatenate([_arrange(block, inner) for block in blocks], axis)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Devices of one slice in the shape of its part of the mesh."""
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    # An axis may take a part of one of the torus's: without it few sizes could be had.
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def split_into_slices(devices: Sequence[Any], slices: int) -> list[list[Any]]:
    """Devices slice by slice.

    Multi-slice TPUs say which slice a device is of. Others are taken to form slices of equally many processes each,
    or of equally many devices where the processes do not divide, in the order in which they are numbered.

    Raises:
        UserError: if the devices are of another number of slices, or do not divide.
    """
    named: dict[int, list[Any]] = {}
    for device in devices:
        named.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    if len(named) > 1 or devices[0].platform == "tpu":
        if len(named) != slices:
            raise UserError(f"mesh.slices is {slices}, but the devices are of {len(named)} slices; set it to that")
        return [named[index] for index in sorted(named)]
    if len(devices) % slices:
        raise UserError(f"mesh: {len(devices)} devices do not form {slices} slices of equally many; change mesh.slices")
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    count = len(devices) // slices
    return [ordered[start : start + count] for start in range(0, len(devices), count)]


def fill_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """The sizes with -1 filled in.

    Raises:
        UserError: if they do not multiply to the number of devices, or the slices cannot share them.
    """
    sizes = config.sizes
    rest = math.prod(size for size in sizes.values() if size != -1)
    filled = {axis: devices // rest if size == -1 else size for axis, size in sizes.items()}
    if math.prod(filled.values()) != devices:
        left = "" if -1 in sizes.values() else " or leave one of them at -1"
        raise UserError(f"mesh: {_product(sizes)} does not make {devices} devices; change the mesh{left}")
    if filled[config.across_slices] % config.slices:
        raise UserError(
            f"mesh: {config.across_slices} is {filled[config.across_slices]}, which does not divide among "
            f"{config.slices} slices; change it, or mesh.across-slices"
        )
    return filled


def _product(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())
