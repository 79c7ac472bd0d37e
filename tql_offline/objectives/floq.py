"""floq's terms: a value as the end of a flow (Agrawalla et al. 2025, arXiv 2509.06863)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def bin_probabilities(
    values: Float[Tensor, "*rows"], edges: Float[Tensor, "edge"], deviation: float | Tensor
) -> Float[Tensor, "*rows bin"]:
    """Each bin's probability under `N(value, deviation²)`, conditioned on being in one of them.

    HL-Gauss's encoding of a number (arXiv 2403.03950), which shows floq's network where the flow
    is. Values are clamped to at most one range beyond the edges, where rounding still leaves
    digits.

    Args:
        values: numbers to encode.
        edges: ascending bin edges, one more than there are bins.
        deviation: the normal's standard deviation.
    """
    span = edges[-1] - edges[0]
    within = torch.clamp(values, edges[0] - span, edges[-1] + span)
    below = torch.erf((edges - within.unsqueeze(-1)) / (math.sqrt(2) * deviation))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


def value_flow_error(
    velocity: Float[Tensor, "batch sample ensemble"],
    z_0: Float[Tensor, "batch sample"],
    target: Float[Tensor, "batch"],
) -> Float[Tensor, "batch ensemble"]:
    """`Σ_samples (v(s, a, z_t, t) - (y - z_0))²`: the straight path from noise to the TD target."""
    wanted = target.unsqueeze(-1) - z_0
    return (velocity - wanted.unsqueeze(-1)).square().sum(dim=1)
