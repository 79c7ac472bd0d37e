"""What the published scores can bear: the tables of docs/claim.md.

    python benchmarks/claim.py

A paper prints mean ± standard deviation (taken to have the divisor n, as NumPy's), not its runs. An
interval of t needs no more: `runs` makes scores that have them, and `tql_offline.eval.statistics`
does with these what it does with a user's own. How many seeds there were is not known here, and
neither is what the ± of an average over tasks is:

    spread of tasks   the mean of the tasks' standard deviations over seeds
    spread of means   the standard deviation over seeds of the mean over tasks

For the first the tasks' own deviations are needed: `task_deviations`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from tql_offline.eval.claim import SEEDS
from tql_offline.eval.published import (
    PublishedSize,
    published_scores,
    published_sizes,
    task_deviations,
)
from tql_offline.eval.statistics import Estimate, Scores, estimate_difference, estimate_gain

MOST_SEEDS = 200
SCRIPTS_SEEDS = (3, 4, 5, 6)
"""Seeds in scripts that train floq and PAC at the figure's sizes (docs/claim.md)."""
PRINTED = {
    "FQL, 25 tasks": ("FQL", "", 4),
    "floq, 25 tasks": ("floq", "", 7),
    "TQL, 25 tasks": ("TQL", "", 7),
    "TQL, 5 tasks of cube-double (ablation)": ("TQL", "cube-double", 6),
}
"""Average → its method, how its tasks begin, and the ± printed for it (the paper's website)."""

Reading = Callable[[PublishedSize, int], list[Scores]]


def runs(mean: float, sd: float, seeds: int) -> Scores:
    """So many scores of that mean and standard deviation (divisor n)."""
    spread = np.linspace(-1.0, 1.0, seeds)
    scores: Scores = mean + sd * spread / spread.std()
    return scores


def spread_of_tasks(point: PublishedSize, seeds: int) -> list[Scores]:
    """Runs of 25 tasks, if ± is the mean of their deviations."""
    return [runs(point.mean, sd, seeds) for sd in task_deviations(point).values()]


def spread_of_means(point: PublishedSize, seeds: int) -> list[Scores]:
    """Runs of one task, the average, if ± is its deviation."""
    return [runs(point.mean, point.sd, seeds)]


READINGS: tuple[Reading, Reading] = (spread_of_tasks, spread_of_means)


def methods() -> dict[str, list[PublishedSize]]:
    """The printed means by size, smallest first."""
    found: dict[str, list[PublishedSize]] = {}
    for point in sorted(published_sizes(), key=lambda p: p.parameters):
        found.setdefault(point.method, []).append(point)
    return found


# What ± is.


def deviations() -> Iterator[str]:
    """The ± of printed averages beside what it may be."""
    yield "| average | printed ± | mean of its tasks' ± | ± of the mean, if tasks are independent |"
    yield "|---|---|---|---|"
    for name, (method, begins, printed) in PRINTED.items():
        tasks = np.array(
            [s.sd for s in published_scores() if s.method == method and s.task.startswith(begins)]
        )
        of_mean = math.sqrt((tasks**2).sum()) / len(tasks)
        yield f"| {name} | {printed} | {tasks.mean():.1f} | {of_mean:.1f} |"


def assumptions() -> Iterator[str]:
    """What else ± and tasks may be, and what that makes of the intervals below."""
    n, power = SEEDS, 1 + NormalDist().inv_cdf(0.8) / NormalDist().inv_cdf(0.975)
    yield "| if | then |"
    yield "|---|---|"
    for condition, consequence in (
        ("TQL's 40 ± 7 is a spread of means", f"tasks correlate by {_least_correlation():.2f}"),
        ("± has the divisor n - 1", f"intervals at {n} seeds are × {math.sqrt(1 - 1 / n):.2f}"),
        ("± is a standard error", f"they are × {math.sqrt(n - 1):.1f}"),
        ("an environment's tasks correlate by 0.5", f"by spread of tasks × {_wider(0.5):.1f}"),
        ("a change is to be found 4 times of 5", f"it must be × {power:.1f} half the interval"),
    ):
        yield f"| {condition} | {consequence} |"


def _least_correlation() -> float:
    """Of all tasks, for a mean of them to spread by 6.5, the least that is printed as 7."""
    tasks = [s.sd for s in published_scores() if s.method == "TQL"]
    total, squares = sum(tasks), sum(sd**2 for sd in tasks)
    return ((6.5 * len(tasks)) ** 2 - squares) / (total**2 - squares)


def _wider(correlation: float) -> float:
    """How much more a mean of TQL's tasks spreads, if those of one environment correlate."""
    within: dict[str, list[float]] = {}
    for task, sd in task_deviations(methods()["TQL"][-1]).items():
        within.setdefault(environment_of(task), []).append(sd)
    squares = [sum(sd**2 for sd in found) for found in within.values()]
    products = [sum(found) ** 2 for found in within.values()]
    return math.sqrt(1 + correlation * (sum(products) / sum(squares) - 1))


def environment_of(task: str) -> str:
    """`cube-double` of `cube-double-play-singletask-task1-v0`."""
    return task.partition("-play")[0]


# What can be said of changes.


def changes() -> Iterator[str]:
    """Change from the smallest to the largest size of every method, by both readings of ±."""
    yield (
        f"| method | 0.4M, 1M, 7M, 26M | change | 95 %, {SEEDS} seeds, spread of tasks "
        f"| 95 %, {SEEDS} seeds, spread of means | fewest seeds |"
    )
    yield "|---|---|---|---|---|---|"
    for method, sizes in methods().items():
        small, large = sizes[0], sizes[-1]
        change = f"{large.mean - small.mean:+.0f} ({100 * (large.mean / small.mean - 1):+.0f} %)"
        means = ", ".join(f"{point.mean:.0f}" for point in sizes)
        cells = [_interval(r(large, SEEDS), r(small, SEEDS)) for r in READINGS]
        few = " / ".join(fewest_seeds(small, large, reading) for reading in READINGS)
        yield f"| {method} | {means} | {change} | {cells[0]} | {cells[1]} | {few} |"


def _interval(large: Sequence[Scores], small: Sequence[Scores]) -> str:
    """`+9 to +15 (+31 to +57 %)`: of the difference, and of the relative one."""
    difference, gain = estimate_difference(large, small), estimate_gain(large, small)
    relative = Estimate(value=100 * gain.value, low=100 * gain.low, high=100 * gain.high)
    within = f" ({_bounds(relative, 0)} %)" if np.isfinite(gain.low) else ""
    return _bounds(difference, 1) + within


def _bounds(estimate: Estimate, digits: int) -> str:
    return f"{estimate.low:+.{digits}f} to {estimate.high:+.{digits}f}"


def fewest_seeds(small: PublishedSize, large: PublishedSize, reading: Reading) -> str:
    """From how many seeds on the change is none of chance, if rounding hid the worst.

    That is means half a percent nearer to each other, and deviations half a percent larger.
    """
    nearer = math.copysign(0.5, large.mean - small.mean)
    first = replace(small, mean=small.mean + nearer, sd=small.sd + 0.5)
    last = replace(large, mean=large.mean - nearer, sd=large.sd + 0.5)
    for seeds in range(2, MOST_SEEDS + 1):
        change = estimate_difference(reading(last, seeds), reading(first, seeds))
        if change.low > 0 or change.high < 0:
            return str(seeds)
    return f"over {MOST_SEEDS}"


def contrasts() -> Iterator[str]:
    """How much more TQL changes than the others."""
    yield "| TQL's change less that of | points | spread of tasks | spread of means |"
    yield "|---|---|---|---|"
    found = methods()
    ours = found.pop("TQL")
    for method, sizes in found.items():
        leads = [lead(ours, sizes, reading, SEEDS) for reading in READINGS]
        cells = [_bounds(each, 1) for each in leads]
        yield f"| {method} | {leads[0].value:+.0f} | {cells[0]} | {cells[1]} |"


def lead(
    ours: Sequence[PublishedSize], theirs: Sequence[PublishedSize], reading: Reading, seeds: int
) -> Estimate:
    """How much more our scores change from the first to the last size than theirs."""
    up = [*reading(ours[-1], seeds), *reading(theirs[0], seeds)]
    down = [*reading(ours[0], seeds), *reading(theirs[-1], seeds)]
    half = estimate_difference(up, down)  # the mean of two means is half their sum
    return Estimate(value=2 * half.value, low=2 * half.low, high=2 * half.high)


def by_seeds() -> Iterator[str]:
    """TQL's change and its lead over FQL's, by how many seeds every method may have had."""
    yield "| seeds | TQL's change: of tasks | of means | its lead over FQL's: of tasks | of means |"
    yield "|---|---|---|---|---|"
    ours, theirs = methods()["TQL"], methods()["FQL"]
    for seeds in (*SCRIPTS_SEEDS, SEEDS):
        changes = [estimate_difference(r(ours[-1], seeds), r(ours[0], seeds)) for r in READINGS]
        leads = [lead(ours, theirs, r, seeds) for r in READINGS]
        cells = [_bounds(each, 1) for each in (*changes, *leads)]
        yield f"| {seeds} | {' | '.join(cells)} |"


# What a part of the suite can tell.


def precision() -> Iterator[str]:
    """Half the interval of TQL's change, by tasks and seeds, if tasks spread as printed."""
    counts = (2, 4, SEEDS)
    yield f"| tasks | {' | '.join(f'{seeds} seeds' for seeds in counts)} |"
    yield "|---|" + "---|" * len(counts)
    sizes = methods()["TQL"]
    spreads = [task_deviations(point) for point in (sizes[0], sizes[-1])]
    for part in [*dict.fromkeys(map(environment_of, spreads[0])), ""]:
        cells = []
        for seeds in counts:
            small, large = (
                [runs(0.0, sd, seeds) for name, sd in spread.items() if name.startswith(part)]
                for spread in spreads
            )
            cells.append(f"± {estimate_difference(large, small).high:.0f}")
        name = f"the five of {part}" if part else f"all {len(spreads[0])}"
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    for table in (deviations, assumptions, changes, contrasts, by_seeds, precision):
        print("\n".join(table()), end="\n\n")


if __name__ == "__main__":
    main()
