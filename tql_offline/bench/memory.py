"""Peak memory of a contender, measured in a process that runs nothing else.

On a CPU: the peak resident memory while updates run, less that before the contender was made, after
a small one of its kind has loaded libraries and their workspaces. On a GPU: the most that its
framework says it has held.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from tql_offline.bench.workload import Contender, Workload, random_transitions

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(workload: Workload, name: str) -> int | None:
    """Peak bytes, or None where they cannot be measured (on a CPU: anywhere but on Linux)."""
    if workload.device == "cpu" and not CLEAR.exists():
        return None
    request = json.dumps({"workload": asdict(workload), "name": name})
    command = [sys.executable, "-m", "tql_offline.bench.memory", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return int(lines[-1]) if done.returncode == 0 and lines else None


def measure(workload: Workload, name: str) -> int:
    """Bytes of one contender in this process."""
    from tql_offline.bench.compare import make_contender

    small = replace(workload, size="tiny", batch_size=2)
    data = random_transitions(workload)
    if workload.device == "cuda":
        contender = make_contender(name, workload, data)
        run(contender, contender.warm_up)
        return contender.peak_gpu_bytes()
    run(make_contender(name, small, random_transitions(small)), 1)
    before = resident("VmRSS")
    contender = make_contender(name, workload, data)
    run(contender, 1)
    CLEAR.write_text("5")  # resets the peak, to exclude a compiler's
    run(contender, 1)
    return resident("VmHWM") - before


def run(contender: Contender, updates: int) -> None:
    """Run at least `updates` updates."""
    done = 0
    while done < updates:
        done += contender.step()
    contender.synchronise()


def resident(what: str) -> int:
    """`VmRSS` (now) or `VmHWM` (at most) of this process, in bytes; 0 if this is not Linux."""
    if not STATUS.exists():
        return 0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print the bytes of the contender named in the argument."""
    request = json.loads(sys.argv[1])
    hidden = tuple(request["workload"].pop("hidden"))
    print(measure(Workload(**request["workload"], hidden=hidden), request["name"]))  # noqa: T201


if __name__ == "__main__":
    main()
