"""How processes talk while a run goes on, besides the devices: each of the others has a connection to process 0.

They give each other small values, and watch each other: the system closes the connections of a process that is killed,
so the others know at once; one that is stopped, or whose machine is gone, is missed after a while.
"""

import contextlib
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from vlm_jax.errors import RunError
from vlm_jax.parallel.meeting import Met
from vlm_jax.parallel.wire import Inbox, Message, Stranger, send

BEAT_S = 2.0
"""Between two signs of life."""
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
        self._connections, self._door = met.connections, met.door
        self._silence_s, self._abandon = silence_s, abandon
        self._state = threading.Condition()
        self._verdict = ""
        self._ending = self._abandoned = False
        self._present = set(self._connections)
        self._number = 0
        self._parts: dict[int, dict[int, Any]] = {}
        self._whole: dict[int, list[Any]] = {}
        self._inboxes = {other: Inbox() for other in self._connections}
        self._locks = {other: threading.Lock() for other in self._connections}
        for connection in self._connections.values():
            connection.settimeout(silence_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._thread = threading.Thread(target=self._watch, name="other processes", daemon=True)
        self._thread.start()

    def gather(self, value: Any, last: bool = False) -> list[Any]:
        """Everybody's value, by process; waits until all have given theirs.

        Args:
            value: JSON-able.
            last: nobody is missed any more once all have come here.

        Raises:
            RunError: if another process has ended.
        """
        with self._state:
            number, self._number = self._number, self._number + 1
        message = {"number": number, "value": value, "last": last}
        if self.index:
            self._send(0, message)
        else:
            self._put(0, message)
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

    def _stand_back(self) -> None:
        """This process ends by itself from here on; unless the thread has begun to end it, which is waited for."""
        if self._abandoned:
            self._state.wait_for(lambda: False, 2 * _MANNERS_S)
        self._ending = True

    def close(self) -> None:
        """Ends the conversation; to be called after `gather` with `last`."""
        with self._state:
            self._ending = True
        for connection in (*self._connections.values(), *([self._door] if self._door else [])):
            with contextlib.suppress(OSError):
                connection.close()

    def _send(self, other: int, message: Message) -> None:
        with self._locks[other], contextlib.suppress(OSError):  # who is not there any more is found by reading
            send(self._connections[other], message)

    def _send_all(self, message: Message) -> None:
        for other in sorted(self._present):
            self._send(other, message)

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
        self._send_all({"number": number, "values": values, "last": message["last"]})
        self._deliver(number, values)

    def _deliver(self, number: int, values: list[Any]) -> None:
        with self._state:
            self._whole[number] = values
            self._state.notify_all()

    def _watch(self) -> None:
        """The thread: gives and takes signs of life, and reads."""
        with selectors.DefaultSelector() as selector:
            for other, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, other)
            if self._door is not None:
                selector.register(self._door, selectors.EVENT_READ)
            heard = dict.fromkeys(self._connections, time.monotonic())
            beat = 0.0
            while self._present and all(connection.fileno() >= 0 for connection in self._connections.values()):
                if time.monotonic() >= beat:
                    self._send_all({})
                    beat = time.monotonic() + BEAT_S
                for key, _ in selector.select(BEAT_S / 2):
                    if key.data is None:
                        self._turn_away()
                        continue
                    heard[key.data] = time.monotonic()
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                quiet = [other for other in self._present if time.monotonic() - heard[other] > self._silence_s]
                if quiet:
                    self._judge(f"{self._who(quiet)} gave no sign of life for {self._silence_s:.0f} s")

    def _read(self, other: int) -> bool:
        """Takes what has come from another process; False if the connection is at its end."""
        try:
            messages = self._inboxes[other].read(self._connections[other])
        except (OSError, Stranger):
            messages = None
        if messages is None:
            with self._state:
                self._present.discard(other)
                self._state.notify_all()
            self._judge(f"{self.names[other]} ended without a word: it was killed, or its machine is gone")
            return False
        for message in messages:
            self._take(other, message)
        return True

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
        """The run cannot go on: says so to the others, and ends this process unless it is about to end by itself."""
        with self._state:
            if self._verdict or self._ending:
                return
            self._verdict = verdict
            self._state.notify_all()
        if self.index == 0:
            self._send_all({"failed": verdict, "manners": manners})
        if manners:
            with self._state:
                self._state.wait_for(lambda: self._ending, _MANNERS_S)
        with self._state:
            if self._ending:
                return
            self._ending = self._abandoned = True
        print(f"vlm: {verdict}", file=sys.stderr, flush=True)
        if self.index == 0:  # jax's service in this process must not end before the others have read the reason
            self._read_to_the_end(_MANNERS_S + 1)
        self._abandon(verdict)

    def _read_to_the_end(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for other in self._present:
                selector.register(self._connections[other], selectors.EVENT_READ, other)
            while self._present and time.monotonic() < end:
                for key, _ in selector.select(BEAT_S / 4):
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)

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
