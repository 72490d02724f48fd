"""How the processes of a run find each other: process 0 waits at an address, the others come to it.

Everything that can be wrong with who comes is found here, before jax is told: an address where nobody waits, a number
given twice, different counts, a port that something else has.
"""

import contextlib
import dataclasses
import os
import selectors
import socket
import time

from vlm_jax.errors import UserError
from vlm_jax.parallel.wire import Message, Stranger, receive, send

PATIENCE_S = 45.0
"""How long processes wait for each other before the run begins, each from its own start."""
_ANSWER_S = 5.0
"""For what comes at once, and for the others after one came that has nearly lost its patience."""
_RETRY_S = 0.5


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process of how many this is, and where process 0 waits for the others.

    Raises:
        UserError: if the numbers or the address make no sense.
    """

    address: str
    """HOST:PORT."""
    count: int
    index: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"--processes is {self.count}: give the number of processes, at least 1")
        if not 0 <= self.index < self.count:
            raise UserError(
                f"--process is {self.index}: with --processes {self.count} it must be from 0 to {self.count - 1}, and "
                "another one in every process"
            )
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(f"--coordinator {self.address}: give HOST:PORT of process 0, such as 10.0.0.2:8476")

    @property
    def host(self) -> str:
        """The host's name or address, without the brackets of IPv6."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port at which process 0 waits."""
        return int(self.address.rpartition(":")[2])

    @property
    def loopback(self) -> bool:
        """Whether all processes are on this machine, so that nothing outside it needs to reach process 0."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


@dataclasses.dataclass
class Met:
    """The processes that came together."""

    connections: dict[int, socket.socket]
    """Process -> connection: of all others in process 0, of process 0 in the others."""
    names: list[str]
    """What to call each process in messages: its number and its host."""
    coordinator: str
    """HOST:PORT where jax's coordination service is to be."""
    door: socket.socket | None = None
    """Process 0's listening socket: who comes now is told that the run has begun."""


def meet(place: Place, patience_s: float = PATIENCE_S) -> Met:
    """Waits until all processes are there.

    Process 0 waits only as long as the one that started first has patience, so that nobody waits much longer than that.

    Args:
        place: which process this is.
        patience_s: how long it waits; the same in all.

    Raises:
        UserError: if they do not come, or do not agree on who they are; every process that came is told.
    """
    return _receive_all(place, patience_s) if place.index == 0 else _go_there(place, patience_s)


def _receive_all(place: Place, patience_s: float) -> Met:
    door, guests = _open_door(place), _Guests(place)
    end = time.monotonic() + patience_s
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(door, selectors.EVENT_READ)
            while len(guests.connections) < place.count - 1:
                ready = selector.select(max(0.0, end - time.monotonic()))
                if not ready:
                    raise UserError(guests.missing(patience_s))
                for key, _ in ready:
                    if key.fileobj is not door:  # it has nothing to say yet, so this is its end; it may come again
                        selector.unregister(key.fileobj)
                        guests.remove(key.fileobj)  # type: ignore[arg-type]
                    elif (guest := guests.welcome(door)) is not None:
                        connection, waited = guest
                        selector.register(connection, selectors.EVENT_READ)
                        end = min(end, time.monotonic() + max(_ANSWER_S, patience_s - waited))
        coordinator = f"{_bracketed(place.host)}:{_free_port(place)}"
        names = [guests.names[index] for index in range(place.count)]
        for connection in guests.connections.values():
            with contextlib.suppress(OSError):
                send(connection, {"names": names, "coordinator": coordinator})
    except UserError as error:
        guests.dismiss(str(error))
        door.close()
        raise
    return Met(guests.connections, names, coordinator, door)


class _Guests:
    """Those that have come to process 0."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.connections: dict[int, socket.socket] = {}
        self.names = {0: _name(0, socket.gethostname())}
        self._pids: dict[int, str] = {}

    def welcome(self, door: socket.socket) -> tuple[socket.socket, float] | None:
        """Lets in who is at the door, and how many seconds it has waited; None if it is nobody who belongs here.

        Raises:
            UserError: if it is a process of this run that contradicts the others.
        """
        try:
            connection, _ = door.accept()
        except OSError:
            return None
        connection.settimeout(_ANSWER_S)
        try:
            hello = receive(connection)
            index, count, host, pid, waited = (hello[key] for key in ("process", "processes", "host", "pid", "waited"))
        except (OSError, Stranger, KeyError):
            connection.close()
            return None
        wrong = ""
        if count != self._place.count:
            wrong = (
                f"process {index} ({host}) was started with --processes {count}, process 0 with {self._place.count}; "
                "give all the same"
            )
        elif index in self.names:
            who = f"another on {host}" + (f", pid {self._pids[index]} and {pid}" if index in self._pids else "")
            wrong = (
                f"two processes were started with --process {index} ({self.names[index]} and {who}); give each its own"
            )
        if wrong:
            with contextlib.suppress(OSError):
                send(connection, {"error": wrong})
            connection.close()
            raise UserError(wrong)
        self.connections[index], self.names[index], self._pids[index] = connection, _name(index, host), pid
        return connection, waited

    def remove(self, connection: socket.socket) -> None:
        """Forgets one that went away before all were there."""
        for index, known in list(self.connections.items()):
            if known is connection:
                del self.connections[index], self.names[index], self._pids[index]
        connection.close()

    def missing(self, seconds: float) -> str:
        """Who did not come."""
        absent = [str(index) for index in range(self._place.count) if index not in self.names]
        shown = ", ".join(absent[:8]) + (", …" if len(absent) > 8 else "")
        return (
            f"{len(self.names)} of {self._place.count} processes came to {self._place.address} within {seconds:.0f} s, "
            f"without {shown}; start all of them together, or correct --processes"
        )

    def dismiss(self, why: str) -> None:
        """Tells all that there will be no run."""
        for connection in self.connections.values():
            with contextlib.suppress(OSError):
                send(connection, {"error": why})
            connection.close()


def _go_there(place: Place, patience_s: float) -> Met:
    began = time.monotonic()
    connection = _connect(place, patience_s)
    waited = time.monotonic() - began
    connection.settimeout(max(_ANSWER_S, patience_s - waited) + _ANSWER_S)
    try:
        who = {"process": place.index, "processes": place.count, "host": socket.gethostname(), "pid": os.getpid()}
        send(connection, {**who, "waited": waited})
        answer: Message = receive(connection)
    except TimeoutError:
        raise UserError(f"{_stranger(place)} (it does not answer)") from None
    except OSError:
        raise UserError(
            f"--coordinator {place.address}: process 0 went away before all had come; see what it says"
        ) from None
    except Stranger:
        raise UserError(_stranger(place)) from None
    if "error" in answer:
        raise UserError(str(answer["error"]))
    return Met({0: connection}, answer["names"], answer["coordinator"])


def _stranger(place: Place) -> str:
    return f"--coordinator {place.address}: what listens there is no process 0 of a `vlm` run; correct the address"


def _connect(place: Place, patience_s: float) -> socket.socket:
    end = time.monotonic() + patience_s
    while True:
        try:
            left = max(_RETRY_S, end - time.monotonic())
            return socket.create_connection((place.host, place.port), timeout=min(_ANSWER_S, left))
        except OSError as error:  # hosts do not start at the same moment, and names may come late too
            if time.monotonic() + _RETRY_S > end:
                raise UserError(
                    f"--coordinator {place.address}: no process 0 was there within {patience_s:.0f} s "
                    f"({_why(error)}); start it there, or correct the address"
                ) from None
        time.sleep(_RETRY_S)


def _open_door(place: Place) -> socket.socket:
    try:
        if place.loopback:
            family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
            return socket.create_server((place.host, place.port), family=family, backlog=place.count)
        socket.getaddrinfo(place.host, place.port)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", place.port), family=family, backlog=place.count, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"--coordinator {place.address}: process 0 cannot listen there ({_why(error)}); choose another "
            "port, and give only one process --process 0"
        ) from None


def _free_port(place: Place) -> int:
    """A port of this machine that nothing has at the moment."""
    with socket.socket(socket.AF_INET6 if ":" in place.host else socket.AF_INET) as probe:
        probe.bind((place.host if place.loopback else "", 0))
        return int(probe.getsockname()[1])


def _why(error: OSError) -> str:
    number = error.errno or 0  # below 0: of names
    return os.strerror(number) if number > 0 else error.strerror or str(error)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _name(index: int, host: str) -> str:
    return f"process {index} ({host})"
