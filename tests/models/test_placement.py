"""Where activations are placed: by rules, and over fewer devices where a number does not divide."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh

from vlm_jax.models.placement import axes_sharing, constrain

RULES = (("batch", ("data", "fsdp")), ("pictures", ("data", "fsdp", "sequence", "tensor")), ("act_embed", None))


@pytest.fixture
def mesh():
    """Two devices along fsdp, four along sequence, three along tensor."""
    sizes, names = (1, 2, 4, 3), ("data", "fsdp", "sequence", "tensor")
    absent = AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * 4)
    with use_abstract_mesh(absent), nn.logical_axis_rules(RULES):
        yield


@pytest.mark.parametrize(
    ("size", "shared"),
    [
        (24, ("fsdp", "sequence", "tensor")),
        (8, ("fsdp", "sequence")),
        (12, ("fsdp", "tensor")),
        (6, ("fsdp", "tensor")),
        (3, ("tensor",)),
        (1, ()),
    ],
)
def test_a_dimension_is_shared_by_what_divides_it(mesh, size, shared):
    assert tuple(axis for axis in axes_sharing(size, "pictures") if axis != "data") == shared


def constraints(x, axes):
    """Shardings that the trace of `constrain` holds."""
    jaxpr = jax.make_jaxpr(lambda x: constrain(x, axes))(x)
    return [equation.params["sharding"].spec for equation in jaxpr.eqns if "sharding" in equation.params]


def test_an_array_is_placed(mesh):
    (spec,) = constraints(jnp.zeros((8, 5)), ("pictures", "act_embed"))
    assert [axis for axis in spec[0] if axis != "data"] == ["fsdp", "sequence"]
    assert spec[1:] in ((None,), ())


def test_an_axis_without_a_rule_is_an_error(mesh):
    with pytest.raises(ValueError, match="no rule says where the axis 'pictres'"):
        constraints(jnp.zeros((8, 5)), ("pictres", "act_embed"))


def test_without_a_mesh_nothing_happens():
    assert constraints(jnp.zeros((8, 5)), ("pictures", "act_embed")) == []
