"""Forms are exact inverses; tables of layers and of parts have the names that they should."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.convert.names import Form, Linear, Part, Reshape, Row, Same, Transpose, per_layer, prefixed

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple)


@st.composite
def forms(draw: Any) -> tuple[Form, tuple[int, ...]]:
    """A form, and a shape of our side that suits it."""
    kind = draw(st.sampled_from(["same", "linear", "reshape", "transpose"]))
    if kind == "same":
        return Same(), draw(sizes)
    if kind == "linear":
        inputs, outputs = draw(sizes), draw(sizes)
        return Linear(inputs, outputs), (*inputs, *outputs)
    if kind == "reshape":
        shape = draw(sizes)
        return Reshape((1, int(np.prod(shape))), shape), shape
    order = draw(st.permutations(range(4)))
    return Transpose(tuple(order)), tuple(draw(st.lists(st.integers(1, 4), min_size=4, max_size=4)))


@given(forms(), st.sampled_from([np.float32, np.float16, np.uint16]))
def test_forms_are_inverses_of_each_other_bit_for_bit(form: tuple[Form, tuple[int, ...]], dtype: Any) -> None:
    there, shape = form
    bits = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    ours = bits.view(dtype) if np.dtype(dtype).itemsize == 2 else bits.astype(dtype)
    theirs = there.to_theirs(ours)
    assert theirs.shape == there.their_shape(shape)
    back = there.to_ours(theirs)
    assert back.shape == shape
    assert back.tobytes() == ours.tobytes()


def test_a_linear_map_gives_the_same_output_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 4)).astype(np.float32)  # torch: y = x Wᵀ, two heads of three
    x = rng.standard_normal((5, 4)).astype(np.float32)
    kernel = Linear((4,), (2, 3)).to_ours(weight)
    np.testing.assert_allclose(np.einsum("bd,dhk->bhk", x, kernel), (x @ weight.T).reshape(5, 2, 3), rtol=1e-5)
    merged = rng.standard_normal((4, 6)).astype(np.float32)
    out = Linear((2, 3), (4,)).to_ours(merged)
    heads = rng.standard_normal((5, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(np.einsum("bhk,hkd->bd", heads, out), heads.reshape(5, 6) @ merged.T, rtol=1e-5)


def test_a_layer_is_a_block_of_the_pattern_at_an_index_of_the_stack() -> None:
    table = [Row("model.layers.{layer}.w", "layers/block_{block}/w", Transpose((1, 0)))]
    rows = per_layer(table, layers=4, pattern=2)
    assert [(row.theirs, row.ours, row.index) for row in rows] == [
        ("model.layers.0.w", "layers/block_0/w", 0),
        ("model.layers.1.w", "layers/block_1/w", 0),
        ("model.layers.2.w", "layers/block_0/w", 1),
        ("model.layers.3.w", "layers/block_1/w", 1),
    ]
    assert {row.form for row in rows} == {Transpose((1, 0))}


def test_a_part_of_a_model_gets_a_prefix_on_each_side() -> None:
    rows = prefixed([Row("norm.weight", "norm/scale", index=2)], "model.vision.", "encoder/")
    assert rows == [Row("model.vision.norm.weight", "encoder/norm/scale", index=2)]


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_tile_their_tensor(axis: int) -> None:
    array = np.arange(12).reshape(4, 3)
    size = array.shape[axis]
    parts = [Part(axis, 0, 1).of(array), Part(axis, 1, size).of(array)]
    np.testing.assert_array_equal(np.concatenate(parts, axis), array)
