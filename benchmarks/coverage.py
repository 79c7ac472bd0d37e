"""How often a leaderboard's 95 % intervals hold the truth where they are known to fall short.

    python benchmarks/coverage.py

Simulates scores whose truth is known, many times over, and prints the share of intervals that hold
it (docs/leaderboard.md):

- a mean of one task, where a tenth of the seeds end at 0 and the others near 97 %;
- ranks of three methods whose means lie 3 points apart, on five tasks, with seeds that deviate by
  5 points.

Then the shares of such boards on which two methods are said to differ: where all three have one
mean, every claim is false; where they lie 3 points apart, claims are true (or reversed).
"""

import argparse
import math
from collections.abc import Mapping

import numpy as np

from tql_offline.eval.averages import summaries
from tql_offline.eval.differences import compare_methods
from tql_offline.eval.leaderboard import Board, make_boards
from tql_offline.eval.measured import Measured, Setting
from tql_offline.eval.statistics import estimate_mean
from tql_offline.eval.trends import SIGNIFICANCE

EPISODES = 150
GOOD, BAD_SHARE = 0.97, 0.1
TASKS, MEANS, DEVIATION = 5, {"a": 56.0, "b": 53.0, "c": 50.0}, 5.0
ALIKE = dict.fromkeys(MEANS, 50.0)
PAIRS = "ab", "bc", "ac"


def covers_rare_failures(runs: int, random: np.random.Generator) -> bool:
    """Whether the interval of one draw of seeds holds the mean over all seeds."""
    scores = random.binomial(EPISODES, GOOD, runs) * (random.random(runs) >= BAD_SHARE)
    got = estimate_mean([100 * scores / EPISODES], is_rate=True)
    return got.low <= 100 * GOOD * (1 - BAD_SHARE) <= got.high


def covers_ranks(runs: int, random: np.random.Generator) -> list[bool]:
    """Whether the intervals of the three ranks of one draw of seeds hold 1, 2 and 3."""
    board = drawn_board(MEANS, runs, random)
    rank = {s.label: s.rank for s in summaries(board, random, resamples=300)}
    return [rank[name].low <= truth <= rank[name].high for truth, name in enumerate(MEANS, start=1)]


def shown_differences(
    means: Mapping[str, float], runs: int, random: np.random.Generator
) -> dict[str, bool]:
    """The pairs of methods that one draw of seeds shows to differ: whether the first scores more.

    Args:
        means: mean score of each method.
        runs: seeds per method and task.
        random: draws the scores, then permutes them.
    """
    found = compare_methods(drawn_board(means, runs, random), random, permutations=2000).found
    return {d.first + d.second: d.test.p_rise < d.test.p_fall for d in found if d.p < SIGNIFICANCE}


def drawn_board(means: Mapping[str, float], runs: int, random: np.random.Generator) -> Board:
    """A board of one draw of seeds of methods with these means."""
    drawn = (
        _run(task, method, seed, score)
        for task in range(TASKS)
        for method, mean in means.items()
        for seed, score in enumerate(random.normal(mean, DEVIATION, runs).tolist())
    )
    (board,), _ = make_boards(drawn)
    return board


def _run(task: int, method: str, seed: int, score: float) -> Measured:
    return Measured(
        name=f"{method}-{task}-{seed}",
        setting=Setting("d4rl v1"),  # not bounded, as success rates are
        task=str(task),
        dataset=str(task),
        method=method,
        size="",
        parameters=None,
        seed=seed,
        dataset_sha256="",
        env_id="",
        tql_offline="",
        score=score,
        last=score,
        last_three=score,
        best=score,
        updates=1,
        seconds=math.nan,
        flops=math.nan,
        device="",
        settings={},
        counted=1,
        reference="",
        conditions={},
    )


def main() -> None:
    """Print all shares."""
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
    for runs in (3, 8):
        for means in (ALIKE, MEANS):
            said = [shown_differences(means, runs, random) for _ in range(draws)]
            some = np.mean([bool(pairs) for pairs in said])
            each = (f"{pair} {np.mean([pair in pairs for pairs in said]):.0%}" for pair in PAIRS)
            gaps = f"means {', '.join(f'{mean:g}' for mean in means.values())}"
            print(f"{gaps}, {runs} seeds, shown to differ: some {some:.1%}; {', '.join(each)}")


if __name__ == "__main__":
    main()
