"""Updates per second of ours and of others' implementations, in turn in one run.

    python benchmarks/peers/compare.py --sizes small --batch-size 256 --seconds 20 --out peers.json

Of the flow update at each size, and of IQL and CQL with MLPs of each of `--hidden`. Every
contender is warmed up (and so compiled), then all are timed in turn, A B C A B C …, waiting for
all its work before the next one starts. Rates are medians over the rounds; a ratio is the median
of the rounds' own ratios, ours over the other. Rates per second of CPU time are taken as well: on
a shared machine with `--threads 1` that is the ratio to trust.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.peers import METHODS, Peer, Workload, available_peers, random_transitions
from benchmarks.peers.ours import OURS
from tql_offline.networks import SIZES
from tql_offline.training.device import pick_device
from tql_offline.training.provenance import device_name, git_commit, package_versions

DEFAULT_HIDDEN = ("256x256", "256x256x256")


@dataclass
class Timing:
    """A contender's rounds: updates per second, and per second of CPU time of this process."""

    peer: Peer
    calls: int
    per_second: list[float] = field(default_factory=list)
    per_cpu_second: list[float] = field(default_factory=list)

    def run_round(self) -> None:
        """Make the round's updates and wait for them."""
        started, cpu_started = time.perf_counter(), time.process_time()
        for _ in range(self.calls):
            self.peer.step()
        self.peer.synchronise()
        updates = self.calls * self.peer.updates_per_step
        self.per_second.append(updates / (time.perf_counter() - started))
        self.per_cpu_second.append(updates / (time.process_time() - cpu_started))


def warmed_up(peer: Peer, seconds_per_round: float) -> Timing:
    """Compile and warm up a contender, and find how many calls fill a round."""
    for _ in range(2):
        peer.step()
        peer.synchronise()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        peer.step()
        peer.synchronise()
        times.append(time.perf_counter() - started)
    return Timing(peer, max(1, round(seconds_per_round / min(times))))


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def compare(workload: Workload, ours: Sequence[str], seconds: float, rounds: int) -> dict[str, Any]:
    """Time our ways of a workload's update and all available peers, in turn."""
    data = random_transitions(workload)
    peers, left_out = available_peers(workload, data)
    contenders = [OURS[name](workload, data) for name in ours] + peers
    timings = [warmed_up(peer, seconds / rounds) for peer in contenders]
    for _ in range(rounds):
        for timing in timings:
            timing.run_round()
    rows = [row(timing, timings[0]) for timing in timings]
    return {"workload": vars(workload), "title": str(workload), "rows": rows, "left_out": left_out}


def row(timing: Timing, first: Timing) -> dict[str, Any]:
    """A contender's figures; ratios are those of our first over it."""
    return {
        "name": timing.peer.name,
        "version": timing.peer.version,
        "updates_per_round": timing.calls * timing.peer.updates_per_step,
        "updates_per_second": statistics.median(timing.per_second),
        "updates_per_cpu_second": statistics.median(timing.per_cpu_second),
        "ours_over_it": ratio(first.per_second, timing.per_second),
        "ours_over_it_cpu": ratio(first.per_cpu_second, timing.per_cpu_second),
        "rounds_per_second": timing.per_second,
        "rounds_per_cpu_second": timing.per_cpu_second,
    }


def print_table(result: dict[str, Any]) -> None:
    """A line per contender, and why others are missing."""
    rows = result["rows"]
    print(f"\n{result['title']}; ratios are {rows[0]['name']} over the other")
    print(f"{'':28}{'updates/s':>11}{'ratio':>8}{'/CPU second':>13}{'ratio':>8}")
    for r in rows:
        wall = f"{r['updates_per_second']:11.2f}{r['ours_over_it']:8.2f}"
        cpu = f"{r['updates_per_cpu_second']:13.2f}{r['ours_over_it_cpu']:8.2f}"
        print(f"{r['name']:28}{wall}{cpu}", flush=True)
    for name, reason in result["left_out"].items():
        print(f"{name} is left out: {reason}", flush=True)


def share_machine(threads: int) -> None:
    """Give PyTorch and XLA equally many threads, and not all of a GPU's memory to XLA.

    XLA reads its variables when it first runs, which is later.
    """
    torch.set_num_threads(threads)
    os.environ["NPROC"] = str(threads)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def workloads(arguments: argparse.Namespace, device: str) -> list[Workload]:
    """Every workload asked for."""
    shared = {"batch_size": arguments.batch_size, "device": device, "seed": arguments.seed}
    found = []
    for method in arguments.methods:
        if method == "flow":
            found += [Workload(method=method, size=size, **shared) for size in arguments.sizes]
            continue
        for text in arguments.hidden:
            hidden = tuple(int(width) for width in text.split("x"))
            found.append(Workload(method=method, hidden=hidden, **shared))
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--sizes", nargs="+", choices=list(SIZES), default=["small"], help="of the flow update")
    add("--hidden", nargs="+", default=DEFAULT_HIDDEN, help="layer widths for IQL and CQL")
    add("--ours", nargs="+", choices=list(OURS), default=["eager"])
    add("--batch-size", type=int, default=256)
    add("--device", default="auto")
    add("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch and of XLA")
    add("--seconds", type=float, default=20.0, help="per contender")
    add("--rounds", type=int, default=10)
    add("--seed", type=int, default=0)
    add("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Print a table per workload and write all of them as JSON."""
    arguments = parse()
    share_machine(arguments.threads)
    device = pick_device(arguments.device)
    document: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/peers/compare.py", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "device": device_name(device),
        "threads": arguments.threads,
        "cpu_count": os.cpu_count(),
        "versions": package_versions(),
        "dtype": "float32",
        "results": [],
    }
    for workload in workloads(arguments, device.type):
        result = compare(workload, arguments.ours, arguments.seconds, arguments.rounds)
        print_table(result)
        document["results"].append(result)
        if arguments.out:
            arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
