"""How often a leaderboard's 95 % intervals hold the truth where they are known to fall short.

    python benchmarks/coverage.py

Simulates scores whose truth is known, many times over, and prints the share of intervals that hold
it (docs/leaderboard.md):

- a mean of one task, where a tenth of the seeds end at 0 and the others near 97 %;
- ranks of three methods whose means lie 3 points apart, on five tasks, with seeds that deviate by
  5 points.
"""

import argparse

import numpy as np

from tql_offline.eval.leaderboard import Board, Setting, TaskScore, summaries
from tql_offline.eval.statistics import estimate_mean

EPISODES = 150
GOOD, BAD_SHARE = 0.97, 0.1
TASKS, MEANS, DEVIATION = 5, {"a": 56.0, "b": 53.0, "c": 50.0}, 5.0


def covers_rare_failures(runs: int, random: np.random.Generator) -> bool:
    """Whether the interval of one draw of seeds holds the mean over all seeds."""
    scores = random.binomial(EPISODES, GOOD, runs) * (random.random(runs) >= BAD_SHARE)
    got = estimate_mean([100 * scores / EPISODES], is_rate=True)
    return got.low <= 100 * GOOD * (1 - BAD_SHARE) <= got.high


def covers_ranks(runs: int, random: np.random.Generator) -> list[bool]:
    """Whether the intervals of the three ranks of one draw of seeds hold 1, 2 and 3."""
    scores = {}
    for task in range(TASKS):
        for name, mean in MEANS.items():
            drawn = random.normal(mean, DEVIATION, runs)
            cell = TaskScore(
                runs=tuple(drawn), mean=float(drawn.mean()), sd=float(drawn.std(ddof=1))
            )
            scores[str(task), name] = cell
    board = Board(
        setting=Setting("simulated"),
        tasks=tuple(map(str, range(TASKS))),
        measured=tuple(MEANS),
        reported=(),
        scores=scores,
        fraction=0.95,
    )
    rank = {s.label: s.rank for s in summaries(board, random, resamples=300)}
    return [rank[name].low <= truth <= rank[name].high for truth, name in enumerate(MEANS, start=1)]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    random = np.random.default_rng(0)
    for runs in (4, 8):
        held = np.mean([covers_rare_failures(runs, random) for _ in range(draws)])
        print(f"a tenth of the seeds at 0, {runs} seeds: {held:.0%}")
    for runs in (3, 8):
        held = np.mean([covers_ranks(runs, random) for _ in range(draws)], axis=0)
        print(f"ranks 1, 2, 3, {runs} seeds: {', '.join(f'{share:.0%}' for share in held)}")


if __name__ == "__main__":
    main()
