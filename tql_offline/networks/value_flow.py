"""floq's value: where a flow along the axis of values ends (Agrawalla et al. 2025, 2509.06863).

A network can be called more often instead of being made larger: the number of Euler steps is
another way to spend arithmetic on a value.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.networks.mlp import mlp
from tql_offline.networks.mlp_critic import MLP_DEPTH, Counted, width_of_size
from tql_offline.objectives.floq import bin_probabilities

BINS = 50
DEVIATION = 16.0
"""Standard deviation of the encoding's normal distribution, in bins."""
MARGIN = 0.01
"""Reward beyond the data's least and greatest for which the encoding has room."""
TIME_FEATURES = 64
ENCODED = TIME_FEATURES + BINS
"""Inputs of a velocity besides state and action."""


class ValueFlow(nn.Module):
    """An ensemble of velocities `v(s, a, z, t)` that carry z from noise at t = 0 to Q(s, a) at 1.

    The network sees z as probabilities of bins over all values that the data's rewards allow, and
    t as `cos(πkt)`, k = 1 … 64. That is the paper's description; its code uses `cos(t)` alone.

    Args:
        observation_dim: S.
        action_dim: A.
        hidden: widths of each member's hidden layers (GELU, then LayerNorm).
        ensemble: E members.
        discount: γ below 1: values are at most rewards/(1-γ).
        coverage: fraction of this range that noise is drawn from.

    >>> flow = ValueFlow(3, 2, hidden=(32, 32), ensemble=2, discount=0.99, coverage=0.1)
    >>> z = flow.noise(torch.rand(5))
    >>> flow.integrate(torch.zeros(5, 3), torch.zeros(5, 2), z, num_steps=8).shape
    torch.Size([5, 2])
    """

    values: Tensor
    edges: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        ensemble: int,
        discount: float,
        coverage: float,
    ) -> None:
        super().__init__()
        self.discount, self.coverage = discount, coverage
        self.register_buffer("values", torch.empty(2))
        self.register_buffer("edges", torch.empty(BINS + 1))
        self.fit(-1.0, 0.0)
        inputs = observation_dim + action_dim + ENCODED
        self.members = nn.ModuleList(mlp(inputs, hidden, 1) for _ in range(ensemble))

    @classmethod
    def of_size(
        cls,
        size: str,
        observation_dim: int,
        action_dim: int,
        depth: int = 2,
        ensemble: int = 2,
        counted: Counted = "ensemble",
        *,
        discount: float,
        coverage: float,
    ) -> Self:
        """The value flow with as many parameters as the critics of a named size and depth.

        Raises:
            InputError: there is no such size.
        """
        dims = (observation_dim, action_dim)
        width = width_of_size(size, *dims, depth, ensemble, counted, ENCODED)
        return cls(
            *dims,
            (width,) * MLP_DEPTH,
            ensemble=ensemble,
            discount=discount,
            coverage=coverage,
        )

    def fit(self, least: float, greatest: float) -> None:
        """Set the data's least and greatest reward; until then they are OGBench's -1 and 0.

        An episode may end at once or never: of rewards of 1 alone, values are from 1 to 1/(1-γ).
        """
        horizon = 1 / (1 - self.discount)
        low, high = min(least, least * horizon), max(greatest, greatest * horizon)
        self.values.copy_(torch.tensor([low, high]))
        margin = MARGIN * horizon
        self.edges.copy_(torch.linspace(low - margin, high + margin, BINS + 1))

    def noise(self, uniform: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """Map numbers in [0, 1) to starts of the flow, uniform on `coverage` times all values."""
        least, greatest = self.values
        start: Tensor = self.coverage * (least + uniform * (greatest - least))
        return start

    def forward(
        self,
        observations: Float[Tensor, "rows state"],
        actions: Float[Tensor, "rows action"],
        z: Float[Tensor, "rows ensemble"],
        t: Float[Tensor, "rows 1"],
    ) -> Float[Tensor, "rows ensemble"]:
        """Each member's velocity at its own z and time t in [0, 1]."""
        multiples = torch.arange(1, TIME_FEATURES + 1, device=t.device)
        given = torch.cat([observations, actions, torch.cos(math.pi * t * multiples)], dim=-1)
        seen = bin_probabilities(z, self.edges, DEVIATION * (self.edges[1] - self.edges[0]))
        members = zip(self.members, seen.unbind(dim=1), strict=True)
        return torch.cat([member(torch.cat([given, one], -1)) for member, one in members], dim=-1)

    def integrate(
        self,
        observations: Float[Tensor, "rows state"],
        actions: Float[Tensor, "rows action"],
        z_0: Float[Tensor, "rows"],
        num_steps: int,
    ) -> Float[Tensor, "rows ensemble"]:
        """Each member's value: noise carried by `num_steps` Euler steps."""
        z = z_0.unsqueeze(-1).expand(-1, len(self.members))
        for step in range(num_steps):
            t = z.new_full((z.shape[0], 1), step / num_steps)
            z = z + self(observations, actions, z, t) / num_steps
        return z
