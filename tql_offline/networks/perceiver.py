"""The Perceiver critic of PAC (Springenberg et al. 2024, arXiv 2402.05546), whose Q is categorical.

As in the code that TQL's paper compares with: a few learned latents attend to one token per scalar
of the state and then to one another; the action, one vector, attends to them. That code's policy
head is left out, since its policies are FQL's and nothing trains the head.

Shape suffixes: B batch, S state dims, A action dims, M latents, L context tokens, D width, H heads.
"""

from collections.abc import Iterable
from typing import Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.errors import InputError
from tql_offline.networks.attention import at_least_float32, attention_log_weights, split_heads
from tql_offline.networks.critic import Critic
from tql_offline.networks.initialisers import lecun_normal_
from tql_offline.networks.mlp_critic import parameters_of_size
from tql_offline.networks.transformer import NORM_EPS, SIZES, TOKEN_STD, Block, feed_forward
from tql_offline.objectives.pac import expected_value


class CrossBlock(nn.Module):
    """A pre-norm block: `x += Out(MHA(LN(x), LN(context)))`, `x += W2·gelu(W1·LN(x))`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.context_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.q = lecun_normal_(nn.Linear(width, width))
        self.kv = lecun_normal_(nn.Linear(width, 2 * width))
        self.out = lecun_normal_(nn.Linear(width, width))
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = feed_forward(width)

    def forward(
        self, x_BMD: Float[Tensor, "B M D"], context_BLD: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B M D"]:
        """Let each token of x attend to the context."""
        k, v = self.kv(self.context_norm(context_BLD)).chunk(2, dim=-1)
        q, k, v = (split_heads(z, self.num_heads) for z in (self.q(self.query_norm(x_BMD)), k, v))
        weights_BHML = attention_log_weights(q, k).exp().to(v.dtype)
        mixed_BMD = (weights_BHML @ v).transpose(1, 2).flatten(2)
        x_BMD = x_BMD + self.out(mixed_BMD)
        updated: Tensor = x_BMD + self.mlp(self.mlp_norm(x_BMD))
        return updated


class PerceiverCritic(Critic):
    """Q(s, a) as a distribution over evenly spaced values; called, it gives the mean.

    Its attention is not controlled: its entropies are `(0, 2)`.

    Args:
        observation_dim: S, at least 1.
        action_dim: A, at least 1.
        width: D, even and divisible by `heads`.
        heads: H.
        depth: blocks of attention among the latents.
        latents: M.
        atoms: how many values, at least 2.

    >>> critic = PerceiverCritic.of_size("tiny", observation_dim=3, action_dim=2)
    >>> q, entropy = critic(torch.zeros(5, 3), torch.zeros(5, 2), return_entropy=True)
    >>> q.shape, entropy.shape
    (torch.Size([5, 1]), torch.Size([0, 2]))
    """

    values: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        width: int,
        heads: int,
        depth: int = 2,
        latents: int = 32,
        atoms: int = 201,
    ) -> None:
        super().__init__()
        self.num_tokens = 0
        self.register_buffer("values", torch.linspace(-1.0, 0.0, atoms))
        self.observation_embedding = lecun_normal_(nn.Linear(1, width))
        self.position = nn.Parameter(TOKEN_STD * torch.randn(observation_dim, width))
        self.latents = nn.Parameter(TOKEN_STD * torch.randn(latents, width))
        self.action_embedding = lecun_normal_(nn.Linear(1, width))
        self.action_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.latent_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.final_norm = nn.LayerNorm(width, eps=NORM_EPS)
        read, decode = CrossBlock(width, heads), CrossBlock(width, heads)
        self.blocks = nn.ModuleList([read, *(Block(width, heads) for _ in range(depth)), decode])
        self.heads = nn.ModuleDict(
            {
                "query": lecun_normal_(nn.Linear(action_dim * width, width)),
                "hidden": lecun_normal_(nn.Linear(width, width // 2)),
                "logits": lecun_normal_(nn.Linear(width // 2, atoms)),
            }
        )

    @classmethod
    def of_size(
        cls,
        size: str,
        observation_dim: int,
        action_dim: int,
        depth: int = 2,
        ensemble: int = 2,
        *,
        latents: int = 32,
        atoms: int = 201,
    ) -> Self:
        """The critic with as many parameters as the transformer of a named size, and its heads.

        Raises:
            InputError: there is no such size, or there are no actions.
        """
        if not action_dim:
            raise InputError(
                "critic.kind 'perceiver' judges actions; a value of states needs another"
            )
        wanted = parameters_of_size(size, observation_dim, action_dim, depth, ensemble)
        heads = SIZES[size].heads
        tokens = observation_dim + latents
        width = min(
            range(heads, 2 * SIZES[size].width, heads),
            key=lambda d: abs(perceiver_parameters(d, tokens, action_dim, depth, atoms) - wanted),
        )
        return cls(observation_dim, action_dim, width, heads, depth, latents, atoms)

    def fit(self, least: float, greatest: float, discount: float, lowest: float = 0.0) -> None:
        """Set the values to all returns that rewards from `least` to `greatest` allow.

        A `lowest` below 0 is the first of them instead.

        Raises:
            InputError: it is not below the last, or float32 cannot hold or tell apart so many.
        """
        low = lowest or min(least, least / (1 - discount))
        high = max(greatest, greatest / (1 - discount))
        if low == high and not lowest:  # rewards of 0 alone
            low, high = low - 1, high + 1
        if low >= high:
            raise InputError(
                f"pac.least is {low:g}, but the data's rewards allow no return above {high:g}; "
                "set it lower"
            )
        values = torch.linspace(low, high, len(self.values), dtype=torch.float64)
        self.values.copy_(values)
        if not (self.values.isfinite().all() and (self.values.diff() > 0).all()):
            raise InputError(
                f"returns from {low:g} to {high:g}, as the data's rewards allow, are not "
                f"{len(values)} numbers of float32; scale rewards by dataset.reward_scale"
            )

    def forward(
        self,
        observations: Float[Tensor, "B S"],
        actions: Float[Tensor, "B A"],
        return_entropy: bool = False,
    ) -> Float[Tensor, "B 1"] | tuple[Float[Tensor, "B 1"], Float[Tensor, "0 2"]]:
        """The mean of Q, of shape `(B, 1)`; with `return_entropy` also an empty `(0, 2)`."""
        q_B1 = expected_value(self.logits(observations, actions), self.values).unsqueeze(-1)
        return (q_B1, q_B1.new_zeros(0, 2)) if return_entropy else q_B1

    def logits(
        self, observations: Float[Tensor, "B S"], actions: Float[Tensor, "B A"]
    ) -> Float[Tensor, "B atom"]:
        """Unnormalised log-probabilities of the values."""
        read, *others, decode = cast("Iterable[nn.Module]", self.blocks)
        tokens_BSD = self.observation_embedding(observations.unsqueeze(-1)) + self.position
        x_BMD = read(self.latents.expand(len(observations), -1, -1), tokens_BSD)
        for block in others:
            x_BMD, _ = block(x_BMD, return_entropy=False)
        x_BMD = self.latent_norm(x_BMD)

        actions_BAD = self.action_embedding(actions.unsqueeze(-1))
        query_BD = self.action_norm(self.heads["query"](actions_BAD.flatten(1)))
        decoded_BD = self.final_norm(decode(query_BD.unsqueeze(1), x_BMD).squeeze(1))
        hidden = nn.functional.gelu(self.heads["hidden"](decoded_BD), approximate="tanh")
        return at_least_float32(self.heads["logits"](hidden))


def perceiver_parameters(width: int, tokens: int, action_dim: int, depth: int, atoms: int) -> int:
    """Parameters of a critic, of which `tokens` vectors are positions and latents."""
    block, cross = 12 * width**2 + 13 * width, 12 * width**2 + 15 * width
    embeddings, norms = (tokens + 4) * width, 6 * width
    query = action_dim * width**2 + width
    half = width // 2
    head = (width + 1) * half + (half + 1) * atoms
    return depth * block + 2 * cross + embeddings + norms + query + head
