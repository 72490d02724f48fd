"""Two processes, signals to either or both: one step is saved by all, all leave with 75, and nothing is lost by it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

TEXT = Path(__file__).with_name("text_experiment.py")
QUICK = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
LIMIT_S = 240


class Two:
    """Two processes that train in one workdir; what they say goes to WORKDIR.0.log and WORKDIR.1.log."""

    def __init__(self, workdir, *overrides):
        self.logs = [Path(f"{workdir}.{number}.log") for number in range(2)]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [sys.executable, "-m", "vlm_jax.cli", "train", str(TEXT), "--workdir", str(workdir)]
        place = ["--coordinator", address, "--processes", "2", "--process"]
        self.processes = []
        for number, log in enumerate(self.logs):
            with log.open("a") as file:
                arguments = [*command, *place, str(number), *overrides]
                self.processes.append(subprocess.Popen(arguments, stdout=file, stderr=file, env=QUICK))
        self._lines = self._shown()

    def _shown(self):
        return self.logs[0].read_text().count("tokens/s")

    def wait_for_lines(self, count):
        """Returns when this attempt has logged so many lines of figures."""
        end = time.monotonic() + LIMIT_S
        while self._shown() < self._lines + count:
            assert all(process.poll() is None for process in self.processes), self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.01)

    def send(self, number, *receivers):
        """Sends a signal to some of them."""
        for receiver in receivers:
            self.processes[receiver].send_signal(number)

    def finish(self):
        """Their exit codes."""
        try:
            return [process.wait(LIMIT_S) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def said(self):
        return "\n".join(log.read_text() for log in self.logs)

    def left(self):
        """The last line of each."""
        return [log.read_text().strip().splitlines()[-1] for log in self.logs]


def newest(workdir):
    return max((workdir / "checkpoints" / "first").iterdir(), key=lambda path: int(path.name.split(".")[0]))


SIGNALS = [(signal.SIGTERM, (0,)), (signal.SIGTERM, (1,)), (signal.SIGINT, (1,)), (signal.SIGTERM, (0, 1))]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """(workdir, [(exit codes, last lines, newest step)] of each signal) of a run that was then left to its end.

    After the third signal the newest step is damaged, so that both have to find the one before.
    """
    workdir, found = tmp_path_factory.mktemp("interrupted") / "run", []
    for number, receivers in SIGNALS:
        two = Two(workdir)
        two.wait_for_lines(2)
        two.send(number, *receivers)
        found.append((two.finish(), two.left(), newest(workdir).name))
        if number == signal.SIGINT:
            shutil.rmtree(newest(workdir) / "optimizer")
    two = Two(workdir)
    assert two.finish() == [0, 0], two.said()
    return workdir, found


@pytest.mark.parametrize("case", range(len(SIGNALS)), ids=lambda n: f"{SIGNALS[n][0].name} to {SIGNALS[n][1]}")
def test_all_save_one_step_and_leave_with_75(interrupted, case):
    codes, last_lines, saved = interrupted[1][case]
    assert codes == [75, 75], last_lines
    assert [re.search(r"saved step (\d+) and stopped", line)[1] for line in last_lines] == [saved, saved]


def test_a_damaged_step_is_set_aside_by_one_process_and_both_use_the_one_before(interrupted):
    workdir, found = interrupted
    logs = [Path(f"{workdir}.{number}.log").read_text() for number in range(2)]
    damaged = f"{found[2][2]}.damaged"
    assert (workdir / "checkpoints" / "first" / damaged).is_dir()
    used = re.search(rf"it is set aside as {damaged}, and step (\d+) is used", logs[0])[1]
    assert int(found[1][2]) <= int(used) < int(found[2][2])
    assert f"resumed after step {used} of" in logs[0].partition(damaged)[2]
    assert "set aside" not in logs[1]


def test_the_end_is_that_of_an_undisturbed_run_bit_for_bit(interrupted, tmp_path):
    straight = Two(tmp_path / "run")
    assert straight.finish() == [0, 0], straight.said()
    for stage, step in (("first", "200"), ("second", "10")):
        for name in ("checksums.json", "data.json"):
            ends = [
                workdir / "checkpoints" / stage / step / "files" / name
                for workdir in (tmp_path / "run", interrupted[0])
            ]
            assert ends[0].read_bytes() == ends[1].read_bytes()
    steps = [json.loads(line)["step"] for line in (interrupted[0] / "metrics.jsonl").read_text().splitlines()]
    assert [step for step in steps if step % 10 == 0] == [*range(10, 201, 10), 10]


def test_a_stopped_peer_is_a_standstill_that_the_watchdog_ends(tmp_path):
    two = Two(tmp_path / "run", "--watchdog-seconds", "12")
    two.wait_for_lines(1)
    two.send(signal.SIGSTOP, 1)
    began = time.monotonic()
    code = two.processes[0].wait(LIMIT_S)
    took = time.monotonic() - began
    two.send(signal.SIGKILL, 1)
    assert code == 1
    assert took < 60
    stacks = (tmp_path / "run" / "stacks-0.txt").read_text()
    assert re.search(r"process 0 stands still: .* (step|of step) \d+ since", stacks)
    assert "run_stage" in stacks
    assert "stands still" in two.logs[0].read_text()
