"""The conservative objective's terms: CQL(H) (Kumar et al. 2020, arXiv 2006.04779)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def uniform_log_density(action_dim: int) -> float:
    """Log-density of the uniform distribution on [-1, 1]^n_a: -n_a·ln 2."""
    return -action_dim * math.log(2.0)


def conservative_gap(
    sampled_q: Float[Tensor, "batch sample ensemble"],
    log_density: Float[Tensor, "batch sample"],
    data_q: Float[Tensor, "batch ensemble"],
) -> Float[Tensor, "batch ensemble"]:
    """`log (1/M) Σ_m exp(Q(s, a_m))/p(a_m) - Q(s, a)` over M importance-weighted actions.

    CQL(H)'s regulariser (eq. 4 and appendix F): the log-sum-exp of Q over all actions, estimated by
    samples of known density, less Q of the data's action.

    Args:
        sampled_q: Q of M actions: uniform ones, the policy's at s and at s', 3n in all; where they
            are not weighted, the data's action as well.
        log_density: log p(a_m) under the distribution each was drawn from, or 0 where they are not
            weighted; carries no gradient.
        data_q: Q of the data's action.
    """
    weighted = sampled_q - log_density.detach().unsqueeze(-1)
    return torch.logsumexp(weighted, dim=1) - math.log(weighted.shape[1]) - data_q


def calibrate(
    policy_q: Float[Tensor, "batch sample ensemble"], return_to_go: Float[Tensor, "batch"]
) -> Float[Tensor, "batch sample ensemble"]:
    """Q of the policy's actions floored at the data's return-to-go (Cal-QL, arXiv 2303.05479)."""
    return torch.maximum(policy_q, return_to_go[:, None, None])
