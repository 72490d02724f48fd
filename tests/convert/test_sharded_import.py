"""On a mesh every device gets its own part of every parameter, and the parts make up what one device would hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vlm_jax.convert import save_hf
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.parallel import abstract_params

CONFIG = DecoderConfig(
    vocabulary_size=32, width=8, layers=4, heads=4, key_value_heads=2, head_size=4, mlp_width=16, tied_embeddings=False
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    directory = tmp_path_factory.mktemp("sharded") / "model"
    rng = np.random.default_rng(0)
    shapes = abstract_params(boxed_params(build_model(CONFIG)))
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(rng.standard_normal(leaf.shape, np.float32)), shapes)
    save_hf(CONFIG, params, directory)
    flags = "--xla_force_host_platform_device_count=4"
    program = Path(__file__).with_name("four_devices.py")
    done = subprocess.run(
        [sys.executable, str(program), str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_values_are_those_of_one_device(found: dict[str, object]) -> None:
    assert found["same"] is True
    assert found["devices"] == [4]


def test_sharded_parameters_go_out_as_they_came_in(found: dict[str, object]) -> None:
    assert found["out"] is True


def test_every_device_holds_its_own_part(found: dict[str, object]) -> None:
    assert found["up"] == [[4, 4, 8]] * 4  # layers whole, width over fsdp, columns over tensor
    assert found["embedding"] == [[16, 4]] * 4
    assert found["norm"] == [[8]] * 4
