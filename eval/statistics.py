"""Intervals and spreads of scores. Randomness comes from one explicit generator."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tql_offline.errors import InputError


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success probability.

    With p = successes / n and z the normal quantile of (1 + confidence) / 2:
    (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n) (Wilson, 1927, "Probable inference").

    Args:
        successes: number of successful episodes.
        n: number of episodes.
        confidence: coverage in (0, 1).

    Returns:
        Lower and upper bound, probabilities in [0, 1].

    Raises:
        InputError: `n` is 0, `successes` is not in [0, n], or the confidence not in (0, 1).

    >>> [round(bound, 4) for bound in wilson_interval(0, 50)]
    [0.0, 0.0713]
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(
            f"{successes} successes of {n} episodes is no rate; count the episodes again"
        )
    z = NormalDist().inv_cdf((1 + _checked(confidence)) / 2)
    p = successes / n
    centre = p + z**2 / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (bound / (1 + z**2 / n) for bound in (centre - half_width, centre + half_width))
    # At the ends the exact bounds are 0 and 1; rounding would miss them by an ulp.
    return (low if successes > 0 else 0.0), (high if successes < n else 1.0)


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


def bootstrap_interval(
    values: ArrayLike,
    generator: np.random.Generator,
    *,
    statistic: Callable[..., Any] = np.mean,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over runs.

    Args:
        values: `(runs,)` one score per run; the run, not the episode, is the replication unit.
        generator: the only source of randomness.
        statistic: takes `(resamples, runs)` and `axis=1`, gives `(resamples,)`.
        resamples: draws with replacement.
        confidence: coverage in (0, 1).

    Returns:
        Lower and upper bound, in the score's unit.

    Raises:
        InputError: there is no run, a score is not finite, or the confidence not in (0, 1).
    """
    scores = _finite(values)
    tail = (1 - _checked(confidence)) / 2
    drawn = scores[generator.integers(len(scores), size=(resamples, len(scores)))]
    low, high = np.quantile(statistic(drawn, axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _checked(confidence: float) -> float:
    """The confidence, if it is one."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence} does not lie between 0 and 1; set 0.95, say")
    return confidence


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    """The scores as a float64 vector, if they are one."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise InputError(
            f"scores of shape {scores.shape} are not a list of finite numbers, one per run; "
            "leave out the runs without a score"
        )
    return scores
