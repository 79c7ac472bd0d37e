"""Intervals and spreads of scores. Randomness comes from one explicit generator.

The run (seed) is the replication unit, tasks are strata: a `Table` is one vector of runs' scores
per task. Means, their differences and ratios have Student's t intervals, widened where all runs
agree, since unseen runs may not. Statistics without such a formula are bootstrapped. A percentile
bootstrap of 8 runs covers 90 % at a nominal 95 %: it ignores that a resample's variance is
(n - 1)/n of the sample's and that the variance itself is uncertain. Its bounds are therefore taken
at the quantiles that make a mean's interval as wide as Student's t (Hesterberg, 2015, "What
teachers should know about the bootstrap", section 5.2); with too few runs for such a quantile,
there are no bounds. tests/test_statistics.py simulates the coverage of every interval;
docs/leaderboard.md says where they fail.

Where the intervals of numbers elsewhere come from:

    a run's success rate        wilson_interval, n the different episodes (measured.CountedScore)
    a cell, an average          estimate_mean (leaderboard, averages, scaling)
    IQM, median; rank           estimate; averages._rank_estimates
    a difference; by size       estimate_difference, estimate_gain, trends.size_trend (scaling)
    a profile                   estimate_profile
    a model card's scores       wilson_interval, t_interval over episodes (sharing/scores.py)
    what `select` chooses       a jackknife over runs (selection.py)
    fitted Q evaluation         Student's t over networks (training/fqe.py)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tql_offline.errors import InputError

Scores = NDArray[np.float64]
Table = Sequence[ArrayLike]
"""One vector of scores per task, each of one or more runs."""
Statistic = Callable[[Sequence[Scores]], Any]
"""Maps one `(..., runs)` array per task to `(...)`."""

RESAMPLES = 10_000
CONFIDENCE = 0.95
"""Coverage that every interval is made for."""
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_DECIMALS = 8
"""Of a mean over runs: more are rounding, by which one would be higher than its equal."""
_LEAST_TAIL = 5e-4
"""Least tail of a bootstrap quantile: only 5 of `RESAMPLES` lie further out."""
_MIXED = 1000
"""Runs that stand for a mixture of two kinds."""
_BLOCK_CELLS = 2**22
"""Most resampled scores held in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic and its interval; bounds are NaN if there are too few runs for one."""

    value: float
    low: float = math.nan
    high: float = math.nan


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """Wilson score interval of a success probability.

    With p = successes / n and z the normal quantile of (1 + `CONFIDENCE`) / 2:
    (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n) (Wilson, 1927, "Probable inference").

    Args:
        successes: number of successful episodes; may be fractional, as for repeated episodes.
        n: number of episodes; may be the effective number of a weighted sum.

    Returns:
        Lower and upper bound, probabilities in [0, 1].

    Raises:
        InputError: `n` is 0, or `successes` is not in [0, n].

    >>> [round(bound, 4) for bound in wilson_interval(0, 50)]
    [0.0, 0.0713]
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(
            f"{successes} successes of {n} episodes is no rate; count the episodes again"
        )
    z, p = _Z, successes / n
    centre = p + z**2 / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (bound / (1 + z**2 / n) for bound in (centre - half_width, centre + half_width))
    # At the ends the exact bounds are 0 and 1, which rounding would miss by an ulp.
    return (low if successes > 0 else 0.0), (high if successes < n else 1.0)


def mean_of_runs(scores: Sequence[float]) -> float:
    """Mean of scores, the same for runs of as many successes in all, however they are spread."""
    return round(fmean(scores), _DECIMALS)


def mean_std(values: ArrayLike, *, ddof: int = 0) -> tuple[float, float]:
    """Mean and standard deviation over runs.

    Args:
        values: `(runs,)` one score per run, in the score's unit.
        ddof: 0 divides by the number of runs (NumPy's default, which published tables made with
            `np.std` print); 1 divides by one less (the unbiased variance).

    Raises:
        InputError: there are no more runs than `ddof`, or a score is not finite.

    >>> mean_std([1.0, 3.0])
    (2.0, 1.0)
    """
    scores = _finite(values)
    if len(scores) <= ddof:
        raise InputError(
            f"{len(scores)} runs have no standard deviation with ddof={ddof}; add runs or set 0"
        )
    return float(scores.mean()), float(scores.std(ddof=ddof))


def t_interval(values: ArrayLike) -> tuple[float, float]:
    """Student's t interval of the mean over runs, (nan, nan) for a single run.

    Args:
        values: `(runs,)` one score per run.

    >>> [round(bound, 3) for bound in t_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    scores = _finite(values)
    if len(scores) == 1:
        return math.nan, math.nan
    error = scores.std(ddof=1) / math.sqrt(len(scores))
    half_width = float(student_t(len(scores) - 1) * error)
    return float(scores.mean()) - half_width, float(scores.mean()) + half_width


# Statistics of a table.


def mean_of_tasks(tasks: Sequence[Scores]) -> Any:
    """Mean over tasks of each task's mean over runs: what papers print as the average."""
    return np.mean([task.mean(axis=-1) for task in tasks], axis=0)


def median_of_tasks(tasks: Sequence[Scores]) -> Any:
    """Median over tasks of each task's mean over runs."""
    return np.median([task.mean(axis=-1) for task in tasks], axis=0)


def interquartile_mean(tasks: Sequence[Scores]) -> Any:
    """Mean of the middle half of all runs of all tasks (Agarwal et al., 2021, section 4.3).

    Tasks have equal weight: if one has fewer runs, each of them counts for more. A run on the edge
    of a quarter counts in part, whereas rliable (SciPy's `trim_mean`) cuts off only whole runs.
    """
    scores = np.concatenate(tasks, axis=-1)
    counts = [task.shape[-1] for task in tasks]
    shares = np.repeat([1 / count / len(tasks) for count in counts], counts)
    if len(set(counts)) == 1:  # equal weights need no order, which halves the time
        return (np.sort(scores, axis=-1) * _middle_half(shares)).sum(axis=-1)
    order = np.argsort(scores, axis=-1)
    return (np.take_along_axis(scores, order, axis=-1) * _middle_half(shares[order])).sum(axis=-1)


def _middle_half(shares: Scores) -> Scores:
    """Weights in the mean of the middle half, of ascending scores with given shares."""
    upto = np.cumsum(shares, axis=-1)
    inside = np.minimum(upto, 0.75) - np.maximum(upto - shares, 0.25)
    weights: Scores = 2 * np.clip(inside, 0.0, None)
    return weights


def performance_profile(tasks: Sequence[Scores], thresholds: Sequence[float]) -> Any:
    """Fraction of runs that score above each threshold (Agarwal et al., 2021, section 4.2).

    This is the mean over tasks of each task's fraction.

    Returns:
        `(..., thresholds)`.
    """
    above = [
        mean_of_tasks([(task > threshold).astype(np.float64) for task in tasks])
        for threshold in thresholds
    ]
    return np.stack(above, axis=-1)


def improvement_probability(first: Sequence[Scores], second: Sequence[Scores]) -> Any:
    """Chance that a run of `first` beats one of `second` on a task; ties count half.

    This is the mean over tasks of Mann and Whitney's U / (n m) (Agarwal et al., 2021, section 4.3).
    """
    wins = [
        np.sign(a[..., :, None] - b[..., None, :]).mean(axis=(-2, -1))
        for a, b in zip(first, second, strict=True)
    ]
    return (1 + np.mean(wins, axis=0)) / 2


# Intervals of means.


def estimate_mean(table: Table, *, is_rate: bool = False) -> Estimate:
    """`mean_of_tasks` with Student's t interval.

    The degrees of freedom of tasks with as many runs are those of the sum of their variances
    (Satterthwaite, 1946, "An approximate distribution"); for one task it is the plain t interval.
    Where numbers of runs differ, the parts of the interval due to each number are combined by the
    root of the sum of squares (Zou and Donner, 2008, "Construction of confidence limits about
    effect measures"): Satterthwaite's of all is too narrow where few runs agree by chance.

    Runs that all agree, say at 100 %, have no spread that tells how other runs would do. For
    success rates, their interval holds every mean that they do not contradict: a share
    s = 1 - (α/2)^(1/n) of runs may be of another kind, say failures, and n draws may still show
    none (Hanley and Lippman-Hand, 1983, "If nothing goes wrong, is everything all right?"). How
    far that may move the mean is combined with the other tasks' part likewise.

    Args:
        table: one vector of runs' scores per task.
        is_rate: whether scores are success rates in percent; bounds then lie in [0, 100].

    Raises:
        InputError: there is no task, a task has no run, or a score is not finite.
    """
    mean = _Mean.of(table, is_rate)
    spread = _spread(mean)
    low, high = (
        mean.value - math.sqrt(spread + mean.fall),
        mean.value + math.sqrt(spread + mean.rise),
    )
    if is_rate:
        low, high = max(low, 0.0), min(high, 100.0)
    return Estimate(value=mean.value, low=low, high=high)


def estimate_difference(first: Table, second: Table, *, is_rate: bool = False) -> Estimate:
    """Difference of two `mean_of_tasks` of independent runs; see `estimate_mean`.

    Where both have as many runs on every task, it is Welch's t.
    """
    one, other = (_Mean.of(table, is_rate) for table in (first, second))
    value, most = one.value - other.value, 100.0 if is_rate else math.inf
    spread = _spread(one, other)
    low = value - math.sqrt(spread + one.fall + other.rise)
    high = value + math.sqrt(spread + one.rise + other.fall)
    return Estimate(value=value, low=max(low, -most), high=min(high, most))


def estimate_gain(first: Table, second: Table, *, is_rate: bool = False) -> Estimate:
    """Relative change of `mean_of_tasks`, `first / second - 1`, by Fieller's theorem.

    With means a, b of variances u, v the bounds solve (a - ρb)² = t² (u + ρ²v) (Fieller, 1954,
    "Some problems in interval estimation"); t is that of a - ρb at the ratio found (see
    `estimate_mean`). There are no bounds if b may be 0, no value if b ≤ 0.
    A success rate falls by 100 % at most.
    """
    one, other = (_Mean.of(table, is_rate) for table in (first, second))
    a, b = one.value, other.value
    if b <= 0:
        return Estimate(value=math.nan)
    of_a, of_b = _squared_quantiles(one, other.times(a / b))
    u, v = float((of_a * one.parts).sum()), float((of_b * other.parts).sum())
    low = _fieller(a, b, u + one.fall, v + other.rise, -1)
    high = _fieller(a, b, u + one.rise, v + other.fall, 1)
    if math.isnan(low) or math.isnan(high):
        return Estimate(value=a / b - 1)
    least = -1.0 if is_rate else -math.inf
    return Estimate(value=a / b - 1, low=max(low - 1, least), high=high - 1)


def _fieller(a: float, b: float, u: float, v: float, sign: int) -> float:
    """The lower or the upper ρ of (a - ρb)² = u + ρ²v; NaN if there is no such bound."""
    sure = b**2 - v
    if not sure > 0:
        return math.nan
    root = math.sqrt(max((a * b) ** 2 - sure * (a**2 - u), 0.0))
    return (a * b + sign * root) / sure


@dataclass(frozen=True, kw_only=True)
class _Mean:
    """A mean over tasks and its uncertainty.

    Attributes:
        value: the mean.
        parts: `(tasks,)`, the variance of its error due to each; NaN where a task has one run.
        freedoms: `(tasks,)`, the degrees of freedom of each part.
        fall: square of how far the true mean may lie below, due to the tasks whose runs agree.
        rise: square of how far it may lie above.
    """

    value: float
    parts: Scores
    freedoms: Scores
    fall: float = 0.0
    rise: float = 0.0

    @classmethod
    def of(cls, table: Table, is_rate: bool) -> Self:
        """Compute the mean of a table of runs' scores."""
        tasks = checked_table(table)
        counts = np.array([len(task) for task in tasks])
        variances = [_variance(task) for task in tasks]
        alike = [(other_share(len(t)), t[0]) for t in tasks if is_rate and agree(t)]
        return cls(
            value=float(mean_of_tasks(tasks)),
            parts=np.array(variances) / counts / len(tasks) ** 2,
            freedoms=np.array(counts - 1.0),
            fall=sum((share * score / len(tasks)) ** 2 for share, score in alike),
            rise=sum((share * (100 - score) / len(tasks)) ** 2 for share, score in alike),
        )

    def times(self, factor: float) -> "_Mean":
        """The mean of the scores times a factor."""
        return _Mean(
            value=factor * self.value,
            parts=factor**2 * self.parts,
            freedoms=self.freedoms,
            fall=factor**2 * self.fall,
            rise=factor**2 * self.rise,
        )


def _squared_quantiles(*means: _Mean) -> list[Scores]:
    """Squares of Student's t by which the parts of independent means count in their sum.

    NaN if a task has one run; 0 if all runs of each task agree and `fall` and `rise` allow for it.
    """
    parts = np.concatenate([mean.parts for mean in means])
    freedoms = np.concatenate([mean.freedoms for mean in means])
    if np.isnan(parts).any():
        return [np.full(len(mean.parts), math.nan) for mean in means]
    if not parts.any():
        has_room = any(mean.fall + mean.rise for mean in means)
        return [np.full(len(mean.parts), 0.0 if has_room else math.nan) for mean in means]
    squares = np.zeros(len(parts))
    for freedom in np.unique(freedoms[parts > 0]):
        own = freedoms == freedom
        count = parts[own].sum() ** 2 / (parts[own] ** 2).sum()  # between 1 and their number
        squares[own] = student_t(float(count * freedom)) ** 2
    return np.split(squares, np.cumsum([len(mean.parts) for mean in means])[:-1])


def _spread(*means: _Mean) -> float:
    """Square of the half-width of independent means' sum, due to runs that differ; may be NaN."""
    squares = _squared_quantiles(*means)
    return sum(float((s * m.parts).sum()) for s, m in zip(squares, means, strict=True))


def _variance(task: Scores) -> float:
    """Variance over a task's runs; NaN for a single one, 0 if all agree."""
    if len(task) == 1:
        return math.nan
    return 0.0 if agree(task) else float(task.var(ddof=1))


def agree(task: Scores) -> bool:
    """Whether there are several runs and all have the same score."""
    return len(task) > 1 and bool((task == task[0]).all())


def other_share(runs: int) -> float:
    """The largest share of runs of another kind that `runs` draws may all miss."""
    return float(1 - ((1 - CONFIDENCE) / 2) ** (1 / runs))


def student_t(freedom: float) -> float:
    """Two-sided quantile of Student's t distribution."""
    from scipy import special  # takes half a second, so only when needed

    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))


# Intervals of other statistics, by bootstrap.

_DECIDING: dict[Statistic, float] = {median_of_tasks: 0.0, interquartile_mean: 0.25}
"""Share of the tasks that may decide a statistic, at least one; all take part in others. An IQM's
is from simulation: with tasks as unlike as in TQL's tables its intervals cover what they say."""


def estimate(
    statistic: Statistic,
    table: Table,
    generator: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    is_rate: bool = False,
) -> Estimate:
    """A statistic of a table with its stratified bootstrap interval.

    Runs are drawn with replacement within each task; bounds are quantiles of the statistic,
    widened for few runs (see this module's docstring). There are no bounds if a task has one run,
    which would count as known exactly, or if there are so few runs that the quantiles would lie
    beyond any resample. For IQM and median their numbers alone decide that: an IQM of 5 tasks has
    bounds from 5 runs of each on, of 10 tasks from 3. A resample of runs that all agree is always
    the same: for success rates the room that they leave (`estimate_mean`) is combined with the
    quantiles; if scores are no rates and all runs of each task agree, there are no bounds.

    Args:
        statistic: such as `interquartile_mean`.
        table: one vector of runs' scores per task.
        generator: the only source of randomness.
        resamples: number of resamples.
        is_rate: whether scores are success rates in percent; bounds then lie in [0, 100].

    Raises:
        InputError: there is no task, a task has no run, or a score is not finite.
    """
    tasks = checked_table(table)
    value = float(statistic(tasks))
    if is_rate and all(map(agree, tasks)):
        return with_room(Estimate(value=value, low=value, high=value), statistic, tasks)
    tail = widened_tail(tasks, _DECIDING.get(statistic))
    if math.isnan(tail):
        return Estimate(value=value)
    drawn = _resampled(statistic, tasks, generator, resamples)
    low, high = np.quantile(drawn, [tail, 1 - tail]).tolist()
    found = Estimate(value=value, low=low, high=high)
    return with_room(found, statistic, tasks) if is_rate else found


def with_room(found: Estimate, statistic: Statistic, tasks: Sequence[Scores]) -> Estimate:
    """Widen an interval of success rates by the room that tasks whose runs agree leave.

    A share of unseen runs may be at 0 or at 100 instead (`estimate_mean`). How far that moves the
    statistic, task by task, is combined with the bounds by the root of the sum of squares.
    """
    fall = rise = 0.0
    for i, task in enumerate(tasks):
        for other in (0.0, 100.0) if agree(task) else ():
            changed = [*tasks[:i], _mixed(task, other), *tasks[i + 1 :]]
            shift = float(statistic(changed)) - found.value
            fall, rise = fall + min(shift, 0.0) ** 2, rise + max(shift, 0.0) ** 2
    low = found.value - math.sqrt(max(found.value - found.low, 0.0) ** 2 + fall)
    high = found.value + math.sqrt(max(found.high - found.value, 0.0) ** 2 + rise)
    return Estimate(
        value=found.value,
        low=max(low, 0.0) if fall else found.low,
        high=min(high, 100.0) if rise else found.high,
    )


def _mixed(task: Scores, other: float) -> Scores:
    """Runs that agree, with as many among them at another score as their number may all miss."""
    count = round(_MIXED * other_share(len(task)))
    return np.repeat([task[0], other], [_MIXED - count, count])


def estimate_profile(table: Table, thresholds: Sequence[float]) -> tuple[Scores, Scores, Scores]:
    """`performance_profile` with a pointwise Wilson interval of each fraction.

    Its n is the number of runs that would have the mean's variance if all T tasks had the same
    fraction: T² / Σ 1/nᵢ. Tasks' fractions differ, so it covers more than its nominal confidence.

    Returns:
        The profile and the band's lower and upper ends, `(thresholds,)` each.
    """
    tasks = checked_table(table)
    profile = np.asarray(performance_profile(tasks, thresholds))
    runs = len(tasks) ** 2 / sum(1 / len(task) for task in tasks)
    bounds = [wilson_interval(min(p, 1.0) * runs, runs) for p in profile.tolist()]
    low, high = np.array(bounds).reshape(-1, 2).T
    return profile, low, high


def estimate_improvement(first: Table, second: Table) -> Estimate:
    """`improvement_probability` with a score interval; both tables have the same tasks.

    Bounds solve |θ - estimate| = z √V(θ), with the variance V of Mann and Whitney's statistic as a
    function of θ itself (Newcombe, 2006, "Confidence intervals for an effect size measure based on
    the Mann-Whitney statistic", method 5), so that few runs do not appear to give certainty.
    """
    from scipy import optimize  # only when needed, as in `student_t`

    tables = checked_table(first), checked_table(second)
    value = float(improvement_probability(*tables))
    sizes = [(len(a), len(b)) for a, b in zip(*tables, strict=True)]

    def beyond(theta: float) -> float:
        return abs(theta - value) - _Z * math.sqrt(_improvement_variance(theta, sizes))

    near = 1e-9  # V is 0 at exactly 0 and 1
    low = optimize.brentq(beyond, 0.0, value - near) if value > 0 else 0.0
    high = optimize.brentq(beyond, value + near, 1.0) if value < 1 else 1.0
    return Estimate(value=value, low=float(low), high=float(high))


def _improvement_variance(theta: float, sizes: Sequence[tuple[int, int]]) -> float:
    """Variance of the mean over tasks of m and n runs each, if θ is the probability in all."""
    odds = (1 - theta) / (2 - theta) + theta / (1 + theta)
    parts = [(1 + ((m + n) / 2 - 1) * odds) / (m * n) for m, n in sizes]
    return theta * (1 - theta) * sum(parts) / len(sizes) ** 2


def widened_tail(tasks: Sequence[Scores], share: float | None = None) -> float:
    """The quantile at which a bootstrap of the tasks' mean is as wide as Student's t.

    It is Φ(-√(n/(n - 1)) t), where n is the runs per task and t that of `estimate_mean`; given a
    share, that of as many tasks, at least one. Where tasks differ in their numbers of runs, it is
    that of one task with the fewest. NaN if there is no such t, or if the quantile is further out
    than `_LEAST_TAIL`.
    """
    fewest = min(map(len, tasks))
    if fewest == 1 or all(map(agree, tasks)):
        return math.nan
    count = 1.0
    if fewest == max(map(len, tasks)):
        parts = np.array([task.var() for task in tasks])
        satterthwaite = parts.sum() ** 2 / (parts**2).sum()
        count = satterthwaite if share is None else max(share * len(tasks), 1.0)
    return _tail_of(fewest, count * (fewest - 1))


def _tail_of(runs: int, freedom: float) -> float:
    """Φ(-√(n/(n - 1)) t) of n runs per task; NaN below `_LEAST_TAIL`."""
    tail = NormalDist().cdf(-math.sqrt(runs / (runs - 1)) * student_t(freedom))
    return tail if tail >= _LEAST_TAIL else math.nan


def _resampled(
    statistic: Statistic, tasks: Sequence[Scores], generator: np.random.Generator, resamples: int
) -> Scores:
    """The statistic of `resamples` tables drawn from one; `(resamples,)`."""
    block = max(1, _BLOCK_CELLS // sum(map(len, tasks)))
    drawn = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        picks = [task[generator.integers(len(task), size=(count, len(task)))] for task in tasks]
        drawn.append(np.asarray(statistic(picks)))
    return np.concatenate(drawn)


def checked_table(table: Table) -> list[NDArray[np.float64]]:
    """A table's tasks as float64 vectors.

    Raises:
        InputError: there is no task, a task has no run, or a score is not finite.
    """
    if len(table) == 0:
        raise InputError("a table of scores has no task; name runs that have a score")
    return [_finite(task) for task in table]


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    """Check that scores are a vector of finite numbers, and return them as float64."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise InputError(
            f"scores of shape {scores.shape} are not a list of finite numbers, one per run; "
            "leave out the runs without a score"
        )
    return scores
