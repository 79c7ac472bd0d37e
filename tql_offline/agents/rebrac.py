"""ReBRAC (Tarasov et al. 2023, arXiv 2305.09836): TD3 with a behaviour penalty in both losses.

A deterministic policy is pulled towards the data's actions, and the target is penalised for leaving
the data's next action. As in its code, the policy and all target networks step at every other
update. Unlike there, networks, optimizer and schedule are this package's, as for every method here;
the critic's loss is a mean over the ensemble; the policy's loss sees the critic before its step;
the policy's target takes in its weights after a step, as the critic's does there too.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tql_offline.agents.actor_critic import ActorCritic
from tql_offline.agents.base import Metrics
from tql_offline.agents.controlled_critic import controlled_td_loss
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import DeterministicPolicy
from tql_offline.objectives.rebrac import behaviour_penalty, normalised_value, smoothed_action
from tql_offline.objectives.td import ensemble_value, td_target


@dataclass(frozen=True)
class Noise:
    """Noise of an update: `smoothing (B, n_a)`, normal."""

    smoothing: Tensor


class ReBRAC(ActorCritic):
    """A critic, a deterministic policy, and the policy's target network."""

    policy_delay = 2

    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        super().__init__(config, observation_dim, action_dim, device)
        shape = (observation_dim, action_dim, config.flow.hidden)
        self.policy = DeterministicPolicy(*shape)
        self.target_policy = DeterministicPolicy(*shape).to(device).requires_grad_(False)
        self.target_policy.load_state_dict(self.policy.state_dict())
        self.networks["target_policy"] = self.target_policy
        self.targets.append((self.target_policy, self.policy))
        self.make_optimizers({"policy": self.policy})

    def draw_noise(
        self, actions: Float[Tensor, "batch action"], generator: torch.Generator
    ) -> Noise:
        """Draw an update's noise on the device of the actions."""
        return Noise(torch.randn(actions.shape, generator=generator, device=actions.device))

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """TD error against the penalised value of the target policy, plus entropy control."""
        settings = self.config.rebrac
        with torch.no_grad():
            target_actions = self.target_policy(batch.next_observations)
            next_actions = smoothed_action(
                target_actions, noise.smoothing, settings.smoothing, settings.smoothing_bound
            )
            next_q = self.target_critic(batch.next_observations, next_actions)
            next_value = ensemble_value(next_q, "min")
            # Where the data's episode ended, there is no next action to stay near.
            penalty = behaviour_penalty(next_actions, batch.next_actions) * batch.next_action_mask
            assert penalty.shape == next_value.shape
            next_value = next_value - settings.critic_alpha * penalty
            target = td_target(batch.rewards, batch.discounts, next_value)
        loss, _, metrics = controlled_td_loss(self.critic, self.control, batch, target)
        return loss, {**metrics, "next_action_penalty": penalty.mean()}

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """The penalty at s minus the critic's value, normalised to a scale of 1."""
        del noise
        actions = self.policy(batch.observations)
        penalty = behaviour_penalty(actions, batch.actions)
        q = ensemble_value(self.policy_q(batch.observations, actions), "min")
        assert penalty.shape == q.shape
        loss = (self.config.rebrac.policy_alpha * penalty - normalised_value(q)).mean()
        return loss, {
            "policy_loss": loss,
            "behaviour_penalty": penalty.mean(),
            "policy_q": q.mean(),
        }

    def act(self, policy: str, observations: Tensor, noise: Tensor) -> Tensor:
        """The policy's action; the noise is not used."""
        del policy, noise
        action: Tensor = self.policy(self.normaliser(observations))
        return action
