"""What the published scores can bear: the tables of docs/claim.md.

    python benchmarks/claim.py

A paper prints mean ± standard deviation (divisor n, as NumPy's) and not its runs. An interval of t
needs no more: `runs` makes scores that have them, and `tql_offline.eval.statistics` does with these
what it does with a user's own. How many seeds there were is not stated, so there are several rows;
and neither is what the ± of an average over tasks is:

    mean of deviations   the mean of the tasks' standard deviations over seeds
    deviation of means   the standard deviation over seeds of the mean over tasks

Of the first the tasks' own deviations are needed: those of the method's column in the table of 25
tasks, in proportion.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tql_offline.eval.published import PublishedSize, published_scores, published_sizes
from tql_offline.eval.statistics import Estimate, Scores, estimate_difference, estimate_gain

SEEDS = (2, 4, 8)
COLUMN = {"Transformer without entropy control": "TQL"}
"""Method of the table by size → the one of the table of tasks whose deviations it is given."""

Tasks = dict[str, tuple[float, float]]
"""Task → mean and standard deviation, in percent."""


def tasks_of(method: str) -> Tasks:
    """A method's column of the table of 25 tasks."""
    return {p.task: (p.mean, p.sd) for p in published_scores() if p.method == method}


def runs(mean: float, sd: float, seeds: int) -> Scores:
    """So many scores of that mean and standard deviation (divisor n)."""
    spread = np.linspace(-1.0, 1.0, seeds)
    scores: Scores = mean + sd * spread / spread.std()
    return scores


def mean_of_deviations(point: PublishedSize, seeds: int) -> list[Scores]:
    """Runs of 25 tasks, if ± is the mean of their deviations."""
    deviations = np.array(
        [sd for _, sd in tasks_of(COLUMN.get(point.method, point.method)).values()]
    )
    return [runs(point.mean, sd, seeds) for sd in deviations * point.sd / deviations.mean()]


def deviation_of_means(point: PublishedSize, seeds: int) -> list[Scores]:
    """Runs of one task, the average, if ± is its deviation."""
    return [runs(point.mean, point.sd, seeds)]


def which_deviation() -> Iterator[str]:
    """What the ± of a printed average over 25 tasks may be, of the methods that have one."""
    yield "| method | mean of the tasks' ± | ± of the mean, tasks independent |"
    yield "|---|---|---|"
    for method in ("FQL", "floq", "TQL"):
        deviations = np.array([sd for _, sd in tasks_of(method).values()])
        of_mean = np.sqrt((deviations**2).sum()) / len(deviations)
        yield f"| {method} | {deviations.mean():.1f} | {of_mean:.1f} |"


def claims() -> Iterator[str]:
    """Change from the smallest to the largest size of every method, with intervals."""
    readings = "95 %, ± a mean of deviations | 95 %, ± a deviation of means"
    yield f"| method | 0.4M | 26M | change | seeds | {readings} |"
    yield "|---|---|---|---|---|---|---|"
    points: dict[str, list[PublishedSize]] = {}
    for point in published_sizes():
        points.setdefault(point.method, []).append(point)
    for method, sizes in points.items():
        small, large = (pick(sizes, key=lambda p: p.parameters) for pick in (min, max))
        change = f"{large.mean - small.mean:+.0f} ({100 * (large.mean / small.mean - 1):+.0f} %)"
        for seeds in SEEDS:
            cells = [
                _interval(reading(large, seeds), reading(small, seeds))
                for reading in (mean_of_deviations, deviation_of_means)
            ]
            scores = f"{small.mean:.0f} ± {small.sd:.0f} | {large.mean:.0f} ± {large.sd:.0f}"
            yield f"| {method} | {scores} | {change} | {seeds} | {cells[0]} | {cells[1]} |"


def _interval(large: Sequence[Scores], small: Sequence[Scores]) -> str:
    """`+9 to +15 (+31 to +56 %)`: of the difference, and of the relative one."""
    difference, gain = estimate_difference(large, small), estimate_gain(large, small)
    relative = Estimate(value=100 * gain.value, low=100 * gain.low, high=100 * gain.high)
    within = f" ({_bounds(relative)} %)" if np.isfinite(gain.low) else ""
    return _bounds(difference) + within


def _bounds(estimate: Estimate) -> str:
    return f"{round(estimate.low):+d} to {round(estimate.high):+d}"


def precision() -> Iterator[str]:
    """Half the interval of a difference between two sizes, by tasks and seeds."""
    columns = " | ".join(f"{seeds} seeds" for seeds in SEEDS)
    yield f"| tasks | {columns} |"
    yield "|---|" + "---|" * len(SEEDS)
    tasks = tasks_of("TQL")
    parts = {name.partition("-play")[0]: "five tasks of" for name in tasks}
    for part in [*parts, ""]:
        chosen = [sd for name, (_, sd) in tasks.items() if name.startswith(part)]
        cells = []
        for seeds in SEEDS:
            table = [runs(0.0, sd, seeds) for sd in chosen]
            cells.append(f"± {estimate_difference(table, table).high:.0f}")
        name = f"the five of {part}" if part else f"all {len(chosen)}"
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    for table in (which_deviation, claims, precision):
        print("\n".join(table()), end="\n\n")


if __name__ == "__main__":
    main()
