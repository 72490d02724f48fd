"""Parameters become tensors again: those that they were made from, in files that are whole."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from vlm_jax.convert.names import Linear, Part, Row, Transpose, per_layer
from vlm_jax.convert.streaming import load_rows, stored_dtypes
from vlm_jax.convert.tensors import SafetensorsDirectory
from vlm_jax.convert.writing import new_directory, write_rows
from vlm_jax.errors import UserError

TABLE = [
    Row("embed", "embedding"),
    *per_layer([Row("{layer}.q", "block_{block}/q", Linear((3,), (2, 2)))], layers=4, pattern=2),
    *per_layer(
        [
            Row("{layer}.gate_up", "gate", Transpose((1, 0)), part=Part(0, 0, 2)),
            Row("{layer}.gate_up", "up", Transpose((1, 0)), part=Part(0, 2, 4)),
        ],
        layers=4,
    ),
]
SHAPES = {"embedding": (5, 3), "gate": (4, 3, 2), "up": (4, 3, 2), "block_0": {"q": (2, 3, 2, 2)}}
SHAPES["block_1"] = SHAPES["block_0"]


def params(*dtypes: Any) -> Any:
    """Parameters in the given dtypes by turns."""
    rng, turn = np.random.default_rng(0), iter(range(100))
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtypes[next(turn) % len(dtypes)]),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@pytest.mark.parametrize("dtypes", [(np.float32,), (ml_dtypes.bfloat16,), (ml_dtypes.bfloat16, np.float32)])
@pytest.mark.parametrize("shard_bytes", [10**6, 100, 1])
def test_what_is_written_is_read_back(tmp_path: Path, dtypes: Any, shard_bytes: int) -> None:
    given = params(*dtypes)
    if len(dtypes) == 2:  # parts of one tensor have one dtype
        given["up"] = given["up"].astype(given["gate"].dtype)
    seen: list[tuple[int, int]] = []
    write_rows(TABLE, given, tmp_path, shard_bytes=shard_bytes, progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] == sum(leaf.nbytes for leaf in jax.tree.leaves(given))
    source = SafetensorsDirectory(tmp_path)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given)
    back = load_rows(TABLE, source, stored_dtypes(TABLE, source, abstract))
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(given), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_reference_library_reads_every_file_and_finds_it_aligned(tmp_path: Path) -> None:
    given = params(ml_dtypes.bfloat16, np.float32)
    given["up"] = given["up"].astype(given["gate"].dtype)
    write_rows(TABLE, given, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        names = set(file.keys())
        np.testing.assert_array_equal(file.get_tensor("embed").astype(np.float32), np.asarray(given["embedding"], "f4"))
        both = file.get_tensor("3.gate_up")
    assert names == {row.theirs for row in TABLE}
    np.testing.assert_array_equal(both[:2].T, given["gate"][3])
    np.testing.assert_array_equal(both[2:].T, given["up"][3])
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0


@given(st.integers(1, 400))
def test_no_shard_is_larger_than_asked_unless_one_tensor_is(shard_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_rows(TABLE, params(np.float32), Path(directory), shard_bytes=shard_bytes)
        names = set()
        for path in Path(directory).glob("*.safetensors"):
            with safe_open(path, "np") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= shard_bytes
            assert not names & tensors.keys()
            names |= tensors.keys()
    assert names == {row.theirs for row in TABLE}


def test_a_directory_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with new_directory(target) as partial:
        (partial / "file").write_text("text")
        assert not target.exists()
    assert [file.name for file in target.iterdir()] == ["file"]
    assert [entry.name for entry in target.parent.iterdir()] == ["model"]


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty") as partial:
        (partial / "file").write_text("text")
    assert (tmp_path / "empty" / "file").exists()


def test_what_goes_wrong_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_directory(tmp_path / "model") as partial:
            (partial / "file").write_text("text")
            raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="is there already"), new_directory(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match="cannot be written"), new_directory(tmp_path / "file" / "model"):
        pass
