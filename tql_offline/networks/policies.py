"""Policy networks of FQL (Park et al. 2025, arXiv 2502.02538)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.networks.initialisers import xavier_uniform_

NORM_EPS = 1e-6


def mlp(input_dim: int, hidden: Sequence[int], output_dim: int) -> nn.Sequential:
    """Hidden layers of Linear, GELU (tanh form), LayerNorm, then a Linear."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [
            xavier_uniform_(nn.Linear(input_dim, width)),
            nn.GELU(approximate="tanh"),
            nn.LayerNorm(width, eps=NORM_EPS),
        ]
        input_dim = width
    return nn.Sequential(*layers, xavier_uniform_(nn.Linear(input_dim, output_dim)))


class VelocityField(nn.Module):
    """The behaviour flow's velocity `v(s, x_t, t)`, of the action's shape."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp(observation_dim + action_dim + 1, hidden, action_dim)

    def forward(
        self,
        observations: Float[Tensor, "batch state"],
        x_t: Float[Tensor, "batch action"],
        t: Float[Tensor, "batch 1"],
    ) -> Float[Tensor, "batch action"]:
        """Velocity at time t in [0, 1]."""
        velocity: Tensor = self.net(torch.cat([observations, x_t, t], dim=-1))
        return velocity


class OneStepPolicy(nn.Module):
    """The one-step policy `μ(s, z)`: noise in, action out (not yet clipped to [-1, 1])."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp(observation_dim + action_dim, hidden, action_dim)

    def forward(
        self,
        observations: Float[Tensor, "batch state"],
        noise: Float[Tensor, "batch action"],
    ) -> Float[Tensor, "batch action"]:
        """Action of noise z ~ N(0, I)."""
        action: Tensor = self.net(torch.cat([observations, noise], dim=-1))
        return action
