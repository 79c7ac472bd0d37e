"""The flow objective's terms: FQL (Park et al. 2025, arXiv 2502.02538), which TQL trains with."""

from jaxtyping import Float
from torch import Tensor


def interpolate(
    x_0: Float[Tensor, "batch values"], actions: Float[Tensor, "..."], t: Float[Tensor, "..."]
) -> Float[Tensor, "batch values"]:
    """`x_t = (1-t)·x_0 + t·a`, the straight path from noise to the data's action (or value)."""
    return (1 - t) * x_0 + t * actions


def flow_matching_error(
    velocity: Float[Tensor, "batch action"],
    x_0: Float[Tensor, "batch action"],
    actions: Float[Tensor, "batch action"],
) -> Float[Tensor, "batch"]:
    """`‖v(s, x_t, t) - (a - x_0)‖²`, mean over action dims: behaviour cloning of the flow."""
    return (velocity - (actions - x_0)).square().mean(dim=-1)


def distillation_error(
    one_step_actions: Float[Tensor, "batch action"],
    flow_actions: Float[Tensor, "batch action"],
) -> Float[Tensor, "batch"]:
    """`‖μ(s, z) - flow(s, z)‖²`, mean over action dims; the flow's actions get no gradient."""
    return (one_step_actions - flow_actions.detach()).square().mean(dim=-1)
