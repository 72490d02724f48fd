"""Where logical axes lie on the mesh in force, for kernels that the partitioner cannot cut by itself."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array

_QUERIES = ("batch", "length", "act_heads", "head_size")


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

    Axes that rows or heads do not divide among are left out: those devices do the same work (`init` runs on one row).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return Split(None)
    spec = nn.logical_to_mesh_axes(_QUERIES) or (None,) * len(_QUERIES)

    def axes(place: int, *, pads: bool = False) -> tuple[str, ...]:
        names = spec[place]
        names = (names,) if isinstance(names, str) else tuple(names or ())
        devices = math.prod(mesh.shape[name] for name in names)
        return names if devices > 1 and (pads or shape[place] % devices == 0) else ()

    return Split(mesh, axes(0), axes(1, pads=True), axes(2))
