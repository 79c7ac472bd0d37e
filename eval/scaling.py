"""Scores against critic parameters: whether a bigger critic helps, and how uncertain that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tql_offline.eval.ended import Lost
from tql_offline.eval.leaderboard import Block, Board, blocks
from tql_offline.eval.measured import Measured
from tql_offline.eval.rows import natural
from tql_offline.eval.statistics import (
    Estimate,
    estimate_difference,
    estimate_gain,
    estimate_mean,
    mean_of_runs,
)
from tql_offline.eval.trends import Trend, size_trend
from tql_offline.eval.variants import differing

NOTHING = Estimate(value=math.nan)


@dataclass(frozen=True, kw_only=True)
class SizePoint:
    """One size of a method over the tasks that all its sizes have.

    Attributes:
        score: mean over tasks of the counted evaluations.
        difference: difference of `score` from the smallest size's, in the score's unit.
        relative: `difference` as a fraction of the smallest size's score; NaN if that is not
            above 0.
        last: mean over tasks and runs of the last evaluation.
        last_three: the same of the mean of the last three.
        best: the same of each run's best evaluation, an oracle: it was chosen by playing.
        updates_per_second: all updates over all time, of the runs that recorded it.
        hours: time spent in updates per run, averaged likewise.
        flops: operations of matrix products in all updates of a run: mean over runs that counted
            them, NaN if none did.
    """

    size: str
    parameters: int
    runs: int
    score: Estimate
    difference: Estimate
    relative: Estimate
    last: float
    last_three: float
    best: float
    updates_per_second: float
    hours: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A method at two or more sizes, smallest first.

    Attributes:
        points: the sizes over all tasks; where scores of unlike tasks cannot be averaged, with
            costs alone.
        trend: whether scores rise with size.
        risen: tasks on which the largest size scores more than the smallest.
        fallen: tasks on which it scores less.
        alike: whether all runs of each task have the same score.
        left_out: sizes not compared, since they lack these tasks.
        differing: settings other than the size that differ between runs of one task.
        by_task: the sizes on each task, where scores of unlike tasks cannot be averaged; else none.
        lost: what each of the method's sizes lost by runs that ended without a score, on any task:
            a size may lack a task because all its runs there did.
    """

    method: str
    tasks: tuple[str, ...]
    points: tuple[SizePoint, ...]
    trend: Trend
    risen: int
    fallen: int
    alike: bool
    left_out: tuple[str, ...]
    differing: tuple[str, ...]
    by_task: dict[str, tuple[SizePoint, ...]] = field(default_factory=dict)
    lost: dict[str, Lost] = field(default_factory=dict)

    @property
    def best(self) -> SizePoint:
        """The size with the highest score, where there is a score over all tasks."""
        return best_of(self.points)

    def on(self, task: str) -> tuple[SizePoint, ...]:
        """The sizes on one task; none if it is not of these."""
        return self.by_task.get(task, self.points if self.tasks == (task,) else ())


def best_of(points: Sequence[SizePoint]) -> SizePoint:
    """The size with the highest score."""
    return max(points, key=lambda point: point.score.value)


def scaling_of(board: Board, generator: np.random.Generator) -> list[Scaling]:
    """Scaling of every method of a board that has a task at two sizes."""
    methods: dict[str, list[Measured]] = {}
    for run in board.runs:
        if run.parameters:
            methods.setdefault(run.method, []).append(run)
    found = (_scaling(method, runs, board, generator) for method, runs in sorted(methods.items()))
    return [scaling for scaling in found if scaling is not None]


Tables = dict[str, dict[str, list[Measured]]]
"""Size → task → runs; sizes ascend in parameters, and every size has the same tasks."""


def _scaling(
    method: str, runs: Sequence[Measured], board: Board, generator: np.random.Generator
) -> Scaling | None:
    tables = tables_by_size(runs)
    if len(tables) < 2:
        return None
    tasks = tuple(next(iter(tables.values())))
    flat = [[run for table in tables.values() for run in table[task]] for task in tasks]
    sizes = {run.size: run.label for run in sorted(runs, key=lambda run: run.parameters or 0)}
    lost = board.lost
    if all(len({run.parameters for run in task}) == 1 for task in flat):
        return None  # two names of one size
    smallest, *_, largest = (tables[size] for size in tables)
    changes = [
        mean_of_runs([run.score for run in largest[t]])
        - mean_of_runs([run.score for run in smallest[t]])
        for t in tasks
    ]
    has_average = board.averages(tasks)
    points = _points(tables, board.is_rate)
    return Scaling(
        method=method,
        tasks=tasks,
        points=points if has_average else tuple(map(_without_score, points)),
        trend=size_trend(
            [[run.parameters or 0 for run in task] for task in flat],
            [[run.score for run in task] for task in flat],
            generator,
        ),
        risen=sum(change > 0 for change in changes),
        fallen=sum(change < 0 for change in changes),
        alike=all(len({run.score for run in task}) == 1 for task in flat),
        left_out=tuple(sorted({run.size for run in runs} - set(tables), key=natural)),
        differing=tuple(
            dict.fromkeys(key for task in flat for key in differing(run.settings for run in task))
        ),
        by_task={}
        if has_average
        else {task: _points(_on_task(tables, task), board.is_rate) for task in tasks},
        lost={size: lost[label] for size, label in sizes.items() if label in lost},
    )


def tables_by_size(runs: Sequence[Measured]) -> Tables:
    """A method's runs by size and task, restricted to sizes that share all the tasks kept.

    Kept are the most sizes that share at least half as many tasks as any two sizes do, so that a
    size that was only begun on one task does not end the comparison of the others.
    """
    sizes: Tables = {}
    for run in sorted(runs, key=lambda run: (run.parameters or 0, run.size, run.task, run.seed)):
        sizes.setdefault(run.size, {}).setdefault(run.task, []).append(run)
    tasks = sorted({run.task for run in runs}, key=natural)
    have = {task: frozenset(size for size in sizes if task in sizes[size]) for task in tasks}
    common, kept = _most_sizes(blocks(have))
    return {
        size: {task: found for task, found in tables.items() if task in common}
        for size, tables in sizes.items()
        if size in kept
    }


def _most_sizes(found: Sequence[Block]) -> Block:
    """The block with the most sizes; an empty one if no two sizes share a task."""
    most = max((len(tasks) for tasks, _ in found), default=0)
    enough = [block for block in found if 2 * len(block[0]) >= most]
    return max(enough, key=lambda block: (len(block[1]), len(block[0])), default=((), frozenset()))


def _on_task(tables: Tables, task: str) -> Tables:
    return {size: {task: table[task]} for size, table in tables.items()}


def _points(tables: Tables, is_rate: bool) -> tuple[SizePoint, ...]:
    return tuple(_point(tables, size, is_rate) for size in tables)


def _without_score(point: SizePoint) -> SizePoint:
    """What remains of a size over tasks whose scores have no common unit."""
    return replace(
        point,
        score=NOTHING,
        difference=NOTHING,
        relative=NOTHING,
        last=math.nan,
        last_three=math.nan,
        best=math.nan,
    )


def _point(tables: Tables, size: str, is_rate: bool) -> SizePoint:
    smallest, table = next(iter(tables)), _scores(tables[size])
    base = _scores(tables[smallest])
    runs = [run for found in tables[size].values() for run in found]
    timed = [run for run in runs if run.seconds > 0]
    difference = relative = NOTHING
    if size != smallest:
        difference = estimate_difference(table, base, is_rate=is_rate)
        relative = estimate_gain(table, base, is_rate=is_rate)
    return SizePoint(
        size=size,
        parameters=round(_mean([run.parameters or 0 for run in runs])),
        runs=len(runs),
        score=estimate_mean(table, is_rate=is_rate),
        difference=difference,
        relative=relative,
        last=_mean_of_tasks(tables[size], "last"),
        last_three=_mean_of_tasks(tables[size], "last_three"),
        best=_mean_of_tasks(tables[size], "best"),
        updates_per_second=_ratio([run.updates for run in timed], [run.seconds for run in timed]),
        hours=_mean([run.seconds / 3600 for run in timed]),
        flops=_mean([run.flops for run in runs if run.flops > 0]),
    )


def _scores(table: dict[str, list[Measured]]) -> list[list[float]]:
    return [[run.score for run in runs] for runs in table.values()]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    return math.fsum(ones) / math.fsum(others) if others else math.nan


def _mean_of_tasks(table: dict[str, list[Measured]], name: str) -> float:
    return _mean([_mean([getattr(run, name) for run in runs]) for runs in table.values()])
