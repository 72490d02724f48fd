"""The one exception that means: the user's input is wrong, and this line says what and how to mend it."""


class UserError(Exception):
    """Wrong input from the user: one line that names the thing, the place and the mend.

    The command line prints it without a traceback and exits with 2.
    """
