"""The order of the data is exact through SIGKILL and on other numbers of hosts: a small run of the benchmark."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_killed_runs_go_on_bit_for_bit_on_other_hosts(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "data_order.py"), "--experiment", "experiments/mu.py"]
    options = ["--trials", "2", "--batches", "12", "--hosts", "1", "2", "--no-epoch", "--json", str(tmp_path / "found")]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = json.loads((tmp_path / "found").read_text())["trials"]
    assert [(trial["ids_equal"], trial["bit_equal"]) for trial in trials] == [(True, True)] * 2
    assert {trial["went_on_from"] > 0 for trial in trials} >= {True}
