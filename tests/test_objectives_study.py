"""The study's tables: intervals, rows of like runs alone, the page around them."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import objectives as study
from tql_offline.errors import InputError
from tql_offline.eval.statistics import wilson_interval
from tql_offline.files import read_jsonl

ROOT = Path(__file__).resolve().parent.parent


def line(seed, rate, **other):
    learned = [
        {"policy": "learned", "step": 50, "success_rate": 0.9, "episodes": 50},
        {"policy": "learned", "step": 100, "success_rate": rate, "episodes": 50},
        {"policy": "behaviour", "step": 100, "success_rate": 0.02, "episodes": 50},
    ]
    facts = {
        "run": f"r{seed}",
        "method": "FQL",
        "objective": "flow",
        "critic": "mlp",
        "size": "tiny",
    }
    data = {"dataset_sha256": "a", "protocol": "quick/1", "versions": {"torch": "1"}, "task": "t"}
    numbers = {"parameters": 1000, "updates": 100, "updates_per_second": 10.0, "seed": seed}
    return facts | data | numbers | {"evaluations": learned} | other


def test_interval_is_the_wider_of_seeds_and_episodes():
    rates = [0.2, 0.5, 0.8]
    half = stats.t.ppf(0.975, 2) * np.std(rates, ddof=1) / np.sqrt(3)
    assert study.interval(rates, 50) == pytest.approx((max(0.5 - half, 0), min(0.5 + half, 1)))
    alike = study.interval([0.5, 0.5, 0.5, 0.5, 0.48], 50)
    assert alike == pytest.approx(wilson_interval(24.8, 50))
    assert study.interval([1.0, 1.0, 1.0], 50) == pytest.approx((0.025 ** (1 / 3), 1.0))
    assert study.interval([0.4], 50) == pytest.approx(wilson_interval(20, 50))


def test_a_row_shows_every_seed_and_the_oracle_apart():
    row = study.row([line(0, 0.5), line(1, 1.0)])
    assert "| 50, 100 | 90, 100 |" in row
    assert "**75**" in row


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dataset_sha256": "b"}, "dataset_sha256"),
        ({"protocol": "quick/2"}, "protocol"),
        ({"versions": {"torch": "2"}}, "versions"),
        ({"seed": 0}, "one seed"),
        ({"evaluations": []}, "r1 has no score"),
    ],
)
def test_unlike_runs_are_not_pooled(other, words):
    with pytest.raises(InputError, match=words):
        study.row([line(0, 0.5), line(1, 1.0) | other])


def test_the_page_has_the_tables_of_the_committed_results():
    page = study.PAGE.read_text(encoding="utf-8")
    assert study.filled(page, study.tables(list(read_jsonl(study.RESULTS)))) == page
