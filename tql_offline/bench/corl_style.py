"""IQL and CQL as single-file repositories write them: plain eager PyTorch, one class per method.

Written for this benchmark from the papers' equations (IQL: Kostrikov et al. 2021, arXiv 2110.06169;
CQL(H): Kumar et al. 2020, arXiv 2006.04779, on SAC, arXiv 1801.01290), in the manner of such code
(ReLU MLPs, an Adam per network, a target network updated parameter by parameter, indices drawn
by NumPy, every loss logged by `.item()` every step), which is what the name means; nothing is
copied. Its layer widths, ensemble, batch and sampled actions equal ours; ours has a GELU and a
LayerNorm per layer where this has a ReLU.
"""

import copy
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional

from tql_offline.bench.ours import waiting
from tql_offline.bench.workload import Contender, Transitions, Workload

LEARNING_RATE, POLYAK, STEPS = 3e-4, 0.005, 1_000_000
EXPECTILE, INVERSE_TEMPERATURE, MAX_WEIGHT = 0.7, 3.0, 100.0
SAMPLES, CONSERVATIVE_WEIGHT = 10, 5.0


class Batch(NamedTuple):
    """B transitions; `discounts` `(B,)` are γ·mask."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    discounts: Tensor


class ReplayBuffer:
    """Columns on the device, indices drawn on the host."""

    def __init__(self, data: Transitions, device: str, seed: int) -> None:
        columns = (getattr(data, name) for name in Batch._fields)
        self.columns = Batch(*(torch.as_tensor(column, device=device) for column in columns))
        self.random = np.random.default_rng(seed)
        self.device = device

    def sample(self, batch_size: int) -> Batch:
        """Draw transitions uniformly with replacement."""
        drawn = self.random.integers(0, len(self.columns.actions), batch_size)
        index = torch.as_tensor(drawn, device=self.device)
        return Batch(*(column[index] for column in self.columns))


def mlp(input_dim: int, hidden: Iterable[int], output_dim: int) -> nn.Sequential:
    """Linear and ReLU layers, then a Linear."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(input_dim, width), nn.ReLU()]
        input_dim = width
    return nn.Sequential(*layers, nn.Linear(input_dim, output_dim))


class QFunction(nn.Module):
    """Q(s, a) `(B,)`."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.net = mlp(workload.observation_dim + workload.action_dim, workload.hidden, 1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Value of the action."""
        q: Tensor = self.net(torch.cat([observations, actions], dim=-1)).squeeze(-1)
        return q


class TwinQ(nn.Module):
    """Two Q functions."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.q1, self.q2 = QFunction(workload), QFunction(workload)

    def both(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Both values."""
        return self.q1(observations, actions), self.q2(observations, actions)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Their minimum."""
        return torch.min(*self.both(observations, actions))


class GaussianPolicy(nn.Module):
    """IQL's policy: a mean given the state, one learned standard deviation per action dim."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.net = mlp(workload.observation_dim, workload.hidden, workload.action_dim)
        self.log_std = nn.Parameter(torch.zeros(workload.action_dim))

    def forward(self, observations: Tensor) -> Normal:
        """Distribution of the action."""
        return Normal(torch.tanh(self.net(observations)), self.log_std.clamp(-5, 2).exp())


class TanhGaussianPolicy(nn.Module):
    """SAC's policy: mean and standard deviation given the state, squashed by a tanh."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.net = mlp(workload.observation_dim, workload.hidden, 2 * workload.action_dim)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """A reparameterised action of each state and its log-density."""
        mean, log_std = self.net(observations).chunk(2, dim=-1)
        normal = Normal(mean, log_std.clamp(-20, 2).exp())
        squashed = TransformedDistribution(normal, TanhTransform(cache_size=1))
        actions = squashed.rsample()
        return actions, squashed.log_prob(actions).sum(dim=-1)


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
    """Adam at the usual rate."""
    return torch.optim.Adam(parameters, lr=LEARNING_RATE)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step of an optimizer."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def soft_update(target: nn.Module, online: nn.Module) -> None:
    """`θ̄ ← (1 - ρ)·θ̄ + ρ·θ`, parameter by parameter."""
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.data.copy_((1 - POLYAK) * old.data + POLYAK * new.data)


class IQL:
    """Implicit Q-learning with advantage-weighted regression."""

    def __init__(self, workload: Workload) -> None:
        torch.manual_seed(workload.seed)
        device = workload.device
        self.q = TwinQ(workload).to(device)
        self.q_target = copy.deepcopy(self.q).requires_grad_(False)
        self.value = mlp(workload.observation_dim, workload.hidden, 1).to(device)
        self.policy = GaussianPolicy(workload).to(device)
        self.q_optimizer = adam(self.q.parameters())
        self.value_optimizer = adam(self.value.parameters())
        self.policy_optimizer = adam(self.policy.parameters())
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.policy_optimizer, STEPS)

    def train(self, batch: Batch) -> dict[str, float]:
        """One update of V, Q, their target and the policy (the paper's equations 5, 6, 7)."""
        log: dict[str, float] = {}
        with torch.no_grad():
            next_value = self.value(batch.next_observations).squeeze(-1)
            target_q = self.q_target(batch.observations, batch.actions)
        advantage = self._update_value(batch, target_q, log)
        self._update_q(batch, next_value, log)
        self._update_policy(batch, advantage, log)
        return log

    def _update_value(self, batch: Batch, target_q: Tensor, log: dict[str, float]) -> Tensor:
        value = self.value(batch.observations).squeeze(-1)
        advantage = target_q - value
        weight = torch.abs(EXPECTILE - (advantage < 0).float())
        loss = torch.mean(weight * advantage**2)
        log["value_loss"] = loss.item()
        descend(self.value_optimizer, loss)
        fixed: Tensor = advantage.detach()
        return fixed

    def _update_q(self, batch: Batch, next_value: Tensor, log: dict[str, float]) -> None:
        target = batch.rewards + batch.discounts * next_value
        q1, q2 = self.q.both(batch.observations, batch.actions)
        loss = (functional.mse_loss(q1, target) + functional.mse_loss(q2, target)) / 2
        log["q_loss"] = loss.item()
        descend(self.q_optimizer, loss)
        soft_update(self.q_target, self.q)

    def _update_policy(self, batch: Batch, advantage: Tensor, log: dict[str, float]) -> None:
        weight = torch.exp(INVERSE_TEMPERATURE * advantage).clamp(max=MAX_WEIGHT)
        log_prob = self.policy(batch.observations).log_prob(batch.actions).sum(dim=-1)
        loss = -torch.mean(weight * log_prob)
        log["policy_loss"] = loss.item()
        descend(self.policy_optimizer, loss)
        self.schedule.step()


class CQL:
    """CQL(H) on SAC with a learned policy temperature and a constant conservative weight."""

    def __init__(self, workload: Workload) -> None:
        torch.manual_seed(workload.seed)
        device = workload.device
        self.action_dim = workload.action_dim
        self.q = TwinQ(workload).to(device)
        self.q_target = copy.deepcopy(self.q).requires_grad_(False)
        self.policy = TanhGaussianPolicy(workload).to(device)
        self.log_temperature = nn.Parameter(torch.zeros((), device=device))
        self.q1_optimizer = adam(self.q.q1.parameters())
        self.q2_optimizer = adam(self.q.q2.parameters())
        self.policy_optimizer = adam(self.policy.parameters())
        self.temperature_optimizer = adam([self.log_temperature])

    def train(self, batch: Batch) -> dict[str, float]:
        """One update of temperature, policy, both Q functions and their target."""
        log: dict[str, float] = {}
        self._update_policy(batch, log)
        self._update_q(batch, log)
        soft_update(self.q_target, self.q)
        return log

    def _update_policy(self, batch: Batch, log: dict[str, float]) -> None:
        actions, log_prob = self.policy(batch.observations)
        entropy_gap = log_prob.detach() - self.action_dim
        temperature_loss = -(self.log_temperature * entropy_gap).mean()
        temperature = self.log_temperature.exp().detach()
        loss = (temperature * log_prob - self.q(batch.observations, actions)).mean()
        log["temperature"], log["temperature_loss"] = temperature.item(), temperature_loss.item()
        log["policy_loss"], log["log_prob"] = loss.item(), log_prob.mean().item()
        descend(self.temperature_optimizer, temperature_loss)
        descend(self.policy_optimizer, loss)

    def _update_q(self, batch: Batch, log: dict[str, float]) -> None:
        with torch.no_grad():
            next_actions, _ = self.policy(batch.next_observations)
            next_q = self.q_target(batch.next_observations, next_actions)
            target = batch.rewards + batch.discounts * next_q
        samples = self._samples(batch)
        repeated = repeat(batch.observations)
        optimizers = (self.q1_optimizer, self.q2_optimizer)
        for index, (q, optimizer) in enumerate(
            zip((self.q.q1, self.q.q2), optimizers, strict=True)
        ):
            data_q = q(batch.observations, batch.actions)
            td_loss = functional.mse_loss(data_q, target)
            weighted = [
                q(repeated, actions).view(-1, SAMPLES) - density for actions, density in samples
            ]
            soft_maximum = torch.logsumexp(torch.cat(weighted, dim=1), dim=1)
            gap = (soft_maximum - math.log(3 * SAMPLES) - data_q).mean()
            loss = td_loss + CONSERVATIVE_WEIGHT * gap
            log[f"q{index}"], log[f"q{index}_loss"] = data_q.mean().item(), td_loss.item()
            log[f"gap{index}"] = gap.item()
            descend(optimizer, loss)

    def _samples(self, batch: Batch) -> list[tuple[Tensor, Tensor | float]]:
        """Actions `(B·n, n_a)` with log-densities `(B, n)`: uniform, policy at s, policy at s'."""
        shape = (len(batch.actions) * SAMPLES, self.action_dim)
        uniform = torch.empty(shape, device=batch.actions.device).uniform_(-1, 1)
        samples: list[tuple[Tensor, Tensor | float]] = [(uniform, -self.action_dim * math.log(2))]
        for states in (batch.observations, batch.next_observations):
            with torch.no_grad():
                actions, log_prob = self.policy(repeat(states))
            samples.append((actions, log_prob.view(-1, SAMPLES)))
        return samples


def repeat(states: Tensor) -> Tensor:
    """Repeat every state n times, `(B·n, n_s)`."""
    return states.repeat_interleave(SAMPLES, dim=0)


def make_iql(workload: Workload, data: Transitions) -> Contender:
    """IQL."""
    return _contender(IQL(workload), workload, data)


def make_cql(workload: Workload, data: Transitions) -> Contender:
    """CQL."""
    return _contender(CQL(workload), workload, data)


def _contender(algorithm: IQL | CQL, workload: Workload, data: Transitions) -> Contender:
    buffer = ReplayBuffer(data, workload.device, workload.seed)

    def step() -> int:
        algorithm.train(buffer.sample(workload.batch_size))
        return 1

    return Contender(
        version=f"torch {torch.__version__}", step=step, synchronise=waiting(workload.device)
    )
