import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage
from tql_offline.errors import InputError
from tql_offline.eval.report_scores import success_interval
from tql_offline.eval.statistics import (
    checked_table,
    estimate,
    estimate_difference,
    estimate_gain,
    estimate_improvement,
    estimate_mean,
    estimate_profile,
    improvement_probability,
    interquartile_mean,
    mean_of_tasks,
    mean_std,
    median_of_tasks,
    performance_profile,
    t_interval,
    wilson_interval,
)
from tql_offline.eval.trends import num_deals, size_trend


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 50), (1, 50), (27, 50), (50, 50), (1, 1), (3, 1200)]
)
def test_wilson_intervals_agree_with_scipy(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    ours = wilson_interval(successes, n)
    assert ours == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= ours[0] <= successes / n <= ours[1] <= 1


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(InputError, match=f"{successes} successes of {n}"):
        wilson_interval(successes, n)


def test_the_spread_over_runs_divides_as_asked():
    """Scores 2, 4, 9: mean 5, squared deviations 9 + 1 + 16 = 26, over 3 or over 2."""
    assert mean_std([2, 4, 9]) == pytest.approx((5, math.sqrt(26 / 3)))
    assert mean_std([2, 4, 9], ddof=1) == pytest.approx((5, math.sqrt(13)))
    assert mean_std([7]) == (7, 0)
    with pytest.raises(InputError, match="1 runs have no standard deviation with ddof=1"):
        mean_std([7], ddof=1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_missing_scores_are_refused(values):
    for statistic in (mean_std, t_interval):
        with pytest.raises(InputError, match="not a list of finite numbers"):
            statistic(values)


TABLE = ([0.0, 10.0, 20.0, 90.0], [50.0, 50.0, 60.0, 100.0])


def test_statistics_of_a_table_by_hand():
    """Runs in order: 0 10 20 50 50 60 90 100; the middle half is 20 50 50 60."""
    tasks = checked_table(TABLE)
    assert interquartile_mean(tasks) == 45
    assert mean_of_tasks(tasks) == (30 + 65) / 2
    assert median_of_tasks([*tasks, np.array([7.0])]) == 30
    assert performance_profile(tasks, [0, 50, 100]).tolist() == [7 / 8, 3 / 8, 0]


@pytest.mark.parametrize("repeated", [0, 1])
def test_a_task_weighs_the_same_however_many_runs_it_has(repeated):
    """Each of a task's runs twice is the same evidence twice."""
    tasks = checked_table(TABLE)
    more = [np.repeat(task, 2) if i == repeated else task for i, task in enumerate(tasks)]
    for statistic in (mean_of_tasks, median_of_tasks, interquartile_mean):
        assert statistic(more) == pytest.approx(statistic(tasks))
    assert performance_profile(more, [0, 50]) == pytest.approx(performance_profile(tasks, [0, 50]))
    both = [np.stack([task, task]) for task in more]
    assert interquartile_mean(both) == pytest.approx([interquartile_mean(tasks)] * 2)


def test_an_interquartile_mean_of_unlike_tasks_by_hand():
    """Weights 1/4 of 0, 8 and 1/6 of 1, 5, 9: of the middle half 1/6 · 1, 1/6 · 5 and 1/6 · 8."""
    assert interquartile_mean(checked_table([[0, 8], [1, 5, 9]])) == pytest.approx(14 / 3)


def test_a_profiles_band_is_wilsons_of_as_many_runs():
    tasks, thresholds = [[0.0, 50.0, 80.0, 90.0], [20.0, 60.0, 70.0, 100.0]], [10, 50, 90, 100]
    profile, low, high = estimate_profile(tasks, thresholds)
    for i, above in enumerate((7, 5, 1, 0)):
        assert profile[i] == above / 8
        assert (low[i], high[i]) == pytest.approx(wilson_interval(above, 8))
    # Runs of one that weighs as much as ten count for little.
    _, low, high = estimate_profile([[1.0], list(range(10))], [0.5])
    assert (low, high) == pytest.approx(wilson_interval(0.95 * 4 / 1.1, 4 / 1.1))


def test_statistics_agree_with_scipy():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 6, (4, 9)).astype(float) for _ in range(2))
    assert interquartile_mean(list(first)) == pytest.approx(stats.trim_mean(first, 0.25, axis=None))
    wins = [stats.mannwhitneyu(a, b).statistic / 81 for a, b in zip(first, second, strict=True)]
    assert improvement_probability(first, second) == pytest.approx(np.mean(wins))
    mean = stats.ttest_1samp(first[0], 0).confidence_interval(0.95)
    assert t_interval(first[0]) == pytest.approx((mean.low, mean.high))


def test_a_run_is_resampled_within_its_task_only():
    """The first task's runs are equal: whatever is drawn, its statistic stays what it is."""
    table = ([1.0] * 8, list(range(8)))
    got = estimate(lambda drawn: drawn[0].mean(-1), table, np.random.default_rng(0))
    assert got.low == got.value == got.high == 1


@pytest.mark.parametrize("table", [[[1.0], [3.0]], [[5.0, 5.0, 5.0]], [[1.0, 2.0, 4.0, 8.0]]])
def test_too_few_runs_or_no_spread_have_no_bootstrap(table):
    got = estimate(interquartile_mean, table, np.random.default_rng(0))
    assert math.isfinite(got.value)
    assert math.isnan(got.low)
    assert math.isnan(got.high)


def test_widened_bounds_of_a_mean_are_students():
    """For many runs and for few; scipy's own percentile bootstrap of eight is narrower."""
    rng = np.random.default_rng(0)
    for count, tolerance in ((8, 0.12), (200, 0.05)):
        scores = rng.normal(10, 2, count)
        got = estimate(mean_of_tasks, [scores], np.random.default_rng(1), resamples=50_000)
        low, high = t_interval(scores)
        assert (got.low, got.high) == pytest.approx((low, high), abs=tolerance * (high - low))
    plain = stats.bootstrap((scores[:8],), np.mean, method="percentile", rng=rng)
    wide = estimate(mean_of_tasks, [scores[:8]], np.random.default_rng(1))
    interval = plain.confidence_interval
    assert interval.high - interval.low < 0.85 * (wide.high - wide.low)


def successes(rng, task, shape):
    """Percent of 150 episodes; each run's own chance spreads about the task's."""
    chance = rng.beta(2 + 3 * task, 3, shape)
    return rng.binomial(150, chance) / 1.5, 100 * (2 + 3 * task) / (5 + 3 * task)


def normal(rng, task, shape):
    return rng.normal(10 * task, 1 + task, shape), 10 * task


@pytest.mark.parametrize("num_tasks", [1, 5])
@pytest.mark.parametrize("runs", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("draw", [normal, successes])
def test_intervals_of_a_mean_cover_what_they_say(draw, runs, num_tasks):
    rng, covered, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        drawn = [draw(rng, task, runs) for task in range(num_tasks)]
        truth = np.mean([mean for _, mean in drawn])
        got = estimate_mean([scores for scores, _ in drawn], is_rate=draw is successes)
        covered += got.low <= truth <= got.high
    # Of two runs a success rate's interval is cut off at 0 and 100; five pairs have more degrees
    # of freedom than Satterthwaite's estimate of them.
    assert 0.93 <= covered / trials <= (0.97 if runs > 2 else 1.0)


@pytest.mark.parametrize("chance", [0.9, 0.97, 0.99])
@pytest.mark.parametrize("runs", [2, 3, 8])
def test_intervals_near_the_ceiling_cover_what_they_say(runs, chance):
    """Of several runs all may have the same score, without a spread of their own."""
    rng, covered, trials = np.random.default_rng(0), 0, 500
    for _ in range(trials):
        got = estimate_mean([rng.binomial(150, chance, runs) / 1.5], is_rate=True)
        covered += got.low <= 100 * chance <= got.high
    assert covered / trials >= 0.93


@pytest.mark.parametrize("num_tasks", [1, 5])
@pytest.mark.parametrize(("runs", "chance"), [(2, 0.67), (3, 0.67), (3, 0.9), (8, 0.9), (8, 0.05)])
def test_intervals_of_runs_that_succeed_or_fail_altogether_cover(runs, chance, num_tasks):
    """Of which a sample often holds one kind alone."""
    rng, covered, trials = np.random.default_rng(0), np.zeros(2), 500
    for _ in range(trials):
        drawn, others = 100.0 * (rng.random((2, num_tasks, runs)) < chance)
        mean = estimate_mean(drawn, is_rate=True)
        difference = estimate_difference(drawn, others, is_rate=True)
        covered += [
            mean.low <= 100 * chance <= mean.high,
            difference.low <= 0 <= difference.high,
        ]
    assert (covered / trials >= 0.95).all()


def test_runs_that_agree_leave_room_for_runs_of_another_kind():
    """With a share s of failures three draws show none with chance (1 - s)³ = 0.025."""
    share = 1 - 0.025 ** (1 / 3)
    for score, low, high in ((100.0, 100 - 100 * share, 100.0), (0.0, 0.0, 100 * share)):
        got = estimate_mean([[score] * 3], is_rate=True)
        assert (got.low, got.high) == pytest.approx((low, high))
    some, spread = [100.0] * 3, [30.0, 50.0, 70.0]
    low, high = t_interval(spread)
    got = estimate_mean([some, spread], is_rate=True)
    assert got.low == pytest.approx(75 - math.hypot(100 * share, 50 - low) / 2)
    assert got.high == pytest.approx(75 + (high - 50) / 2)
    # What takes from the second adds to the difference.
    got = estimate_difference([[100.0] * 8], [[0.0] * 8], is_rate=True)
    assert got.low == pytest.approx(100 - math.hypot(*[100 * (1 - 0.025 ** (1 / 8))] * 2))
    assert got.high == 100
    got = estimate_difference([[0.0] * 3], [[0.0] * 3], is_rate=True)
    assert (got.low, got.high) == pytest.approx((-100 * share, 100 * share))


def test_a_gain_over_runs_that_agree_has_their_room():
    """What may take from the one meets what may add to the other."""
    base, share = [40.0] * 8, 1 - 0.025 ** (1 / 8)
    got = estimate_gain([[90.0] * 8], [base], is_rate=True)
    assert got.value == pytest.approx(90 / 40 - 1)
    low, high = got.low + 1, got.high + 1
    assert (90 - 40 * low) ** 2 == pytest.approx((90 * share) ** 2 + (low * 60 * share) ** 2)
    assert (90 - 40 * high) ** 2 == pytest.approx((10 * share) ** 2 + (high * 40 * share) ** 2)
    assert math.isnan(estimate_gain([[90.0] * 2], [[40.0] * 2], is_rate=True).low)


def test_runs_that_differ_have_their_own_spread_alone():
    near = estimate_mean([[98.0, 98.5, 99.0]], is_rate=True)
    assert (near.low, near.high) == pytest.approx(t_interval([98.0, 98.5, 99.0]))


def test_equal_scores_that_are_no_rates_have_no_interval():
    for got in (estimate_mean([[7.0] * 3]), estimate_difference([[7.0] * 3], [[5.0] * 3])):
        assert math.isnan(got.low)


def test_means_and_differences_are_students_and_welchs():
    rng = np.random.default_rng(0)
    first, second = rng.normal(50, 5, 4), rng.normal(40, 9, 4)
    got = estimate_mean([first])
    assert (got.low, got.high) == pytest.approx(t_interval(first))
    got = estimate_difference([first], [second])
    welch = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (got.low, got.high) == pytest.approx((welch.low, welch.high))
    two_tasks = estimate_mean([first, second])
    assert two_tasks.value == pytest.approx((first.mean() + second.mean()) / 2)


def test_unlike_numbers_of_runs_have_their_own_degrees_of_freedom():
    """Two tasks of three runs together, and one of five: half is the root of the sum of squares."""
    rng = np.random.default_rng(0)
    table = [rng.normal(50, 5, 3), rng.normal(60, 9, 3), rng.normal(40, 7, 5)]
    got = estimate_mean(table)
    alike, (low, high) = estimate_mean(table[:2]), t_interval(table[2])
    assert got.high - got.value == pytest.approx(
        math.hypot(2 * (alike.high - alike.value), (high - low) / 2) / 3
    )
    got = estimate_difference(table[:1], table[2:])
    (first, last), half = t_interval(table[0]), (high - low) / 2
    assert got.high - got.value == pytest.approx(math.hypot((last - first) / 2, half))


def test_a_gain_of_a_known_base_is_the_means():
    """A base without spread is a constant, by which the mean's interval is divided."""
    scores = [30.0, 50.0, 70.0]
    got, mean = estimate_gain([scores], [[20.0] * 3]), estimate_mean([scores])
    assert got.value == pytest.approx(1.5)
    assert (got.low, got.high) == pytest.approx((mean.low / 20 - 1, mean.high / 20 - 1))


def test_a_gain_is_fiellers():
    """By the formula, its degrees of freedom at the ratio found."""
    one, other = np.array([70.0, 90.0, 85.0, 81.0]), np.array([30.0, 31.0, 36.0, 26.0])
    a, b = one.mean(), other.mean()
    u, v = one.var(ddof=1) / 4, other.var(ddof=1) / 4
    freedom = (u + (a / b) ** 2 * v) ** 2 / (u**2 / 3 + ((a / b) ** 2 * v) ** 2 / 3)
    t2 = stats.t.isf(0.025, freedom) ** 2
    roots = np.roots([b**2 - t2 * v, -2 * a * b, a**2 - t2 * u])
    got = estimate_gain([one], [other])
    assert (got.low, got.high) == pytest.approx(tuple(sorted(roots - 1)))


def test_a_difference_of_rates_is_none_beyond_a_hundred_points():
    got = estimate_difference([[100.0, 0.0]], [[0.0, 50.0]], is_rate=True)
    assert (got.low, got.high) == (-100.0, 100.0)
    assert estimate_difference([[100.0, 0.0]], [[0.0, 50.0]]).high > 100


def test_a_gain_has_no_bound_over_a_base_that_may_be_nothing():
    got = estimate_gain([[30.0, 50.0, 70.0]], [[0.0, 1.0, 8.0]])
    assert got.value == pytest.approx(50 / 3 - 1)
    assert math.isnan(got.low)
    assert math.isnan(estimate_gain([[30.0, 50.0]], [[0.0, 0.0]]).value)


def test_a_rate_falls_by_itself_at_most():
    table, base = [[0.0, 10.0, 20.0]], [[80.0, 85.0, 90.0]]
    assert estimate_gain(table, base).low < -1
    assert estimate_gain(table, base, is_rate=True).low == -1


@pytest.mark.parametrize("num_tasks", [1, 5])
@pytest.mark.parametrize("runs", [2, 3, 8])
def test_intervals_of_comparisons_cover_what_they_say(runs, num_tasks):
    rng, trials = np.random.default_rng(0), 500
    sure = stats.norm.cdf(20 / math.hypot(5, 10))
    covered = np.zeros(3)
    for _ in range(trials):
        one, other = rng.normal(60, 5, (num_tasks, runs)), rng.normal(40, 10, (num_tasks, runs))
        difference = estimate_difference(one, other)
        gain = estimate_gain(one, other)
        chance = estimate_improvement(one, other)
        covered += [
            difference.low <= 20 <= difference.high,
            math.isnan(gain.low) or gain.low <= 0.5 <= gain.high,
            chance.low <= sure <= chance.high,
        ]
    # Mann and Whitney's statistic takes few values: its interval is a few percent short.
    assert (covered / trials >= [0.93, 0.93, 0.9]).all()


def spread_tasks(rng, runs):
    """Five tasks of success rates far apart, in percent of 150 episodes."""
    chances = np.array([[0.9], [0.75], [0.6], [0.3], [0.1]])
    return rng.binomial(150, np.clip(rng.normal(chances, 0.06, (5, runs)), 0, 1)) / 1.5


def like_tasks(rng, runs):
    return rng.normal(50, 10, (5, runs))


@pytest.mark.parametrize("draw", [spread_tasks, like_tasks])
@pytest.mark.parametrize(
    ("statistic", "runs"),
    [
        *((interquartile_mean, runs) for runs in (5, 8)),
        *((median_of_tasks, runs) for runs in (5, 8)),
    ],
)
def test_bootstrapped_intervals_cover_what_they_say(statistic, runs, draw):
    rng, found, trials = np.random.default_rng(0), [], 400
    truth = float(statistic(draw(rng, 100_000)))
    for _ in range(trials):
        got = estimate(statistic, draw(rng, runs), rng, resamples=1000)
        found += [] if math.isnan(got.low) else [got.low <= truth <= got.high]
    assert len(found) > 0.8 * trials
    assert np.mean(found) >= 0.91


def all_or_nothing_beside_others(rng, runs):
    """A task that nine seeds in ten solve always and one never, and two of seeds that vary."""
    solved = 100.0 * (rng.random((1, runs)) < 0.9)
    return np.concatenate([solved, rng.normal([[40.0], [60.0]], 3.0, (2, runs))])


@pytest.mark.parametrize(
    ("statistic", "runs"),
    [(interquartile_mean, 5), (interquartile_mean, 8), (median_of_tasks, 8)],
)
def test_bootstrapped_intervals_cover_where_runs_of_a_task_agree(statistic, runs):
    """Without the room that these leave, none of the intervals of such draws would."""
    rng, found, trials = np.random.default_rng(0), [], 200
    truth = float(statistic(all_or_nothing_beside_others(rng, 100_000)))
    for _ in range(trials):
        table = all_or_nothing_beside_others(rng, runs)
        got = estimate(statistic, table, rng, resamples=300, is_rate=True)
        if (table[0] == 100).all() and not math.isnan(got.low):
            found.append(got.low <= truth <= got.high)
    assert len(found) > 0.2 * trials
    assert np.mean(found) >= 0.91


def test_the_room_of_runs_that_agree_is_that_of_a_means():
    """Of the mean over tasks it is known in closed form; scores that are no rates leave none."""
    table = [np.full(5, 100.0), np.array([30.0, 50.0, 70.0, 40.0, 60.0])]
    plain = estimate(mean_of_tasks, table, np.random.default_rng(0))
    got = estimate(mean_of_tasks, table, np.random.default_rng(0), is_rate=True)
    share = 1 - 0.025 ** (1 / 5)
    assert got.low == pytest.approx(75 - math.hypot(100 * share / 2, 75 - plain.low), rel=1e-3)
    assert got.high == plain.high
    for alike in ([table[0]], [table[0], np.zeros(5)]):
        mean = estimate_mean(alike, is_rate=True)
        got = estimate(mean_of_tasks, alike, np.random.default_rng(0), is_rate=True)
        assert (got.low, got.high) == pytest.approx((mean.low, mean.high), abs=0.1)
        assert math.isnan(estimate(mean_of_tasks, alike, np.random.default_rng(0)).low)


@pytest.mark.parametrize("draw", [spread_tasks, like_tasks])
@pytest.mark.parametrize("runs", [2, 3, 8])
def test_bands_of_profiles_cover_what_they_say(runs, draw):
    rng, thresholds, covered = np.random.default_rng(0), [45.0, 52.0, 65.0], np.zeros(3)
    truth = performance_profile(draw(rng, 100_000), thresholds)
    for _ in range(400):
        _, low, high = estimate_profile(draw(rng, runs), thresholds)
        covered += (low <= truth) & (truth <= high)
    assert (covered / 400 >= 0.9).all()  # Wilson's of 10 runs in all, which take few values


@pytest.mark.parametrize(
    ("statistic", "tasks", "runs", "has_bounds"),
    [
        (median_of_tasks, 50, 4, False),
        (median_of_tasks, 2, 5, True),
        (interquartile_mean, 5, 4, False),
        (interquartile_mean, 6, 4, True),
        (interquartile_mean, 8, 3, False),
        (interquartile_mean, 9, 3, True),
    ],
)
def test_what_few_tasks_may_decide_has_an_interval_by_numbers_alone(
    statistic, tasks, runs, has_bounds
):
    """Four runs of one task have none, and a median may hang on the one in the middle."""
    table = np.random.default_rng(0).normal(size=(tasks, runs))
    table[0] *= 100  # as if it were the only one, to a mean
    got = estimate(statistic, table, np.random.default_rng(0), resamples=100)
    assert math.isfinite(got.low) == has_bounds
    fewer = [table[0, :2], *table[1:]]
    assert math.isnan(estimate(statistic, fewer, np.random.default_rng(0), resamples=100).low)


def unlike_tasks(rng, counts):
    """Tasks whose seeds deviate as those of TQL's cube-double do (arXiv 2602.01439, table 3)."""
    means, deviations = [90.0, 75.0, 60.0, 25.0, 50.0], [2.0, 5.0, 12.0, 15.0, 20.0]
    return [rng.normal(*task) for task in zip(means, deviations, counts, strict=True)]


def test_intervals_cover_where_tasks_deviate_unlike_one_another():
    rng, covered, trials = np.random.default_rng(0), np.zeros(2), 400
    truth = interquartile_mean(unlike_tasks(rng, [100_000] * 5))
    for _ in range(trials):
        table = unlike_tasks(rng, [6] * 5)
        mean, iqm = estimate_mean(table), estimate(interquartile_mean, table, rng, resamples=500)
        covered += [mean.low <= 60 <= mean.high, iqm.low <= truth <= iqm.high]
    assert (covered / trials >= 0.93).all()


@pytest.mark.parametrize("few", [2, 3])
def test_intervals_cover_where_one_task_has_fewer_runs(few):
    """Satterthwaite's degrees of freedom cover 80 to 88 % of these."""
    rng, covered, trials = np.random.default_rng(0), np.zeros(3), 400
    for _ in range(trials):
        table, whole = unlike_tasks(rng, [8, 8, 8, 8, few]), unlike_tasks(rng, [8] * 5)
        mean, difference = estimate_mean(table), estimate_difference(table, whole)
        gain = estimate_gain(table, whole)
        covered += [
            mean.low <= 60 <= mean.high,
            difference.low <= 0 <= difference.high,
            math.isnan(gain.low) or gain.low <= 0 <= gain.high,
        ]
    assert (covered / trials >= 0.93).all()


def test_improvement_is_never_certain():
    low, high = np.arange(9.0).reshape(3, 3), 10 + np.arange(9.0).reshape(3, 3)
    sure = estimate_improvement(high, low)
    assert (sure.value, sure.high) == (1, 1)
    assert 0.5 < sure.low < 0.9
    never = estimate_improvement(low, high)
    assert (never.low, never.value, never.high) == pytest.approx((0, 0, 1 - sure.low))
    alike = estimate_improvement(low, low)
    assert (alike.value, alike.low) == pytest.approx((0.5, 1 - alike.high))


def test_one_bernoulli_draw_has_wilsons_interval():
    """One run against one: the variance is θ(1 - θ)."""
    got = estimate_improvement([[2.0]], [[1.0]])
    assert (got.low, got.high) == pytest.approx(wilson_interval(1, 1), abs=1e-6)


def test_one_run_per_task_has_no_interval():
    for got in (
        estimate_mean([[1.0], [3.0]]),
        estimate_mean([[1.0, 2.0], [3.0]]),
        estimate_difference([[1.0, 2.0]], [[3.0]]),
    ):
        assert math.isfinite(got.value)
        assert math.isnan(got.low)
        assert math.isnan(got.high)
    assert all(map(math.isnan, t_interval([5.0])))
    with pytest.raises(InputError, match="no task"):
        estimate(mean_of_tasks, [], np.random.default_rng(0))
    with pytest.raises(InputError, match="no task"):
        estimate_mean([])


def test_a_trend_in_one_task_is_kendalls():
    """Exactly, where there are few runs and no ties."""
    sizes, scores = [1, 2, 3, 4, 5, 6], [3.0, 1.0, 4.0, 5.0, 2.0, 9.0]
    got = size_trend([sizes], [scores], np.random.default_rng(0))
    rises = stats.kendalltau(sizes, scores, alternative="greater", method="exact")
    falls = stats.kendalltau(sizes, scores, alternative="less", method="exact")
    assert got.concordance == pytest.approx(rises.statistic)
    assert got.p_rise == pytest.approx(rises.pvalue)
    assert got.p_fall == pytest.approx(falls.pvalue)
    drawn = size_trend([sizes], [scores], np.random.default_rng(0), permutations=719)
    assert drawn.p_rise == pytest.approx(rises.pvalue, abs=0.05)
    assert drawn.p_fall == pytest.approx(falls.pvalue, abs=0.05)


def concordance(sizes, scores):
    """Of the pairs of two sizes, those in which the larger scored more, less the others."""
    pairs = list(itertools.combinations(zip(sizes, scores, strict=True), 2))
    agree = sum(int(np.sign(b[0] - a[0]) * np.sign(b[1] - a[1])) for a, b in pairs)
    return Fraction(agree, sum(a[0] != b[0] for a, b in pairs))


@pytest.mark.parametrize(
    ("sizes", "scores"),
    [
        ([[1, 1, 1, 2, 2, 2]], [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]),
        ([[1, 1, 1, 2, 2, 2]], [[6.0, 2.0, 3.0, 4.0, 5.0, 1.0]]),
        ([[2, 1, 1, 3, 2, 1]], [[4.0, 1.0, 1.0, 4.0, 0.0, 2.0]]),
        ([[2, 1, 1, 1, 1, 1, 2, 1]], [[9.0, 1.0, 2.0, 3.0, 0.0, 4.0, 8.0, 8.5]]),
        ([[1, 2, 1, 2], [1, 1, 2, 2]], [[1.0, 0.0, 2.0, 3.0], [1.0, 5.0, 5.0, 7.0]]),
        ([[1, 1, 2, 2, 2, 2]], [[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]]),
        ([[1, 1, 2, 2, 2, 2]], [[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]]),
        ([[1, 2, 2], [1, 2, 2, 2]], [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]]),
        ([[1, 2, 2], [1, 1, 1, 2, 2, 2]], [[0.0, 1.0, 2.0], [1.0, 5.0, 2.0, 0.0, 3.0, 4.0]]),
    ],
)
def test_few_deals_are_all_counted(sizes, scores):
    """Against every permutation of every task's scores, one by one, whatever the generator."""
    dealt = [
        sum(map(concordance, sizes, deal))
        for deal in itertools.product(*(itertools.permutations(task) for task in scores))
    ]
    observed = sum(map(concordance, sizes, scores))

    def shares(value):
        return np.mean([deal >= value for deal in dealt]), np.mean(
            [deal <= value for deal in dealt]
        )

    least = min(1, 2 * min(min(shares(deal)) for deal in set(dealt)))
    for seed in (0, 1):
        got = size_trend(sizes, scores, np.random.default_rng(seed))
        assert (got.p_rise, got.p_fall) == pytest.approx(shares(observed), rel=1e-12)
        assert got.least_p == pytest.approx(least, rel=1e-12)
        assert got.concordance == pytest.approx(float(observed / len(sizes)))


def test_tasks_weigh_equally_in_a_trend_however_many_runs_they_have():
    """On one task of eight runs each the larger scores more, on three of two runs each less."""
    tasks = [(8, 1), (2, -1), (2, -1), (2, -1)]
    sizes = [[1] * runs + [2] * runs for runs, _ in tasks]
    scores = [sign * np.arange(2.0 * runs) for runs, sign in tasks]
    got = size_trend(sizes, scores, np.random.default_rng(0))
    assert got.concordance == -0.5
    assert got.p_fall < 0.5 < got.p_rise


@pytest.mark.parametrize("permutations", [10_000, 20], ids=["enumerated", "drawn"])
@pytest.mark.parametrize("tasks", [1, 2])
def test_no_order_is_less_likely_than_the_least_likely_one(tasks, permutations):
    """Of the same deals, enumerated or drawn, for tables with ties and unequal counts."""
    generator = np.random.default_rng(tasks)
    for _ in range(200):
        counts = generator.integers(1, 5, size=(tasks, 2))
        sizes = [generator.permutation(np.repeat([1, 2], count)) for count in counts]
        scores = [generator.integers(0, 3, size=len(size)).astype(float) for size in sizes]
        orders = [scores]
        for sign in (1, -1):  # the two that are rarest, and a random one
            ranks = [np.argsort(np.argsort(size, kind="stable")) for size in sizes]
            ordered = [sign * np.sort(sign * task) for task in scores]
            orders.append([task[rank] for task, rank in zip(ordered, ranks, strict=True)])
        found = [
            size_trend(sizes, order, np.random.default_rng(0), permutations=permutations)
            for order in orders
        ]
        assert all(trend.least_p <= trend.p for trend in found)
        if math.prod(map(num_deals, sizes)) <= permutations:
            assert {trend.least_p for trend in found} == {min(trend.p for trend in found)}


def test_a_falling_order_can_be_rarer_than_the_rising_one():
    """One of C(12, 4) = 495 deals gives all full scores to the four runs of the smaller size."""
    got = size_trend([[1] * 4 + [2] * 8], [[100.0] * 4 + [0.0] * 8], np.random.default_rng(0))
    assert got.p == got.least_p == 2 / 495


@pytest.mark.parametrize(
    ("sizes", "tasks", "tests", "enough"),
    [(2, 1, 1, 4), (2, 1, 2, 5), (2, 2, 1, 3), (2, 2, 10, 4), (3, 1, 1, 2), (5, 1, 1, 1)],
)
def test_runs_that_are_enough_are_the_fewest_whose_perfect_order_is_significant(
    sizes, tasks, tests, enough
):
    def least(runs):
        size, scores = np.repeat(np.arange(sizes), runs), np.arange(float(runs * sizes))
        return size_trend([size] * tasks, [scores] * tasks, np.random.default_rng(0))

    assert least(1).sizes == (sizes,) * tasks
    assert {least(runs).runs_enough(tests) for runs in (1, 2)} == {enough}
    found = [tests * least(runs).least_p < 0.05 for runs in (max(1, enough - 1), enough)]
    assert found == [enough == 1, True]
    unlike = size_trend([[1, 1, 2, 2, 2]], [[1.0, 2, 3, 4, 5]], np.random.default_rng(0))
    assert unlike.fewest_runs == 2


@pytest.mark.parametrize(("counts", "deals"), [((3, 3), 20), ((2, 7), 36)])
def test_a_perfect_order_of_two_sizes_is_one_deal_of_all(counts, deals):
    sizes, scores = np.repeat([1, 2], counts), np.arange(float(sum(counts)))
    got = size_trend([sizes], [scores], np.random.default_rng(0))
    assert (got.p_rise, got.p_fall) == (1 / deals, 1.0)
    assert got.p == got.least_p == 2 / deals
    falls = size_trend([sizes], [-scores], np.random.default_rng(0))
    assert (falls.p_rise, falls.p_fall) == (1.0, 1 / deals)


@pytest.mark.parametrize(
    ("counts", "tasks", "least"),
    [((3, 3), 1, 2 / 20), ((2, 2), 2, 2 / 36), ((3, 3, 3, 3), 1, 2 / 10_001)],
)
def test_a_perfect_order_of_few_runs_is_not_unlikely(counts, tasks, least):
    """Of C(6, 3) = 20 deals of three and three runs one is in perfect order."""
    sizes = [np.repeat(np.arange(len(counts)), counts)] * tasks
    scores = [np.arange(float(sum(counts)))] * tasks
    got = size_trend(sizes, scores, np.random.default_rng(0))
    assert got.least_p == pytest.approx(least)
    assert got.p == pytest.approx(got.least_p)
    shuffled = [np.roll(task, 1) for task in scores]
    again = size_trend(sizes, shuffled, np.random.default_rng(0))
    assert again.least_p == pytest.approx(least)
    assert again.p > again.least_p


def test_a_trend_is_sought_within_tasks():
    """The larger critic ran on the easier task only: pooled a sure rise, within tasks none."""
    sizes = [[1, 1, 1, 2], [2, 2, 2, 1]]
    table = [[1.0, 2.0, 3.0, 0.0], [90.0, 91.0, 92.0, 95.0]]
    got = size_trend(sizes, table, np.random.default_rng(0))
    assert got.concordance == -1
    with pytest.raises(InputError, match="two sizes"):
        size_trend([[1, 1], [2, 2]], [[1.0, 2.0], [3.0, 4.0]], np.random.default_rng(0))


def test_a_trend_without_one_is_seldom_found():
    rng = np.random.default_rng(0)
    found = [
        size_trend(
            [np.repeat([1, 2, 3], 3)] * 2, rng.normal(size=(2, 9)), rng, permutations=200
        ).p_rise
        for _ in range(400)
    ]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.08


def test_the_generator_is_the_only_randomness():
    table = np.random.default_rng(0).normal(size=(2, 9))
    np.random.seed(0)  # noqa: NPY002
    first = estimate(mean_of_tasks, table, np.random.default_rng(4))
    second = estimate(mean_of_tasks, table, np.random.default_rng(4))
    assert first == second != estimate(mean_of_tasks, table, np.random.default_rng(5))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_runs_wilson_interval_covers_whatever_its_evaluations_share(share):
    """Three evaluations from the same 50 states, of which a share ends alike every time."""
    rng, rate = np.random.default_rng(0), 0.7
    first = rng.random((2000, 1, 50)) < rate
    alike = rng.random((2000, 1, 50)) < share
    played = np.where(alike, first, rng.random((2000, 3, 50)) < rate)

    def covered(starts):
        bounds = [success_interval(k, 150, starts) for k in played.sum(axis=(1, 2)).tolist()]
        return np.mean([low <= rate <= high for low, high in bounds])

    assert covered(50) > 0.93
    assert (covered(150) > 0.93) == (share == 0)


def test_what_intervals_do_not_cover_is_what_the_page_says():
    """57 % and, of the best rank, 96 % (docs/leaderboard.md)."""
    random = np.random.default_rng(0)
    rare = np.mean([coverage.covers_rare_failures(8, random) for _ in range(200)])
    assert 0.47 < rare < 0.67
    ranks = np.mean([coverage.covers_ranks(8, random) for _ in range(50)], axis=0)
    assert (ranks > 0.85).all()
    assert np.mean([coverage.covers_ranks(3, random) for _ in range(50)]) < 0.85
