"""The device mesh, and the table from logical axes to mesh axes."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vlm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("patches", None),
    ("layers", None),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("key_value_heads", "tensor"),
    ("head_size", None),
    ("mlp", "tensor"),
    ("norm", None),
    ("features", None),
    ("conv_in", None),
    ("conv_out", None),
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_mlp", "tensor"),
)
"""Logical axis -> mesh axes. Axes that begin with act_ are those of activations; the others are those of parameters."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis has; their product is the number of devices."""

    data: int = -1
    """Copies of the parameters, each with its own rows; -1 = all devices that the other axes leave."""
    fsdp: int = 1
    """Devices that share parameters and optimiser state, each with its own rows."""
    tensor: int = 1
    """Devices that share heads, feed-forward columns and vocabulary."""


def build_mesh(config: MeshConfig) -> Mesh:
    """A mesh over all devices of all processes.

    Raises:
        UserError: if the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    rest = config.fsdp * config.tensor
    fits = min(config.fsdp, config.tensor) >= 1
    data = devices // rest if fits and config.data == -1 else config.data
    if not fits or data * rest != devices:
        raise UserError(
            f"mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not make {devices} devices; "
            "change the mesh or leave data at -1"
        )
    return jax.make_mesh((data, config.fsdp, config.tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Inside, logical axis names mean axes of this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def parameter_shardings(boxed: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """Shardings of parameters from their logical axes.

    Args:
        boxed: abstract parameters as `init` gives them, with their logical axes.
        mesh: where they go.
    """
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def abstract_params(boxed: PyTree, mesh: Mesh | None = None) -> dict[str, Any]:
    """Shapes and dtypes of parameters, with a mesh also their shardings, from abstract ones with logical axes."""
    shapes = without_axes(boxed)
    if mesh is None:
        return shapes
    shardings = parameter_shardings(boxed, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def check_fits(abstract: PyTree[jax.ShapeDtypeStruct], mesh: Mesh) -> None:
    """Makes sure that every parameter divides among the devices that share it.

    Args:
        abstract: parameters with their shardings.
        mesh: where they go.

    Raises:
        UserError: naming the first that does not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        for size, axes in zip(leaf.shape, leaf.sharding.spec, strict=False):
            names = (axes,) if isinstance(axes, str) else axes or ()
            devices = math.prod(mesh.shape[name] for name in names)
            if size % devices:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(
                    f"mesh: a dimension of {size} of {name} does not divide among {' x '.join(names)} = {devices} "
                    "devices; change the mesh or the model"
                )


def without_axes(boxed: PyTree) -> PyTree:
    """Parameters without logical axes; unlike flax's `unbox` it places nothing, so abstract ones work too."""

    def is_box(x: Any) -> bool:
        return isinstance(x, nn.meta.AxisMetadata)

    return jax.tree.map(lambda x: x.value if is_box(x) else x, boxed, is_leaf=is_box)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over data and fsdp devices; the rest whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
