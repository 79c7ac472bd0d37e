"""What is said of the published claim is what the published scores give."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def claim():
    spec = importlib.util.spec_from_file_location("claim", ROOT / "benchmarks" / "claim.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("table", ["which_deviation", "claims", "precision"])
def test_the_page_has_what_the_script_prints(claim, table):
    page = (ROOT / "docs" / "claim.md").read_text(encoding="utf-8")
    assert "\n".join(getattr(claim, table)()) in page, "run `python benchmarks/claim.py`"


def test_scores_have_the_printed_mean_and_deviation(claim):
    for seeds in (2, 3, 8):
        scores = claim.runs(40.0, 7.0, seeds)
        assert len(scores) == seeds
        assert (scores.mean(), scores.std()) == pytest.approx((40.0, 7.0))


def test_an_interval_of_means_is_welchs(claim):
    """SciPy's, of the printed numbers alone."""
    points = {p.parameters: p for p in claim.published_sizes() if p.method == "TQL"}
    small, large = points[0.4e6], points[26e6]
    assert (small.mean, small.sd, large.mean, large.sd) == (28, 11, 40, 7)
    unbiased = np.array([large.sd, small.sd]) * np.sqrt(8 / 7)
    error = np.sqrt((unbiased**2 / 8).sum())
    freedom = error**4 / ((unbiased**2 / 8) ** 2 / 7).sum()
    half = stats.t.isf(0.025, freedom) * error
    have = claim.estimate_difference(
        claim.deviation_of_means(large, 8), claim.deviation_of_means(small, 8)
    )
    assert (have.low, have.high) == pytest.approx((12 - half, 12 + half))


def test_the_mean_of_the_tasks_deviations_is_the_printed_one(claim):
    (point,) = (p for p in claim.published_sizes() if p.method == "TQL" and p.parameters == 26e6)
    table = claim.mean_of_deviations(point, 8)
    assert len(table) == 25
    assert np.mean([task.std() for task in table]) == pytest.approx(point.sd)
    printed = [sd for _, sd in claim.tasks_of("TQL").values()]
    assert np.round(np.mean(printed)) == point.sd, "which is why ± is read so"
