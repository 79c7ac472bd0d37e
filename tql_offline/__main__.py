"""The command line: `tql-offline`, or `python -m tql_offline`."""

import os
import sys

from tql_offline.cores import limit_threads


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


def share_cores() -> None:
    """Have PyTorch's threads that wait for one another give their core away soon.

    GNU's OpenMP, which reads this as it is loaded, lets them spin 300,000 times first. Beside
    another program on the same cores they spin away the time of the thread that is waited for: two
    trainings at once came to 0.06 of the updates that they make so (docs/speed.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


if __name__ == "__main__":
    main()
