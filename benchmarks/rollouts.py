"""How the evaluator's rollouts scale from one process to two.

    python benchmarks/rollouts.py --turns 5 --out rollouts.json

Plays episodes in five ways, one after the other, several times over in one run:

- one: the evaluator with one process;
- two: the evaluator with two processes, which share one policy;
- alone: two processes with nothing in common, each playing half of the episodes with an evaluator
  of its own;
- plain-one: a process with a loop over one Gymnasium environment and none of the toolkit's code;
- plain-two: two such processes at once, each playing all of the episodes.

Efficiency is steps/s of two / (2 steps/s of one), of the medians; the bound is the same ratio for
alone, and the ceiling that of plain-two to plain-one. The ceiling is the machine's own: its cores
share caches, memory and clock, and may be two threads of one core.

The policies are a third of the noise ("random", and in the plain loops) and a torch MLP of four
layers of 128 on the CPU ("mlp"), which uses one thread in all ways: the other core is a worker's.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from tql_offline.eval.rollout import Array, Policy, run_episodes
from tql_offline.eval.workers import EnvironmentPool
from tql_offline.training.provenance import device_name, git_commit, package_versions

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


def play_plainly(connection: "Connection[Any, Any]", env_id: str) -> None:
    """Answer lists of seeds with the number of steps played, in a process of its own."""
    warnings.simplefilter("ignore")  # OGBench's, about float32
    import ogbench  # noqa: F401  (registers its environments)

    env = gymnasium.make(env_id, disable_env_checker=True)
    shape = env.action_space.shape
    while (seeds := connection.recv()) is not None:
        steps = 0
        for seed in seeds:
            noise, ended = np.random.default_rng(seed), False
            env.reset(seed=seed)
            while not ended:
                action = noise.standard_normal(shape, dtype=np.float32) / np.float32(3)
                _, _, terminated, truncated, _ = env.step(np.clip(action, -1.0, 1.0))
                ended = terminated or truncated
                steps += 1
        connection.send(steps)


@contextmanager
def processes(
    target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]
) -> Iterator[list["Connection[Any, Any]"]]:
    """Processes that answer lists of seeds, one per tuple of arguments, until they get None."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for its in arguments:
        ours, theirs = context.Pipe()
        context.Process(target=target, args=(theirs, *its), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    yield pipes
    for pipe in pipes:
        pipe.send(None)


def together(pipes: Sequence["Connection[Any, Any]"], parts: Sequence[Sequence[int]]) -> int:
    """Steps of processes that play at once, each its part of the seeds."""
    for pipe, part in zip(pipes, parts, strict=True):
        pipe.send(part)
    return sum(pipe.recv() for pipe in pipes)


def halves(seeds: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The seeds in two parts, the first no shorter."""
    middle = len(seeds) - len(seeds) // 2
    return seeds[:middle], seeds[middle:]


def measure(env_id: str, policy: str, episodes: int, turns: int) -> dict[str, list[float]]:
    """Steps per second of each way and turn, after a turn that warms up."""
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for name, workers in (("one", 1), ("two", 2)):
            pool = EnvironmentPool(env_id, slots=SLOTS, processes=workers)
            ways[name] = player(stack.enter_context(pool), policy)
        slots = [(env_id, policy, SLOTS - SLOTS // 2), (env_id, policy, SLOTS // 2)]
        alone = stack.enter_context(processes(play_alone, slots))
        plain = stack.enter_context(processes(play_plainly, [(env_id,)] * 2))
        ways["alone"] = lambda seeds: together(alone, halves(seeds))
        ways["plain-one"] = lambda seeds: together(plain[:1], [seeds])
        ways["plain-two"] = lambda seeds: together(plain, [seeds, seeds])
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
    """Medians, efficiency, its bound and ceiling, and the shares of these that are reached."""
    median = {name: statistics.median(values) for name, values in rates.items()}
    efficiency = median["two"] / median["one"] / 2
    ceiling = median["plain-two"] / median["plain-one"] / 2
    return {
        **{f"{name.replace('-', '_')}_steps_per_second": rate for name, rate in median.items()},
        "efficiency": efficiency,
        "bound": median["alone"] / median["one"] / 2,
        "ceiling": ceiling,
        "efficiency_of_bound": median["two"] / median["alone"],
        "efficiency_of_ceiling": efficiency / ceiling,
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
            steps = ", ".join(
                f"{name} {numbers[name.replace('-', '_') + '_steps_per_second']:.0f}"
                for name in rates
            )
            print(
                f"{env_id} {policy}: {steps} steps/s\n"
                f"  efficiency {numbers['efficiency']:.2f}; bound {numbers['bound']:.2f} "
                f"(reached {numbers['efficiency_of_bound']:.2f}); ceiling "
                f"{numbers['ceiling']:.2f} (reached {numbers['efficiency_of_ceiling']:.2f})",
                flush=True,
            )
    document = {
        "command": "python " + " ".join(sys.argv),
        "git_commit": git_commit(),
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
