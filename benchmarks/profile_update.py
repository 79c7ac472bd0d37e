"""Where the time of an update goes: PyTorch's profile of some updates, by operation or GPU kernel.

python benchmarks/profile_update.py --size xl --way bfloat16 --device cuda
"""

import argparse
from collections.abc import Iterator

from torch.profiler import ProfilerActivity, profile

from tql_offline.bench import OBJECTIVES
from tql_offline.bench.ours import WAYS, make_ours
from tql_offline.bench.workload import Workload, random_transitions
from tql_offline.networks import SIZES
from tql_offline.training.device import pick_device


def main() -> None:
    """Print a table, the costliest first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--objective", choices=OBJECTIVES, default="flow")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--way", choices=list(WAYS), default="ours")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--calls", type=int, default=2, help="of a launch of updates")
    parser.add_argument("--rows", type=int, default=30)
    flags = parser.parse_args()

    device = pick_device(flags.device).type
    workload = Workload(
        objective=flags.objective, size=flags.size, batch_size=flags.batch_size, device=device
    )
    contender = make_ours(flags.way, workload, random_transitions(workload))
    done = 0
    while done < contender.warm_up:
        done += contender.step()
    contender.synchronise()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiled:
        updates = sum(contender.step() for _ in range(flags.calls))
        contender.synchronise()
    print(f"{workload}, {flags.way}: {updates} updates ({contender.note})")
    print("\n".join(table(profiled, updates, flags.rows, device)))


def table(profiled: profile, updates: int, rows: int, device: str) -> Iterator[str]:
    """Markdown: time itself in each operation (on a GPU, each kernel), the costliest first."""
    spent = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    events = profiled.key_averages()
    if device == "cuda":  # an operation has its kernels' time, too
        events = [event for event in events if not str(event.device_type).endswith("CPU")]
    costliest = sorted(events, key=lambda event: -getattr(event, spent))
    yield f"{sum(getattr(event, spent) for event in costliest) / updates:,.0f} µs an update\n"
    yield "| µs an update | calls | µs a call | what |\n|---|---|---|---|"
    for event in costliest[:rows]:
        time = getattr(event, spent)
        each = f"{time / updates:,.1f} | {event.count / updates:g} | {time / event.count:,.1f}"
        yield f"| {each} | `{event.key}` |"


if __name__ == "__main__":
    main()
