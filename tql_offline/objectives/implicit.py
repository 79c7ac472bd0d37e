"""The implicit objective's terms: IQL (Kostrikov et al. 2021, arXiv 2110.06169)."""

from jaxtyping import Float
from torch import Tensor

MAX_WEIGHT = 100.0
"""Bound of an advantage weight, as in IQL's code."""


def expectile_error(
    value: Float[Tensor, "batch"], q: Float[Tensor, "batch"], expectile: float
) -> Float[Tensor, "batch"]:
    """`|τ - 1(u < 0)|·u²` with `u = Q̄(s, a) - V(s)` (IQL eq. 5): V becomes Q's τ-expectile.

    At τ = 0.5 V is the mean over the data's actions; towards 1 it nears their maximum.
    """
    difference = q.detach() - value
    weight = (expectile - (difference < 0).to(difference.dtype)).abs()
    return weight * difference.square()


def advantage_weight(
    q: Float[Tensor, "batch"], value: Float[Tensor, "batch"], inverse_temperature: float
) -> Float[Tensor, "batch"]:
    """`min(exp(β·(Q̄ - V)), 100)`, without gradient (IQL eq. 7)."""
    return (inverse_temperature * (q - value)).exp().clamp(max=MAX_WEIGHT).detach()
