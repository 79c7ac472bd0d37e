"""Policy networks: FQL's two (arXiv 2502.02538), a deterministic one and two Gaussian ones."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tql_offline.networks.mlp import mlp

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


SMALL = 0.01
"""Scale of the last layer's initial weights where an output starts near 0. A Gaussian that starts
far from the data drives its standard deviation to the upper bound, where the tanh has no gradient
to bring it back."""


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
        """The action for noise z ~ N(0, I)."""
        action: Tensor = self.net(torch.cat([observations, noise], dim=-1))
        return action


class DeterministicPolicy(nn.Module):
    """A deterministic policy: `a = tanh(net(s))`."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp(observation_dim, hidden, action_dim, SMALL)

    def forward(self, observations: Float[Tensor, "batch state"]) -> Float[Tensor, "batch action"]:
        """The action, in (-1, 1)."""
        return torch.tanh(self.net(observations))


class _MeanAndDeviation(nn.Module):
    """Mean and log standard deviation given the state, the latter kept in [-5, 2] by a tanh.

    Unless the deviation is learned, it is 1.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        learns_deviation: bool = True,
    ) -> None:
        super().__init__()
        self.learns_deviation = learns_deviation
        self.net = mlp(observation_dim, hidden, (1 + learns_deviation) * action_dim, SMALL)

    def forward(
        self, observations: Float[Tensor, "batch state"]
    ) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch action"]]:
        """Mean and log standard deviation."""
        out: Tensor = self.net(observations)
        if not self.learns_deviation:
            return out, torch.zeros_like(out)
        mean, raw = out.chunk(2, dim=-1)
        middle, half = (LOG_STD_MAX + LOG_STD_MIN) / 2, (LOG_STD_MAX - LOG_STD_MIN) / 2
        return mean, middle + half * torch.tanh(raw)


class GaussianPolicy(_MeanAndDeviation):
    """`a ~ N(mean(s), std(s)²)`, clipped to [-1, 1]: fitted to the data's actions.

    Its likelihood lives in action space, as in the Gaussian baselines of FQL (arXiv 2502.02538),
    whose code fixes the standard deviation at 1: weighted squared errors. IQL's learns one for all
    states, where ours, if learned, depends on the state. The likelihood of a
    tanh-Gaussian lives before the tanh, where an action at the bound lies at ±6 and outweighs all
    others; a mean inside a tanh, as IQL's code has it, can saturate for good (docs/log.md).
    """

    def log_prob(
        self, observations: Float[Tensor, "batch state"], actions: Float[Tensor, "batch action"]
    ) -> Float[Tensor, "batch"]:
        """Log-density of actions."""
        mean, log_std = self(observations)
        return normal_log_prob(actions, mean, log_std).sum(dim=-1)

    def mode(self, observations: Float[Tensor, "batch state"]) -> Float[Tensor, "batch action"]:
        """The clipped mean: the action at temperature 0, by which Gaussian policies are scored."""
        mean: Tensor = self(observations)[0]
        return mean.clamp(-1, 1)


class TanhGaussianPolicy(_MeanAndDeviation):
    """A tanh-Gaussian policy, differentiated through: `a = tanh(mean(s) + std(s)·z)`."""

    def sample(
        self, observations: Float[Tensor, "batch state"], noise: Float[Tensor, "batch action"]
    ) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch"]]:
        """Actions for given noise and their log-densities, both differentiable."""
        mean, log_std = self(observations)
        pre_tanh = mean + log_std.exp() * noise
        return torch.tanh(pre_tanh), tanh_normal_log_prob(pre_tanh, mean, log_std)

    def log_prob(
        self, observations: Float[Tensor, "batch state"], actions: Float[Tensor, "batch action"]
    ) -> Float[Tensor, "batch"]:
        """Log-density of actions strictly inside [-1, 1]."""
        return tanh_normal_log_prob(torch.atanh(actions), *self(observations))

    def mode(self, observations: Float[Tensor, "batch state"]) -> Float[Tensor, "batch action"]:
        """`tanh(mean)`: the action at temperature 0."""
        return torch.tanh(self(observations)[0])


def normal_log_prob(
    x: Float[Tensor, "batch action"],
    mean: Float[Tensor, "batch action"],
    log_std: Float[Tensor, "batch action"],
) -> Float[Tensor, "batch action"]:
    """Log-density of `N(mean, std²)` per dim."""
    z = (x - mean) * torch.exp(-log_std)
    return -0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)


def tanh_normal_log_prob(
    pre_tanh: Float[Tensor, "batch action"],
    mean: Float[Tensor, "batch action"],
    log_std: Float[Tensor, "batch action"],
) -> Float[Tensor, "batch"]:
    """Log-density of `tanh(x)` for `x ~ N(mean, std²)`, from x itself.

    `log N(x) - Σ log(1 - tanh²x)`, the last written as `2·(ln 2 - x - softplus(-2x))`, which stays
    finite where tanh has saturated (SAC, arXiv 1812.05905, appendix C).
    """
    normal = normal_log_prob(pre_tanh, mean, log_std)
    slope = 2 * (math.log(2) - pre_tanh - functional.softplus(-2 * pre_tanh))
    return (normal - slope).sum(dim=-1)
