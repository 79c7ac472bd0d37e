"""How many threads and processes to start by default."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores this process may use: a scheduler or container often grants less than the machine has.

    That is what it may run on, or the CPU time that Linux's control groups give it, rounded up: as
    many processes as there are cores would wait for one another there.
    """
    return math.ceil(min([_runs_on(), *map(_quota, _groups())]))


def limit_threads() -> None:
    """Have PyTorch start no more threads than cores, where it would: to call before its import.

    It counts the cores that it may run on, and knows nothing of CPU time.
    """
    cores = usable_cores()
    if cores < _runs_on():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def share_cores() -> None:
    """Have PyTorch's threads that wait for one another give their core away soon.

    To call before its import, too: GNU's OpenMP reads this as it is loaded, and lets them spin
    300,000 times first. Beside another program on the same cores they spin away the time of the
    thread that is waited for: two trainings at once came to 0.06 of the updates that they make so
    (docs/speed.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _runs_on() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(group: Path) -> float:
    """CPU time per time that a control group may take, in cores; infinite if it has no limit."""
    try:
        if (newer := group / "cpu.max").exists():
            quota, period = newer.read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group here, or "max"
        return math.inf
    return cores if cores > 0 else math.inf  # -1 is none, too


def _groups() -> Iterator[Path]:
    """Folders of this process's control groups and of those above, of either kernel interface."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CONTROL_GROUPS / controllers
        # In a container the path may be the host's, and the root the container's own group.
        group = root / path.strip("/")
        yield from (group, *(above for above in group.parents if above.is_relative_to(root)))
