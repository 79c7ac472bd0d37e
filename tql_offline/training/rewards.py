"""The rewards that training sees: the data's, scaled and shifted as the settings ask."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tql_offline.config import Config, DataConfig
from tql_offline.datasets.checks_of_numbers import LARGE_REWARD
from tql_offline.datasets.episodes import Episodes
from tql_offline.datasets.load import Dataset
from tql_offline.errors import InputError


@dataclass(frozen=True)
class RewardMap:
    """The map `scale·r + shift`, the same for every reward."""

    scale: float = 1.0
    shift: float = 0.0

    @property
    def is_identity(self) -> bool:
        """Whether training sees the data's own rewards."""
        return (self.scale, self.shift) == (1.0, 0.0)

    def of(self, dataset: Dataset) -> Dataset:
        """The dataset with mapped rewards; itself if nothing changes."""
        if self.is_identity:
            return dataset
        with np.errstate(over="ignore"):  # what becomes infinite is in `large_notes`
            rewards = dataset.episodes.rewards * np.float32(self.scale) + np.float32(self.shift)
        return replace(dataset, episodes=replace(dataset.episodes, rewards=rewards))

    def notes(self) -> Iterator[str]:
        """A note if training sees other rewards than the data's, perhaps because of a preset."""
        if not self.is_identity:
            yield (
                f"note: training sees rewards {self.scale:.6g} r {self.shift:+.6g}, as set by "
                "dataset.reward_scale, return_range and reward_shift"
            )


def reward_map(settings: DataConfig, dataset: Dataset) -> RewardMap:
    """The map that the settings apply to a dataset's rewards.

    Raises:
        InputError: returns are to span a range, but the data's are all the same.
    """
    scale = settings.reward_scale
    if settings.return_range:
        least, most = whole_returns(dataset.episodes)
        if not most > least:
            raise InputError(
                f"dataset.return_range is {settings.return_range:g}, but no two whole episodes of "
                f"{dataset.path} have different returns; set it to 0"
            )
        scale *= settings.return_range / (most - least)
    return RewardMap(scale, settings.reward_shift)


def large_notes(settings: DataConfig, episodes: Episodes) -> Iterator[str]:
    """A note on rewards, as training sees them, that are out of a critic's reach."""
    largest = float(np.abs(episodes.rewards).max())
    if largest > LARGE_REWARD:
        finite = min(largest, float(np.finfo(np.float32).max))  # a scale may have made it infinite
        scale = settings.reward_scale * 10.0 ** -math.floor(math.log10(finite))
        less = ", or lower dataset.reward_shift" if settings.reward_shift else ""
        yield (
            f"note: training sees rewards as large as {largest:g}, which a critic at the usual "
            f"learning rates cannot follow; train with --set dataset.reward_scale={scale:g}{less}"
        )


def floor_notes(config: Config, episodes: Episodes) -> Iterator[str]:
    """A note on what Cal-QL's floor assumes of data with cuts."""
    settings = config.conservative
    if config.objective != "conservative" or not settings.calibrated:
        return
    cuts = int((episodes.masks[episodes.last_transitions()] > 0).sum())
    if not cuts:
        return
    worst = min(float(episodes.rewards.min()), 0.0)
    follows = {
        "worst": f"{f'the worst reward ({worst:g})' if worst else 'rewards of 0'} forever, a low "
        "floor where rewards are dense",
        "last": "the episode's last reward forever",
        "nothing": "nothing",
    }[settings.after_cut]
    yield (
        f"note: Cal-QL's floor assumes that the cuts of {cuts:,} of {episodes.num_episodes:,} "
        f"episodes are followed by {follows} (conservative.after_cut); floored_share in "
        "metrics.jsonl is the share of Q that it raises"
    )


def whole_returns(episodes: Episodes) -> tuple[float, float]:
    """Least and largest undiscounted return of the episodes that were played to their end.

    These end the task or are as long as the longest: an episode cut off by sampling has no return
    (D4RL's replay data have such episodes). CORL's code joins pieces up to a terminal or 1,000
    steps; IQL's own takes all.
    """
    last = episodes.last_transitions()
    starts = last + 1 - episodes.lengths
    returns = np.add.reduceat(episodes.rewards.astype(np.float64), starts)
    is_whole = (episodes.masks[last] == 0) | (episodes.lengths == episodes.lengths.max())
    return float(returns[is_whole].min()), float(returns[is_whole].max())
