"""Running a server: its socket, its warm-up, its signals and its end."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from vlm_jax.errors import UserError
from vlm_jax.serving.app import create_app
from vlm_jax.serving.service import Service

_CLOSING_SECONDS = 3
"""For the last bytes to leave, once all answers are done or given up."""
_WORKER_SECONDS = 10.0

_log = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; nobody is answered before the server listens.

    Raises:
        UserError: if the address is not this machine's, or is taken.
    """
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port}: give 0 (any free one) to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family[0], family[1], family[2])
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(family[4])
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: {error.strerror or error}; choose another address or port"
        ) from None
    return bound


class _Server(uvicorn.Server):
    """A server that, told to stop, refuses new requests and lets those that run finish."""

    def __init__(self, service: Service, on_ready: Callable[[], None]) -> None:
        # h11 alone is used wherever it runs: what other parsers let through must not depend on what is installed.
        config = uvicorn.Config(
            create_app(service),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        super().__init__(config)
        self._service, self._on_ready = service, on_ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the drain, the second ends it."""
        if self._service.draining:
            self._service.drain(0.0)
            return
        seconds = self._service.config.drain_seconds
        self._service.drain(seconds)
        _log.info("%s: no new requests; those that run have %g s to finish", signal.Signals(sig).name, seconds)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; called ten times a second."""
        leaving = await super().on_tick(counter)
        service = self._service
        if not service.draining or leaving:
            return leaving
        if service.active and time.monotonic() < service.give_up_at:
            return False
        if service.active:
            _log.warning("%d requests are given up", service.active)
        service.stop(0.0)
        return True


def serve(service: Service, bound: socket.socket, on_ready: Callable[[], None] = lambda: None) -> bool:
    """Answers requests until SIGTERM or SIGINT (the second one does not wait).

    Args:
        service: what to serve.
        bound: where, see `bind`.
        on_ready: called when the server listens.

    Returns:
        Whether all threads have ended too, so that the process may end as usual.
    """
    service.start()
    server = _Server(service, on_ready)
    asyncio.run(server.serve([bound]))
    return service.stop(_WORKER_SECONDS)


@contextlib.contextmanager
def running(service: Service) -> Iterator[str]:
    """A server in a thread of this process, on a free port of the loopback interface: gives its base URL."""
    bound = bind("127.0.0.1", 0)
    ready = threading.Event()
    thread = threading.Thread(target=serve, args=(service, bound, ready.set), daemon=True)
    thread.start()
    while not ready.wait(0.1):
        if not thread.is_alive():
            raise RuntimeError("the server's thread ended before it listened")
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        service.drain(0.0)
        thread.join()
