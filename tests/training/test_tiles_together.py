"""A whole run of a model of Llama 3.2 Vision's kind: tiles through the loader, the step, the checkpoint, to scores."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines.examples import Example, Image, Text
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.generation import Engine
from vlm_jax.models.adapters import CrossAttentionConfig, MLPAdapterConfig
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.pictures import Tiling
from vlm_jax.training.recipe import train

TINY = Path(__file__).with_name("tiny_experiment.py")


def tiled(images=8):
    """The tiny experiment with an encoder of up to four tiles of 32 x 32; its pictures of 64 x 64 fill them all."""
    tiny = load_experiment(str(TINY))
    grids = ((1, 1), (1, 2), (2, 2))
    encoder = TileViTConfig((32, 32), 16, grids, 4, 16, 2, 1, 2, 32, (0,))
    model = dataclasses.replace(
        tiny.model,
        encoder=encoder,
        adapter=CrossAttentionConfig("llama", layers=(1, 2), memory=MLPAdapterConfig(layers=1)),
        tiling=Tiling(grids, choose="canvas", fit="pad", thumbnail="none", slots=4),
    )
    stage = tiny.stages[0]
    stage = dataclasses.replace(stage, steps=4, data=dataclasses.replace(stage.data, rows=4, images=images))
    return dataclasses.replace(tiny, model=model, stages=(stage,), log_every=1)


def test_a_run_with_tiles(tmp_path):
    train(tiled(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 4
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    loaded = load_model(str(tmp_path))
    blocks, encoder = loaded.params["adapter"]["blocks"], loaded.params["encoder"]
    # They begin at 0, and pictures are read from the second step on.
    assert all(np.abs(np.asarray(blocks[name])).min() > 0 for name in ("attention_gate", "mlp_gate"))
    assert np.abs(np.asarray(encoder["positions_gate"])).min() > 0
    engine = Engine(loaded.config, loaded.params, loaded.processor)
    prompts = [Example((Image(data=picture(size)), Text("what shape?", role="user"))) for size in ((64, 64), (20, 60))]
    assert [engine.render(prompt).cuts[0].grid for prompt in prompts] == [(2, 2), (1, 2)]
    likely = engine.score(prompts, [["circle"], ["circle"]])
    assert all(np.isfinite(scores[0].log_likelihood) for scores in likely)
    assert likely[0] != likely[1]


def picture(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_rows_hold_whole_pictures():
    with pytest.raises(UserError, match=r"captions: data\.images is 6, but the encoder takes 4 image slots"):
        tiled(images=6)
