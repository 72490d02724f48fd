"""A run whose optimiser's moments lie on the host: the same as one where they do not, and it resumes bit for bit."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from vlm_jax.checkpoints import CheckpointManager
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.config import LossPolicy, load_experiment
from vlm_jax.errors import UserError
from vlm_jax.parallel import build_layout, use_layout
from vlm_jax.training.program import build_program
from vlm_jax.training.recipe import train
from vlm_jax.training.starts import restore_state

TINY = Path(__file__).with_name("tiny_experiment.py")


def experiment(offload):
    tiny = load_experiment(str(TINY))
    stage = dataclasses.replace(tiny.stages[0], steps=4, offload_optimizer=offload)
    return dataclasses.replace(
        tiny, stages=(stage,), checkpoints=dataclasses.replace(tiny.checkpoints, every=2, keep_last=4)
    )


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("offloaded") / "run"
    train(experiment(True), workdir)
    return workdir


def state_of(workdir, offload):
    made = experiment(offload)
    program = build_program(made, 0, build_layout(made.mesh))
    manager = CheckpointManager(workdir / "checkpoints" / "captions", 4, 0)
    try:
        with use_layout(program.layout):
            return restore_state(manager, program)[0]
    finally:
        manager.close()


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(offloaded, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(offloaded, again)
    shutil.rmtree(again / "checkpoints" / "captions" / "4")
    train(experiment(True), again)
    assert (again / "checkpoints" / "captions" / "4").exists()
    straight, resumed = state_of(offloaded, True), state_of(again, True)
    assert equal(straight.trained, resumed.trained)
    assert equal(straight.optimizer, resumed.optimizer)


def test_moments_come_back_to_where_they_lie(offloaded):
    for offload, kind in ((True, "pinned_host"), (False, "device")):
        state = state_of(offloaded, offload)
        assert {x.sharding.memory_kind for x in jax.tree.leaves(state.optimizer) if x.ndim} == {kind}
        assert {x.sharding.memory_kind for x in jax.tree.leaves(state.trained)} == {"device"}


def test_a_run_may_be_resumed_with_moments_elsewhere(offloaded, tmp_path):
    """The setting changes no number, so it may change."""
    again = tmp_path / "run"
    shutil.copytree(offloaded, again)
    shutil.rmtree(again / "checkpoints" / "captions" / "4")
    train(experiment(False), again)
    here, there = (load_model(str(path)).params for path in (again, offloaded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), here, there)
    assert json.loads((again / "config.json").read_text())["stages"][0]["offload_optimizer"] is False


def test_a_step_that_may_be_undone_needs_the_old_moments():
    with pytest.raises(UserError, match="stage captions: offload-optimizer cannot go with a loss-policy that skips"):
        dataclasses.replace(experiment(True), loss_policy=LossPolicy(nonfinite="skip"))
