"""The command line: `tql-offline`, or `python -m tql_offline`."""

import sys
from io import TextIOWrapper

from tql_offline.cores import limit_threads, share_cores


def main() -> None:
    """Run the command line; Ctrl-C during its imports ends it as at any other time."""
    _print_what_can_be_encoded()
    limit_threads()
    share_cores()
    try:
        from tql_offline.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("tql-offline: stopped\n")
        raise SystemExit(130) from None
    run()


def _print_what_can_be_encoded() -> None:
    """Replace other characters: a file or pipe may take ASCII alone, and a run must not end by it.

    A program without a console, on Windows, has no streams.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    main()
