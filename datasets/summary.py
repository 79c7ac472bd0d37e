"""Summary of a dataset in a few numbers: sizes, returns, rewards, ends of the task."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.episodes import Episodes


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Numbers that reveal data that are wrong, or merely hard.

    Attributes:
        returns: `(E,)` undiscounted return of each episode.
        lengths: `(E,)` number of transitions in each episode.
        reward_range: smallest, mean and largest reward.
        reward_values: number of different rewards.
        zero_rewards: share of transitions whose reward is 0.
        ending_transitions: number of transitions with mask 0, where the task itself ends.
        ending_episodes: number of episodes with such a transition.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    reward_range: tuple[float, float, float]
    reward_values: int
    zero_rewards: float
    ending_transitions: int
    ending_episodes: int


def summarise(episodes: Episodes) -> Summary:
    """Summarise a dataset.

    >>> ones = np.ones(5, dtype=np.float32)
    >>> masks = np.array([1, 1, 0, 1, 1], dtype=np.float32)
    >>> lengths = np.array([3, 2])
    >>> columns = {"observations": np.zeros((7, 2)), "actions": np.zeros((5, 1), np.float32)}
    >>> episodes = Episodes(**columns, rewards=ones, masks=masks, lengths=lengths)
    >>> summary = summarise(episodes)
    >>> summary.returns, summary.ending_transitions, summary.ending_episodes
    (array([3., 2.]), 1, 1)
    """
    rewards, ends = episodes.rewards, episodes.masks == 0
    starts = np.cumsum(episodes.lengths) - episodes.lengths
    # In float64: a million rewards of float32 add up to a wrong return.
    returns = np.add.reduceat(rewards, starts, dtype=np.float64)
    return Summary(
        returns=returns,
        lengths=episodes.lengths,
        reward_range=(
            float(rewards.min()),
            float(rewards.mean(dtype=np.float64)),
            float(rewards.max()),
        ),
        reward_values=len(np.unique(rewards)),
        zero_rewards=float((rewards == 0).mean()),
        ending_transitions=int(ends.sum()),
        ending_episodes=int(np.logical_or.reduceat(ends, starts).sum()),
    )
