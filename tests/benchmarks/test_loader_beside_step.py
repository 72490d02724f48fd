"""The loader beside the step that it feeds: a small run of the benchmark."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_stage_has_both_rates(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "loader.py"), "step", "--experiment", "experiments/mu.py"]
    options = ["--batches", "5", "--steps", "2", "--json", str(tmp_path / "found")]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "found").read_text())
    assert set(figures) == {"captions", "instruct"}
    for values in figures.values():
        assert values["ratio"] == values["loader_batches_per_second"] / values["steps_per_second"] > 0
