"""Sharded equals unsharded: draw, losses, parameters and checksums on any mesh; and checkpoints move between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from eight_devices import run
from flax import traverse_util

from vlm_jax.checkpoints import CheckpointManager
from vlm_jax.parallel import MeshConfig

MESHES = ("8x1x1", "1x8x1", "1x4x2")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """What eight devices made of it, on each of the meshes."""
    out = tmp_path_factory.mktemp("eight")
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    program = Path(__file__).with_name("eight_devices.py")
    sizes = [size for mesh in MESHES for size in mesh.split("x")]
    command = [sys.executable, str(program), str(out), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def alone():
    """What one device makes of it: (numbers, state)."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield run(MeshConfig())
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=MESHES)
def sharded(request, directory):
    """(mesh, numbers) of eight devices."""
    return request.param, json.loads((directory / f"{request.param}.json").read_text())


def test_parameters_are_drawn_alike(sharded, alone):
    _, out = sharded
    assert out["drawn"] == alone[0]["drawn"]


def test_losses_and_parameters_are_those_of_one_device(sharded, alone, directory):
    mesh, out = sharded
    np.testing.assert_allclose(out["losses"], alone[0]["losses"], rtol=1e-5)
    expected = traverse_util.flatten_dict(alone[1].params, sep="/")
    with np.load(directory / f"{mesh}.npz") as found:
        assert set(found) == set(expected)
        for name, leaf in expected.items():
            np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=2e-6, err_msg=name)


def test_checksums_of_sharded_arrays_are_those_of_the_same_numbers_on_one_device(sharded, directory):
    from vlm_jax.checkpoints.checksums import tree_checksums

    mesh, out = sharded
    with np.load(directory / f"{mesh}.npz") as found:
        whole = traverse_util.unflatten_dict({name: jax.numpy.asarray(found[name]) for name in found}, sep="/")
    assert tree_checksums(whole) == out["checksums"]


def sizes_of(mesh):
    return dict(zip(("data", "fsdp", "tensor"), map(int, mesh.split("x")), strict=True))


def test_parameters_and_moments_are_really_sharded(sharded):
    mesh, out = sharded
    sizes = sizes_of(mesh)
    cut = {name: np.prod(out["whole"][name]) // np.prod(out["shard"][name]) for name in out["whole"]}
    kernels = {name: share for name, share in cut.items() if "decoder/layers" in name and name.endswith("kernel")}
    assert kernels
    assert set(kernels.values()) == {sizes["fsdp"] * sizes["tensor"]}
    assert cut["decoder/embedding"] == sizes["fsdp"] * sizes["tensor"]
    assert out["abstract_agrees"]
    for path, shape in out["moment_shards"].items():
        name = path.split("']['", 1)[0] if "['" in path else ""
        if not name:
            continue
        parameter = path[path.index("['") + 2 : -2].replace("']['", "/")
        assert shape == out["shard"][parameter], path


def test_a_checkpoint_of_eight_devices_is_restored_and_verified_on_one(sharded, directory, alone):
    mesh, _ = sharded
    state = alone[1]
    shapes = [
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
        for tree in (state.params, state.optimizer)
    ]
    manager = CheckpointManager(directory / mesh)
    snapshot = manager.restore(1, *shapes)
    manager.close()
    with np.load(directory / f"{mesh}.npz") as expected:
        for name, leaf in traverse_util.flatten_dict(snapshot.params, sep="/").items():
            np.testing.assert_array_equal(leaf, expected[name])
