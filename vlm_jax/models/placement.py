"""How activations say where they should be: by logical axes, which the caller's context maps to a mesh.

A dimension that does not divide among all devices that its axis names is split over fewer: rows that are answered by a
server, or image slots, come in any number. Without a mesh in the context nothing happens.
"""

import math

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float


def constrain(x: Float[Array, "..."], axes: tuple[str | None, ...]) -> Float[Array, "..."]:
    """The same array, placed by the logical axes of its dimensions; None = whole on every device.

    Raises:
        ValueError: if the context's rules do not know an axis.
    """
    rules, sizes = _context()
    if not rules or not sizes:
        return x
    if unknown := [axis for axis in axes if axis is not None and axis not in rules]:
        raise ValueError(f"no rule says where the axis {unknown[0]!r} of an activation goes")
    parts = (_dividing(size, rules[axis], sizes) if axis else () for size, axis in zip(x.shape, axes, strict=True))
    placed: Array = jax.lax.with_sharding_constraint(x, PartitionSpec(*(part or None for part in parts)))
    return placed


def devices_sharing(size: int, axis: str) -> int:
    """Into how many parts `constrain` splits a dimension of this size with this logical axis."""
    _, sizes = _context()
    return math.prod(sizes[name] for name in axes_sharing(size, axis))


def axes_sharing(size: int, axis: str) -> tuple[str, ...]:
    """The mesh axes over which `constrain` splits a dimension of this size with this logical axis."""
    rules, sizes = _context()
    return _dividing(size, rules.get(axis, ()), sizes)


def _context() -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """What logical axes mean, and the devices along each axis of the mesh that has several and is not mapped over."""
    rules = {name: (axes,) if isinstance(axes, str) else axes or () for name, axes in nn.get_logical_axis_rules()}
    mesh = jax.sharding.get_abstract_mesh()
    return rules, {name: size for name, size in mesh.shape.items() if size > 1 and name not in mesh.manual_axes}


def _dividing(size: int, names: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...]:
    """Those of the mesh axes that together divide a dimension, chosen from the first on."""
    chosen: list[str] = []
    for name in names:
        if name in sizes and size % sizes[name] == 0:
            chosen.append(name)
            size //= sizes[name]
    return tuple(chosen)
