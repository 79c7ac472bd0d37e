"""The one error a user is meant to read."""


class InputError(Exception):
    """Bad input: a file, flag, config, checkpoint or result that cannot be used.

    The message is one sentence that names what is wrong, where, and the mend. The command line
    prints it without a traceback and exits with code 2 (`--debug` shows the traceback).
    """
