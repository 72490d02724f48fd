"""Two processes, signals to either or both: one step is saved by all, all leave with 75, and nothing is lost by it.

Nor is it by a standstill that the watchdog ends.
"""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from several import LIMIT_S, train

TEXT = Path(__file__).with_name("text_experiment.py")
ENDLESS = ("--stages.0.steps", "1000000")


def two(workdir, *overrides):
    return train(workdir, 2, 1, *overrides, experiment=TEXT)


def wait_for_lines(run, count):
    """Returns when a run has shown so many lines of figures."""
    run.wait_for(lambda: run.said(0).count("tokens/s") >= count)


def newest(workdir):
    whole = (path for path in (workdir / "checkpoints" / "first").iterdir() if path.name.isdigit())
    return max(whole, key=lambda path: int(path.name))


# The last of them finds the newest step damaged, so that both have to find the one before.
SIGNALS = [(signal.SIGTERM, (0,)), (signal.SIGINT, (1,)), (signal.SIGTERM, (0, 1))]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was interrupted again and again: (workdir, steps of its first stage, stopped, signalled).

    stopped: how process 0 ended when the other was stopped: (code, what it said, seconds).
    signalled: after each of the signals (exit codes, what each said, newest step).

    The first stage has no end while signals are sent, since nobody knows how many steps are done before one of them
    works; then the run is given as many steps as it has done, and some, and left to its end.
    """
    workdir, found = tmp_path_factory.mktemp("interrupted") / "run", []
    run = two(workdir, *ENDLESS, "--watchdog-seconds", "12")
    wait_for_lines(run, 1)
    run.processes[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    stopped = run.processes[0].wait(LIMIT_S), run.said(0), time.monotonic() - began
    run.processes[1].kill()
    run.codes()
    for number, receivers in SIGNALS:
        run = two(workdir, *ENDLESS)
        wait_for_lines(run, 2)
        for receiver in receivers:
            run.processes[receiver].send_signal(number)
        found.append((run.codes(), [run.said(0), run.said(1)], newest(workdir).name))
        if number == signal.SIGINT:
            shutil.rmtree(newest(workdir) / "optimizer")
    steps = int(newest(workdir).name) // 10 * 10 + 20
    run = two(workdir, "--stages.0.steps", steps, "--allow-config-change")
    assert run.codes() == [0, 0], run.said(0)
    return workdir, steps, stopped, found


@pytest.mark.parametrize("case", range(len(SIGNALS)), ids=lambda n: f"{SIGNALS[n][0].name} to {SIGNALS[n][1]}")
def test_all_save_one_step_and_leave_with_75(interrupted, case):
    codes, said, saved = interrupted[-1][case]
    assert codes == [75, 75], said
    last_lines = [each.strip().splitlines()[-1] for each in said]
    assert [re.search(r"saved step (\d+) and stopped", line)[1] for line in last_lines] == [saved, saved]


def test_a_damaged_step_is_set_aside_by_one_process_and_both_use_the_one_before(interrupted):
    workdir, _, _, ((_, _, before), (_, _, newer), (_, said, _)) = interrupted
    damaged = f"{newer}.damaged"
    assert (workdir / "checkpoints" / "first" / damaged).is_dir()
    used = re.search(rf"it is set aside as {damaged}, and step (\d+) is used", said[0])[1]
    assert int(before) <= int(used) < int(newer)
    assert f"resumed after step {used} of" in said[0].partition(damaged)[2]
    assert "set aside" not in said[1]


def test_the_end_is_that_of_an_undisturbed_run_bit_for_bit(interrupted, tmp_path):
    workdir, steps, *_ = interrupted
    straight = two(tmp_path / "run", "--stages.0.steps", steps)
    assert straight.codes() == [0, 0], straight.said(0)
    for stage, step in (("first", str(steps)), ("second", "10")):
        for name in ("checksums.json", "data.json"):
            ends = [run / "checkpoints" / stage / step / "files" / name for run in (tmp_path / "run", workdir)]
            assert ends[0].read_bytes() == ends[1].read_bytes()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["step"] % 10 == 0] == [*range(10, steps + 1, 10), 10]


def test_a_stopped_peer_is_a_standstill_that_the_watchdog_ends(interrupted):
    workdir, _, (code, said, seconds), _ = interrupted
    assert code == 1
    assert seconds < 60
    stacks = (workdir / "stacks-0.txt").read_text()
    assert re.search(r"process 0 stands still: .* (step|of step) \d+ since", stacks)
    assert "run_stage" in stacks
    assert "stands still" in said
