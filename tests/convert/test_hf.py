"""Hugging Face directories in and out, of an encoder; other architectures are compared with transformers itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from vlm_jax.convert import load_hf, save_hf
from vlm_jax.convert.families import FAMILIES
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.vit import ConvStem, ViTConfig
from vlm_jax.parallel import abstract_params

CONFIG = ConvNeXtConfig(image_size=(32, 32), depths=(2, 1), widths=(6, 10))


def random_params(config: Any, dtype: str = "float32") -> Any:
    rng = np.random.default_rng(0)
    shapes = abstract_params(boxed_params(build_model(config)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.dtype(dtype)), shapes)


def assert_equal_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_hf(CONFIG, random_params(CONFIG), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 2000])
def test_import_of_an_export_is_the_same_bit_for_bit(tmp_path: Path, dtype: str, shard_bytes: int) -> None:
    params = random_params(CONFIG, dtype)
    save_hf(CONFIG, params, tmp_path / "a", shard_bytes=shard_bytes)
    config, loaded = load_hf(tmp_path / "a")
    assert config == CONFIG
    assert_equal_bits(loaded, params)
    save_hf(config, loaded, tmp_path / "b", shard_bytes=shard_bytes)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    assert (shard_bytes == 2000) == (tmp_path / "a" / "model.safetensors.index.json").exists()


def test_what_is_written_is_read_by_the_reference_library(directory: Path) -> None:
    with safe_open(directory / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert "encoder.stages.0.layers.1.dwconv.weight" in set(file.keys())
    hf = json.loads((directory / "config.json").read_text())
    assert hf["model_type"] == "convnext"
    assert hf["dtype"] == "float32"


def test_shards_keep_to_their_size_and_the_index_knows_them(tmp_path: Path) -> None:
    save_hf(CONFIG, random_params(CONFIG), tmp_path / "m", shard_bytes=2000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    seen = {}
    for file in sorted((tmp_path / "m").glob("*.safetensors")):
        with safe_open(file, "np") as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
        assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= 2000
        seen |= dict.fromkeys(tensors, file.name)
    assert index["weight_map"] == seen


def test_a_dtype_can_be_chosen(directory: Path) -> None:
    _, params = load_hf(directory, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_pictures_are_normalised_as_the_image_processor_says(directory: Path) -> None:
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    assert load_hf(directory)[0] == dataclasses.replace(CONFIG, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    (directory / "preprocessor_config.json").write_text(json.dumps({**processor, "image_mean": 0.5}))
    with pytest.raises(UserError, match="three numbers"):
        load_hf(directory)


def test_an_unknown_architecture_is_named_beside_those_that_are_known(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "perceiver"}')
    with pytest.raises(UserError, match=r"'perceiver'.*clip_vision_model, convnext"):
        load_hf(directory)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no config.json"),
        ("{", "not readable as JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "model_type is None"),
        ('{"model_type": {}}', "model_type is {}"),
        ('{"model_type": "convnext", "depths": "deep"}', "config.json"),
        ('{"model_type": "convnext", "depths": [2, 1], "hidden_sizes": [6, "10"]}', r"widths\.1 is '10'"),
        ('{"model_type": "convnext", "depths": [2, 1], "hidden_sizes": [6, -10]}', "config.json cannot be used"),
        ('{"model_type": "convnext", "depths": [2], "hidden_sizes": [6, 10]}', "config.json cannot be used"),
        ("[" * 100_000, "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
    ],
)
def test_a_config_that_cannot_be_used(directory: Path, content: Any, said: str) -> None:
    file = directory / "config.json"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said) as error:
        load_hf(directory)
    assert "\n" not in str(error.value)


def test_another_model_s_weights_are_listed(directory: Path) -> None:
    hf = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**hf, "hidden_sizes": [6, 12]}))
    with pytest.raises(UserError, match=r"of another shape \(.*\[10\] for \[12\]"):
        load_hf(directory)


def test_what_no_architecture_has_cannot_be_exported(tmp_path: Path) -> None:
    config = ViTConfig(image_size=(32, 32), stem=ConvStem(), width=8, layers=1, heads=2, mlp_width=8)
    with pytest.raises(UserError, match="ViTConfig cannot be written in Hugging Face format: ") as error:
        save_hf(config, random_params(config), tmp_path / "m")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_something_is_left_alone(directory: Path) -> None:
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    with pytest.raises(UserError, match="is there already"):
        save_hf(CONFIG, random_params(CONFIG), directory)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        save_hf(CONFIG, random_params(CONFIG), tmp_path / "m", progress=full)
    assert list(tmp_path.iterdir()) == []


def test_every_family_is_whole() -> None:
    for kind, family in FAMILIES.items():
        assert kind in family.MODEL_TYPES
        for name in ("RENAMED", "DROPPED", "read_config", "rows", "write_config"):
            assert hasattr(family, name), (kind, name)
