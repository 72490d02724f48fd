"""Safetensors are read as the reference library writes them; damaged files are named."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vlm_jax.convert.tensors import Renamed, SafetensorsDirectory, SafetensorsFile
from vlm_jax.errors import UserError

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones((4,), np.float32),
    "c": np.array(3.0, np.float32),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_values_are_those_that_were_written(tmp_path: Path, dtype: Any) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    save_file({"x": array, "empty": np.zeros((0, 3), dtype)}, tmp_path / "f.safetensors")
    file = SafetensorsFile(tmp_path / "f.safetensors")
    assert file.shapes == {"x": (2, 3, 4), "empty": (0, 3)}
    assert file.dtype("x") == np.dtype(dtype).name
    np.testing.assert_array_equal(file.read("x"), array)
    assert file.read("empty").shape == (0, 3)


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_are_one_directory(write_tensors: Any, shards: int) -> None:
    source = SafetensorsDirectory(write_tensors(TENSORS, shards))
    assert set(source.shapes) == set(TENSORS)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(source.read(name), array)


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_a_cut_file_is_named_with_its_size(write_tensors: Any, kept: int) -> None:
    file = write_tensors(TENSORS) / "model.safetensors"
    content = file.read_bytes()[:kept]
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"model.safetensors: .*{len(content)} bytes"):
        SafetensorsDirectory(file.parent)


def test_bytes_after_the_end_are_noticed(write_tensors: Any) -> None:
    file = write_tensors(TENSORS) / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(UserError, match="speaks of"):
        SafetensorsFile(file)


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b"no JSON",
        b'{"x": 3}',
        b'{"x": {"dtype": "F32"}}',
        b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": "ab"}}',
    ],
)
def test_a_broken_header_is_an_error_of_one_line(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(UserError, match=r"model\.safetensors") as error:
        SafetensorsFile(file)
    assert "\n" not in str(error.value)


def test_a_number_format_that_is_not_known_is_named(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(UserError, match="x is stored as F4"):
        SafetensorsFile(file).read("x")


def test_a_missing_shard_is_named(write_tensors: Any) -> None:
    directory = write_tensors(TENSORS, 3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors is missing"):
        SafetensorsDirectory(directory)


def test_an_index_that_names_an_absent_tensor(write_tensors: Any) -> None:
    directory = write_tensors(TENSORS, 2)
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds no ghost"):
        SafetensorsDirectory(directory)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"a": "../elsewhere.safetensors"}}'])
def test_a_damaged_index(write_tensors: Any, content: str) -> None:
    directory = write_tensors(TENSORS, 2)
    (directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index.json: damaged"):
        SafetensorsDirectory(directory)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"pytorch_model.bin, a pickle.* convert it to safetensors"):
        SafetensorsDirectory(tmp_path)


def test_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        SafetensorsDirectory(tmp_path)


def test_older_names_are_read_as_the_present_ones(write_tensors: Any) -> None:
    source = SafetensorsDirectory(write_tensors({"old.layers.0.w": TENSORS["a"], "head": TENSORS["b"]}))
    renamed = Renamed(source, [(r"^old\.", "model."), (r"^model\.layers", "model.blocks")])
    assert renamed.shapes == {"model.blocks.0.w": (2, 3), "head": (4,)}
    np.testing.assert_array_equal(renamed.read("model.blocks.0.w"), TENSORS["a"])
    with pytest.raises(UserError, match="both mean one"):
        Renamed(source, [(r".*", "one")])
