"""A run that stands still says where, and ends, so that whoever started it can start it again."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from vlm_jax.parallel.processes import report_end

LONG = 4.0
"""How many times the limit an act that may be long is given: it compiles, saves, or validates."""

_LOOKS = 20
"""How often in the time of the limit it is looked whether the run stands still."""


class Watchdog:
    """Ends the process with code 1 when one act of the loop takes too long, after all threads' stacks are written down.

    The stacks go to stderr and to `stacks-PROCESS.txt`, with the act's name and since when it goes on. It is a thread
    of its own, that the act need not be aware of; and where the act does not even let Python's other threads run, a
    timer of `faulthandler`, below Python, does the same.
    """

    def __init__(self, seconds: float, directory: os.PathLike[str] | str, process: int = 0) -> None:
        """Args:
        seconds: longest time for an act; 0 = no limit.
        directory: where stacks are written; where it cannot be written (gs://), they go to stderr alone.
        process: number of this process.
        """
        self._seconds, self._path = seconds, Path(directory) / f"stacks-{process}.txt"
        self._process = process
        self._now = ("", time.monotonic(), seconds)
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._seconds:
            self.begin("starting", long=True)
            self._end.clear()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()

    def begin(self, act: str, long: bool = False) -> None:
        """Says what the run does from now on.

        Args:
            act: its name, for people.
            long: whether it may take LONG times the limit.
        """
        self._now = (act, time.monotonic(), self._seconds * LONG if long else self._seconds)

    def alive(self) -> None:
        """The present act goes on and is no standstill, such as waiting for a full disk."""
        act, _, limit = self._now
        self._now = (act, time.monotonic(), limit)

    def _watch(self) -> None:
        pause = min(self._seconds / _LOOKS, 1.0)
        while not self._end.wait(pause):
            # Fires only if this thread has not run for as long as the longest act may take.
            faulthandler.dump_traceback_later(self._seconds * LONG + 1.0, exit=True, file=sys.__stderr__ or 2)
            act, since, limit = self._now
            took = time.monotonic() - since
            if took > limit:
                self._give_up(act, took)

    def _give_up(self, act: str, took: float) -> None:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - took))
        message = (
            f"vlm: process {self._process} stands still: {act} since {began}, for {took:.0f} s; all stacks are below "
            f"and in {self._path}; the last save is usable, so run the same command again, or raise watchdog-seconds\n"
        )
        try:
            with self._path.open("w") as file:
                file.write(message)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            pass
        try:
            sys.stderr.write(message)
            sys.stderr.flush()
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
            with contextlib.suppress(Exception):
                report_end(f"{act} stood still for {took:.0f} s")
        finally:
            os._exit(1)
