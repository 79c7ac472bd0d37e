"""How many threads and processes to start by default, and how much memory they may take."""

import math
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores this process may use: a scheduler or container often grants less than the machine has.

    This is the lesser of the cores it may run on and the CPU time that Linux control groups grant
    it, rounded up: with a process for every core of the machine, processes would wait for one
    another.
    """
    return math.ceil(min([_runs_on(), *map(_quota, control_groups("cpu"))]))


def limit_threads() -> None:
    """Keep PyTorch from starting more threads than usable cores; call before importing it.

    PyTorch counts the cores it may run on, but knows nothing of limits on CPU time.
    """
    cores = usable_cores()
    if cores < _runs_on():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def share_cores() -> None:
    """Make waiting PyTorch threads yield their core soon; call before importing PyTorch.

    GNU OpenMP reads the setting when it is loaded; by default, waiting threads spin 300,000 times
    first. Next to another program on the same cores, spinning takes time from the very thread that
    is waited for: without the setting, two trainings at once made 0.06 of the updates that they
    make with it (docs/speed.md). LLVM's OpenMP, which PyTorch has on macOS, reads another: for how
    many milliseconds they spin.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ.setdefault("KMP_BLOCKTIME", "0")


def _runs_on() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return _performance_cores() or os.cpu_count() or 1


@cache
def _performance_cores() -> int:
    """Those of Apple silicon, which alone PyTorch uses; 0 elsewhere."""
    if platform.system() != "Darwin":
        return 0
    command = ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        return max(0, int(told.stdout))
    except (OSError, ValueError, subprocess.TimeoutExpired):  # no such command, an Intel Mac
        return 0


def _quota(group: Path) -> float:
    """The CPU time a control group may use, in cores; infinite if it has no limit."""
    try:
        if (newer := group / "cpu.max").exists():
            quota, period = newer.read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group here, or "max"
        return math.inf
    return cores if cores > 0 else math.inf  # -1 also means no limit


def memory_limit() -> int | None:
    """The least memory limit of this process's control groups in bytes; None without one."""
    limits = map(_limit_of, control_groups("memory"))
    return min((limit for limit in limits if limit is not None), default=None)


def _limit_of(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):  # newer and older kernel interface
        with suppress(OSError, ValueError):  # no such group here, or "max"
            return int((group / name).read_text(encoding="ascii"))
    return None


def control_groups(controller: str) -> Iterator[Path]:
    """Folders of this process's control groups and their ancestors, in either kernel interface.

    Args:
        controller: what the groups limit, "cpu" or "memory".
    """
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = CONTROL_GROUPS / controllers
        # In a container the path may be the host's, and the root the container's own group.
        group = root / path.strip("/")
        yield from (group, *(above for above in group.parents if above.is_relative_to(root)))
