"""TQL with the flow objective: FQL's losses under attention-entropy control.

Park et al. 2025 (FQL, arXiv 2502.02538) for the losses, Dong et al. 2026 (TQL, arXiv 2602.01439)
for the critic and its control. Deviation from FQL's code: none of substance; it takes one optimizer
over all networks, we take one for critic and temperatures and one for both policies, since their
learning rates differ.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.agents.optimizers import critic_groups, make_adamw, polyak_update
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import (
    EntropyController,
    Normaliser,
    OneStepPolicy,
    TransformerCritic,
    VelocityField,
    integrate_flow,
)
from tql_offline.networks.control import entropy_targets, entropy_targets_in_nats
from tql_offline.objectives.flow import distillation_error, flow_matching_error, interpolate
from tql_offline.objectives.td import ensemble_value, squared_td_error, td_target

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Noise:
    """Every random number of one update, `(B, n_a)` normal but `t`, `(B, 1)` uniform in [0, 1)."""

    next_policy: Tensor
    x_0: Tensor
    t: Tensor
    policy: Tensor


def draw_noise(actions: Float[Tensor, "batch action"], generator: torch.Generator) -> Noise:
    """Draw an update's noise on the device of the actions."""
    shape, device = actions.shape, actions.device
    normal = torch.randn((3, *shape), generator=generator, device=device)
    t = torch.rand((len(actions), 1), generator=generator, device=device)
    return Noise(next_policy=normal[0], x_0=normal[1], t=t, policy=normal[2])


class FlowQ:
    """A transformer critic, a behaviour flow, and a one-step policy distilled from both."""

    policies = ("learned", "behaviour")

    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        self.config = config
        dims, hidden = (observation_dim, action_dim), config.flow.hidden
        shape = (config.critic.size, *dims, config.critic.depth, config.critic.ensemble)
        self.critic = TransformerCritic.of_size(*shape).to(device)
        self.target_critic = TransformerCritic.of_size(*shape).to(device).requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.control = EntropyController(config.entropy.mode, _targets(config, self.critic))
        self.control.to(device)
        self.behaviour = VelocityField(*dims, hidden).to(device)
        self.policy = OneStepPolicy(*dims, hidden).to(device)
        self.normaliser = Normaliser(observation_dim).to(device)

        self.num_tokens = self.critic.num_tokens
        self.networks: dict[str, nn.Module] = {
            "critic": self.critic,
            "target_critic": self.target_critic,
            "control": self.control,
            "behaviour": self.behaviour,
            "policy": self.policy,
            "normaliser": self.normaliser,
        }
        self.policy_parameters = [*self.behaviour.parameters(), *self.policy.parameters()]
        groups = critic_groups(self.critic, self.control, config.optimizer.weight_decay)
        self.optimizers = {
            "critic": make_adamw(groups),
            "policy": make_adamw([{"params": self.policy_parameters, "weight_decay": 0.0}]),
        }
        self.learning_rates = {
            "critic": config.optimizer.critic_lr,
            "policy": config.optimizer.policy_lr,
        }

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared TD error of every ensemble member, plus entropy control."""
        # TD loss.
        with torch.no_grad():
            next_actions = self._one_step(batch.next_observations, noise.next_policy)
            next_q = self.target_critic(batch.next_observations, next_actions)
            next_value = ensemble_value(next_q, self.config.critic.reduction)
            target = td_target(batch.rewards, batch.discounts, next_value)
        q, entropy = self.critic(batch.observations, batch.actions, return_entropy=True)
        errors = squared_td_error(q, target)
        assert errors.shape == (len(target), self.config.critic.ensemble)
        td_loss = errors.mean()

        # Entropy control.
        entropy_bonus, temperature_term = self.control(entropy)

        # Total loss.
        loss = td_loss + entropy_bonus + temperature_term
        return loss, {
            "critic_loss": loss,
            "td_loss": td_loss,
            "q_mean": q.mean(),
            "target_mean": target.mean(),
            "entropy": entropy,
            "entropy_target": self.control.targets,
            "temperature": self.control.temperatures,
        }

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Behaviour cloning of the flow, its distillation into one step, and the critic's value."""
        observations, actions = batch.observations, batch.actions

        # BC flow loss.
        x_t = interpolate(noise.x_0, actions, noise.t)
        velocity = self.behaviour(observations, x_t, noise.t)
        behaviour_loss = flow_matching_error(velocity, noise.x_0, actions).mean()

        # Distillation loss.
        with torch.no_grad():
            flow_actions = self._flow(observations, noise.policy)
        one_step_actions = self.policy(observations, noise.policy)
        distillation_loss = distillation_error(one_step_actions, flow_actions).mean()

        # Q loss: the mean of the ensemble; only the action carries a gradient to the policy.
        policy_q = self.critic(observations, one_step_actions.clamp(-1, 1)).mean()

        # Total loss.
        loss = behaviour_loss + self.config.flow.alpha * distillation_loss - policy_q
        return loss, {
            "policy_loss": loss,
            "behaviour_loss": behaviour_loss,
            "distillation_loss": distillation_loss,
            "policy_q": policy_q,
        }

    def update(self, batch: Batch, generator: torch.Generator) -> Metrics:
        """One step of both optimizers at the same weights, then of the target critic."""
        batch = self._normalised(batch)
        noise = draw_noise(batch.actions, generator)
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)

        # The policy's gradient is taken for its own parameters alone: the critic gets none of it.
        gradients = torch.autograd.grad(policy_loss, self.policy_parameters)
        for parameter, gradient in zip(self.policy_parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizers["critic"].zero_grad()
        critic_loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        polyak_update(self.target_critic, self.critic, self.config.polyak)
        return {name: value.detach() for name, value in (critic_metrics | policy_metrics).items()}

    def act(self, policy: str, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions of the `learned` one-step policy or of the `behaviour` flow."""
        sample = {"learned": self._one_step, "behaviour": self._flow}[policy]
        return sample(self.normaliser(observations), noise)

    def _normalised(self, batch: Batch) -> Batch:
        return batch._replace(
            observations=self.normaliser(batch.observations),
            next_observations=self.normaliser(batch.next_observations),
        )

    def _one_step(self, observations: Tensor, noise: Tensor) -> Tensor:
        actions: Tensor = self.policy(observations, noise)
        return actions.clamp(-1, 1)

    def _flow(self, observations: Tensor, noise: Tensor) -> Tensor:
        return integrate_flow(self.behaviour, observations, noise, self.config.flow.flow_steps)


def _targets(config: Config, critic: TransformerCritic) -> Float[Tensor, "layer 2"]:
    """The config's target entropies in nats."""
    entropy, depth = config.entropy, config.critic.depth
    if entropy.targets_nats:
        return entropy_targets_in_nats(entropy.targets_nats, depth, critic.num_tokens)
    return entropy_targets(depth, critic.num_tokens, entropy.target, entropy.last_target)
