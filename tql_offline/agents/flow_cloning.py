"""Behaviour cloning of a flow (FQL, arXiv 2502.02538), which several agents share."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tql_offline.batch import Batch
from tql_offline.networks import VelocityField
from tql_offline.objectives.flow import flow_matching_error, interpolate


@dataclass(frozen=True)
class FlowNoise:
    """Noise of the flow's loss: `x_0 (B, n_a)` normal, `t (B, 1)` uniform in [0, 1)."""

    x_0: Tensor
    t: Tensor


def draw_flow_noise(
    actions: Float[Tensor, "batch action"], generator: torch.Generator
) -> FlowNoise:
    """Draw the flow's noise on the device of the actions."""
    device = actions.device
    x_0 = torch.randn(actions.shape, generator=generator, device=device)
    return FlowNoise(x_0, torch.rand((len(actions), 1), generator=generator, device=device))


def flow_cloning_loss(flow: VelocityField, batch: Batch, noise: FlowNoise) -> Tensor:
    """The flow-matching loss on the data's actions, at normalised observations."""
    x_t = interpolate(noise.x_0, batch.actions, noise.t)
    velocity = flow(batch.observations, x_t, noise.t)
    error = flow_matching_error(velocity, noise.x_0, batch.actions)
    assert error.shape == batch.rewards.shape
    return error.mean()
