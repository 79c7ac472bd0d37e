"""One sample of transitions."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Batch(NamedTuple):
    """B transitions, all on the training device.

    Attributes:
        observations: `(B, n_s)` s; images are `(B, height, width, channels)` from 0 to 1.
        actions: `(B, n_a)` a.
        rewards: `(B,)` the discounted sum of the n rewards that follow (n = 1: the reward).
        next_observations: `(B, n_s)` the observation n steps on, fewer where the episode or the
            task ended sooner.
        discounts: `(B,)` γ^m·mask for the m ≤ n steps taken. The mask is 0 only where the task
            ended: the value beyond does not count. An episode that was cut off bootstraps.
        returns_to_go: `(B,)` the discounted sum of all rewards from here to the task's end, with
            assumed ones beyond the cut of an episode (`datasets.returns.returns_to_go`).
        next_actions: `(B, n_a)` the data's action at `next_observations`.
        next_action_mask: `(B,)` 0 where the episode ended there, so that the data have no such
            action (`next_actions` is then arbitrary); otherwise 1.
    """

    observations: Float[Tensor, "batch state"]
    actions: Float[Tensor, "batch action"]
    rewards: Float[Tensor, "batch"]
    next_observations: Float[Tensor, "batch state"]
    discounts: Float[Tensor, "batch"]
    returns_to_go: Float[Tensor, "batch"]
    next_actions: Float[Tensor, "batch action"]
    next_action_mask: Float[Tensor, "batch"]
