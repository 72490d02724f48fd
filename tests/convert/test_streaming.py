"""Tensors become parameters and come back; what does not fit is listed before anything is read."""

import dataclasses
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vlm_jax.convert.names import Linear, Part, Row, Transpose, per_layer
from vlm_jax.convert.streaming import cast_dtypes, load_rows, stored_dtypes
from vlm_jax.convert.tensors import SafetensorsDirectory
from vlm_jax.errors import UserError

LAYERS, WIDTH, HEADS, HEAD = 4, 6, 2, 5

TABLE = [
    Row("embed.weight", "embedding"),
    *per_layer(
        [
            Row("layers.{layer}.q.weight", "layers/block_{block}/query", Linear((WIDTH,), (HEADS, HEAD))),
            Row("layers.{layer}.norm.weight", "layers/block_{block}/norm"),
        ],
        LAYERS,
        pattern=2,
    ),
    Row("both.weight", "first", part=Part(0, 0, 1)),
    Row("both.weight", "rest", Transpose((1, 0)), part=Part(0, 1, 4)),
]

SHAPES = {
    "embedding": (9, WIDTH),
    "layers": {f"block_{b}": {"query": (2, WIDTH, HEADS, HEAD), "norm": (2, WIDTH)} for b in range(2)},
    "first": (1, 3),
    "rest": (3, 3),
}


def abstract(dtype: str = "float32") -> Any:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def tensors(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (9, WIDTH), "both.weight": (4, 3)}
    for layer in range(LAYERS):
        shapes |= {f"layers.{layer}.q.weight": (HEADS * HEAD, WIDTH), f"layers.{layer}.norm.weight": (WIDTH,)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("shards", [1, 3])
def test_every_layer_gets_its_tensor(write_tensors: Any, shards: int) -> None:
    given = tensors()
    params = load_rows(TABLE, SafetensorsDirectory(write_tensors(given, shards)), abstract())
    assert jax.tree.map(lambda x: x.shape, params) == SHAPES
    np.testing.assert_array_equal(params["embedding"], given["embed.weight"])
    for layer in range(LAYERS):
        block = params["layers"][f"block_{layer % 2}"]
        theirs = given[f"layers.{layer}.q.weight"]
        np.testing.assert_array_equal(block["query"][layer // 2].reshape(WIDTH, -1).T, theirs)
        np.testing.assert_array_equal(block["norm"][layer // 2], given[f"layers.{layer}.norm.weight"])
    np.testing.assert_array_equal(params["first"], given["both.weight"][:1])
    np.testing.assert_array_equal(params["rest"].T, given["both.weight"][1:])


@pytest.mark.parametrize(
    ("stored", "kept"), [(np.float32, "float32"), (np.float16, "float32"), (ml_dtypes.bfloat16, "bfloat16")]
)
def test_dtypes_as_stored(write_tensors: Any, stored: Any, kept: str) -> None:
    source = SafetensorsDirectory(write_tensors(tensors(stored)))
    params = load_rows(TABLE, source, stored_dtypes(TABLE, source, abstract()))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {kept}
    np.testing.assert_array_equal(
        np.asarray(params["embedding"], np.float64), tensors(stored)["embed.weight"].astype(np.float64)
    )


def test_a_cast_rounds_to_nearest(write_tensors: Any) -> None:
    params = load_rows(TABLE, SafetensorsDirectory(write_tensors(tensors())), cast_dtypes(abstract(), "bfloat16"))
    np.testing.assert_array_equal(params["embedding"], jnp.asarray(tensors()["embed.weight"]).astype(jnp.bfloat16))


def test_progress_ends_at_all_bytes(write_tensors: Any) -> None:
    seen: list[tuple[int, int]] = []
    load_rows(TABLE, SafetensorsDirectory(write_tensors(tensors())), abstract(), (), lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("stored", "kept"), [(np.float32, "float32"), (ml_dtypes.bfloat16, "float32"), (np.float32, "bfloat16")]
)
def test_no_more_than_one_tensor_is_held_beside_the_parameters(write_tensors: Any, stored: Any, kept: str) -> None:
    layers, size = 16, 128
    rows = per_layer([Row("l.{layer}.w", "w", Transpose((1, 0))), Row("l.{layer}.v", "v")], layers)
    given = {row.theirs: np.ones((size, size), stored) for row in rows}
    wanted = {name: jax.ShapeDtypeStruct((layers, size, size), jnp.dtype(kept)) for name in ("w", "v")}
    source = SafetensorsDirectory(write_tensors(given))
    load_rows(rows, source, wanted)  # what is made once only (caches, compilation) is not what is measured
    tracemalloc.start()
    params = load_rows(rows, source, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1.2 * sum(leaf.nbytes for leaf in params.values())


def test_all_that_does_not_fit_is_listed_at_once(write_tensors: Any) -> None:
    given = tensors()
    del given["layers.3.norm.weight"]
    given |= {"stranger": np.zeros(3, np.float32), "embed.weight": np.zeros((9, 7), np.float32)}
    given |= {"rotary.inv_freq": np.zeros(3, np.float32), "both.weight": np.zeros((4, 3), np.int8)}
    with pytest.raises(UserError) as error:
        load_rows(TABLE, SafetensorsDirectory(write_tensors(given)), abstract(), [r"rotary\."])
    text = str(error.value)
    assert "1 missing (layers.3.norm.weight)" in text
    assert "1 not expected (stranger)" in text
    assert "1 of another shape (embed.weight [9, 7] for [9, 6])" in text
    assert "1 not of floating point (both.weight int8)" in text
    assert "inv_freq" not in text
    assert "\n" not in text


def test_long_lists_are_cut(write_tensors: Any) -> None:
    given = tensors() | {f"extra.{i:02}": np.zeros(1, np.float32) for i in range(13)}
    with pytest.raises(UserError, match=r"13 not expected \(extra.00, .*extra.09, and 3 more\)"):
        load_rows(TABLE, SafetensorsDirectory(write_tensors(given)), abstract())


def test_a_table_that_does_not_fit_the_model_is_a_fault(write_tensors: Any) -> None:
    source = SafetensorsDirectory(write_tensors(tensors()))
    with pytest.raises(ValueError, match="layers/block_1/norm"):
        load_rows([row for row in TABLE if row.theirs != "layers.3.norm.weight"], source, abstract())
    stray = dataclasses.replace(TABLE[0], ours="nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        load_rows([*TABLE, stray], source, abstract())
