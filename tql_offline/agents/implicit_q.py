"""The implicit objective: IQL (Kostrikov et al. 2021, arXiv 2110.06169).

It never evaluates Q at an action outside the data: V is Q's upper expectile over the data's
actions, and Q is regressed on V of the next state. The policy is extracted by

    awr        advantage-weighted regression of a Gaussian (IQL)
    best-of-n  n samples of a behaviour flow, the one with the highest Q (the literature's IFQL)
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.agents.actor_critic import ActorCritic
from tql_offline.agents.base import Metrics
from tql_offline.agents.controlled_critic import (
    controlled_td_loss,
    entropy_metrics,
    make_value,
    make_value_control,
)
from tql_offline.agents.flow_cloning import FlowNoise, draw_flow_noise, flow_cloning_loss
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import GaussianPolicy, VelocityField, integrate_flow
from tql_offline.objectives.implicit import advantage_weight, expectile_error
from tql_offline.objectives.td import ensemble_value, td_target


class ImplicitQ(ActorCritic):
    """A critic, a value function, and a policy extracted from the data's own actions.

    V has the critic's architecture, and its attention is controlled in the critic's mode.
    """

    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        super().__init__(config, observation_dim, action_dim, device)
        dims, hidden = (observation_dim, action_dim), config.flow.hidden
        self.value = make_value(config, observation_dim)
        self.value_control = make_value_control(config, self.value, self.critic).to(device)
        self._judged: tuple[Tensor, Tensor]  # Q and V of the batch at hand
        if config.implicit.extraction == "awr":
            learns = config.implicit.deviation == "learned"
            self.gaussian = GaussianPolicy(*dims, hidden, learns_deviation=learns)
            policies: dict[str, nn.Module] = {"policy": self.gaussian}
        else:
            self.behaviour = VelocityField(*dims, hidden)
            policies = {"behaviour": self.behaviour}
            self.policies = ("learned", "behaviour")
        critic_side: dict[str, nn.Module] = {"value": self.value}
        if self.value_control.acts:
            critic_side["value_control"] = self.value_control
        self.make_optimizers(policies, critic_side)

    def draw_noise(
        self, actions: Float[Tensor, "batch action"], generator: torch.Generator
    ) -> FlowNoise:
        """Draw the flow's noise (also for `awr`, so that both extractions see the same batches)."""
        return draw_flow_noise(actions, generator)

    def critic_loss(self, batch: Batch, noise: FlowNoise) -> tuple[Tensor, Metrics]:
        """Expectile regression of V, and TD regression of Q on V, both with entropy control."""
        del noise
        # V loss.
        target_q = self._target_q(batch)
        value, entropy = self._value_and_entropy(batch.observations)
        self._judged = target_q, value.detach()
        errors = expectile_error(value, target_q, self.config.implicit.expectile)
        assert errors.shape == batch.rewards.shape
        value_loss = errors.mean()

        # Entropy control of V.
        entropy_bonus, temperature_term = self.value_control(entropy)

        # Q loss.
        with torch.no_grad():
            next_value = self._state_value(batch.next_observations)
        target = td_target(batch.rewards, batch.discounts, next_value)
        q_loss, _, metrics = controlled_td_loss(self.critic, self.control, batch, target)

        # Total loss.
        loss = value_loss + entropy_bonus + temperature_term + q_loss
        value_metrics = {"value_loss": value_loss, "value_mean": value.mean()}
        if self.value.num_tokens:
            value_metrics = {
                **value_metrics,
                **entropy_metrics(self.value_control, entropy, "value_"),
            }
        return loss, {**metrics, **value_metrics, "critic_loss": loss}

    def policy_loss(self, batch: Batch, noise: FlowNoise) -> tuple[Tensor, Metrics]:
        """Advantage-weighted regression, or the behaviour flow's matching loss.

        Q and V are those that `critic_loss` computed for the same batch at the same weights.
        """
        if self.config.implicit.extraction == "best-of-n":
            loss = flow_cloning_loss(self.behaviour, batch, noise)
            return loss, {"policy_loss": loss, "behaviour_loss": loss}
        weight = advantage_weight(*self._judged, self.config.implicit.inverse_temperature)
        log_prob = self.gaussian.log_prob(batch.observations, batch.actions)
        assert log_prob.shape == weight.shape
        loss = -(weight * log_prob).mean()
        return loss, {"policy_loss": loss, "advantage_weight": weight.mean()}

    def act(self, policy: str, observations: Tensor, noise: Tensor) -> Tensor:
        """The Gaussian's mode, the best of n flow samples, or one flow sample (`behaviour`)."""
        observations = self.normaliser(observations)
        if self.config.implicit.extraction == "awr":
            return self.gaussian.mode(observations)
        if policy == "behaviour":
            return self.flow_actions(observations, noise)
        return self._best_of_n(observations, noise)

    def noise_dim(self, policy: str) -> int:
        """Count the noise values: of all samples for best-of-n, of one action otherwise."""
        best = policy == "learned" and self.config.implicit.extraction == "best-of-n"
        return self.action_dim * (self.config.implicit.samples if best else 1)

    def _best_of_n(self, observations: Tensor, noise: Tensor) -> Tensor:
        samples = self.config.implicit.samples
        repeated = observations.repeat_interleave(samples, dim=0)
        actions = self.flow_actions(repeated, noise.reshape(-1, self.action_dim))
        q = ensemble_value(self.critic(repeated, actions), "min").view(-1, samples)
        # shape[0], not len(q), which `torch.export` would treat as a constant.
        best = q.argmax(dim=1) + samples * torch.arange(q.shape[0], device=q.device)
        return actions[best]

    def flow_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The behaviour flow's actions at normalised observations, clipped to [-1, 1]."""
        return integrate_flow(self.behaviour, observations, noise, self.config.flow.flow_steps)

    def _target_q(self, batch: Batch) -> Float[Tensor, "batch"]:
        with torch.no_grad():
            return ensemble_value(self.target_critic(batch.observations, batch.actions), "min")

    def _value_and_entropy(
        self, observations: Float[Tensor, "batch state"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "layer 2"]]:
        """V and its entropies."""
        value, entropy = self.value(observations, _no_action(observations), return_entropy=True)
        return value.squeeze(-1), entropy

    def _state_value(self, observations: Float[Tensor, "batch state"]) -> Float[Tensor, "batch"]:
        return self.value(observations, _no_action(observations)).squeeze(-1)


def _no_action(observations: Float[Tensor, "batch state"]) -> Float[Tensor, "batch 0"]:
    return observations.new_zeros(len(observations), 0)
