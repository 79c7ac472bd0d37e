"""The MLP used in policies, values without attention and the MLP critic."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tql_offline.networks import kernels
from tql_offline.networks.attention import at_least_float32
from tql_offline.networks.initialisers import xavier_uniform_

NORM_EPS = 1e-6


class Gelu(nn.Module):
    """GELU in its tanh form."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate."""
        if not kernels.by_hand(x):
            return kernels.Gelu.plain(x)
        if not torch.is_grad_enabled():
            return kernels.Gelu.without_gradient(x)
        activated: Tensor = kernels.Gelu.apply(x)
        return activated


def mlp(
    input_dim: int, hidden: Sequence[int], output_dim: int, last_scale: float = 1.0
) -> nn.Sequential:
    """Hidden layers of Linear, GELU (tanh form), LayerNorm, then a Linear."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [
            xavier_uniform_(kernels.AlignedLinear(input_dim, width)),
            Gelu(),
            nn.LayerNorm(width, eps=NORM_EPS),
        ]
        input_dim = width
    last = xavier_uniform_(kernels.AlignedLinear(input_dim, output_dim))
    with torch.no_grad():
        last.weight *= last_scale
    return _Float32Sequential(*layers, last)


class _Float32Sequential(nn.Sequential):
    """Layers whose result is at least float32, even if they compute in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers."""
        return at_least_float32(super().forward(x))
