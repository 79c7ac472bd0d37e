"""Temporal-difference targets and errors."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Reduction = Literal["mean", "min"]


def ensemble_value(
    q: Float[Tensor, "batch ensemble"], reduction: Reduction
) -> Float[Tensor, "batch"]:
    """One value per example from the ensemble's: their mean (FQL's default) or minimum."""
    return q.mean(dim=-1) if reduction == "mean" else q.min(dim=-1).values


def td_target(
    rewards: Float[Tensor, "batch ..."],
    discounts: Float[Tensor, "batch ..."],
    next_value: Float[Tensor, "batch ..."],
) -> Float[Tensor, "batch ..."]:
    """`y = R + γ^n·mask·V(s')`, without gradient; one for each of several networks, if given.

    Args:
        rewards: R, the n-step return before the bootstrap.
        discounts: γ^n·mask, 0 where the task ended inside the n steps.
        next_value: the target network's value n steps on.
    """
    return (rewards + discounts * next_value).detach()


def squared_td_error(
    q: Float[Tensor, "batch ensemble"], target: Float[Tensor, "batch"]
) -> Float[Tensor, "batch ensemble"]:
    """`(Q_k(s, a) - y)²` of every ensemble member."""
    return (q - target.unsqueeze(-1)).square()
