"""Attention-entropy control (TQL, Dong et al. 2026, arXiv 2602.01439)."""

from jaxtyping import Float
from torch import Tensor

TEMPERATURE_BOUND = 100.0


def entropy_loss(
    entropy: Float[Tensor, "layer 2"], temperature: Float[Tensor, "layer 2"]
) -> Float[Tensor, ""]:
    """`L_attn = -mean(sg(clip(τ, -100, 100))·H)`: raises the critic's attention entropy."""
    weight = temperature.detach().clamp(-TEMPERATURE_BOUND, TEMPERATURE_BOUND)
    return -(weight * entropy).mean()


def temperature_loss(
    temperature: Float[Tensor, "layer 2"],
    entropy: Float[Tensor, "layer 2"],
    target: Float[Tensor, "layer 2"],
) -> Float[Tensor, ""]:
    """`L_temp = mean(τ·(sg(H) - H̄))`: τ rises while the entropy is below its target."""
    return (temperature * (entropy.detach() - target)).mean()
