"""A run that really stands still ends with code 1, and says what it did and since when, with all stacks."""

import re
import subprocess
import sys
import textwrap
import time

import pytest

from vlm_jax.training.watchdog import LONG, Watchdog

PROGRAM = """
    import io, sys, threading, time
    from vlm_jax.training.watchdog import Watchdog

    def draw_for_ever():
        threading.Event().wait()

    def hold_the_interpreter():
        import re
        re.match(r"(a+)+$", "a" * 64 + "b")  # backtracks for ages, and lets no other thread run

    def wait_in_a_notebook():
        sys.stderr = io.StringIO()  # as there: no file
        draw_for_ever()

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


LOOP = """
    import sys, threading
    import jax
    import numpy as np
    from vlm_jax.batch import Batch
    from vlm_jax.parallel import MeshConfig, build_layout
    from vlm_jax.training.loop import run_stage
    from vlm_jax.training.watchdog import Watchdog

    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), Batch.spec(1, 4))

    class Batches:
        drawn = 0

        def __next__(self):
            self.drawn += 1
            if self.drawn == 3:
                threading.Event().wait()
            return batch, None

        def get_state(self):
            return {}

        def sum_up(self, info):
            return info

    def hook(event):
        if event.step == int(sys.argv[2]):
            threading.Event().wait()

    layout = build_layout(MeshConfig())
    with Watchdog(3.0, sys.argv[1]) as watchdog:
        step = lambda state, batch: (state, {})
        run_stage(None, step, Batches(), layout, 0, 9, [hook], begin=watchdog.begin)
"""


@pytest.mark.parametrize(
    ("hook_at", "act"), [(99, "drawing the batch of step 3"), (2, "hook after step 2")], ids=["source", "hook"]
)
def test_the_loop_says_what_stands_still(tmp_path, hook_at, act):
    """A source that sleeps for ever, and a hook that does."""
    command = [sys.executable, "-c", textwrap.dedent(LOOP), str(tmp_path), str(hook_at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert f"process 0 stands still: {act} since" in (tmp_path / "stacks-0.txt").read_text()


def test_a_directory_that_cannot_be_written_leaves_the_stacks_on_stderr(tmp_path):
    done = stand_still(tmp_path / "nowhere", "draw_for_ever")
    assert done.returncode == 1
    assert "draw_for_ever" in done.stderr


def test_a_standstill_that_lets_no_thread_run_is_noticed_below_python(tmp_path):
    done = stand_still(tmp_path, "hold_the_interpreter", seconds=0.25)
    assert done.returncode == 1
    assert "hold_the_interpreter" in done.stderr


def test_a_stderr_that_is_no_file_keeps_nothing_from_ending(tmp_path):
    done = stand_still(tmp_path, "wait_in_a_notebook")
    assert done.returncode == 1
    assert "draw_for_ever" in (tmp_path / "stacks-3.txt").read_text()


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
