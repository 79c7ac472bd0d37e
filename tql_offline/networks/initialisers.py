"""Initial weights."""

import math

from torch import nn

# Standard deviation of a unit normal truncated at ±2: dividing by it restores the wanted variance.
_TRUNCATED_STD = 0.87962566103423978


def lecun_normal_(layer: nn.Linear) -> nn.Linear:
    """Fill a dense layer with LeCun-normal weights (variance 1/fan-in, cut at ±2σ), zero bias."""
    std = math.sqrt(1.0 / layer.in_features) / _TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer


def xavier_uniform_(layer: nn.Linear) -> nn.Linear:
    """Fill a dense layer with Xavier-uniform weights and zero bias, as in FQL's policies."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
