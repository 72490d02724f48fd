"""How a command ends before its work is done, each way with its exit code. Anything else is a fault of the code."""


class UserError(Exception):
    """Wrong input from the user: one line that names the thing, the place and the mend.

    The command line prints it without a traceback and exits with 2.
    """


class RunError(Exception):
    """The run cannot go on (a loss that is not finite, say): one line that says why. Exit code 1, no traceback."""


class Preempted(Exception):  # noqa: N818
    """The run was asked to stop and has saved everything: start the same command again. Exit code 75."""
