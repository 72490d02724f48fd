"""How a command ends before its work is done, each way with its exit code. Anything else is a fault of the code."""

import errno
from typing import Any


class UserError(Exception):
    """Wrong input from the user: one line that names the thing, the place and the mend.

    The command line prints it without a traceback and exits with 2.
    """


class RunError(Exception):
    """The run cannot go on (a loss that is not finite, say): one line that says why. Exit code 1, no traceback."""


class Preempted(Exception):  # noqa: N818
    """The run was asked to stop and has saved everything: start the same command again. Exit code 75."""


def shown(value: Any) -> str:
    """A value as a message shows it: its repr, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def refused_by_disk(error: BaseException) -> UserError | None:
    """The one line of a disk that is full or may not be written; None if an error is another."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    return UserError(f"{error.filename or 'output'}: {error.strerror}; free space or choose another directory")
