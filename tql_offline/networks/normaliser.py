"""Observation normalisation, saved with the model."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn


class Normaliser(nn.Module):
    """Brings every observation dim to zero mean and unit deviation; the identity until fitted."""

    mean: Tensor
    std: Tensor

    def __init__(self, observation_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("std", torch.ones(observation_dim))

    def fit(self, observations: NDArray[np.generic]) -> None:
        """Take mean and deviation of observations `(rows, n_s)`; a constant dim keeps its scale."""
        std = observations.std(axis=0, dtype=np.float64)
        self.mean.copy_(torch.as_tensor(observations.mean(axis=0, dtype=np.float64)))
        self.std.copy_(torch.as_tensor(np.where(std > 0, std, 1.0)))

    def forward(self, observations: Float[Tensor, "batch state"]) -> Float[Tensor, "batch state"]:
        """`(s - mean)/std`."""
        return (observations - self.mean) / self.std
