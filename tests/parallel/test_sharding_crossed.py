"""A cross-attention model on eight devices is what it is on one."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from eight_devices import run
from eight_devices_crossed import crossed, crossed_batch, opened
from flax import traverse_util

from vlm_jax.parallel import MeshConfig


def test_losses_and_parameters_are_those_of_one_device(tmp_path):
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    program = Path(__file__).with_name("eight_devices_crossed.py")
    command = [sys.executable, str(program), str(tmp_path), "2", "2", "2"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        jax.config.update("jax_disable_most_optimizations", True)
        out, state = run(MeshConfig(), model=crossed(), make_batch=crossed_batch, change=opened)
        jax.config.update("jax_disable_most_optimizations", False)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-3000:]
    np.testing.assert_allclose(np.load(tmp_path / "losses.npy"), out["losses"], rtol=1e-5)
    expected = traverse_util.flatten_dict(state.params, sep="/")
    with np.load(tmp_path / "params.npz") as found:
        assert set(found) == set(expected)
        for name, leaf in expected.items():
            np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=2e-6, err_msg=name)
    # The tables split the blocks as the decoder's layers are split.
    assert out["whole"]["adapter/blocks/attention/query/kernel"] == [2, 16, 2, 8]
