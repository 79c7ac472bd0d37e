import math

import numpy as np
import pytest
from scipy.stats import binomtest

from tql_offline.errors import InputError
from tql_offline.eval.statistics import bootstrap_interval, mean_std, wilson_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(
    ("successes", "n"), [(0, 50), (1, 50), (27, 50), (50, 50), (1, 1), (3, 1200)]
)
def test_wilson_intervals_agree_with_scipy(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    ours = wilson_interval(successes, n, confidence)
    assert ours == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= ours[0] <= successes / n <= ours[1] <= 1


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(InputError, match=f"{successes} successes of {n}"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_a_confidence_is_a_probability(confidence):
    with pytest.raises(InputError, match="between 0 and 1"):
        wilson_interval(1, 2, confidence)
    with pytest.raises(InputError, match="between 0 and 1"):
        bootstrap_interval([1.0, 2.0], np.random.default_rng(0), confidence=confidence)


def test_the_spread_over_runs_divides_as_asked():
    """Scores 2, 4, 9: mean 5, squared deviations 9 + 1 + 16 = 26, over 3 or over 2."""
    assert mean_std([2, 4, 9]) == pytest.approx((5, math.sqrt(26 / 3)))
    assert mean_std([2, 4, 9], ddof=1) == pytest.approx((5, math.sqrt(13)))
    assert mean_std([7]) == (7, 0)
    with pytest.raises(InputError, match="1 runs have no standard deviation with ddof=1"):
        mean_std([7], ddof=1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_missing_scores_are_refused(values):
    for statistic in (mean_std, lambda v: bootstrap_interval(v, np.random.default_rng(0))):
        with pytest.raises(InputError, match="not a list of finite numbers"):
            statistic(values)


def test_a_bootstrap_interval_is_that_of_the_resampled_statistic():
    """Of runs 0 and 1 the mean is 0, ½, 1 with probability ¼, ½, ¼; a constant has no spread."""
    generator = np.random.default_rng(1)
    assert bootstrap_interval([0, 1], generator, confidence=0.6) == (0, 1)
    assert bootstrap_interval([0, 1], generator, confidence=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0, 1], generator, statistic=np.max, confidence=0.4) == (1, 1)
    assert bootstrap_interval([3, 3, 3], generator) == (3, 3)


def test_a_bootstrap_interval_of_many_runs_is_the_normal_one():
    scores = np.random.default_rng(0).normal(10, 2, 400)
    low, high = bootstrap_interval(scores, np.random.default_rng(1))
    half_width = 1.96 * scores.std() / 20
    assert (low, high) == pytest.approx(
        (scores.mean() - half_width, scores.mean() + half_width), abs=0.1 * half_width
    )


def test_the_generator_is_the_only_randomness():
    scores = np.random.default_rng(0).normal(size=9)
    np.random.seed(0)  # noqa: NPY002
    first = bootstrap_interval(scores, np.random.default_rng(4))
    second = bootstrap_interval(scores, np.random.default_rng(4))
    assert first == second != bootstrap_interval(scores, np.random.default_rng(5))
