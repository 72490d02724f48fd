"""When steps end on the devices, noted without keeping the loop waiting."""

import queue
import threading
import time
from typing import Any

import jax

Interval = tuple[float, float]
"""(start, end) in seconds of `time.monotonic`."""


class StepClock:
    """A thread that waits for each step's results and notes the time; the loop itself goes on.

    A step begins on the devices when it is handed over and the one before it has ended.
    """

    def __init__(self) -> None:
        self._steps: queue.SimpleQueue[tuple[float, Any] | None] = queue.SimpleQueue()
        self._busy: list[Interval] = []
        self._last = 0.0
        self._begun = 0
        self._ended = threading.Condition()
        self._count = 0
        threading.Thread(target=self._run, name="step-clock", daemon=True).start()

    def hand_over(self, start: float, result: Any) -> None:
        """Notes that a step was handed to the devices; `result` is one of its results."""
        self._begun += 1
        self._steps.put((start, result))

    def take(self, patience: float = 1.0) -> list[Interval]:
        """When the devices were busy with steps since the last call; steps that go on belong to the next.

        Args:
            patience: seconds to wait for this thread, where the steps have ended already.
        """
        with self._ended:
            self._ended.wait_for(lambda: self._count == self._begun, patience)
            busy, self._busy = self._busy, []
        return busy

    def close(self) -> None:
        """Ends the thread, after the steps that it waits for."""
        self._steps.put(None)

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            start, result = step
            try:
                jax.block_until_ready(result)
            except Exception:  # the loop meets it too, and says what it is
                result = None
            end = time.monotonic()
            with self._ended:
                self._busy.append((max(start, self._last), end))
                self._last, self._count = end, self._count + 1
                self._ended.notify_all()


def overlap(one: Interval, others: list[Interval]) -> float:
    """How much of an interval others cover, which do not cover each other."""
    return sum(max(0.0, min(one[1], end) - max(one[0], start)) for start, end in others)
