"""The flow objective: FQL's losses, with TQL's critic under attention-entropy control.

Park et al. 2025 (FQL, arXiv 2502.02538) for the losses, Dong et al. 2026 (TQL, arXiv 2602.01439)
for the critic and its control; with an MLP critic it is FQL. Where FQL's code uses one optimizer
for all networks, we use one for critic and temperatures and one for both policies, since the
paper's learning rates differ.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.agents.actor_critic import ActorCritic
from tql_offline.agents.base import Metrics
from tql_offline.agents.controlled_critic import controlled_td_loss
from tql_offline.agents.flow_cloning import FlowNoise, flow_cloning_loss
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import OneStepPolicy, VelocityField, integrate_flow
from tql_offline.objectives.flow import distillation_error
from tql_offline.objectives.td import ensemble_value, td_target


@dataclass(frozen=True)
class Noise(FlowNoise):
    """Random numbers of one update: the flow's, and of both policies, `(B, n_a)` normal."""

    next_policy: Tensor
    policy: Tensor


class FlowQ(ActorCritic):
    """A critic, a behaviour flow, and a one-step policy distilled from both."""

    policies = ("learned", "behaviour")

    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        super().__init__(config, observation_dim, action_dim, device)
        dims, hidden = (observation_dim, action_dim), config.flow.hidden
        self.behaviour = VelocityField(*dims, hidden)
        self.policy = OneStepPolicy(*dims, hidden)
        policies = {"behaviour": self.behaviour, "policy": self.policy}
        self.make_optimizers(policies, self.make_critic_side())

    def make_critic_side(self) -> dict[str, nn.Module]:
        """Networks that the critic's loss trains besides the critic: none."""
        return {}

    def draw_noise(
        self, actions: Float[Tensor, "batch action"], generator: torch.Generator
    ) -> Noise:
        """Draw an update's noise on the device of the actions."""
        shape, device = actions.shape, actions.device
        normal = torch.randn((3, *shape), generator=generator, device=device)
        t = torch.rand((len(actions), 1), generator=generator, device=device)
        return Noise(next_policy=normal[0], x_0=normal[1], t=t, policy=normal[2])

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared TD error against the one-step policy's value, plus entropy control."""
        with torch.no_grad():
            next_actions = self.one_step_actions(batch.next_observations, noise.next_policy)
            next_q = self.target_critic(batch.next_observations, next_actions)
            next_value = ensemble_value(next_q, self.config.critic.reduction)
            target = td_target(batch.rewards, batch.discounts, next_value)
        loss, _, metrics = controlled_td_loss(self.critic, self.control, batch, target)
        return loss, metrics

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Behaviour cloning of the flow, its distillation into one step, and the critic's value."""
        observations = batch.observations

        # BC flow loss.
        behaviour_loss = flow_cloning_loss(self.behaviour, batch, noise)

        # Distillation loss.
        with torch.no_grad():
            flow_actions = self.flow_actions(observations, noise.policy)
        one_step_actions = self.policy(observations, noise.policy)
        distillation_loss = distillation_error(one_step_actions, flow_actions).mean()

        # Q loss: the mean of the ensemble; only the action carries a gradient to the policy.
        policy_q = self.policy_q(observations, one_step_actions.clamp(-1, 1)).mean()

        # Total loss.
        loss = behaviour_loss + self.config.flow.alpha * distillation_loss - policy_q
        return loss, {
            "policy_loss": loss,
            "behaviour_loss": behaviour_loss,
            "distillation_loss": distillation_loss,
            "policy_q": policy_q,
        }

    def act(self, policy: str, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions of the `learned` one-step policy or of the `behaviour` flow."""
        sample = {"learned": self.one_step_actions, "behaviour": self.flow_actions}[policy]
        return sample(self.normaliser(observations), noise)

    def one_step_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The policy's actions at normalised observations, clipped to [-1, 1]."""
        actions: Tensor = self.policy(observations, noise)
        return actions.clamp(-1, 1)

    def flow_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The behaviour flow's actions at normalised observations, clipped to [-1, 1]."""
        return integrate_flow(self.behaviour, observations, noise, self.config.flow.flow_steps)
