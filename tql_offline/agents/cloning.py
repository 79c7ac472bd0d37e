"""Behaviour cloning: the data's own policy, without a critic; what every method must beat.

flow      the behaviour flow of FQL (arXiv 2502.02538), one sample of it
gaussian  a Gaussian by maximum likelihood, scored by its mode
"""

import torch
from torch import Tensor

from tql_offline.agents.actor_critic import normalised
from tql_offline.agents.base import Agent, Metrics, on_device
from tql_offline.agents.flow_cloning import FlowNoise, draw_flow_noise, flow_cloning_loss
from tql_offline.agents.optimizers import policy_groups
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import GaussianPolicy, Normaliser, VelocityField, integrate_flow


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
        self.parameter_groups = {"policy": groups}
        self.learning_rates = {"policy": config.optimizer.policy_lr}

    def draw_noise(self, actions: Tensor, generator: torch.Generator) -> FlowNoise:
        """Draw the flow's noise on the device of the actions."""
        return draw_flow_noise(actions, generator)

    def policy_loss(self, batch: Batch, noise: FlowNoise) -> tuple[Tensor, Metrics]:
        """The flow-matching loss, or minus the log-density of the data's actions."""
        if isinstance(self.policy, GaussianPolicy):
            loss = -self.policy.log_prob(batch.observations, batch.actions).mean()
        else:
            loss = flow_cloning_loss(self.policy, batch, noise)
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
