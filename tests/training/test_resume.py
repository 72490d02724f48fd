"""A run that is killed and started again ends as one that was not: bit for bit, in parameters, optimiser and data."""

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

from data_pipelines.loader import make_loader
from data_pipelines.template import load_processor
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.config import load_experiment

TINY = Path(__file__).with_name("tiny_experiment.py")
TIMINGS = ("seconds", "tokens_per_second", "images_per_second", "model_flops_per_second", "goodput", "spent")
QUICK = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
LIMIT_S = 180


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def start(workdir, *overrides, largest_file=None):
    """`vlm train` in a process of its own, maybe with a limit on file sizes; what it says goes to WORKDIR.log."""
    limited = ["-c", LIMITED, str(largest_file)] if largest_file else []
    command = [sys.executable, *limited, "-m", "vlm_jax.cli", "train", str(TINY), "--workdir", str(workdir), *overrides]
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=QUICK)


def send_when(process, happened, number):
    """Sends a signal at the first moment that something has happened; returns the exit code."""
    end = time.monotonic() + LIMIT_S
    while not happened():
        assert process.poll() is None, "the run ended before it was hit"
        assert time.monotonic() < end
        time.sleep(0.0005)
    process.send_signal(number)
    return process.wait(LIMIT_S)


def said(workdir):
    return Path(f"{workdir}.log").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The workdir of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert start(workdir).wait(LIMIT_S) == 0, said(workdir)
    return workdir


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """(workdir, exit codes) of a run killed in a save, then terminated, then killed between steps of stage two."""
    workdir = tmp_path_factory.mktemp("interrupted") / "run"
    captions, instruct = workdir / "checkpoints" / "captions", workdir / "checkpoints" / "instruct"

    def saving():
        """A save is under way, and one is behind it, so that the next attempt resumes."""
        return (
            captions.exists() and (captions / "2").exists() and any("tmp" in path.name for path in captions.iterdir())
        )

    codes = [send_when(start(workdir), saving, signal.SIGKILL)]
    leftovers = [path.name for path in captions.iterdir() if not path.name.isdigit()]
    before = said(workdir).count("captions ")
    codes.append(send_when(start(workdir), lambda: said(workdir).count("captions ") > before, signal.SIGTERM))
    codes.append(send_when(start(workdir), (instruct / "4").exists, signal.SIGKILL))
    codes.append(start(workdir).wait(LIMIT_S))
    return workdir, codes, leftovers


def test_exit_codes_of_kills_terminations_and_the_end(interrupted):
    workdir, codes, _ = interrupted
    assert codes == [-signal.SIGKILL, 75, -signal.SIGKILL, 0], said(workdir)
    assert said(workdir).count("resumed after step") >= 2


def test_a_termination_says_in_one_line_what_it_did(interrupted):
    workdir, _, _ = interrupted
    (line,) = [line for line in said(workdir).splitlines() if line.startswith("vlm: ")]
    assert "saved step" in line
    assert "run the same command" in line


def steps_of(workdir):
    return {path.relative_to(workdir): path for path in (workdir / "checkpoints").glob("*/*") if path.name.isdigit()}


def test_parameters_optimiser_and_data_position_are_those_of_the_straight_run(straight, interrupted):
    workdir, _, _ = interrupted
    expected, found = steps_of(straight), steps_of(workdir)
    last = [Path("checkpoints/captions/6"), Path("checkpoints/instruct/12")]
    assert set(last) <= set(expected)
    assert set(last) <= set(found)
    for step in set(expected) & set(found):
        for name in ("checksums.json", "data.json"):
            assert (expected[step] / "files" / name).read_bytes() == (found[step] / "files" / name).read_bytes()


def test_a_killed_save_leaves_nothing_behind(interrupted):
    workdir, _, leftovers = interrupted
    assert leftovers, "the first kill was to land in a save"
    assert all(path.name.isdigit() for path in (workdir / "checkpoints").glob("*/*"))


def lines_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(x["stage"], x["step"]): {key: x[key] for key in x if key not in TIMINGS} for x in lines}


def test_metrics_are_those_of_the_straight_run(straight, interrupted):
    """A termination adds a line where it stopped; the line after it then covers fewer steps, all others are equal."""
    expected, found = lines_of(straight), lines_of(interrupted[0])
    added = set(found) - set(expected)
    assert len(added) <= 1
    assert set(expected) <= set(found)
    after = {min((key for key in expected if key[0] == stage and key[1] > step), default=None) for stage, step in added}
    for key, line in expected.items():
        if key not in after:
            assert found[key] == line
        assert found[key]["tokens_seen"] == line["tokens_seen"]


def test_seconds_never_fall(interrupted):
    seconds = [json.loads(line)["seconds"] for line in (interrupted[0] / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(("stage", "step"), [(0, "4"), (1, "8")])
def test_the_next_batch_is_the_same(straight, stage, step):
    """A loader put to a checkpoint's position hands out what one that ran that far hands out next."""
    experiment = load_experiment(str(TINY))
    config = experiment.stages[stage]
    directory = straight / "checkpoints" / config.name / step / "files"
    processor = load_processor(straight / "processor")
    ran = make_loader(config, processor, seed=experiment.seed)
    for _ in range(int(step)):
        next(ran)
    put = make_loader(config, processor, seed=experiment.seed)
    put.set_state(json.loads((directory / "data.json").read_text()))
    for _ in range(2):
        (batch, info), (expected, expected_info) = next(put), next(ran)
        assert info == expected_info
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    ran.close()
    put.close()


def test_a_full_disk_is_one_line_and_the_last_step_stays_usable(straight, tmp_path):
    """A limit on the size of files stands in for a full disk: what a save writes is larger than all before it."""
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "instruct" / "12")
    code = start(workdir, "--checkpoints.retry-seconds", "2", largest_file=40_000).wait(LIMIT_S)
    log = said(workdir)
    assert code == 2, log
    assert "Traceback" not in log
    assert "the disk is full; trying again in 1 s" in log
    (line,) = [line for line in log.splitlines() if line.startswith("vlm: ")]
    assert "could not save" in line
    assert "step 10 is whole" in line
    model = load_model(str(workdir))
    assert model.directory.name == "10"
