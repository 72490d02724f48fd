"""Cached features change no bit of what is trained, and a cache is there whole or not at all."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.images import Augmentation
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.checkpoints import initialise_missing
from vlm_jax.config import FeatureCache, load_experiment
from vlm_jax.errors import UserError
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vlm import VLM, VLMConfig
from vlm_jax.optim import Rule
from vlm_jax.parallel import MeshConfig, build_layout, use_layout
from vlm_jax.pictures import Tiling
from vlm_jax.training import features as training_features
from vlm_jax.training import recipe
from vlm_jax.training.features import FrozenEncoder
from vlm_jax.training.recipe import train

TINY = Path(__file__).with_name("tiny_experiment.py")
LIMIT_S = 120


@pytest.fixture(autouse=True)
def real_compilation(quick_compilation):
    """Bits are compared as users get them: with what the compiler fuses and reorders."""
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def frozen():
    """The tiny experiment's second stage, whose encoder is frozen, for four steps."""
    tiny = load_experiment(str(TINY))
    stage = tiny.stages[1]
    stage = dataclasses.replace(stage, steps=4, data=dataclasses.replace(stage.data, length=320))
    return dataclasses.replace(tiny, stages=(stage,), tokenizer=SentencePieceConfig(300))


def caching(experiment, cache=True, **changes):
    stages = tuple(dataclasses.replace(stage, cache_features=cache) for stage in experiment.stages)
    return dataclasses.replace(experiment, stages=stages, **changes)


def steps_of(workdir):
    return {path.relative_to(workdir): path for path in workdir.glob("checkpoints/*/*")}


def assert_same_run(a, b):
    assert steps_of(a).keys() == steps_of(b).keys() != set()
    for step, path in steps_of(a).items():
        for name in ("checksums.json", "data.json"):
            theirs = (steps_of(b)[step] / "files" / name).read_bytes()
            if name == "checksums.json":
                assert without_config(theirs) == without_config((path / "files" / name).read_bytes())
            else:
                assert theirs == (path / "files" / name).read_bytes()
    assert measured(a) == measured(b)


def without_config(sums):
    return {name: value for name, value in json.loads(sums).items() if name not in ("", "files/config.json")}


def measured(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timings = ("seconds", "tokens_per_second", "images_per_second", "model_flops_per_second", "goodput", "spent")
    timings += ("model_flops",)  # the encoder's are no part of a step that is given its features
    return [{key: value for key, value in line.items() if key not in timings} for line in lines]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parameters_optimiser_data_and_metrics_are_those_of_a_run_without_a_cache(frozen, tmp_path, seed):
    experiment = dataclasses.replace(frozen, seed=seed)
    train(experiment, tmp_path / "plain")
    train(caching(experiment), tmp_path / "cached")
    assert_same_run(tmp_path / "plain", tmp_path / "cached")
    assert len(list((tmp_path / "cached").glob("features/*/0000/features.bin"))) == 1
    assert not (tmp_path / "plain" / "features").exists()


def test_a_run_may_go_on_with_and_without_the_cache(frozen, tmp_path):
    """What went on after two steps with the other setting ends as one that nobody stopped."""
    train(frozen, tmp_path / "straight")
    workdir = Path(shutil.copytree(tmp_path / "straight", tmp_path / "other"))
    shutil.rmtree(workdir / "checkpoints" / "instruct" / "4")
    train(caching(frozen), workdir)
    assert list(workdir.glob("features/*/0000"))
    assert_same_run(tmp_path / "straight", workdir)


@pytest.fixture
def no_steps(monkeypatch):
    """Everything but the steps themselves."""
    monkeypatch.setattr(recipe, "run_stage", lambda state, *rest, **more: state)


@pytest.mark.usefixtures("no_steps")
def test_a_picture_is_encoded_once_for_all_stages_with_the_same_encoder(frozen, tmp_path, monkeypatch):
    (stage,) = frozen.stages
    again = dataclasses.replace(stage, name="again", data=dataclasses.replace(stage.data, rows=4, images=1))
    encoded = []
    encode_all = training_features._encode_all

    def counted(missing, *rest):
        encoded.append(len(missing))
        return encode_all(missing, *rest)

    monkeypatch.setattr(training_features, "_encode_all", counted)
    train(caching(dataclasses.replace(frozen, stages=(stage, again))), tmp_path)
    assert len(encoded) == 1
    assert encoded[0] > 30


def test_features_of_a_picture_do_not_depend_on_the_batch(frozen):
    """Another place, other neighbours, another shape of batch: the same bits."""
    model, layout = VLM(frozen.model), build_layout(MeshConfig())
    pictures = np.random.default_rng(0).integers(0, 256, (12, *frozen.model.image_size, 3), np.uint8)
    with use_layout(layout):
        encoder = {"encoder": initialise_missing(model, layout, 0)["encoder"]}
        frozen_encoder, known = FrozenEncoder(model, layout), {}
        for rows, slots, start in ((1, 1, 3), (2, 3, 0), (2, 3, 4), (12, 1, 0), (4, 3, 7)):
            chosen = (np.arange(rows * slots) + start) % len(pictures)
            images = pictures[chosen].reshape(rows, slots, *pictures.shape[1:])
            features = frozen_encoder.encode(encoder, images, np.ones((rows, slots), np.int32))
            for number, found in zip(chosen, np.asarray(features).reshape(rows * slots, -1), strict=True):
                np.testing.assert_array_equal(known.setdefault(number, found), found)


def test_unused_slots_hold_zeros(frozen):
    model, layout = VLM(frozen.model), build_layout(MeshConfig())
    with use_layout(layout):
        encoder = {"encoder": initialise_missing(model, layout, 0)["encoder"]}
        images = np.full((1, 2, *frozen.model.image_size, 3), 7, np.uint8)
        features = np.asarray(FrozenEncoder(model, layout).encode(encoder, images, np.array([[1, 0]])))
    assert features[0, 0].any()
    assert not features[0, 1].any()


def test_tiles_are_kept_slot_by_slot_and_change_no_bit(frozen, tmp_path):
    (stage,) = frozen.stages
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, images=8))
    tiling = Tiling(grids=((1, 1), (1, 2), (2, 2)), choose="area", fit="centre", separator=True)
    model = dataclasses.replace(frozen.model, tiling=tiling)
    experiment = dataclasses.replace(frozen, model=model, stages=(stage,))
    train(experiment, tmp_path / "plain")
    train(caching(experiment), tmp_path / "cached")
    assert_same_run(tmp_path / "plain", tmp_path / "cached")
    (index,) = (tmp_path / "cached").glob("features/*/0000/index.json")
    kept = [line.split()[0] for line in json.loads(index.read_text())["pictures"]]
    assert len(kept) == len(set(kept)) > 100
    assert {name.partition(".")[2] for name in kept} == {"0", "1", "2", "3", "4"}


def test_tiles_that_see_each_other_are_encoded_together(frozen):
    encoder = TileViTConfig((8, 8), 4, ((1, 1), (1, 2), (2, 1)), 2, 16, 1, 1, 2, 32, (0,))
    tiling = Tiling(encoder.grids, choose="canvas", fit="pad", thumbnail="none", slots=2)
    config = VLMConfig(frozen.model.decoder, encoder, MLPAdapterConfig(layers=1), tiling)
    model, layout = VLM(config), build_layout(MeshConfig())
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    tiles = np.array([[[1, 1, 2], [2, 1, 2], [0, 1, 1], [2, 1, 1]], [[1, 2, 1], [2, 2, 1], [0, 0, 0], [0, 0, 0]]])
    ids = np.array([[1, 1, 2, 2], [1, 1, 0, 0]])
    with use_layout(layout):
        params = {"encoder": initialise_missing(model, layout, 0)["encoder"]}
        frozen_encoder = FrozenEncoder(model, layout)
        features = np.asarray(frozen_encoder.encode(params, images, ids, tiles))
        encode = jax.jit(functools.partial(model.apply, method="encode"))
        whole = encode({"params": params}, images.reshape(8, 8, 8, 3), tiles.reshape(8, 3))
        other = images.copy()
        other[0, 1] = 255 - other[0, 1]
        changed = np.asarray(frozen_encoder.encode(params, other, ids, tiles))
    np.testing.assert_allclose(features[:, :2], np.asarray(whole).reshape(features.shape)[:, :2], rtol=1e-5, atol=1e-5)
    assert not features[1, 2:].any()
    assert np.abs(changed[0, 0] - features[0, 0]).max() > 1e-4
    np.testing.assert_array_equal(changed[0, 2:], features[0, 2:])


@pytest.mark.usefixtures("no_steps")
def test_what_features_depend_on_gets_a_cache_of_its_own(frozen, tmp_path):
    cache = FeatureCache(directory=str(tmp_path / "shared"))
    one = caching(frozen, feature_cache=cache)
    squash = dataclasses.replace(one, images=dataclasses.replace(one.images, interpolation="area"))
    for number, experiment in enumerate((one, one, dataclasses.replace(one, seed=5), squash)):
        train(experiment, tmp_path / str(number))
    assert len(list((tmp_path / "shared").iterdir())) == 3


def test_an_augmented_entry_is_refused_by_name(frozen):
    (stage,) = frozen.stages
    entry = dataclasses.replace(stage.data.mixture[0], augmentation=Augmentation(flip=True))
    with pytest.raises(UserError, match=r"stage instruct: features of 'english' cannot be cached, .* augmented"):
        dataclasses.replace(stage, cache_features=True, data=dataclasses.replace(stage.data, mixture=(entry,)))


def test_an_encoder_that_trains_is_refused_before_anything_is_trained(frozen, tmp_path):
    (stage,) = frozen.stages
    for table in ((Rule(".*"),), (Rule("^encoder/stem", rate=0), Rule(".*"))):
        optimizer = dataclasses.replace(stage.optimizer, table=table)
        trained = dataclasses.replace(frozen, stages=(dataclasses.replace(stage, optimizer=optimizer),))
        with pytest.raises(UserError, match=r"features of 'english' cannot be cached, since encoder/\S+ trains"):
            train(caching(trained), tmp_path)
    assert not (tmp_path / "features").exists()


def test_a_stage_without_pictures_is_refused(frozen):
    (stage,) = frozen.stages
    with pytest.raises(UserError, match=r"'english' cannot be cached, since its rows hold no pictures"):
        dataclasses.replace(stage, cache_features=True, data=dataclasses.replace(stage.data, images=0))


def test_the_size_is_bounded_before_anything_is_encoded(frozen, tmp_path):
    small = FeatureCache(gigabytes=1e-6)
    with pytest.raises(UserError, match=r"features of \d+ pictures take 0\.00 GB, feature_cache\.gigabytes allows"):
        train(caching(frozen, feature_cache=small), tmp_path)
    assert not (tmp_path / "features").exists()


KILLED = """
import dataclasses
from data_pipelines.sources import EasyVQA
from data_pipelines.tokenizers import SentencePieceConfig
from vlm_jax.config import load_experiment
def experiment():
    tiny = load_experiment({tiny!r})
    stage = tiny.stages[1]
    (entry,) = stage.data.mixture
    entry = dataclasses.replace(entry, source=EasyVQA(pictures="described", name="english"))
    data = dataclasses.replace(stage.data, mixture=(entry,))
    stage = dataclasses.replace(stage, steps=2, data=data, validation=None, cache_features={cache})
    return dataclasses.replace(tiny, stages=(stage,), tokenizer=SentencePieceConfig(300))
"""


def start(directory, workdir, cache):
    file = directory / f"experiment_{cache}.py"
    file.write_text(KILLED.format(tiny=str(TINY), cache=cache))
    command = [sys.executable, "-m", "vlm_jax.cli", "train", str(file), "--workdir", str(workdir)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def test_a_kill_while_the_cache_is_written_leaves_none_and_the_next_run_ends_as_ever(tmp_path):
    workdir = tmp_path / "killed"
    process = start(tmp_path, workdir, True)
    end = time.monotonic() + LIMIT_S
    while not any(path.stat().st_size for path in workdir.glob("features/*/0000.partial/features.bin")):
        assert process.poll() is None, Path(f"{workdir}.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(LIMIT_S) == -signal.SIGKILL
    assert not list(workdir.glob("features/*/0000"))
    assert start(tmp_path, workdir, True).wait(LIMIT_S) == 0, Path(f"{workdir}.log").read_text()
    assert [path.name for path in workdir.glob("features/*/*")] == ["0000"]
    plain = tmp_path / "plain"
    assert start(tmp_path, plain, False).wait(LIMIT_S) == 0, Path(f"{plain}.log").read_text()
    assert_same_run(plain, workdir)
