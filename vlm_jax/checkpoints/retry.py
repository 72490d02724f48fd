"""Which refusals of a disk or bucket may pass by themselves, and trying again until they have."""

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from etils import epath

from vlm_jax.errors import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")


class RefusedError(UserError):
    """A disk or bucket refused to take something for good; one line that names it."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LOST = {
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
}
_STATUS = {
    "RESOURCE_EXHAUSTED": "it takes no more now",  # what a bucket answers that is asked too often
    "UNAVAILABLE": "it cannot be reached",
    "DEADLINE_EXCEEDED": "it does not answer",
    "ABORTED": "it cannot be reached",  # what tensorstore calls a request that failed as often as it tries
}
"""Statuses with which messages of tensorstore (ValueError) and of TensorFlow's files begin."""
_STATUS_AT_START = re.compile(rf"({'|'.join(_STATUS)})\b")
_OS_ERROR_CODE = re.compile(r"os_error_code='(\d+)'")
"""How tensorstore tells which error of the system was the reason."""
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
"""What the system calls it, within messages of other statuses."""
_CLIENTS = {"aiohttp", "gcsfs", "google", "requests", "urllib3"}
"""Libraries that speak with buckets below epath; their errors are of the connection, but for those of HTTP."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0


def passing(error: BaseException | None) -> str:
    """What is the matter, if an error is one of a full disk or of a bucket that cannot be reached; else ''."""
    while error is not None:
        if found := _passing(error):
            return found
        error = error.__cause__ or error.__context__
    return ""


def system_code(error: BaseException) -> int | None:
    """The system's error code (errno) that is the reason of an error, also if tensorstore raised it."""
    if isinstance(error, OSError):
        return error.errno
    told = _OS_ERROR_CODE.search(str(error)) if isinstance(error, ValueError) else None
    return int(told[1]) if told else None


def _passing(error: BaseException) -> str:
    if isinstance(error, jax.errors.JaxRuntimeError | MemoryError):  # of devices, whose memory may be exhausted, too
        return ""
    message, code = str(error), system_code(error)
    if code in _FULL or any(words in message for words in _FULL_WORDS):
        return "the disk is full"
    if code in _LOST or isinstance(error, ConnectionError | TimeoutError):
        return "it cannot be reached"
    if code is None and (found := _STATUS_AT_START.match(message)):
        return _STATUS[found[1]]
    if type(error).__module__.split(".")[0] in _CLIENTS:
        code = getattr(error, "code", None) or getattr(error, "status", None)
        wrong_request = isinstance(code, int) and 400 <= code < 500 and code not in (408, 429)
        return "" if wrong_request else "it cannot be reached"
    return ""


def try_again(act: Callable[[], T], what: str, seconds: float, alive: Callable[[], None] = lambda: None) -> T:
    """Does something until the disk or bucket takes it, with waits of 1, 2, 4, … up to 60 seconds.

    Args:
        act: what to do; it may be done over again after it failed.
        what: to call it in the log, such as "saving step 200".
        seconds: how long to try; 0 = once.
        alive: called before every try and every wait.

    Raises:
        Exception: the last refusal, when the time is up; any other error at once.
    """
    end, wait = time.monotonic() + seconds, _FIRST_WAIT_S
    while True:
        alive()
        try:
            return act()
        except Exception as error:
            why, left = passing(error), end - time.monotonic()
            if not why or left <= 0:
                raise
            log.warning("%s: %s; trying again in %.0f s, for %.0f s more", what, why, min(wait, left), left)
        alive()
        time.sleep(min(wait, left))
        wait = min(2 * wait, _LONGEST_WAIT_S)


def append_line(path: epath.Path, line: str, seconds: float = 0.0) -> None:
    """Appends a whole line to a file or leaves the file as it was; a refusal is tried again for so many seconds.

    Raises:
        RefusedError: if the disk refuses it for good.
    """

    def append() -> None:
        with _undone(path), path.open("a") as file:
            file.write(line + "\n")

    try:
        try_again(append, f"writing to {path}", seconds)
    except Exception as error:
        if not passing(error):
            raise
        raise RefusedError(
            f"{path}: could not be written ({passing(error)}); free space or choose another --workdir, then run again"
        ) from error


@contextlib.contextmanager
def _undone(path: epath.Path) -> Iterator[None]:
    """Takes back half a line. Objects of buckets need it not: they are written whole or not at all."""
    local = os.fspath(path)
    size = os.path.getsize(local) if os.path.exists(local) else None
    try:
        yield
    except OSError:
        if size is not None:
            os.truncate(local, size)
        elif os.path.exists(local):
            os.remove(local)
        raise
