"""How the evaluator's rollouts scale from one process to two.

    python benchmarks/rollouts.py --turns 5 --out rollouts.json

Plays the same episodes in three ways, one after the other, several times over in one run:

- one: the evaluator with one process;
- two: the evaluator with two processes, which share one policy;
- alone: two processes with nothing in common, each playing half of the episodes with an evaluator
  of its own. This is all that the machine's two cores can give: they share caches, memory and
  clock, and may be two threads of one core.

Efficiency is T(one) / (2 T(two)) of the medians, the bound T(one) / (2 T(alone)). The policies are
a third of the noise ("random") and a torch MLP of four layers of 128 on the CPU ("mlp"), which uses
one thread in all three ways: the other core is a worker's.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tql_offline.eval.rollout import Array, Policy, run_episodes
from tql_offline.eval.workers import EnvironmentPool
from tql_offline.training.provenance import device_name, package_versions

SLOTS = 25
ENVIRONMENTS = ("pointmaze-medium-singletask-task1-v0", "cube-single-singletask-task1-v0")
Way = Callable[[Sequence[int]], int]
"""Plays the episodes of these seeds and returns their number of steps."""


def random_policy(_observations: Array, noise: Array) -> Array:
    """A third of the noise as the action."""
    return noise / np.float32(3)


def mlp_policy(observation_dim: int, action_dim: int) -> Policy:
    """Four hidden layers of 128, initialised from a fixed seed, with the noise added."""
    torch.manual_seed(0)
    dims = [observation_dim, 128, 128, 128, 128]
    layers: list[torch.nn.Module] = []
    for before, after in pairwise(dims):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(128, action_dim), torch.nn.Tanh())

    def act(observations: Array, noise: Array) -> Array:
        with torch.no_grad():
            actions: Array = network(torch.as_tensor(observations)).numpy()
        return actions / np.float32(10) + noise / np.float32(3)

    return act


def player(pool: EnvironmentPool, policy_name: str) -> Way:
    """The evaluator on a pool."""
    n_s, n_a = pool.description["observation_dim"], pool.description["action_dim"]
    policy = random_policy if policy_name == "random" else mlp_policy(n_s, n_a)

    def play(seeds: Sequence[int]) -> int:
        return sum(e.length for e in run_episodes(policy, pool, seeds=seeds, noise_dim=n_a))

    return play


def play_alone(connection: "Connection[Any, Any]", env_id: str, policy: str, slots: int) -> None:
    """Answer lists of seeds with the number of steps played, in a process of its own."""
    torch.set_num_threads(1)
    with EnvironmentPool(env_id, slots=slots, processes=1) as pool:
        play = player(pool, policy)
        while (seeds := connection.recv()) is not None:
            connection.send(play(seeds))


@contextmanager
def alone(env_id: str, policy: str) -> Iterator[Way]:
    """Two evaluators in processes of their own, with half of the slots each."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for half in (SLOTS - SLOTS // 2, SLOTS // 2):
        ours, theirs = context.Pipe()
        context.Process(target=play_alone, args=(theirs, env_id, policy, half), daemon=True).start()
        pipes.append(ours)

    def play(seeds: Sequence[int]) -> int:
        middle = len(seeds) - len(seeds) // 2
        for pipe, half in zip(pipes, (seeds[:middle], seeds[middle:]), strict=True):
            pipe.send(half)
        return sum(pipe.recv() for pipe in pipes)

    yield play
    for pipe in pipes:
        pipe.send(None)


def measure(env_id: str, policy: str, episodes: int, turns: int) -> dict[str, list[float]]:
    """Steps per second of each way and turn, after a turn that warms up."""
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for name, processes in (("one", 1), ("two", 2)):
            pool = EnvironmentPool(env_id, slots=SLOTS, processes=processes)
            ways[name] = player(stack.enter_context(pool), policy)
        ways["alone"] = stack.enter_context(alone(env_id, policy))
        for play in ways.values():
            play(range(SLOTS))
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(turns):
            first = (turn + 1) * episodes
            for name, play in ways.items():
                started = time.perf_counter()
                steps = play(range(first, first + episodes))
                rates[name].append(steps / (time.perf_counter() - started))
    return rates


def summary(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians, efficiency, its bound, and the share of the bound that is reached."""
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        **{f"{name}_steps_per_second": value for name, value in median.items()},
        "efficiency": median["two"] / median["one"] / 2,
        "bound": median["alone"] / median["one"] / 2,
        "efficiency_of_bound": median["two"] / median["alone"],
    }


def main() -> None:
    """Print a line per environment and policy, and write all numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", nargs="+", default=list(ENVIRONMENTS))
    parser.add_argument("--policy", nargs="+", choices=["random", "mlp"], default=["random", "mlp"])
    parser.add_argument("--episodes", type=int, default=SLOTS, help="per turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for env_id in arguments.env:
        for policy in arguments.policy:
            rates = measure(env_id, policy, arguments.episodes, arguments.turns)
            numbers = summary(rates)
            results.append({"env_id": env_id, "policy": policy, **numbers, "turns": rates})
            print(
                f"{env_id} {policy}: one {numbers['one_steps_per_second']:.0f}, two "
                f"{numbers['two_steps_per_second']:.0f}, alone "
                f"{numbers['alone_steps_per_second']:.0f} steps/s; efficiency "
                f"{numbers['efficiency']:.2f} of {numbers['bound']:.2f} possible "
                f"({numbers['efficiency_of_bound']:.2f})",
                flush=True,
            )
    document = {
        "command": "python " + " ".join(sys.argv),
        "device": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "versions": package_versions(),
        "slots": SLOTS,
        "results": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
