"""Where arrays live: a mesh, and the rules by which logical axes mean its axes."""

import contextlib
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vlm_jax.batch import Batch
from vlm_jax.errors import UserError
from vlm_jax.parallel.mesh import MeshConfig, build_mesh
from vlm_jax.parallel.rules import Rules, mesh_axes, resolve_rules


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of devices, and what logical axes mean on it."""

    mesh: Mesh
    rules: Rules

    @property
    def shape(self) -> Mapping[str, int]:
        """Devices along every axis of the mesh."""
        return self.mesh.shape

    def axes(self, name: str) -> tuple[str, ...]:
        """Mesh axes that a logical axis is split over."""
        return dict(self.rules)[name]

    def devices(self, name: str) -> int:
        """Parts that a dimension with this logical axis is split into."""
        return math.prod(self.shape[axis] for axis in self.axes(name))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Of an array with these logical axes; None, and dimensions that are not named, are whole on every device.

        Raises:
            UserError: if two of its dimensions would be split over the same mesh axis.
        """
        return NamedSharding(self.mesh, mesh_axes(self.rules, axes))


def build_layout(config: MeshConfig, devices: Sequence[Any] | None = None) -> Layout:
    """The layout over all devices of all processes, or over the given ones, which may be those of an absent TPU.

    Raises:
        UserError: if the axes do not multiply to the number of devices.
    """
    return Layout(build_mesh(config, devices), resolve_rules(config.rules))


@contextlib.contextmanager
def use_layout(layout: Layout) -> Iterator[None]:
    """Inside, logical axis names mean axes of this layout's mesh."""
    rules = [(name, axes or None) for name, axes in layout.rules]
    with jax.set_mesh(layout.mesh), nn.logical_axis_rules(rules):
        yield


def parameter_shardings(boxed: PyTree, layout: Layout) -> PyTree[NamedSharding]:
    """Shardings of parameters from their logical axes.

    Args:
        boxed: abstract parameters as `init` gives them, with their logical axes.
        layout: where they go.

    Raises:
        UserError: if two dimensions of one would be split over the same mesh axis.
    """
    specs = nn.get_partition_spec(boxed)
    return jax.tree.map(
        lambda axes: layout.sharding(*axes), specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def abstract_params(boxed: PyTree, layout: Layout | None = None) -> dict[str, Any]:
    """Shapes and dtypes of parameters, with a layout also their shardings, from abstract ones with logical axes."""
    shapes = without_axes(boxed)
    if layout is None:
        return shapes
    shardings = parameter_shardings(boxed, layout)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def check_fits(boxed: PyTree, layout: Layout) -> None:
    """Makes sure that every parameter divides among the devices that share it.

    Args:
        boxed: abstract parameters as `init` gives them, with their logical axes.
        layout: where they go.

    Raises:
        UserError: naming the first dimension that does not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box):
        for size, axis in zip(leaf.value.shape, leaf.names, strict=True) if _is_box(leaf) else ():
            devices = 1 if axis is None else layout.devices(axis)
            if size % devices:
                name, over = jax.tree_util.keystr(path, simple=True, separator="/"), " x ".join(layout.axes(axis))
                near = f" ({-(-size // devices) * devices:,} would divide)" if axis == "vocab" else ""
                raise UserError(
                    f"mesh: the {axis} of {name} are {size:,}, which do not divide among {over} = {devices} devices; "
                    f"change the mesh, the model{near}, or where they go by mesh.rules {axis}"
                )


def without_axes(boxed: PyTree) -> PyTree:
    """Parameters without logical axes; unlike flax's `unbox` it places nothing, so abstract ones work too."""
    return jax.tree.map(lambda x: x.value if _is_box(x) else x, boxed, is_leaf=_is_box)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.meta.AxisMetadata)


def batch_shardings(batch: Batch, layout: Layout) -> Batch:
    """Where a batch goes: planes [B, S, ...] by rows and positions, all else by rows.

    Args:
        batch: of arrays or abstract ones; its fields that are None stay so.
        layout: where it goes.

    Returns:
        A batch of shardings.
    """
    plane, rows = layout.sharding("batch", "length"), row_sharding(layout)
    placed: dict[str, Any] = {
        field.name: None if getattr(batch, field.name) is None else plane if field.name in PLANES else rows
        for field in dataclasses.fields(batch)
    }
    return dataclasses.replace(batch, **placed)


PLANES = {
    "tokens",
    "targets",
    "loss_weights",
    "segment_ids",
    "branch_ids",
    "block_ids",
    "positions",
    "example_index",
    "visual_index",
    "visible_images",
}
"""Fields of a batch with an entry for each position."""


def row_sharding(layout: Layout) -> NamedSharding:
    """Of an array [B, ...], split by rows alone."""
    return layout.sharding("batch")


def device_bytes(tree: PyTree) -> int:
    """Bytes of arrays, or of abstract ones with shardings, on one device, without padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def host_bytes(tree: PyTree, devices: Collection[Any]) -> int:
    """The same on all of these devices of one host, where a part that several of them hold counts once."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        places = leaf.sharding.devices_indices_map(leaf.shape)
        parts = {tuple((cut.start, cut.stop) for cut in places[device]) for device in devices}
        total += len(parts) * device_bytes(leaf)
    return total


def replicated(layout: Layout) -> NamedSharding:
    """A copy on every device."""
    return layout.sharding()
