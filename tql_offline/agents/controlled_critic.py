"""The critic that a config asks for, and the loss that every objective trains it with.

No objective knows which critic it has: all of them call `critic(observations, actions)` and get
entropies `(N, 2)`, with N = 0 for a critic without attention, or whose attention is not controlled.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.agents.base import Metrics
from tql_offline.batch import Batch
from tql_offline.config import Config
from tql_offline.networks import (
    EntropyController,
    MLPCritic,
    PerceiverCritic,
    TransformerCritic,
)
from tql_offline.networks.control import entropy_targets, entropy_targets_in_nats
from tql_offline.networks.critic import Critic
from tql_offline.objectives.td import squared_td_error


def make_critic(config: Config, observation_dim: int, action_dim: int) -> Critic:
    """Q(s, a) of the config's kind and size."""
    critic, dims = config.critic, (observation_dim, action_dim)
    shape = (critic.depth, critic.ensemble)
    if critic.kind == "mlp":
        return MLPCritic.of_size(critic.size, *dims, *shape, critic.counted)
    if critic.kind == "perceiver":
        pac = config.pac
        return PerceiverCritic.of_size(
            critic.size, *dims, *shape, latents=pac.latents, atoms=pac.atoms
        )
    return TransformerCritic.of_size(critic.size, *dims, *shape)


def make_value(config: Config, observation_dim: int) -> Critic:
    """V(s): the same architecture without actions, one head.

    An MLP has as many parameters as a transformer V of that size, which is one network beside Q's
    two: it is wider than each of these.
    """
    single = config.critic.model_copy(update={"ensemble": 1})
    return make_critic(config.model_copy(update={"critic": single}), observation_dim, 0)


def make_target(critic: nn.Module, other: Critic) -> Critic:
    """Turn `other` into the target network of `critic`: equal weights, no gradient."""
    other.load_state_dict(critic.state_dict())
    return other.requires_grad_(False)


def make_control(config: Config, critic: Critic) -> EntropyController:
    """The entropy controller of a critic, with the config's targets in nats."""
    return EntropyController(config.entropy.mode, _targets(config, critic))


def make_value_control(config: Config, value: Critic, critic: Critic) -> EntropyController:
    """The entropy controller of V: the critic's targets as fractions of ln L, for V's own L."""
    targets = _targets(config, critic)
    if targets.numel():
        targets = targets * (math.log(value.num_tokens) / math.log(critic.num_tokens))
    return EntropyController(config.entropy.mode, targets)


def _targets(config: Config, critic: Critic) -> Float[Tensor, "layer 2"]:
    entropy, depth = config.entropy, config.critic.depth
    if not critic.num_tokens:
        return torch.zeros(0, 2)
    if len(entropy.targets_nats) == depth:  # `Config` sees to it wherever they have an effect
        return entropy_targets_in_nats(entropy.targets_nats, critic.num_tokens)
    return entropy_targets(depth, critic.num_tokens, entropy.target, entropy.last_target)


def controlled_td_loss(
    critic: Critic,
    control: EntropyController,
    batch: Batch,
    target: Float[Tensor, "batch"],
) -> tuple[Tensor, Float[Tensor, "batch ensemble"], Metrics]:
    """Squared TD error of every ensemble member plus entropy control (TQL, arXiv 2602.01439).

    Returns:
        The loss, Q of the data's actions, and metrics.
    """
    # TD loss.
    q, entropy = critic(batch.observations, batch.actions, return_entropy=True)
    errors = squared_td_error(q, target)
    assert errors.shape == q.shape
    td_loss = errors.mean()

    # Entropy control.
    entropy_bonus, temperature_term = control(entropy)

    # Total loss.
    loss = td_loss + entropy_bonus + temperature_term
    return (
        loss,
        q,
        {
            "critic_loss": loss,
            "td_loss": td_loss,
            "q_mean": q.mean(),
            "target_mean": target.mean(),
            **entropy_metrics(control, entropy),
        },
    )


def entropy_metrics(
    control: EntropyController, entropy: Float[Tensor, "layer 2"], of: str = ""
) -> Metrics:
    """A network's entropies, targets and temperatures, under names that begin with `of`."""
    return {
        f"{of}entropy": entropy,
        f"{of}entropy_target": control.targets,
        f"{of}temperature": control.temperatures,
    }
