"""The one table from logical axes, by which models name dimensions, to axes of the mesh."""

from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

from vlm_jax.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")
"""Axes of the mesh, outermost first: neighbours along the last are nearest to each other."""

Rules = tuple[tuple[str, tuple[str, ...]], ...]
"""(logical axis, mesh axes that its dimension is split over); () = whole on every device."""

TABLE: Rules = (
    # activations of the decoder
    ("batch", ("data", "fsdp")),
    ("length", ("sequence",)),
    ("key_length", ()),
    ("act_embed", ()),
    ("act_heads", ("tensor",)),
    ("act_mlp", ("tensor",)),
    ("act_vocab", ("tensor",)),
    # of the image encoder and of adapters
    ("pictures", ("data", "fsdp", "sequence", "tensor")),
    ("patches", ()),
    ("act_vision_heads", ()),
    ("act_vision_mlp", ()),
    # parameters
    ("layers", ()),
    ("vocab", ("tensor",)),
    ("embed", ("fsdp",)),
    ("heads", ("tensor",)),
    ("key_value_heads", ("tensor",)),
    ("head_size", ()),
    ("mlp", ("tensor",)),
    ("norm", ()),
    ("vision_embed", ("fsdp",)),
    ("vision_heads", ()),
    ("vision_mlp", ()),
    ("features", ()),
    ("conv_in", ()),
    ("conv_out", ()),
)
"""What is not overridden. Image slots are shared by all devices, each of which has the encoder's weights gathered for
its own; the decoder's rows are shared by data and fsdp, and a row's positions and heads by the others."""

ACTIVATIONS = (
    ("batch", "length", "act_embed"),
    ("batch", "length", "act_mlp"),
    ("batch", "length", "act_vocab"),
    ("batch", "length", "act_heads", "head_size"),
    ("batch", "key_length", "act_embed"),
    ("batch", "key_length", "act_heads", "head_size"),
    ("batch", "length", "key_length"),
    ("pictures", "patches", "act_embed"),
    ("pictures", "patches", "act_vision_mlp"),
    ("pictures", "patches", "act_vision_heads", "head_size"),
    ("pictures", None, "patches", "act_embed"),
    ("pictures", None, None, None),
)
"""Axes that stand together in one activation, so that rules for them are checked before a model is built."""


def resolve_rules(overrides: Mapping[str, Sequence[str]]) -> Rules:
    """The table with some of its lines replaced.

    Args:
        overrides: logical axis -> mesh axes, in place of the table's own line.

    Raises:
        UserError: if one names an axis that there is not, or one array's dimensions would share a mesh axis.
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
    rules = tuple(known.items())
    for together in ACTIVATIONS:
        mesh_axes(rules, together)
    return rules


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
