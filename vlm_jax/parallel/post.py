"""Messages over several connections by one thread that waits for none of them: who does not read delays nobody else."""

import collections
import contextlib
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Mapping

from vlm_jax.parallel.wire import Inbox, Message, Stranger, encode


class Post:
    """Connections by number. Anybody may `send`; all else is for the one thread that calls `exchange` again and again.

    Messages to one who does not read are kept here, as many as they are.
    """

    def __init__(self, connections: Mapping[int, socket.socket], door: socket.socket | None = None) -> None:
        """Args:
        connections: all that there are; they are no longer waited for from here on.
        door: a listening socket; `exchange` tells when somebody is there.
        """
        self._connections, self._door = dict(connections), door
        self._mail: collections.deque[tuple[Iterable[int], bytes]] = collections.deque()
        self._inboxes = {number: Inbox() for number in connections}
        self._outboxes: dict[int, collections.deque[memoryview]] = {
            number: collections.deque() for number in connections
        }
        self._full: set[int] = set()
        self.heard = dict.fromkeys(connections, time.monotonic())
        """When something came from each, as far as `exchange` has looked; of those that are gone, nothing."""
        self._bell, self._rope = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for number, connection in connections.items():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._register(connection, number)
        self._register(self._bell, self._bell)
        self._rope.setblocking(False)
        if door is not None:
            self._register(door, door)

    def _register(self, one: socket.socket, key: object) -> None:
        one.setblocking(False)
        self._selector.register(one, selectors.EVENT_READ, key)

    def send(self, numbers: Iterable[int], message: Message) -> None:
        """Has a message sent to some, as soon as they take it; those that are gone are left out."""
        self._mail.append((tuple(numbers), encode(message)))  # encoded once for all
        self.wake()

    def wake(self) -> None:
        """Makes an `exchange` under way return."""
        with contextlib.suppress(OSError):  # full: it is awake
            self._rope.send(b"!")

    def idle(self) -> list[int]:
        """Those for whom nothing waits to be sent."""
        return [number for number in self.heard if number not in self._full]

    def all_sent(self) -> bool:
        """Whether nothing waits to be sent to anybody; anybody may ask."""
        return not self._mail and not self._full

    def exchange(self, seconds: float) -> Iterator[tuple[int | None, list[Message] | None]]:
        """Sends and reads what goes at the moment, or waits so long for that.

        Yields:
            (number, messages that are now complete, or None if that connection is at its end); (None, []) if somebody
            is at the door.
        """
        self._collect()
        for key, events in self._selector.select(seconds):
            if key.data is self._bell:
                with contextlib.suppress(BlockingIOError):
                    self._bell.recv(1 << 16)
                self._collect()
            elif key.data is self._door:
                yield None, []
            else:
                if events & selectors.EVENT_WRITE:
                    self._push(key.data)
                if events & selectors.EVENT_READ:
                    yield key.data, self._read(key.data)

    def _collect(self) -> None:
        while self._mail:
            numbers, content = self._mail[0]
            for number in numbers:
                if number in self.heard:
                    self._outboxes[number].append(memoryview(content))
                    self._push(number)
            self._mail.popleft()  # only now, for `all_sent`

    def _push(self, number: int) -> None:
        """Sends what the connection takes."""
        outbox, connection = self._outboxes[number], self._connections[number]
        try:
            while outbox:
                outbox[0] = outbox[0][connection.send(outbox[0]) :]
                if outbox[0]:
                    break
                outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:  # who is gone is found by reading
            outbox.clear()
        if bool(outbox) != (number in self._full):
            (self._full.add if outbox else self._full.discard)(number)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if outbox else 0)
            self._selector.modify(connection, events, number)

    def _read(self, number: int) -> list[Message] | None:
        """What has come; None, and nothing from then on, if the connection is at its end."""
        try:
            messages = self._inboxes[number].read(self._connections[number])
        except BlockingIOError:
            return []
        except (OSError, Stranger):
            messages = None
        if messages is None:
            self._selector.unregister(self._connections[number])
            self._full.discard(number)
            del self.heard[number]
        else:
            self.heard[number] = time.monotonic()
        return messages

    def close(self) -> None:
        """Closes all connections, and the door."""
        self._selector.close()
        doors = () if self._door is None else (self._door,)
        for one in (*self._connections.values(), *doors, self._bell, self._rope):
            with contextlib.suppress(OSError):
                one.close()
