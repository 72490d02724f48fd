"""How processes talk while a run goes on, besides the devices: each of the others has a connection to process 0.

They give each other small values, and watch each other: the system closes the connections of a process that is killed,
so the others know at once; one that is stopped, or whose machine is gone, is missed after a while.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from vlm_jax.errors import RunError
from vlm_jax.parallel.meeting import Met
from vlm_jax.parallel.post import Post
from vlm_jax.parallel.wire import Message, send

_BEAT_S = 1.0
"""Between two signs of life, and between two looks at who gave none."""
_MANNERS_S = 5.0
"""For others to end by an error of their own, which is better to read than that somebody else had one."""


class Star:
    """One process's side of the connections. Values are given by one thread at a time, in the same order in all."""

    def __init__(self, index: int, met: Met, silence_s: float, abandon: Callable[[str], None]) -> None:
        """Args:
        index: of this process.
        met: the others.
        silence_s: a process that is silent for longer is given up.
        abandon: called from a thread with the reason when the run cannot go on; it ends this process.
        """
        self.index, self.names = index, met.names
        self._post, self._door = Post(met.connections, met.door), met.door
        self._silence_s, self._abandon = silence_s, abandon
        self._state = threading.Condition()
        self._verdict, self._give_up_at = "", 0.0
        self._ending = self._abandoned = self._closed = False
        self._present = set(met.connections)
        self._number = 0
        self._parts: dict[int, dict[int, Any]] = {}
        self._whole: dict[int, list[Any]] = {}
        self._beat_at = 0.0
        self._thread = threading.Thread(target=self._watch, name="other processes", daemon=True)
        self._thread.start()

    def gather(self, value: Any, *, at_first: bool = False, last: bool = False) -> list[Any]:
        """Everybody's value, by process; waits until all have given theirs.

        Args:
            value: JSON-able; everybody gets it as it is after a way through JSON.
            at_first: only process 0 gets the values, the others an empty list.
            last: nobody is missed any more once all have come here.

        Raises:
            RunError: if another process has ended.
        """
        with self._state:
            number, self._number = self._number, self._number + 1
        message = {"number": number, "value": value, "at_first": at_first, "last": last}
        if self.index:
            self._post.send((0,), message)
        else:
            self._put(0, json.loads(json.dumps(message)))
        with self._state:
            self._state.wait_for(lambda: number in self._whole or self._verdict)
            if number not in self._whole:
                raise RunError(self._verdict)
            return self._whole.pop(number)

    def verdict(self, seconds: float) -> str:
        """Why the run cannot go on, as far as another process is the reason; waits a while for it. '' = none known."""
        with self._state:
            self._state.wait_for(lambda: bool(self._verdict), seconds)
            self._stand_back()
            return self._verdict

    def tell(self, why: str) -> None:
        """Says that this process ends, and why; process 0, which the others need, then waits until they are gone."""
        with self._state:
            self._stand_back()
            known = bool(self._verdict)
        if not known:
            self._send_all({"failed": f"{self.names[self.index]} ended: {why}", "manners": True})
        if self.index == 0:
            with self._state:
                self._state.wait_for(lambda: not self._present, _MANNERS_S + 3)
        else:
            self._wait_until_sent()

    def _stand_back(self) -> None:
        """This process ends by itself from here on; unless the thread has begun to end it, which is waited for."""
        if self._abandoned:
            self._state.wait_for(lambda: False, 2 * _MANNERS_S)
        self._ending = True

    def close(self) -> None:
        """Ends the conversation; to be called after `gather` with `last`."""
        with self._state:
            self._ending = True
        self._wait_until_sent()
        self._closed = True
        self._post.wake()
        self._thread.join(_MANNERS_S)
        self._post.close()

    def _send_all(self, message: Message) -> None:
        with self._state:
            others = sorted(self._present)
        self._post.send(others, message)

    def _wait_until_sent(self) -> None:
        end = time.monotonic() + _MANNERS_S
        while not self._post.all_sent() and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)

    def _put(self, other: int, message: Message) -> None:
        """Process 0: a value of one of them; when all are there, they are sent round."""
        number = message["number"]
        with self._state:
            parts = self._parts.setdefault(number, {})
            parts[other] = message["value"]
            if len(parts) < len(self.names):
                return
            values = [parts[index] for index in range(len(self.names))]
            del self._parts[number]
            self._ending = self._ending or message["last"]
        given = [] if message["at_first"] else values
        self._send_all({"number": number, "values": given, "last": message["last"]})
        self._deliver(number, values)

    def _deliver(self, number: int, values: list[Any]) -> None:
        with self._state:
            self._whole[number] = values
            self._state.notify_all()

    def _watch(self) -> None:
        """The thread: gives and takes signs of life, sends and reads, until the run cannot go on."""
        while not self._closed:
            self._exchange()
            with self._state:
                give_up = bool(self._verdict) and not self._ending and time.monotonic() >= self._give_up_at
                if give_up:
                    self._ending = self._abandoned = True
            if give_up:
                self._give_up()
                return

    def _exchange(self) -> None:
        """One round; returns after half a beat at the latest."""
        began = time.monotonic()  # whatever was sent before this is read before anybody is judged
        for other, messages in self._post.exchange(_BEAT_S / 2):
            if other is None:
                self._turn_away()
            elif messages is None:
                with self._state:
                    self._present.discard(other)
                    self._state.notify_all()
                self._judge(f"{self.names[other]} ended without a word: it was killed, or its machine is gone")
            else:
                for message in messages:
                    self._take(other, message)
        if began < self._beat_at:
            return
        self._beat_at = began + _BEAT_S
        self._post.send(self._post.idle(), {})  # the others are being sent something
        quiet = [other for other, heard in self._post.heard.items() if began - heard > self._silence_s]
        if quiet:
            self._judge(f"{self._who(quiet)} gave no sign of life for {self._silence_s:.0f} s")

    def _take(self, other: int, message: Message) -> None:
        if "failed" in message:
            self._judge(str(message["failed"]), bool(message["manners"]))
        elif "values" in message:
            with self._state:
                self._ending = self._ending or message["last"]
            self._deliver(message["number"], message["values"])
        elif "number" in message:
            self._put(other, message)

    def _judge(self, verdict: str, manners: bool = False) -> None:
        """The run cannot go on: says so to the others; this process has to end, with `manners` after a while."""
        with self._state:
            if self._verdict or self._ending:
                return
            self._verdict = verdict
            self._give_up_at = time.monotonic() + (_MANNERS_S if manners else 0.0)
            self._state.notify_all()
        if self.index == 0:
            self._send_all({"failed": verdict, "manners": manners})

    def _give_up(self) -> None:
        """Ends this process, which has not ended by itself."""
        print(f"vlm: {self._verdict}", file=sys.stderr, flush=True)
        end = time.monotonic() + _MANNERS_S + 1
        while self.index == 0 and self._present and not self._closed and time.monotonic() < end:
            self._exchange()  # jax's service in this process must not end before the others have read the reason
        self._abandon(self._verdict)

    def _who(self, others: Sequence[int]) -> str:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return ", ".join(self.names[other] for other in sorted(others)[:3]) + more

    def _turn_away(self) -> None:
        """Somebody came after the run began."""
        assert self._door is not None
        with contextlib.suppress(OSError):
            connection, _ = self._door.accept()
            connection.settimeout(1)
            wrong = f"all {len(self.names)} processes of this run are there already; give each its own --process"
            with connection:
                send(connection, {"error": wrong})
