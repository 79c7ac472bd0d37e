"""The command line: `tql-offline`, or `python -m tql_offline`."""

import sys

from tql_offline.cores import limit_threads, share_cores


def main() -> None:
    """Run it; Ctrl-C while its libraries are imported ends it like any other."""
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
