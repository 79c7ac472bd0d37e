"""The MLP critic and value: what the transformer is compared with, at equal parameter counts."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.networks.critic import Critic
from tql_offline.networks.mlp import mlp
from tql_offline.networks.transformer import TransformerCritic
from tql_offline.shapes import ShapesAtOnce

MLP_DEPTH = 4
"""Hidden layers, as in the MLP critics of FQL and ReBRAC on OGBench (4×512)."""

Counted = Literal["ensemble", "member"]
"""What has the parameters of a size: all members together, or each of them."""


class MLPCritic(Critic):
    """Q(s, a) as an ensemble of independent MLPs, without attention: its entropies are `(0, 2)`.

    Args:
        observation_dim: S.
        action_dim: A; 0 makes it a value function of the state.
        hidden: widths of each member's hidden layers (GELU, then LayerNorm).
        ensemble: E members.

    >>> critic = MLPCritic(3, 2, hidden=(32, 32))
    >>> q, entropy = critic(torch.zeros(5, 3), torch.zeros(5, 2), return_entropy=True)
    >>> q.shape, entropy.shape
    (torch.Size([5, 2]), torch.Size([0, 2]))
    """

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: Sequence[int], ensemble: int = 2
    ) -> None:
        super().__init__()
        self.num_tokens = 0
        self.members = nn.ModuleList(
            mlp(observation_dim + action_dim, hidden, 1) for _ in range(ensemble)
        )

    @classmethod
    def of_size(
        cls,
        size: str,
        observation_dim: int,
        action_dim: int,
        depth: int = 2,
        ensemble: int = 2,
        counted: Counted = "ensemble",
    ) -> Self:
        """The MLP critic with as many parameters as the transformer of a named size and depth.

        It has four hidden layers whatever the depth of that transformer.

        Raises:
            InputError: there is no such size.
        """
        width = width_of_size(size, observation_dim, action_dim, depth, ensemble, counted)
        return cls(observation_dim, action_dim, (width,) * MLP_DEPTH, ensemble)

    def forward(
        self,
        observations: Float[Tensor, "B S"],
        actions: Float[Tensor, "B A"],
        return_entropy: bool = False,
    ) -> Float[Tensor, "B E"] | tuple[Float[Tensor, "B E"], Float[Tensor, "0 2"]]:
        """Q of shape `(B, E)`; with `return_entropy` also an empty `(0, 2)`."""
        inputs = torch.cat([observations, actions], dim=-1)
        q_BE = torch.cat([member(inputs) for member in self.members], dim=-1)
        return (q_BE, q_BE.new_zeros(0, 2)) if return_entropy else q_BE


@lru_cache(maxsize=64)
def parameters_of_size(
    size: str, observation_dim: int, action_dim: int, depth: int, ensemble: int
) -> int:
    """The number of parameters of the transformer critic of a named size.

    Raises:
        InputError: there is no such size.
    """
    with torch.device("meta"), ShapesAtOnce():
        critic = TransformerCritic.of_size(size, observation_dim, action_dim, depth, ensemble)
    return sum(p.numel() for p in critic.parameters())


def width_of_size(
    size: str,
    observation_dim: int,
    action_dim: int,
    depth: int,
    ensemble: int,
    counted: Counted,
    encoded: int = 0,
) -> int:
    """The width of MLPs with the parameters of a named size and `encoded` inputs more.

    Raises:
        InputError: there is no such size.
    """
    wanted = parameters_of_size(size, observation_dim, action_dim, depth, ensemble)
    together = ensemble if counted == "ensemble" else 1
    return matching_width(wanted, observation_dim + action_dim + encoded, together)


def mlp_parameters(width: int, input_dim: int, ensemble: int) -> int:
    """Parameters of an ensemble of `MLP_DEPTH`-layer MLPs of one width, norms and biases too."""
    first, others = (input_dim + 1) * width, (MLP_DEPTH - 1) * (width + 1) * width
    norms, last = 2 * MLP_DEPTH * width, width + 1
    return ensemble * (first + others + norms + last)


def matching_width(parameters: int, input_dim: int, ensemble: int) -> int:
    """The width whose ensemble comes nearest to a number of parameters."""
    width = 1
    while mlp_parameters(width + 1, input_dim, ensemble) <= parameters:
        width += 1
    below = parameters - mlp_parameters(width, input_dim, ensemble)
    above = mlp_parameters(width + 1, input_dim, ensemble) - parameters
    return width if below <= above else width + 1
