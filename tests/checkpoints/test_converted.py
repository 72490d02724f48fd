"""A converted model is a step directory like any other, but for what only training leaves."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from data_pipelines.template import load_processor
from vlm_jax.checkpoints import initialise_missing
from vlm_jax.checkpoints.converted import save_converted
from vlm_jax.checkpoints.files import read_files
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import build_model
from vlm_jax.models.vit import PatchStem, ViTConfig


@pytest.fixture
def converted(tiny: Any, saved: Path, tmp_path: Path) -> Path:
    where = tmp_path / "new" / "model"
    save_converted(where, tiny.model.config, tiny.params, read_files(saved / "processor"))
    return where


def test_it_is_loaded_as_it_was_saved(tiny: Any, saved: Path, converted: Path) -> None:
    model = load_model(str(converted))
    assert model.config == tiny.model.config
    assert model.experiment is None
    assert model.processor.tokenizer.vocabulary_size == load_processor(saved / "processor").tokenizer.vocabulary_size
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("differs"), model.params, tiny.params)


def test_its_config_is_that_of_the_model(converted: Path) -> None:
    assert json.loads((converted / "files" / "config.json").read_text())["type"] == "VLMConfig"


def test_damage_is_noticed(converted: Path) -> None:
    config = converted / "files" / "config.json"
    config.write_text(config.read_text().replace("1", "2", 1))
    with pytest.raises(UserError, match=r"damaged checkpoint .*config\.json differs"):
        load_model(str(converted))


def test_nothing_is_overwritten(tiny: Any, converted: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        save_converted(converted, tiny.model.config, tiny.params, {})


def test_an_encoder_by_itself_answers_nothing(tiny: Any, tmp_path: Path) -> None:
    config = ViTConfig(image_size=(8, 8), stem=PatchStem(4), width=8, layers=1, heads=2, mlp_width=8)
    save_converted(tmp_path / "encoder", config, initialise_missing(build_model(config), tiny.layout, 0), {})
    with pytest.raises(UserError, match=r"a part by itself \(ViTConfig\)"):
        load_model(str(tmp_path / "encoder"))
