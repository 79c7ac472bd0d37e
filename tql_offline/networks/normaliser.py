"""Observation normalisation, saved with the model."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

ROUNDING = 1e-6
"""Rounding error relative to a number: some units in the last place of float32."""
_BLOCK = 2**14
"""Rows whose squares are summed at once."""


class Normaliser(nn.Module):
    """Standardises observations: zero mean, unit standard deviation; the identity until fitted."""

    mean: Tensor
    std: Tensor

    def __init__(self, observation_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("std", torch.ones(observation_dim))

    def fit(self, observations: NDArray[np.generic]) -> None:
        """Set the mean and standard deviation to those of observations `(rows, n_s)`.

        A constant dim keeps its scale, and so does one whose standard deviation is only the float32
        rounding error of a constant.
        """
        mean = observations.mean(axis=0, dtype=np.float64)
        std = _deviation(observations, mean)
        varies = std > ROUNDING * np.maximum(np.abs(mean), 1.0)
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(np.where(varies, std, 1.0)))

    def forward(self, observations: Float[Tensor, "batch state"]) -> Float[Tensor, "batch state"]:
        """`(s - mean)/std`."""
        return (observations - self.mean) / self.std


def _deviation(rows: NDArray[np.generic], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """`rows.std(axis=0)` in the same order of sums, without a float64 copy of all rows."""
    room = np.zeros((min(_BLOCK, len(rows)) + 1, len(mean)))  # the sum so far, then squares
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        squares = np.subtract(some, mean, out=room[1 : len(some) + 1])
        np.square(squares, out=squares)
        room[0] = np.add.reduce(room[: len(some) + 1], axis=0)
    deviation: NDArray[np.float64] = np.sqrt(room[0] / len(rows))
    return deviation
