"""What all objectives share: a controlled critic, its target, and one update of all networks."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from tql_offline.agents.base import Agent, Metrics, on_device
from tql_offline.agents.controlled_critic import make_control, make_critic, make_target
from tql_offline.agents.optimizers import (
    critic_groups,
    policy_groups,
    polyak_update,
)
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import Normaliser, PerceiverCritic
from tql_offline.networks.critic import Critic


class ActorCritic(Agent):
    """Base of the agents with a critic: a subclass adds policies, two losses, and how to act.

    Its optimizers are `critic` (critic, temperatures, value) and `policy` (the rest). Target
    networks move when policies do, every `policy_delay` updates.

    Attributes:
        targets: pairs of a target network and the network it follows.
    """

    networks: dict[str, nn.Module]

    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        self.config, self.device = config, device
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.critic = self.make_critic().to(device)
        self.target_critic = make_target(self.critic, self.make_critic().to(device))
        self.control = make_control(config, self.critic).to(device)
        self.normaliser = Normaliser(observation_dim).to(device)
        self.num_tokens = self.critic.num_tokens
        self.targets: list[tuple[nn.Module, nn.Module]] = [(self.target_critic, self.critic)]
        self.networks = {
            "critic": self.critic,
            "target_critic": self.target_critic,
            "control": self.control,
            "normaliser": self.normaliser,
        }

    def fit_rewards(self, rewards: NDArray[np.floating[Any]]) -> None:
        """Set the values of a Perceiver to those that the data's rewards and `pac.least` allow."""
        discount, lowest = self.config.discount, self.config.pac.least
        for critic in (self.critic, self.target_critic):
            if isinstance(critic, PerceiverCritic):
                critic.fit(float(rewards.min()), float(rewards.max()), discount, lowest)

    def make_critic(self) -> Critic:
        """Q(s, a) as the config asks for it."""
        return make_critic(self.config, self.observation_dim, self.action_dim)

    def make_optimizers(
        self, policies: dict[str, nn.Module], critic_side: dict[str, nn.Module] | None = None
    ) -> None:
        """Register the subclass's networks, and what both optimizers step.

        Args:
            policies: networks trained by `policy_loss` at the policy's rate.
            critic_side: networks trained by `critic_loss` at the critic's rate, besides critic and
                control.
        """
        added = critic_side or {}
        self.networks |= policies | added
        for network in (policies | added).values():
            network.to(self.device)
        self.policy_parameters = [p for n in policies.values() for p in n.parameters()]
        chosen = self.config.optimizer
        self.learning_rates = {"critic": chosen.critic_lr, "policy": chosen.policy_lr}
        self.parameter_groups = {
            "critic": critic_groups(
                [self.critic, *added.values()], self.control, chosen.weight_decay
            ),
            "policy": policy_groups(policies.values(), chosen.policy_weight_decay),
        }

    @abstractmethod
    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Metrics]:
        """The loss of the critic, the temperatures and, if there is one, the value."""

    @abstractmethod
    def policy_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, Metrics]:
        """The loss of the policies."""

    def policy_q(
        self,
        observations: Float[Tensor, "batch state"],
        actions: Float[Tensor, "batch action"],
    ) -> Float[Tensor, "batch ensemble"]:
        """Q of a policy's actions, differentiable in the actions but not in the critic.

        Otherwise, hand-written and compiled passes would also compute the weights' gradients, which
        nothing reads.
        """
        frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
        q: Tensor = functional_call(self.critic, frozen, (observations, actions))
        return q

    def update(self, batch: Batch, generator: torch.Generator, step: int) -> Metrics:
        """Step the critic and, every `policy_delay` updates, the policy and the target networks.

        Both gradients are taken at the same weights.
        """
        batch = normalised(batch, self.normaliser)
        noise = self.draw_noise(batch.actions, generator)
        with_policy = step % self.policy_delay == 0
        loss, metrics = self.loss_of("critic_loss", batch, noise)
        if with_policy:
            # The policy's gradient is for its own parameters alone: the critic gets none of it.
            policy_loss, policy_metrics = self.loss_of("policy_loss", batch, noise)
            set_gradients(self.policy_parameters, policy_loss)
            metrics |= policy_metrics
        self.optimizers["critic"].zero_grad()
        loss.backward()
        self.optimizers["critic"].step()
        if with_policy:
            self.optimizers["policy"].step()
            for target, online in self.targets:
                polyak_update(target, online, self.config.polyak)
        return on_device(metrics, loss.device)


def normalised(batch: Batch, normaliser: Normaliser) -> Batch:
    """A batch as the networks see it."""
    return batch._replace(
        observations=normaliser(batch.observations),
        next_observations=normaliser(batch.next_observations),
    )


def set_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
    """Set the gradient of a loss on the given parameters, and on no others."""
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
