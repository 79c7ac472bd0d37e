"""Updates per second of the flow agent on random transitions of cube-double's shape.

    python benchmarks/updates.py --sizes tiny small --device cpu --out updates.json

The time of an update does not depend on the data's values, so random ones serve; no environment is
needed. Each size is warmed up, then timed over at least `--seconds`.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from tql_offline.agents import make_agent
from tql_offline.batch import Batch
from tql_offline.config import resolve
from tql_offline.networks import SIZES
from tql_offline.training.device import pick_device
from tql_offline.training.provenance import device_name, package_versions

OBSERVATION_DIM, ACTION_DIM = 37, 5


def random_batch(size: int, device: torch.device) -> Batch:
    """Transitions of cube-double's shape."""
    return Batch(
        observations=torch.randn(size, OBSERVATION_DIM, device=device),
        actions=torch.rand(size, ACTION_DIM, device=device) * 2 - 1,
        rewards=-torch.ones(size, device=device),
        next_observations=torch.randn(size, OBSERVATION_DIM, device=device),
        discounts=torch.full((size,), 0.99, device=device),
        returns_to_go=-torch.ones(size, device=device),
        next_actions=torch.rand(size, ACTION_DIM, device=device) * 2 - 1,
        next_action_mask=torch.ones(size, device=device),
    )


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read next is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def updates_per_second(size: str, batch_size: int, device: torch.device, seconds: float) -> float:
    """Time whole updates: critic, policies, optimizers, target network."""
    dataset = {"name": "cube-double-play-singletask-task1-v0"}
    config = resolve({"critic": {"size": size}, "dataset": dataset})
    agent = make_agent(config, OBSERVATION_DIM, ACTION_DIM, device)
    generator, batch = torch.Generator(device).manual_seed(0), random_batch(batch_size, device)
    for _ in range(3):
        agent.update(batch, generator, 1)
    synchronise(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        agent.update(batch, generator, count + 1)
        synchronise(device)
        count += 1
    return count / (time.perf_counter() - started)


def main() -> None:
    """Print a line per size and write all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["tiny", "small"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    rates = {}
    for size in arguments.sizes:
        rates[size] = updates_per_second(size, arguments.batch_size, device, arguments.seconds)
        print(f"{size:>7}  {rates[size]:8.1f} updates/s", flush=True)
    document = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "batch_size": arguments.batch_size,
        "dtype": "float32",
        "updates_per_second": rates,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
