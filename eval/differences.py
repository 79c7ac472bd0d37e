"""Differences between methods of equal size, with a test of each pair.

Runs of two methods are independent samples, also where their seeds are equal: a seed makes no two
methods' runs alike. So each pair is tested by dealing the scores of each task to the two methods,
which is the trend test of two groups: Mann and Whitney's, stratified by task.

Each method is compared with each other one, or with one that the reader names, never with the best
by these same scores: that one owes its place to luck as well, and the comparison would count the
luck as a difference.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from tql_offline.eval.ended import Lost
from tql_offline.eval.leaderboard import Board, by_cell
from tql_offline.eval.measured import Measured
from tql_offline.eval.rows import natural
from tql_offline.eval.statistics import RESAMPLES, Estimate, estimate_difference, mean_of_runs
from tql_offline.eval.trends import SIGNIFICANCE, Trend, corrected, size_trend
from tql_offline.eval.variants import differing

MAX_METHODS = 8
"""Most methods of one size of which each pair is compared; with a baseline, there is no limit."""
_DRAWN_PER_PAIR = 100
"""Least permutations per pair: a p-value of 2 in so many times the pairs can show a difference."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two columns of equal size over the tasks that both have.

    Attributes:
        size: their size; where one of them has no critic, the other's.
        first: label of one column.
        second: label of the other; the baseline's, if there is one.
        tasks: the tasks that both have.
        lacking: tasks that only one of them has.
        difference: mean over tasks of `first` minus that of `second`, with Welch's interval; NaN
            where scores of unlike tasks cannot be averaged.
        more: tasks on which the mean of `first` is higher.
        less: tasks on which it is lower.
        test: the test by permutation within tasks; rising means that `first` scores more.
        p: its two-sided p-value, corrected for all pairs of the board.
        least_p: the same if the scores of this pair were in perfect order.
        alike: whether all runs of each task have the same score.
        differing: settings that differ between the two columns' runs of one task.
    """

    size: str
    first: str
    second: str
    tasks: tuple[str, ...]
    lacking: tuple[str, ...]
    difference: Estimate
    more: int
    less: int
    test: Trend
    p: float
    least_p: float
    alike: bool
    differing: tuple[str, ...]

    @property
    def is_shown(self) -> bool:
        """Whether the scores show that the two columns differ."""
        return self.p < SIGNIFICANCE

    @property
    def is_untestable(self) -> bool:
        """Whether no order of so many runs, or of scores with such ties, could show anything."""
        return self.least_p >= SIGNIFICANCE

    @property
    def rises(self) -> bool:
        """Whether the test is for `first` scoring more, rather than less."""
        return self.test.p_rise < self.test.p_fall

    def turned(self) -> Self:
        """The same difference, of `second` from `first`."""
        test, by = self.test, self.difference
        return replace(
            self,
            first=self.second,
            second=self.first,
            difference=Estimate(value=-by.value, low=-by.high, high=-by.low),
            more=self.less,
            less=self.more,
            test=replace(
                test, concordance=-test.concordance, p_rise=test.p_fall, p_fall=test.p_rise
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Which columns of a board were compared.

    Attributes:
        found: the pairs that share a task, by size, in the order of the board's columns.
        apart: pairs of labels that share no task.
        alone: columns that none of equal size is compared with.
        crowded: sizes with more than `MAX_METHODS` methods, and how many these are.
        baseline: the method that others are compared with; empty if each is with each.
        lost: what columns lost by runs that ended without a score, on any task.
    """

    found: tuple[Difference, ...] = ()
    apart: tuple[tuple[str, str], ...] = ()
    alone: tuple[str, ...] = ()
    crowded: tuple[tuple[str, int], ...] = ()
    baseline: str = ""
    lost: Mapping[str, Lost] = field(default_factory=dict)


Cells = dict[tuple[str, str], list[Measured]]
"""Runs by task and label."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two columns, and for each task that both have, their runs."""

    size: str
    labels: tuple[str, str]
    tasks: tuple[str, ...]
    lacking: tuple[str, ...]
    runs: tuple[tuple[list[Measured], list[Measured]], ...]

    @property
    def scores(self) -> list[tuple[list[float], list[float]]]:
        """For each task, the scores of both columns' runs."""
        return [([r.score for r in one], [r.score for r in other]) for one, other in self.runs]


def compare_methods(
    board: Board,
    generator: np.random.Generator,
    baseline: str = "",
    *,
    permutations: int = RESAMPLES,
) -> Comparisons:
    """Compare the methods of each size, each with each other one or with a baseline.

    A method without a critic has no size, so it is compared with those of every size. P-values are
    corrected for all pairs of the board by Holm's method.

    Args:
        board: comparable scores.
        generator: permutes the scores where there are too many deals to count all.
        baseline: a method's name; empty to compare each pair.
        permutations: as `size_trend` has it; more for many pairs.
    """
    columns = _columns(board)
    pairs, crowded = _pairs(board, columns, baseline)
    compared = {label for pair in pairs for label in pair.labels}
    alone = (run for run in columns if run.label not in compared and run.method != baseline)
    return Comparisons(
        found=tuple(
            _tested([pair for pair in pairs if pair.tasks], board, generator, permutations)
        ),
        apart=tuple(pair.labels for pair in pairs if not pair.tasks),
        alone=() if crowded else tuple(run.label for run in alone),
        crowded=tuple(crowded),
        baseline=baseline,
        lost=board.lost,
    )


def _columns(board: Board) -> list[Measured]:
    """A run of each column, in the board's order."""
    runs = {run.label: run for run in board.runs}
    return [runs[label] for label in board.measured]


def _pairs(
    board: Board, columns: Sequence[Measured], baseline: str
) -> tuple[list[_Pair], list[tuple[str, int]]]:
    """The pairs of columns to compare, and the sizes with too many methods for that."""
    cells = by_cell(board.runs)
    pairs: list[_Pair] = []
    crowded: list[tuple[str, int]] = []
    for size in _sizes(columns):
        here = [run for run in columns if run.size in (size, "")]
        methods = len({run.method for run in here})
        if not baseline and methods > MAX_METHODS:
            crowded.append((size, methods))
            continue
        for one, other in _against(here, baseline):
            # Two methods without a critic are one pair, not one for every size.
            if one.method != other.method and size in (one.size, other.size):
                pairs.append(_pair(board, size, (one.label, other.label), cells))
    return pairs, crowded


def _sizes(columns: Sequence[Measured]) -> list[str]:
    """The sizes of columns, smallest first; an empty one if some have no critic."""
    least: dict[str, int] = {}
    for run in columns:
        least[run.size] = min(run.parameters or 0, least.get(run.size, run.parameters or 0))
    return sorted(least, key=lambda size: (least[size], natural(size)))


def _against(columns: Sequence[Measured], baseline: str) -> Iterable[tuple[Measured, Measured]]:
    """Each column with each other one, or with those of the baseline."""
    if not baseline:
        return itertools.combinations(columns, 2)
    return itertools.product(columns, [run for run in columns if run.method == baseline])


def _pair(board: Board, size: str, labels: tuple[str, str], cells: Cells) -> _Pair:
    have = {task: sum((task, label) in cells for label in labels) for task in board.tasks}
    tasks = tuple(task for task in board.tasks if have[task] == 2)
    one, other = labels
    return _Pair(
        size=size,
        labels=labels,
        tasks=tasks,
        lacking=tuple(task for task in board.tasks if have[task] == 1),
        runs=tuple((cells[task, one], cells[task, other]) for task in tasks),
    )


def _tested(
    pairs: Sequence[_Pair], board: Board, generator: np.random.Generator, permutations: int
) -> Iterator[Difference]:
    """Test pairs that share tasks; p-values are corrected for all of them."""
    permutations = max(permutations, _DRAWN_PER_PAIR * len(pairs))
    tests = [_test(pair, generator, permutations) for pair in pairs]
    for pair, test, (p, least_p) in zip(pairs, tests, corrected(tests), strict=True):
        yield _difference(pair, board, test, p, least_p)


def _test(pair: _Pair, generator: np.random.Generator, permutations: int) -> Trend:
    """The trend test of two groups; it rises if the first column's runs score more."""
    groups = [[1] * len(one) + [0] * len(other) for one, other in pair.scores]
    scores = [[*one, *other] for one, other in pair.scores]
    return size_trend(groups, scores, generator, permutations=permutations)


def _difference(pair: _Pair, board: Board, test: Trend, p: float, least_p: float) -> Difference:
    first, second = zip(*pair.scores, strict=True)
    changes = [mean_of_runs(one) - mean_of_runs(other) for one, other in pair.scores]
    settings = (differing(run.settings for run in [*one, *other]) for one, other in pair.runs)
    return Difference(
        size=pair.size,
        first=pair.labels[0],
        second=pair.labels[1],
        tasks=pair.tasks,
        lacking=pair.lacking,
        difference=estimate_difference(first, second, is_rate=board.is_rate)
        if board.averages(pair.tasks)
        else Estimate(value=math.nan),
        more=sum(change > 0 for change in changes),
        less=sum(change < 0 for change in changes),
        test=test,
        p=p,
        least_p=least_p,
        alike=all(len({*one, *other}) == 1 for one, other in pair.scores),
        differing=tuple(dict.fromkeys(itertools.chain.from_iterable(settings))),
    )
