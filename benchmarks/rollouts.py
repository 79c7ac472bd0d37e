"""Environment steps per second of the evaluator with one process and with two.

    python benchmarks/rollouts.py

25 slots, 25 episodes of a random policy after a warm-up of as many; the best of two turns each.
"""

import time
from typing import Any

from tql_offline.eval.rollout import run_episodes
from tql_offline.eval.workers import EnvironmentPool

SLOTS = 25
ENVIRONMENTS = ("pointmaze-medium-singletask-task1-v0", "cube-single-singletask-task1-v0")


def random_policy(_observations: Any, noise: Any) -> Any:
    """A third of the noise as the action."""
    return noise / 3


def steps_per_second(env_id: str, processes: int) -> float:
    """Play the episodes and count their steps."""
    with EnvironmentPool(env_id, slots=SLOTS, processes=processes) as pool:
        noise_dim = pool.description["action_dim"]
        run_episodes(random_policy, pool, seeds=range(SLOTS), noise_dim=noise_dim)
        started = time.perf_counter()
        seeds = range(SLOTS, 2 * SLOTS)
        episodes = run_episodes(random_policy, pool, seeds=seeds, noise_dim=noise_dim)
        return sum(e.length for e in episodes) / (time.perf_counter() - started)


def main() -> None:
    """Print a line per environment."""
    for env_id in ENVIRONMENTS:
        turns = [[steps_per_second(env_id, processes) for processes in (1, 2)] for _ in range(2)]
        one, two = (max(column) for column in zip(*turns, strict=True))
        print(f"{env_id}: {one:.0f} and {two:.0f} steps/s, efficiency {two / one / 2:.2f}")


if __name__ == "__main__":
    main()
