"""The command line, called in the test's own process."""

import pytest

from tql_offline.cli import main


def command(arguments, capsys):
    """Its exit code and what it printed."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code, capsys.readouterr()
