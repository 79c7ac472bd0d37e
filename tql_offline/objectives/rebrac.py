"""ReBRAC's terms (Tarasov et al. 2023, arXiv 2305.09836): TD3+BC with two separate penalties."""

from jaxtyping import Float
from torch import Tensor

MIN_SCALE = 1e-6
"""Below this scale a value is noise, and its gradient is not amplified any further."""


def behaviour_penalty(
    actions: Float[Tensor, "batch action"], data_actions: Float[Tensor, "batch action"]
) -> Float[Tensor, "batch"]:
    """`‖π(s) - a‖²`, the sum over action dims (eq. 2: for the policy at s, and at s')."""
    return (actions - data_actions).square().sum(dim=-1)


def smoothed_action(
    actions: Float[Tensor, "batch action"],
    noise: Float[Tensor, "batch action"],
    deviation: float,
    bound: float,
) -> Float[Tensor, "batch action"]:
    """`clip(π̄(s') + clip(σ·ε, -c, c), -1, 1)`: TD3's target smoothing (arXiv 1802.09477)."""
    return (actions + (deviation * noise).clamp(-bound, bound)).clamp(-1, 1)


def normalised_value(q: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """`Q / sg(mean |Q|)`: the value on a scale of 1, so that the penalty's weight carries over."""
    return q / q.detach().abs().mean().clamp(min=MIN_SCALE)
