"""The command line: `tql-offline`, or `python -m tql_offline`."""

import sys

from tql_offline.cores import limit_threads, share_cores


def main() -> None:
    """Run the command line; Ctrl-C during its imports ends it as at any other time."""
    limit_threads()
    share_cores()
    try:
        from tql_offline.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("tql-offline: stopped\n")
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
