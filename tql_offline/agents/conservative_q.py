"""The conservative objective: CQL(H) (Kumar et al. 2020, arXiv 2006.04779).

A soft actor-critic whose Q is pushed down on actions outside the data: the log-sum-exp of Q over 3n
sampled actions (n uniform in [-1, 1]^n_a, n of the policy at s, n of the policy at s') less Q of
the data's action. Options: a Lagrange multiplier that holds this gap at a target, and Cal-QL's
calibration (arXiv 2303.05479); and, as in the authors' code, a target of the best of n actions of
the policy (max-backup), and a log-sum-exp without importance weights. Cost: 3n more critic
evaluations per transition, in one batch or in passes of bounded memory (docs/cost.md has figures
per size), and with max-backup n of the target critic.

Differences from the authors' code: the policy is not warmed up by behaviour cloning, and the gap
takes a mean over the 3n actions (-ln 3n), so that a published target gap τ (at weight 1) is
τ - ln 3n here; without importance weights there are 3n + 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tql_offline.agents.actor_critic import ActorCritic
from tql_offline.agents.base import Metrics
from tql_offline.agents.controlled_critic import controlled_td_loss
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import TanhGaussianPolicy
from tql_offline.objectives.conservative import (
    calibrate,
    conservative_gap,
    uniform_log_density,
)
from tql_offline.objectives.td import ensemble_value, td_target

MAX_LAGRANGE = 1e6


@dataclass(frozen=True)
class Noise:
    """Random numbers of one update: normal, except `uniform`, which is uniform in [-1, 1).

    Attributes:
        next_policy: `(B, n_a)` noise of the target's action, or `(B, n, n_a)` of those of which
            the best is taken.
        policy: `(B, n_a)` noise of the policy loss's action.
        uniform: `(B, n, n_a)` actions.
        here: `(B, n, n_a)` noise of policy actions at s.
        there: `(B, n, n_a)` noise of policy actions at s'.
    """

    next_policy: Tensor
    policy: Tensor
    uniform: Tensor
    here: Tensor
    there: Tensor


class Multiplier(nn.Module):
    """A positive scalar, learned as its logarithm and started at a given value."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(float(start)).log())

    def forward(self) -> Float[Tensor, ""]:
        """The scalar."""
        return self.log.exp()


class ConservativeQ(ActorCritic):
    """A critic with a conservative penalty and an entropy-tuned tanh-Gaussian policy."""

    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        super().__init__(config, observation_dim, action_dim, device)
        self.policy = TanhGaussianPolicy(observation_dim, action_dim, config.flow.hidden)
        self.temperature = Multiplier(1.0)
        policies = {"policy": self.policy, "temperature": self.temperature}
        learned: dict[str, nn.Module] = {}
        if config.conservative.lagrange:
            self.lagrange = Multiplier(config.conservative.alpha)
            learned = {"lagrange": self.lagrange}
        self.make_optimizers(policies, learned)

    def draw_noise(
        self, actions: Float[Tensor, "batch action"], generator: torch.Generator
    ) -> Noise:
        """Draw an update's noise on the device of the actions."""
        batch, action_dim = actions.shape
        count = self.config.conservative.samples
        options: dict[str, Any] = {"generator": generator, "device": actions.device}
        normal = torch.randn((2, batch, action_dim), **options)
        sampled = torch.randn((2, batch, count, action_dim), **options)
        uniform = torch.rand((batch, count, action_dim), **options) * 2 - 1
        next_policy = normal[0]
        if self.config.conservative.backup == "best":
            next_policy = torch.randn((batch, count, action_dim), **options)
        return Noise(next_policy, normal[1], uniform, sampled[0], sampled[1])

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """TD error with entropy control, plus the weighted conservative gap."""
        # TD loss.
        with torch.no_grad():
            next_value = self._next_value(batch, noise)
            target = td_target(batch.rewards, batch.discounts, next_value)
        td_loss, data_q, metrics = controlled_td_loss(self.critic, self.control, batch, target)

        # Conservative penalty.
        sampled_q, log_density, floored = self._sampled_q(batch, noise)
        if not self.config.conservative.importance_weights:
            sampled_q = torch.cat([sampled_q, data_q.unsqueeze(1)], dim=1)
            log_density = torch.zeros_like(sampled_q[..., 0])
        gap = conservative_gap(sampled_q, log_density, data_q)
        assert gap.shape == data_q.shape
        penalty, multiplier_loss = self._weigh(gap.mean())

        # Total loss.
        loss = td_loss + penalty + multiplier_loss
        return loss, {
            **metrics,
            "critic_loss": loss,
            "conservative_gap": gap.mean(),
            "conservative_penalty": penalty,
            **floored,
        }

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """SAC's policy loss `τ·log π - min Q`, plus the loss of its entropy temperature."""
        actions, log_prob = self.policy.sample(batch.observations, noise.policy)
        policy_q = ensemble_value(self.policy_q(batch.observations, actions), "min")
        assert policy_q.shape == log_prob.shape
        temperature = self.temperature()
        policy_loss = (temperature.detach() * log_prob - policy_q).mean()

        # Target entropy -n_a, as in SAC (arXiv 1812.05905).
        temperature_loss = -(temperature * (log_prob.detach() - self.action_dim)).mean()
        return policy_loss + temperature_loss, {
            "policy_loss": policy_loss,
            "policy_q": policy_q.mean(),
            "policy_entropy": -log_prob.mean(),
            "policy_temperature": temperature,
        }

    def act(self, policy: str, observations: Tensor, noise: Tensor) -> Tensor:
        """The policy's mode."""
        del policy, noise
        return self.policy.mode(self.normaliser(observations))

    def _next_value(self, batch: Batch, noise: Noise) -> Float[Tensor, "batch"]:
        """The ensemble's minimum at s', of the policy's action or of the best of n."""
        if self.config.conservative.backup == "sample":
            actions, _ = self.policy.sample(batch.next_observations, noise.next_policy)
            next_q = self.target_critic(batch.next_observations, actions)
            return ensemble_value(next_q, "min")
        actions, _ = self._policy_actions(batch.next_observations, noise.next_policy)
        repeated = batch.next_observations.repeat_interleave(actions.shape[1], dim=0)
        rows = self.config.conservative.rows_at_once or len(repeated)
        passes = zip(repeated.split(rows), actions.flatten(0, 1).split(rows), strict=True)
        next_q = torch.cat([self.target_critic(*inputs) for inputs in passes])
        return ensemble_value(next_q, "min").view(actions.shape[:2]).amax(dim=1)

    def _sampled_q(self, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor, Metrics]:
        """Q at s of the 3n sampled actions `(B, 3n, E)`, and their log-densities `(B, 3n)`.

        With calibration, a metric says what share of Q of the policy's actions the floor raised.
        """
        count = noise.uniform.shape[1]
        with torch.no_grad():
            here, log_here = self._policy_actions(batch.observations, noise.here)
            there, log_there = self._policy_actions(batch.next_observations, noise.there)
        log_uniform = torch.full_like(log_here, uniform_log_density(self.action_dim))
        actions = torch.cat([noise.uniform, here, there], dim=1)
        repeated = batch.observations.repeat_interleave(3 * count, dim=0)
        q = self._bounded_q(repeated, actions.flatten(0, 1)).view(len(actions), 3 * count, -1)
        floored: Metrics = {}
        if self.config.conservative.calibrated:
            policy_q = calibrate(q[:, count:], batch.returns_to_go)
            floored = {"floored_share": (policy_q > q[:, count:]).float().mean()}
            q = torch.cat([q[:, :count], policy_q], dim=1)
        return q, torch.cat([log_uniform, log_here, log_there], dim=1), floored

    def _bounded_q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q `(B·3n, E)`, in passes of `rows_at_once` whose activations are not kept.

        The backward pass recomputes each pass's activations: one extra forward pass, but only one
        pass's memory.
        """
        rows = self.config.conservative.rows_at_once
        if not rows or rows >= len(actions):
            q: Tensor = self.critic(observations, actions)
            return q
        passes = zip(observations.split(rows), actions.split(rows), strict=True)
        return torch.cat(
            [
                checkpoint(self.critic, *inputs, use_reentrant=False, preserve_rng_state=False)
                for inputs in passes
            ]
        )

    def _policy_actions(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `(B, n, n_a)` of the policy and their log-densities `(B, n)`."""
        batch, count, _ = noise.shape
        repeated = observations.repeat_interleave(count, dim=0)
        actions, log_prob = self.policy.sample(repeated, noise.flatten(0, 1))
        return actions.view(noise.shape), log_prob.view(batch, count)

    def _weigh(self, gap: Float[Tensor, ""]) -> tuple[Tensor, Tensor]:
        """The penalty `α·(gap - target)`, and the multiplier's loss where α is learned.

        α is constant, or grows while the gap is above its target (CQL, eq. 30).
        """
        settings = self.config.conservative
        if not settings.lagrange:
            return settings.alpha * gap, gap.new_zeros(())
        multiplier = self.lagrange().clamp(max=MAX_LAGRANGE)
        excess = gap - settings.target_gap
        return multiplier.detach() * excess, -(multiplier * excess.detach())
