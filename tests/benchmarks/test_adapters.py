"""The benchmark of adapters runs and prints what can be checked by hand, at the smallest sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters") / "figures.json"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "adapters.py"),
        "--preset",
        "mu",
        "--text",
        "24",
        "--rows",
        "2",
    ]
    options = ["--adapters", "mlp", "hybrid", "--images", "2", "--new", "4", "--repeats", "2", "--json", str(path)]
    quick = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, env=quick)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hybrid" in done.stdout
    return json.loads(path.read_text())


def test_rows_hold_the_same_text_and_what_pictures_take(figures):
    mlp, hybrid = figures["results"]
    assert (mlp["adapter"], mlp["visual_tokens"], mlp["positions"], mlp["memory_tokens"]) == ("mlp", 4, 24 + 2 * 4, 0)
    assert (hybrid["positions"], hybrid["memory_tokens"]) == (24 + 2 * 4, 16)
    assert figures["bare"]["positions"] == 24
    assert mlp["parameters_added"] == 4 * 24 * 32 + 32 + 32 * 32 + 32


def test_ratios_are_positive_and_formal_ones_above_one(figures):
    for result in figures["results"]:
        for name in ("step", "adapter_only", "decode"):
            values = result[f"{name}_ratio"]
            assert 0 < values["min"] <= values["median"] <= values["max"]
        assert result["memory_ratio"] > 1
        assert result["flops_ratio"] > (24 + 2 * 4) / 24
        assert result["adapter_only_flops_ratio"] < result["flops_ratio"]
    mlp, hybrid = figures["results"]
    assert hybrid["flops_ratio"] > mlp["flops_ratio"]
