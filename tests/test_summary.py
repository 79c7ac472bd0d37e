"""What `datasets info` says of the data, against counts by hand and by a loop."""

import numpy as np
import pytest

from tql_offline.cli import tables
from tql_offline.cli.tables import distribution, sparkline
from tql_offline.datasets.episodes import Episodes
from tql_offline.datasets.summary import summarise


def episodes(rewards, masks, lengths):
    transitions = len(rewards)
    return Episodes(
        observations=np.zeros((transitions + len(lengths), 3), np.float32),
        actions=np.zeros((transitions, 2), np.float32),
        rewards=np.asarray(rewards, np.float32),
        masks=np.asarray(masks, np.float32),
        lengths=np.asarray(lengths),
    )


def test_single_rewards_and_clusters_of_them_are_told_apart():
    # The ant mazes of D4RL: umaze-diverse has one reward an episode, the others one for every step
    # near the goal (Farama-Foundation/D4RL#199).
    single = summarise(episodes([0, 0, 1, 0, 0, 1], [1, 1, 0, 1, 1, 0], [3, 3]))
    cluster = summarise(episodes([0, 1, 1, 0, 0, 0], [1, 0, 0, 1, 1, 1], [3, 3]))
    assert (single.ending_transitions, single.ending_episodes) == (2, 2)
    assert (cluster.ending_transitions, cluster.ending_episodes) == (2, 1)
    assert single.zero_rewards == cluster.zero_rewards == pytest.approx(4 / 6)
    assert single.reward_values == 2
    np.testing.assert_array_equal(cluster.returns, [2, 0])


def test_data_without_any_success_say_so():
    # OGBench's puzzles: seohongpark/ogbench#26.
    none = summarise(episodes([-4, -3, -4], [1, 1, 1], [2, 1]))
    assert (none.ending_transitions, none.ending_episodes, none.zero_rewards) == (0, 0, 0)
    assert none.reward_range == (-4, pytest.approx(-11 / 3), -3)


def test_returns_are_sums_by_a_loop():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 50, 40)
    rewards = rng.normal(size=lengths.sum()).astype(np.float32)
    summary = summarise(episodes(rewards, np.ones_like(rewards), lengths))
    start, expected = 0, []
    for length in lengths:
        expected.append(sum(map(float, rewards[start : start + length])))
        start += length
    np.testing.assert_allclose(summary.returns, expected, rtol=1e-12)


def test_a_long_episodes_return_does_not_lose_its_small_rewards():
    # In float32 a million times 0.1 is 100 958.
    rewards = np.full(1_000_000, 0.1, np.float32)
    summary = summarise(episodes(rewards, np.ones_like(rewards), [len(rewards)]))
    assert summary.returns[0] == pytest.approx(1e6 * float(np.float32(0.1)), rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ([0, 1, 500, 1000], " ▁▄█"),
        ([0, 0], "  "),
        ([7], "█"),
        ([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"),
    ],
)
def test_what_is_rare_is_still_drawn_and_nothing_is_blank(counts, line):
    assert sparkline(counts) == line


def console(monkeypatch, *, terminal, encoding="utf-8"):
    fake = type("Console", (), {"is_terminal": terminal, "encoding": encoding})
    monkeypatch.setattr(tables, "console", fake)


def test_a_terminal_shows_blocks(monkeypatch):
    console(monkeypatch, terminal=True)
    text = distribution([0, 0, 0, 10])
    assert text == f"0 █{' ' * 22}▃ 10, mean 2.5, median 0"


@pytest.mark.parametrize(("terminal", "encoding"), [(False, "utf-8"), (True, "ascii")])
def test_a_log_shows_counts_in_ascii(monkeypatch, terminal, encoding):
    console(monkeypatch, terminal=terminal, encoding=encoding)
    text = distribution([0, 0, 0, 10])
    counts = " ".join(["3", *["0"] * 10, "1"])
    assert text == f"0 to 10, mean 2.5, median 0; in 12 bins: {counts}"
    assert text.isascii()


def test_equal_values_need_no_bins():
    assert distribution(np.full(5, 1000)) == "1000 throughout"
