"""On every mesh and by every set of rules, loss and gradients are those of one device, and what travels is what should.

Two programs of eight devices each go side by side: `gradients_on_eight.py`.
"""

import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from gradients_on_eight import CASES, LENGTH, MODELS

from vlm_jax.models.adapters import AdapterConfig

PROGRAM = Path(__file__).with_name("gradients_on_eight.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the programs wrote, by case."""
    directory = tmp_path_factory.mktemp("gradients")
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    names = list(CASES)
    halves = {directory / "first.json": names[:7], directory / "second.json": names[7:]}
    running = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(out), *half],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for out, half in halves.items()
    ]
    for process in running:
        _, error = process.communicate(timeout=900)
        assert process.returncode == 0, error[-3000:]
    return {name: found for out in halves for name, found in json.loads(out.read_text()).items()}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_one_device(case, results):
    found = results[case]
    assert found["loss"] == pytest.approx(found["expected"], rel=1e-6)
    assert found["difference"] < 1e-4, found["worst"]


@pytest.mark.parametrize("case", [name for name in CASES if "fsdp" in name])
def test_fsdp_gathers_weights_and_no_activations(case, results):
    gathered = results[case]["gathered"]
    assert [16, 32] in gathered
    assert not [shape for shape in gathered if LENGTH in shape]


def test_sharing_rows_gathers_keys_and_values_and_no_hidden_states(results):
    """Rows of 4 a device, heads of 8; hidden states would be [4, 40, 16]."""
    gathered = results["sequence of 4"]["gathered"]
    assert [shape for shape in gathered if LENGTH in shape] == [[4, LENGTH, 2, 8]]


def test_rows_and_heads_shared_gathers_keys_of_own_heads(results):
    gathered = results["all at once, logits in chunks"]["gathered"]
    assert [shape for shape in gathered if LENGTH in shape] == [[4, LENGTH, 8]]


def test_every_adapter_is_among_the_cases():
    adapters = [MODELS[which]().adapter for which, *_ in CASES.values()]
    parts = [getattr(adapter, name, None) for adapter in adapters for name in ("memory", "prompt")]
    assert {type(adapter) for adapter in (*adapters, *parts)} >= set(typing.get_args(AdapterConfig))
