"""A run that really stands still ends with code 1, and says what it did and since when, with all stacks."""

import re
import subprocess
import sys
import textwrap
import time

import pytest

from vlm_jax.training.watchdog import LONG, Watchdog

PROGRAM = """
    import contextlib, sys, threading, time
    from vlm_jax.training.watchdog import Watchdog

    def draw_for_ever():
        threading.Event().wait()

    def hold_the_interpreter():
        import re
        re.match(r"(a+)+$", "a" * 64 + "b")  # backtracks for ages, and lets no other thread run

    with Watchdog(float(sys.argv[1]), sys.argv[2], 3) as watchdog:
        for number in range(3):
            watchdog.begin(f"step {number}")
            time.sleep(0.01)
        watchdog.begin(sys.argv[3])
        globals()[sys.argv[4]]()
"""


def stand_still(directory, how, seconds=0.5):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(seconds), str(directory), "drawing a batch", how]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_standstill_ends_the_process_and_tells_where(tmp_path):
    done = stand_still(tmp_path, "draw_for_ever")
    assert done.returncode == 1
    stacks = (tmp_path / "stacks-3.txt").read_text()
    for told in (stacks, done.stderr):
        assert re.search(
            r"process 3 stands still: drawing a batch since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, for \d+ s", told
        )
        assert "draw_for_ever" in told
        assert told.lower().count("thread 0x") >= 2
    assert "stacks-3.txt" in done.stderr


def test_a_directory_that_cannot_be_written_leaves_the_stacks_on_stderr(tmp_path):
    done = stand_still(tmp_path / "nowhere", "draw_for_ever")
    assert done.returncode == 1
    assert "draw_for_ever" in done.stderr


def test_a_standstill_that_lets_no_thread_run_is_noticed_below_python(tmp_path):
    done = stand_still(tmp_path, "hold_the_interpreter", seconds=0.25)
    assert done.returncode == 1
    assert "hold_the_interpreter" in done.stderr


@pytest.fixture
def watchdog(tmp_path, monkeypatch):
    """A watchdog of 0.4 s whose end of the process is only noted."""
    ends = []
    monkeypatch.setattr(Watchdog, "_give_up", lambda self, act, took: (ends.append(act), self._end.set()))
    with Watchdog(0.4, tmp_path) as running:
        yield running, ends


def test_short_acts_and_signs_of_life_are_no_standstill(watchdog):
    running, ends = watchdog
    for number in range(8):
        running.begin(f"step {number}")
        time.sleep(0.1)
    for _ in range(8):
        running.alive()
        time.sleep(0.1)
    assert not ends


def test_what_may_be_long_is_given_longer(watchdog):
    running, ends = watchdog
    running.begin("saving", long=True)
    began = time.monotonic()
    while not ends and time.monotonic() < began + 60:
        time.sleep(0.02)
    assert ends == ["saving"]
    assert time.monotonic() - began > 0.4 * LONG


def test_no_limit_starts_nothing(tmp_path):
    with Watchdog(0, tmp_path) as running:
        running.begin("step 1")
        assert running._thread is None
