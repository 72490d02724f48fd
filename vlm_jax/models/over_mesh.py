"""Where logical axes lie on the mesh in force, for kernels that the partitioner cannot cut by itself."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array

from vlm_jax.models.placement import axes_sharing


@dataclasses.dataclass(frozen=True)
class Split:
    """How queries [B, S, H, K] are split; () = whole."""

    mesh: AbstractMesh | None
    """None = there is no mesh."""
    batch: tuple[str, ...] = ()
    length: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    @property
    def length_shards(self) -> int:
        """Devices that share a row."""
        return self._devices(self.length)

    @property
    def head_shards(self) -> int:
        """Devices that share the heads of a position."""
        return self._devices(self.heads)

    @property
    def heads_spec(self) -> PartitionSpec:
        """Of [B, H, S, K]."""
        return PartitionSpec(self.batch, self.heads, self.length)

    def gather(self, x: Array, axis: int) -> Array:
        """Within `run`: all positions of what this device has a part of. Its gradient is summed and split again."""
        return jax.lax.all_gather(x, self.length, axis=axis, tiled=True) if self.length else x

    def run(self, function: Callable[..., Array], inwards: Any, outwards: PartitionSpec) -> Callable[..., Array]:
        """The function on each device's own part."""
        return jax.shard_map(function, mesh=self.mesh, in_specs=inwards, out_specs=outwards, check_vma=False)

    def _devices(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes) if self.mesh is not None else 1


def find_split(shape: tuple[int, ...]) -> Split:
    """How queries of this shape are split by the mesh and the logical axis rules in force.

    Rows and heads that do not divide are left whole on more devices, which then do the same work (`init` runs on one
    row); positions are padded.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return Split(None)

    def axes(size: int, name: str) -> tuple[str, ...]:
        return tuple(axis for axis in axes_sharing(size, name) if mesh.shape[axis] > 1)

    every = math.prod(mesh.shape.values())  # divides among any of them, as a padded length will
    return Split(mesh, axes(shape[0], "batch"), axes(every, "length"), axes(shape[2], "act_heads"))
