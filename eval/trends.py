"""Whether scores rise with size: a permutation test, and its correction for several tests."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tql_offline.errors import InputError
from tql_offline.eval.statistics import RESAMPLES, Scores, Table, checked_table

SIGNIFICANCE = 0.05
"""A trend is claimed below this p-value, corrected for all methods of a board."""
_ROUNDING = 1e-9
"""By which sums over tasks may differ that are equal."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Whether scores rise with size.

    Attributes:
        concordance: in [-1, 1], as Kendall's: among pairs of runs of one task that differ in size,
            the share in which the larger scored more, minus the share in which it scored less; mean
            over the tasks.
        p_rise: chance of at least this concordance if size did not matter.
        p_fall: chance of at most this concordance if size did not matter.
        least_p: `p` if these scores were in perfect order, rising or falling, whichever is rarer:
            no order of them has a smaller one. With few runs, no order is unlikely.
        sizes: number of different sizes on each task.
        fewest_runs: fewest runs of a size on a task.
    """

    concordance: float
    p_rise: float
    p_fall: float
    least_p: float
    sizes: tuple[int, ...]
    fewest_runs: int

    @property
    def p(self) -> float:
        """Two-sided p-value, of a trend in either direction."""
        return min(1.0, 2 * min(self.p_rise, self.p_fall))

    def runs_enough(self, tests: int) -> int:
        """Fewest runs of each size on each task that, without ties, can show a trend.

        Their perfect order is significant whatever the p-values of the other tests.

        Args:
            tests: number of tests that p-values are corrected for.
        """
        runs = 1
        while not math.prod(num_deals([*range(n)] * runs) for n in self.sizes) > _deals(tests):
            runs += 1
        return runs


def _deals(tests: int) -> float:
    """Number of equally likely deals above which one and its reverse are significant."""
    return 2 * tests / SIGNIFICANCE


def size_trend(
    sizes: Sequence[ArrayLike],
    table: Table,
    generator: np.random.Generator,
    *,
    permutations: int = RESAMPLES,
) -> Trend:
    """Jonckheere and Terpstra's test for ordered alternatives, stratified by task, by permutation.

    Within each task the runs' scores are permuted among the sizes (Jonckheere, 1954). The statistic
    is the mean of the tasks' concordances, so that a task with more runs weighs no more, as in
    means over tasks. The null hypothesis is that scores have the same distribution at every size,
    so unequal spreads count against it too. The p-values are exact if there are at most
    `permutations` ways to deal the scores of all tasks to the sizes. The observed order is one of
    them or, where the others are drawn, counted in, so p-values are never 0.

    Args:
        sizes: per task, the parameters of each run.
        table: per task, the score of each run.
        generator: permutes the scores; not used where p-values are exact.
        permutations: number of permutations drawn, and the most that are enumerated instead.

    Raises:
        InputError: sizes and scores do not fit, or no task has two sizes.
    """
    tasks = checked_table(table)
    signs = [_size_signs(size, task) for size, task in zip(sizes, tasks, strict=True)]
    compared = sum(bool(sign.any()) for sign in signs)
    if compared == 0:
        raise InputError("no task has runs of two sizes; a trend needs at least two")
    observed = sum(_concordance(s, t[None])[0] for s, t in zip(signs, tasks, strict=True))
    counts = [np.unique(size, return_counts=True)[1] for size in sizes]
    is_exact = math.prod(map(num_deals, sizes)) <= permutations
    dealt = np.zeros(1 if is_exact else permutations)
    for size, sign, task in zip(sizes, signs, tasks, strict=True):
        if is_exact:  # every deal of this task with every one of those before
            dealt = np.add.outer(dealt, _concordance(sign, _every_deal(size, task))).ravel()
        else:
            drawn = generator.permuted(np.tile(task, (permutations, 1)), axis=1)
            dealt += _concordance(sign, drawn)
    lowest, highest = _extremes(sizes, tasks)
    rarest = min(
        _share(dealt <= lowest + _ROUNDING, is_exact),
        _share(dealt >= highest - _ROUNDING, is_exact),
    )
    return Trend(
        concordance=float(observed / compared),
        p_rise=_share(dealt >= observed - _ROUNDING, is_exact),
        p_fall=_share(dealt <= observed + _ROUNDING, is_exact),
        least_p=min(1.0, 2 * rarest),
        sizes=tuple(map(len, counts)),
        fewest_runs=int(min(map(np.min, counts))),
    )


def _extremes(sizes: Sequence[ArrayLike], tasks: Sequence[Scores]) -> tuple[float, float]:
    """Concordance of the perfect falling and of the perfect rising order, summed over tasks.

    With ties and unequal numbers of runs, one is not the other's negative: the falling order of
    1, 0, 0 at a smaller and two larger sizes has no tie between the sizes, the rising one has.
    """
    signs = [_size_signs(np.sort(size), task) for size, task in zip(sizes, tasks, strict=True)]
    orders = [np.array([np.sort(task)[::-1], np.sort(task)]) for task in tasks]
    falling, rising = sum(map(_concordance, signs, orders), start=np.zeros(2)).tolist()
    return falling, rising


def _share(deals: NDArray[np.bool_], is_exact: bool) -> float:
    """The share as far out, of all deals or of those drawn with the observed one counted in."""
    more = 0 if is_exact else 1
    return float((more + deals.sum()) / (more + len(deals)))


def num_deals(sizes: ArrayLike) -> int:
    """Number of ways to deal scores to runs of these sizes, irrespective of order within a size.

    >>> num_deals([1, 1, 1, 2, 2, 2])
    20
    """
    counts = np.unique(sizes, return_counts=True)[1].tolist()
    return math.factorial(sum(counts)) // math.prod(map(math.factorial, counts))


def _every_deal(sizes: ArrayLike, task: Scores) -> Scores:
    """The scores in every way of dealing them to runs of these sizes; `(num_deals, runs)`."""
    counts = np.unique(sizes, return_counts=True)[1].tolist()
    level = np.full((1, len(task)), len(counts))  # of each score; at first, none
    for index, count in enumerate(counts):
        left = sum(counts[index:])
        free = np.argsort(-level, axis=1, kind="stable")[:, :left]
        chosen = free[:, list(itertools.combinations(range(left), count))].reshape(-1, count)
        level = np.repeat(level, math.comb(left, count), axis=0)
        np.put_along_axis(level, chosen, index, axis=1)
    dealt = np.empty(level.shape)
    dealt[:, np.argsort(sizes, kind="stable")] = task[np.argsort(level, axis=1, kind="stable")]
    return dealt


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that they bound the chance of any false claim.

    The method is Holm's (1979, "A simple sequentially rejective multiple test procedure").

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for done, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def corrected(tests: Sequence[Trend]) -> Iterator[tuple[float, float]]:
    """Yield the p-value of each of several tests, by `holm`, and its least.

    The latter is what it would be if that test's scores alone were in perfect order.
    """
    found = [test.p for test in tests]
    for i, (test, p) in enumerate(zip(tests, holm(found), strict=True)):
        yield p, holm([*found[:i], test.least_p, *found[i + 1 :]])[i]


def _size_signs(sizes: ArrayLike, task: Scores) -> NDArray[np.float64]:
    """`(runs, runs)`, above the diagonal 1 if the second run's critic is larger, -1 if smaller."""
    parameters = np.asarray(sizes, dtype=np.float64)
    if parameters.shape != task.shape:
        raise InputError(f"{parameters.shape} sizes for {task.shape} scores; give each run one")
    return np.triu(np.sign(parameters[None, :] - parameters[:, None]))


def _concordance(signs: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Concordant minus discordant pairs over all pairs, for `(permutations, runs)` scores."""
    total, pairs = np.zeros(len(scores)), np.argwhere(signs)
    for first, second in pairs:
        total += signs[first, second] * np.sign(scores[:, second] - scores[:, first])
    return total / max(len(pairs), 1)
