"""Behaviour cloning: the data's own policy, without a critic; what every method must beat.

flow      the behaviour flow of FQL (arXiv 2502.02538), one sample of it
gaussian  a Gaussian by maximum likelihood, scored by its mode
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tql_offline.agents.actor_critic import normalised
from tql_offline.agents.base import Agent, Metrics, on_device
from tql_offline.agents.optimizers import make_adamw, policy_groups
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import GaussianPolicy, Normaliser, VelocityField, integrate_flow
from tql_offline.objectives.flow import flow_matching_error, interpolate


@dataclass(frozen=True)
class Noise:
    """Noise of the flow's loss: `x_0 (B, n_a)` normal, `t (B, 1)` uniform in [0, 1)."""

    x_0: Tensor
    t: Tensor


class BehaviourCloning(Agent):
    """A policy fitted to the data's actions; it has no critic, hence no size."""

    losses = ("policy_loss",)
    num_tokens = 0

    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        self.config, self.action_dim = config, action_dim
        shape = (observation_dim, action_dim, config.flow.hidden)
        self.policy = (VelocityField if self._is_flow else GaussianPolicy)(*shape).to(device)
        self.normaliser = Normaliser(observation_dim).to(device)
        self.networks = {"policy": self.policy, "normaliser": self.normaliser}
        groups = policy_groups([self.policy], config.optimizer.policy_weight_decay)
        self.optimizers = {"policy": make_adamw(groups, config.optimizer.policy_lr)}
        self.learning_rates = {"policy": config.optimizer.policy_lr}

    def draw_noise(self, actions: Tensor, generator: torch.Generator) -> Noise:
        """Draw the flow's noise on the device of the actions."""
        device = actions.device
        x_0 = torch.randn(actions.shape, generator=generator, device=device)
        return Noise(x_0, torch.rand((len(actions), 1), generator=generator, device=device))

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """The flow-matching loss, or minus the log-density of the data's actions."""
        observations, actions = batch.observations, batch.actions
        if isinstance(self.policy, GaussianPolicy):
            loss = -self.policy.log_prob(observations, actions).mean()
        else:
            x_t = interpolate(noise.x_0, actions, noise.t)
            velocity = self.policy(observations, x_t, noise.t)
            loss = flow_matching_error(velocity, noise.x_0, actions).mean()
        return loss, {"policy_loss": loss}

    def update(self, batch: Batch, generator: torch.Generator, step: int) -> Metrics:
        """Step the policy."""
        del step
        batch = normalised(batch, self.normaliser)
        loss, metrics = self.loss_of(
            "policy_loss", batch, self.draw_noise(batch.actions, generator)
        )
        self.optimizers["policy"].zero_grad()
        loss.backward()
        self.optimizers["policy"].step()
        return on_device(metrics, loss.device)

    def act(self, policy: str, observations: Tensor, noise: Tensor) -> Tensor:
        """One sample of the flow for given noise, or the Gaussian's mode."""
        del policy
        observations = self.normaliser(observations)
        if isinstance(self.policy, GaussianPolicy):
            return self.policy.mode(observations)
        return integrate_flow(self.policy, observations, noise, self.config.flow.flow_steps)

    @property
    def _is_flow(self) -> bool:
        return self.config.cloning.policy == "flow"
