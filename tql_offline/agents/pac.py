"""PAC (Springenberg et al. 2024, arXiv 2402.05546) as TQL's paper compares with it.

A Perceiver critic, whose Q is a distribution over the values that the data's rewards allow, or over
those above `pac.least`, learns by C51's loss; the policies are FQL's. As in that paper's code
(github.com/atombot972-svg/rlca); the presets have the values, latents and rates of published
commands (khhung-906/floq, `pac_fql_script/`), whose policies have LayerNorm, too. Their weight
decay (0.001) is not taken: the optimizer is this package's, as for every method.
"""

import torch
from torch import Tensor

from tql_offline.agents.base import Metrics
from tql_offline.agents.controlled_critic import entropy_metrics
from tql_offline.agents.flow_q import FlowQ, Noise
from tql_offline.batch import Batch
from tql_offline.networks import PerceiverCritic
from tql_offline.objectives.pac import (
    categorical_error,
    expected_value,
    projected_target,
    weighted_mean,
)


class PAC(FlowQ):
    """A categorical Perceiver critic and FQL's policies."""

    critic: PerceiverCritic
    target_critic: PerceiverCritic

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Cross-entropy with the projected distribution of the target."""
        values = self.critic.values
        with torch.no_grad():
            next_actions = self.one_step_actions(batch.next_observations, noise.next_policy)
            next_logits = self.target_critic.logits(batch.next_observations, next_actions)
            next_probabilities = torch.softmax(next_logits, dim=-1)
            target = projected_target(next_probabilities, values, batch.rewards, batch.discounts)
        logits = self.critic.logits(batch.observations, batch.actions)
        error = categorical_error(logits, target)
        assert error.shape == batch.rewards.shape
        loss = error.mean()
        q, target_q = expected_value(logits, values), weighted_mean(target, values)
        return loss, {
            "critic_loss": loss,
            "td_loss": (q - target_q).square().mean(),
            "q_mean": q.mean(),
            "target_mean": target_q.mean(),
            **entropy_metrics(self.control, logits.new_zeros(0, 2)),
        }
