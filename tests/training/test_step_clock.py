import threading
import time

import pytest

from vlm_jax.training.step_clock import StepClock, overlap


class Result:
    """As an array of a step that goes on until it is told to end."""

    def __init__(self):
        self._end = threading.Event()

    def block_until_ready(self):
        self._end.wait()
        return self

    def end(self):
        self._end.set()
        return time.monotonic()


class Broken(Result):
    def block_until_ready(self):
        raise RuntimeError("the step failed")


@pytest.fixture
def clock():
    clock = StepClock()
    yield clock
    clock.close()


def test_a_step_begins_when_the_one_before_it_has_ended(clock):
    results, handed = [Result() for _ in range(3)], []
    for result in results[:2]:
        handed.append(time.monotonic())
        clock.hand_over(handed[-1], result)
    first = results[0].end()
    time.sleep(0.05)
    second = results[1].end()
    found = clock.take()
    assert found == [pytest.approx((handed[0], first), abs=0.03), pytest.approx((first, second), abs=0.03)]
    time.sleep(0.05)
    handed.append(time.monotonic())
    clock.hand_over(handed[2], results[2])
    third = results[2].end()
    assert clock.take() == [pytest.approx((handed[2], third), abs=0.03)]
    assert clock.take() == []


def test_nobody_waits_for_long_for_a_step_that_goes_on(clock):
    result, start = Result(), time.monotonic()
    clock.hand_over(start, result)
    assert clock.take(patience=0.05) == []
    assert time.monotonic() - start < 1
    result.end()
    assert len(clock.take()) == 1


def test_a_step_that_fails_ends_too(clock):
    clock.hand_over(time.monotonic(), Broken())
    assert len(clock.take()) == 1


def test_overlap():
    assert overlap((1.0, 5.0), [(0.0, 2.0), (3.0, 4.0), (4.5, 9.0)]) == 1 + 1 + 0.5
    assert overlap((1.0, 2.0), [(2.0, 3.0)]) == 0
