"""The one table from logical axes, by which models name dimensions, to axes of the mesh."""

from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

from vlm_jax.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")
"""Axes of the mesh, outermost first: neighbours along the last are nearest to each other."""

Rules = tuple[tuple[str, tuple[str, ...]], ...]
"""(logical axis, mesh axes that its dimension is split over); () = whole on every device."""

TABLE: Rules = (
    # activations of the decoder and of what stands between it and the encoder
    ("batch", ("data", "fsdp")),
    ("length", ("sequence",)),
    ("patches", ()),
    ("act_embed", ()),
    ("act_heads", ("tensor",)),
    ("act_mlp", ("tensor",)),
    # parameters
    ("layers", ()),
    ("vocab", ("tensor",)),
    ("embed", ("fsdp",)),
    ("heads", ("tensor",)),
    ("key_value_heads", ("tensor",)),
    ("head_size", ()),
    ("mlp", ("tensor",)),
    ("norm", ()),
    ("features", ()),
    ("conv_in", ()),
    ("conv_out", ()),
)
"""Axes that begin with act_ are those of activations, as are batch, length and patches; the others of parameters."""


def resolve_rules(overrides: Mapping[str, Sequence[str]]) -> Rules:
    """The table with some of its lines replaced.

    Args:
        overrides: logical axis -> mesh axes, in place of the table's own line.

    Raises:
        UserError: if one names an axis that there is not, or a mesh axis twice.
    """
    known = dict(TABLE)
    for name, axes in overrides.items():
        if name not in known:
            raise UserError(f"mesh.rules: no model has an axis {name!r}; name one of {', '.join(sorted(known))}")
        for axis in axes:
            if axis not in AXES:
                raise UserError(f"mesh.rules: {name} shall go to {axis!r}; the mesh's axes are {', '.join(AXES)}")
        if len(set(axes)) < len(axes):
            raise UserError(f"mesh.rules: {name} names a mesh axis twice ({', '.join(axes)}); name each once")
        known[name] = tuple(axes)
    return tuple(known.items())


def mesh_axes(rules: Rules, axes: Sequence[str | None]) -> PartitionSpec:
    """How an array with these logical axes (None = whole) is split.

    Raises:
        KeyError: for an axis that the table lacks.
        UserError: if two of its dimensions would be split over the same mesh axis.
    """
    table = dict(rules)
    parts = [() if name is None else table[name] for name in axes]
    used = [axis for part in parts for axis in part]
    for axis in used:
        if used.count(axis) > 1:
            both = [name for name, part in zip(axes, parts, strict=True) if axis in part]
            raise UserError(
                f"mesh.rules: {' and '.join(map(str, both))} of one array would both be split over {axis}; "
                "give one of them other mesh axes"
            )
    return PartitionSpec(*(part[0] if len(part) == 1 else part or None for part in parts))
