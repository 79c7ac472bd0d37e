"""Averages over the tasks of a board, and ranks of its methods, with intervals."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import numpy as np
from scipy import stats

from tql_offline.eval.leaderboard import Board, TaskScore
from tql_offline.eval.rows import tasks_of
from tql_offline.eval.statistics import (
    RESAMPLES,
    Estimate,
    Scores,
    agree,
    estimate,
    estimate_mean,
    interquartile_mean,
    median_of_tasks,
    other_share,
    widened_tail,
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A method over all tasks of a board.

    Attributes:
        mean: mean over tasks; NaN if a mean over tasks is meaningless.
        sd: mean of the tasks' standard deviations, as papers print it.
        estimates: that mean and other statistics, with intervals over runs.
        rank: mean over tasks of the rank among all complete columns of runs, 1 being the best; NaN
            of a reported one beside them.
    """

    label: str
    mean: float
    sd: float
    estimates: dict[str, Estimate]
    rank: Estimate


UNRANKED = Estimate(value=math.nan)


def domain(task: str) -> str:
    """The family that a task's average belongs to.

    >>> domain("cube-double-play-singletask-task1-v0")
    'cube-double-play'
    """
    return re.sub(r"-singletask.*|-v\d+.*", "", task)


def domains(board: Board) -> dict[str, tuple[str, ...]]:
    """Domain → its tasks, in the board's order."""
    found: dict[str, list[str]] = {}
    for task in board.tasks:
        found.setdefault(domain(task), []).append(task)
    return {name: tuple(tasks) for name, tasks in found.items()}


def domain_title(name: str, rows: Sequence[str]) -> str:
    """A domain's name, with its number of tasks if they are fewer than OGBench's five."""
    tasks = len(tasks_of(rows))
    few = "-singletask" in rows[0] and tasks < 5
    if not few and len(rows) == tasks:
        return name
    return f"{name} ({number_of_tasks(rows, ' of 5' if few else '')})"


def number_of_tasks(rows: Sequence[str], of: str = "") -> str:
    """How many tasks rows are of; some may have several, in which all statistics count each row.

    >>> number_of_tasks(["a", "b"]), number_of_tasks(["a, data 1", "a, data 2", "b"], " of 5")
    ('2 tasks', '3 rows of 2 of 5 tasks')
    """
    count = len(tasks_of(rows))
    tasks = f"{count}{of} {'task' if count == 1 and not of else 'tasks'}"
    return tasks if count == len(rows) else f"{len(rows)} rows of {tasks}"


def average(board: Board, label: str, tasks: Sequence[str]) -> tuple[float, float] | None:
    """Mean over tasks of a method's means and of its standard deviations, as papers print averages.

    Returns:
        The two means; None if the method lacks a task or a mean over them is meaningless.
    """
    if not board.averages(tasks):
        return None
    cells = [board.scores.get((task, label)) for task in tasks]
    known = [cell for cell in cells if cell is not None]
    if len(known) < len(cells):
        return None
    return fmean([cell.mean for cell in known]), fmean([cell.sd for cell in known])


def mean_ranks(board: Board, labels: Sequence[str]) -> dict[str, float]:
    """Mean over tasks of the rank of each of these columns, 1 being the best; ties share theirs."""
    means = np.array([[board.scores[t, name].mean for name in labels] for t in board.tasks])
    return dict(zip(labels, ranks(means).mean(axis=0).tolist(), strict=True))


def ranks(means: Scores) -> Scores:
    """Ranks along the last axis, 1 for the highest; ties get their mean rank."""
    return np.asarray(stats.rankdata(-means, axis=-1, method="average"))


def summaries(
    board: Board, generator: np.random.Generator, resamples: int = RESAMPLES
) -> list[Summary]:
    """Summarise every complete column over all tasks, best mean first; without means, best rank."""
    rank = _rank_estimates(board, generator, resamples)
    found = [
        _summary(board, label, rank.get(label, UNRANKED), generator, resamples)
        for label in board.complete()
    ]
    return sorted(found, key=lambda s: s.rank.value if math.isnan(s.mean) else -s.mean)


def _summary(
    board: Board, label: str, rank: Estimate, generator: np.random.Generator, resamples: int
) -> Summary:
    table = [board.scores[task, label].runs for task in board.tasks]
    estimates = {}
    if all(table) and board.averages(board.tasks):
        mean = estimate_mean(table, is_rate=board.is_rate)
        drawn = partial(
            estimate, table=table, generator=generator, resamples=resamples, is_rate=board.is_rate
        )
        estimates = {
            "mean": mean,
            "IQM": drawn(interquartile_mean),
            "median": drawn(median_of_tasks),
        }
        if board.is_rate:
            estimates["optimality gap"] = Estimate(
                value=100 - mean.value, low=100 - mean.high, high=100 - mean.low
            )
    printed, sd = average(board, label, board.tasks) or (math.nan, math.nan)
    return Summary(label=label, mean=printed, sd=sd, estimates=estimates, rank=rank)


def _rank_estimates(
    board: Board, generator: np.random.Generator, resamples: int
) -> dict[str, Estimate]:
    """Mean ranks with intervals over the runs of all columns that have runs.

    Reported scores have none, so that ranks beside them would be of numbers taken as exact. Where
    all columns are reported, ranks have no interval.

    All bounds use the outermost quantile that any column's number of runs requires. Success rates
    of runs that all agree leave room for other runs, as in `statistics.with_room`.
    """
    complete = board.complete()
    if not complete:
        return {}
    own = [label for label in complete if label in board.measured]
    labels = own or complete
    found = {label: Estimate(value=value) for label, value in mean_ranks(board, labels).items()}
    tables = [[np.array(board.scores[t, label].runs) for t in board.tasks] for label in own]
    varied = [table for table in tables if not (board.is_rate and all(map(agree, table)))]
    tails = list(map(widened_tail, varied))
    if not own or np.isnan(tails).any():
        return found
    spread = _drawn_ranks(board, labels, generator, resamples)
    tail = min(tails, default=0.5)
    bounds = np.quantile(spread, [tail, 1 - tail], axis=0)
    fall, rise = _room_of_ranks(board, labels) if board.is_rate else (0.0, 0.0)
    centre = np.array([found[label].value for label in labels])
    low = centre - np.sqrt((centre - bounds[0]).clip(min=0) ** 2 + fall)
    high = centre + np.sqrt((bounds[1] - centre).clip(min=0) ** 2 + rise)
    for label, least, most in zip(labels, low.tolist(), high.tolist(), strict=True):
        found[label] = replace(
            found[label], low=max(least, 1.0), high=min(most, float(len(labels)))
        )
    return found


def _room_of_ranks(board: Board, labels: Sequence[str]) -> tuple[Scores, Scores]:
    """Squares of how far mean ranks may fall and rise, `(labels,)` each, by runs that agree."""
    fall, rise = np.zeros(len(labels)), np.zeros(len(labels))
    for shift in _shifts_of_ranks(board, labels):
        fall += np.minimum(shift, 0) ** 2
        rise += np.maximum(shift, 0) ** 2
    return fall, rise


def _shifts_of_ranks(board: Board, labels: Sequence[str]) -> Iterator[Scores]:
    """Yield mean ranks less those measured, `(labels,)`, for each cell and kind of unseen run."""
    for task in board.tasks:
        cells = [board.scores[task, label] for label in labels]
        means = np.array([cell.mean for cell in cells])
        measured = ranks(means)
        for i, cell in enumerate(cells):
            for other in (0.0, 100.0) if agree(np.array(cell.runs)) else ():
                moved = means.copy()
                moved[i] += other_share(len(cell.runs)) * (other - means[i])
                yield (ranks(moved) - measured) / len(board.tasks)


def _drawn_ranks(
    board: Board, labels: Sequence[str], generator: np.random.Generator, resamples: int
) -> Scores:
    """Mean ranks of resampled runs, `(resamples, labels)`."""
    drawn = [
        np.stack([_drawn_means(board.scores[t, n], generator, resamples) for n in labels], axis=-1)
        for t in board.tasks
    ]
    return np.asarray(ranks(np.stack(drawn, axis=1)).mean(axis=1))


def _drawn_means(score: TaskScore, generator: np.random.Generator, resamples: int) -> Scores:
    """Means of resampled runs, `(resamples,)`."""
    if len(score.runs) < 2:
        return np.full(resamples, score.mean)
    picks = generator.integers(len(score.runs), size=(resamples, len(score.runs)))
    return np.asarray(np.array(score.runs)[picks].mean(axis=1))
