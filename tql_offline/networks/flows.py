"""Sampling from a flow by Euler integration."""

from jaxtyping import Float
from torch import Tensor

from tql_offline.networks.policies import VelocityField


def integrate_flow(
    field: VelocityField,
    observations: Float[Tensor, "batch state"],
    noise: Float[Tensor, "batch action"],
    num_steps: int,
) -> Float[Tensor, "batch action"]:
    """Carry noise at t = 0 to actions at t = 1 by `num_steps` Euler steps, clipped to [-1, 1].

    `x ← x + v(s, x, k/num_steps)/num_steps` (FQL, arXiv 2502.02538, algorithm 1).
    """
    x = noise
    for step in range(num_steps):
        # shape[0], not len(x), which `torch.export` would treat as a constant.
        t = x.new_full((x.shape[0], 1), step / num_steps)
        x = x + field(observations, x, t) / num_steps
    return x.clamp(-1.0, 1.0)
