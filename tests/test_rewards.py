"""Rewards in training: IQL's scaling by the range of returns, a factor, a shift."""

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tql_offline.config import DataConfig, resolve
from tql_offline.datasets.episodes import Episodes
from tql_offline.datasets.load import Dataset
from tql_offline.errors import InputError
from tql_offline.files import read_jsonl
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.rewards import (
    RewardMap,
    floor_notes,
    large_notes,
    reward_map,
    whole_returns,
)
from tql_offline.training.run import run


def made(*episodes):
    """Data of episodes, each its rewards and whether it ends the task."""
    rewards = np.concatenate([np.float32(rewards) for rewards, _ in episodes])
    lengths = np.array([len(rewards) for rewards, _ in episodes])
    masks = np.ones(len(rewards), np.float32)
    masks[np.cumsum(lengths) - 1] = [not ends for _, ends in episodes]
    return Dataset(
        episodes=Episodes(
            observations=np.zeros((len(rewards) + len(lengths), 2), np.float32),
            actions=np.zeros((len(rewards), 1), np.float32),
            rewards=rewards,
            masks=masks,
            lengths=lengths,
        ),
        name="mine",
        path=Path("mine.hdf5"),
        digest=Future(),
        source="own file",
        env_id=None,
    )


def corls_range(rewards, terminals, limit):
    """CORL's `return_reward_range`, a step at a time: a last episode that is cut does not count."""
    returns, total, length = [], 0.0, 0
    for reward, terminal in zip(rewards, terminals, strict=True):
        total, length = total + reward, length + 1
        if terminal or length == limit:
            returns.append(total)
            total, length = 0.0, 0
    return min(returns), max(returns)


def test_the_range_of_returns_is_that_of_corls_iql():
    """Episodes that fall, that reach the limit, and a last one that is merely cut off."""
    rng = np.random.default_rng(0)
    lengths = [7, 20, 3, 20, 11, 5]
    ends = [True, False, True, False, True, False]
    episodes = [(rng.normal(1, 1, n), end) for n, end in zip(lengths, ends, strict=True)]
    episodes[-1] = (np.full(5, 100.0), False)
    data = made(*episodes).episodes
    assert whole_returns(data) == pytest.approx(corls_range(data.rewards, 1 - data.masks, 20))


def test_returns_of_whole_episodes_span_what_is_asked_for():
    data = made(([1, 2, 3], False), ([4], True), ([9, 9], False), ([0, 0, 1], False))
    mapped = reward_map(DataConfig(return_range=1000.0), data).of(data).episodes
    assert whole_returns(mapped) == pytest.approx((200.0, 1200.0))
    np.testing.assert_allclose(mapped.rewards, 200 * data.episodes.rewards, rtol=1e-6)
    np.testing.assert_array_equal(mapped.masks, data.episodes.masks)


def test_factor_and_shift_follow_the_range():
    data = made(([1, 0], True), ([3, 0], True))
    settings = DataConfig(return_range=10.0, reward_scale=2.0, reward_shift=-1.0)
    map_ = reward_map(settings, data)
    assert map_ == RewardMap(scale=10.0, shift=-1.0)
    np.testing.assert_array_equal(map_.of(data).episodes.rewards, [9, -1, 29, -1])
    np.testing.assert_array_equal(data.episodes.rewards, [1, 0, 3, 0])


def test_rewards_that_are_left_alone_are_the_datas_own():
    data = made(([1, 0], True))
    assert reward_map(DataConfig(), data).of(data) is data


def test_returns_that_are_all_the_same_span_nothing():
    data = made(([1, 1], True), ([2], True))
    with pytest.raises(InputError, match=r"return_range is 1000.*mine\.hdf5.*set it to 0"):
        reward_map(DataConfig(return_range=1000.0), data)


def test_a_note_says_what_cal_qls_floor_assumes():
    episodes = made(([1, -3], True), ([2, 2, 2], False), ([0], False)).episodes
    settings = {"dataset": {"name": "mine.hdf5"}, "conservative": {"after_cut": "nothing"}}
    (note,) = floor_notes(resolve(settings, preset="cal-ql"), episodes)
    assert "cuts of 2 of 3 episodes are followed by nothing" in note
    (note,) = floor_notes(resolve({}, preset="cal-ql"), episodes)
    assert "followed by the worst reward (-3) forever" in note
    (note,) = floor_notes(resolve({}, preset="cal-ql"), made(([2, 2], False)).episodes)
    assert "followed by rewards of 0 forever" in note
    assert not list(floor_notes(resolve({}, preset="cal-ql"), made(([2, 2], True)).episodes))
    assert not list(floor_notes(resolve(settings, preset="cql"), episodes))
    assert not list(floor_notes(resolve({}, preset="tql"), episodes))


def test_what_follows_a_cut_is_its_familys():
    names = {"hopper-medium-v2": "nothing", "kitchen-mixed-v0": "last", "antmaze-umaze-v2": "worst"}
    for name, wanted in names.items():
        config = resolve({"dataset": {"name": name}}, preset="cal-ql")
        assert config.conservative.after_cut == wanted


def test_the_assumption_reaches_training(tmp_path):
    """Rewards of 0 and a single -1: the floor is 0, or about -1/(1 - γ)."""
    data = replace(made(([0] * 60, False), ([-1], True)), path=tmp_path / "mine.hdf5")
    data.digest.set_result("0" * 64)
    shares = []
    for after_cut in ("nothing", "worst"):
        settings = {
            "dataset": {"name": "mine.hdf5"},
            "critic": {"size": "tiny"},
            "flow": {"hidden": [8]},
            "conservative": {"after_cut": after_cut, "samples": 2},
            "steps": 3,
            "batch_size": 16,
            "log_every": 3,
        }
        config = resolve(settings, preset="cal-ql")
        folder = run(config, data, tmp_path / "runs", after_cut, SilentReporter())
        shares.append([line["floored_share"] for line in read_jsonl(folder.metrics)])
    assert shares[0][0] > 0.01
    assert shares[1] == [0.0]


@pytest.mark.parametrize("scale", [1.0, 1e-1, 1e36])
def test_a_note_on_large_rewards_names_a_scale_that_ends_it(scale):
    data = made(([21483, 2], True))
    seen = reward_map(DataConfig(reward_scale=scale), data).of(data).episodes
    (note,) = large_notes(DataConfig(reward_scale=scale), seen)
    told = float(note.partition("dataset.reward_scale=")[2])
    mended = reward_map(DataConfig(reward_scale=told), data).of(data).episodes
    assert [*large_notes(DataConfig(reward_scale=told), mended)] == []
