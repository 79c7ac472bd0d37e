"""floq (Agrawalla et al. 2025, arXiv 2509.06863): FQL whose values are the ends of a flow.

A velocity field along the value axis is trained by flow matching towards the TD target, which comes
from integrating its target network. A critic is distilled from it to judge the policies: of FQL's
kind in the paper, of any kind here. Both have the requested size, unless the critic is given a
width of its own, as in code that sweeps the flow's size. As in floq's code
(https://github.com/CMU-AIRe/floq), all networks learn in one step, from the same weights;
optimizer, schedule and learning rates are this package's, as for every method here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from tql_offline.agents.base import Metrics
from tql_offline.agents.controlled_critic import controlled_td_loss
from tql_offline.agents.flow_q import FlowQ
from tql_offline.agents.flow_q import Noise as FlowNoise
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import MLPCritic, ValueFlow
from tql_offline.networks.critic import Critic
from tql_offline.networks.mlp_critic import MLP_DEPTH
from tql_offline.objectives.floq import value_flow_error
from tql_offline.objectives.flow import interpolate
from tql_offline.objectives.td import ensemble_value, td_target


@dataclass(frozen=True)
class Noise(FlowNoise):
    """FQL's noise, with `next_policy` `(B·R, n_a)`, plus R numbers in [0, 1) per value, `(B, R)`.

    Attributes:
        next_start: where the target's flow starts.
        start: where the flow itself starts, in both of its losses.
        time: the flow's time in the flow-matching loss.
    """

    next_start: Tensor
    start: Tensor
    time: Tensor


class FloQ(FlowQ):
    """A value flow, a critic distilled from it, and FQL's policies."""

    def __init__(
        self, config: Config, observation_dim: int, action_dim: int, device: torch.device
    ) -> None:
        super().__init__(config, observation_dim, action_dim, device)
        if config.floq.critic_width and config.critic.kind == "mlp":
            self.sized = "value_flow"
        # The critic follows the flow, whose target network is the only target network.
        del self.target_critic, self.networks["target_critic"]
        self.targets = [(self.target_value_flow, self.value_flow)]

    def make_critic(self) -> Critic:
        """The distilled critic."""
        width = self.config.floq.critic_width
        if not width or self.config.critic.kind != "mlp":
            return super().make_critic()
        hidden, ensemble = (width,) * MLP_DEPTH, self.config.critic.ensemble
        return MLPCritic(self.observation_dim, self.action_dim, hidden, ensemble)

    def make_critic_side(self) -> dict[str, nn.Module]:
        """Build the value flow, which is trained, and its target network, which is not."""
        self.value_flow = self._make_value_flow()
        self.target_value_flow = self._make_value_flow().to(self.device).requires_grad_(False)
        self.target_value_flow.load_state_dict(self.value_flow.state_dict())
        self.networks["target_value_flow"] = self.target_value_flow
        return {"value_flow": self.value_flow}

    def _make_value_flow(self) -> ValueFlow:
        critic = self.config.critic
        return ValueFlow.of_size(
            critic.size,
            self.observation_dim,
            self.action_dim,
            critic.depth,
            critic.ensemble,
            critic.counted,
            discount=self.config.discount,
            coverage=self.config.floq.coverage,
        )

    def fit_rewards(self, rewards: NDArray[np.floating[Any]]) -> None:
        """Set the range of values that the data's rewards allow."""
        for flow in (self.value_flow, self.target_value_flow):
            flow.fit(float(rewards.min()), float(rewards.max()))

    def draw_noise(
        self, actions: Float[Tensor, "batch action"], generator: torch.Generator
    ) -> Noise:
        """Draw an update's noise on the device of the actions."""
        rows, samples = len(actions), self.config.floq.samples
        where: dict[str, Any] = {"generator": generator, "device": actions.device}
        normal = torch.randn((samples + 2, *actions.shape), **where)
        next_start, start, time = torch.rand((3, rows, samples), **where)
        return Noise(
            next_policy=normal[2:].flatten(0, 1),
            x_0=normal[0],
            t=torch.rand((rows, 1), **where),
            policy=normal[1],
            next_start=next_start,
            start=start,
            time=time,
        )

    def critic_loss(self, batch: Batch, noise: FlowNoise) -> tuple[Tensor, Metrics]:
        """Flow matching to the TD target, and the critic's distance from what the flow gives."""
        assert isinstance(noise, Noise)
        data = self._repeated(batch.observations), self._repeated(batch.actions)
        with torch.no_grad():
            target = self._target(batch, noise)
            values = self._ends(self.value_flow, *data, noise.start)
            value = values.mean(dim=(1, 2))

        # Flow-matching loss.
        z_0 = self.value_flow.noise(noise.start)
        z_t = interpolate(z_0, target.unsqueeze(-1), noise.time)
        velocity = self._velocity(*data, z_t, noise.time)
        flow_loss = value_flow_error(velocity, z_0, target).mean()

        # Distillation into the critic, whose attention is controlled.
        distillation, _, metrics = controlled_td_loss(self.critic, self.control, batch, value)

        # Total loss.
        loss = flow_loss + distillation
        return loss, {
            **metrics,
            "critic_loss": loss,
            "value_flow_loss": flow_loss,
            "critic_distillation_loss": metrics["td_loss"],
            "td_loss": (value - target).square().mean(),
            "target_mean": target.mean(),
            "value_spread": values.std(dim=1, correction=0).mean(),
        }

    def _target(self, batch: Batch, noise: Noise) -> Float[Tensor, "batch"]:
        """The TD target; each start of the target flow has its own next action."""
        observations = self._repeated(batch.next_observations)
        actions = self.one_step_actions(observations, noise.next_policy)
        ends = self._ends(self.target_value_flow, observations, actions, noise.next_start)
        next_values = ensemble_value(ends, self.config.critic.reduction)
        return td_target(batch.rewards, batch.discounts, next_values.mean(dim=1))

    def _ends(
        self,
        flow: ValueFlow,
        observations: Float[Tensor, "rows state"],
        actions: Float[Tensor, "rows action"],
        start: Float[Tensor, "batch sample"],
    ) -> Float[Tensor, "batch sample ensemble"]:
        """Where a flow ends, for every start."""
        z_0 = flow.noise(start).flatten()
        ends = flow.integrate(observations, actions, z_0, self.config.floq.steps)
        return ends.view(*start.shape, -1)

    def _velocity(
        self,
        observations: Float[Tensor, "rows state"],
        actions: Float[Tensor, "rows action"],
        z: Float[Tensor, "batch sample"],
        t: Float[Tensor, "batch sample"],
    ) -> Float[Tensor, "batch sample ensemble"]:
        """The flow's velocity with all members at the same z."""
        every_member = z.flatten().unsqueeze(-1).expand(-1, self.config.critic.ensemble)
        velocity: Tensor = self.value_flow(
            observations, actions, every_member, t.flatten().unsqueeze(-1)
        )
        return velocity.view(*z.shape, -1)

    def _repeated(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "rows dim"]:
        """Repeat every row once per start, consecutively."""
        return x.unsqueeze(1).expand(-1, self.config.floq.samples, -1).flatten(0, 1)
