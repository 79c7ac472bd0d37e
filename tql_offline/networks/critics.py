"""The transformer critic of TQL (Dong et al. 2026, arXiv 2602.01439).

Shape suffixes: B batch, S state dims, A action dims, L = 1 + S + A tokens, D width, H heads,
K = D/H width of one head, E ensemble, N blocks.

One token per scalar of state and action, a learned `[VALUE]` token in front; after N pre-norm
blocks the `[VALUE]` output goes to E heads. Parameter names are the checkpoint format.
"""

from dataclasses import dataclass
from typing import Literal, Self, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.errors import InputError
from tql_offline.networks.attention import attention, attention_with_entropy, group_entropy
from tql_offline.networks.initialisers import lecun_normal_

NORM_EPS = 1e-6
TOKEN_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class Size:
    """A named critic size: width and heads of the paper's two-block transformer."""

    width: int
    heads: int


SIZES: dict[str, Size] = {
    "tiny": Size(width=64, heads=2),
    "small": Size(width=128, heads=4),
    "medium": Size(width=256, heads=8),
    "large": Size(width=512, heads=16),
    "xl": Size(width=1024, heads=32),
    "xxl": Size(width=2048, heads=64),
}


class Block(nn.Module):
    """A pre-norm transformer block: `x += Out(MHA(LN(x)))`, `x += W2·gelu(W1·LN(x))`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = lecun_normal_(nn.Linear(width, 3 * width))
        self.out = lecun_normal_(nn.Linear(width, width))
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            lecun_normal_(nn.Linear(width, 4 * width)),
            nn.GELU(approximate="tanh"),
            lecun_normal_(nn.Linear(4 * width, width)),
        )

    def forward(
        self, x_BLD: Float[Tensor, "B L D"], return_entropy: bool
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "2"] | None]:
        """Apply the block; with `return_entropy` also give the two token groups' mean entropy."""
        q, k, v = self._split_heads(self.qkv(self.attention_norm(x_BLD)))
        entropy = None
        if return_entropy:
            mixed_BHLK, entropy_BHL = attention_with_entropy(q, k, v)
            entropy = group_entropy(entropy_BHL)
        else:
            mixed_BHLK = attention(q, k, v)
        x_BLD = x_BLD + self.out(mixed_BHLK.transpose(1, 2).flatten(2))
        return x_BLD + self.mlp(self.mlp_norm(x_BLD)), entropy

    def _split_heads(self, qkv_BL3D: Tensor) -> tuple[Tensor, ...]:
        batch, tokens, _ = qkv_BL3D.shape
        return qkv_BL3D.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


class TransformerCritic(nn.Module):
    """Q(s, a) as a transformer over one token per scalar.

    Args:
        observation_dim: S, at least 1.
        action_dim: A, at least 1.
        width: D, divisible by `heads`.
        heads: H.
        depth: N blocks (2 in the paper).
        ensemble: E heads on the `[VALUE]` output (2 in the paper).

    >>> critic = TransformerCritic.of_size("tiny", observation_dim=3, action_dim=2)
    >>> q, entropy = critic(torch.zeros(5, 3), torch.zeros(5, 2), return_entropy=True)
    >>> q.shape, entropy.shape
    (torch.Size([5, 2]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        width: int = 1024,
        heads: int = 32,
        depth: int = 2,
        ensemble: int = 2,
    ) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"critic width {width} is not divisible by its {heads} heads")
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.value_token = nn.Parameter(torch.empty(width))
        self.observation_embedding = lecun_normal_(nn.Linear(1, width))
        self.action_embedding = lecun_normal_(nn.Linear(1, width))
        self.observation_type = nn.Parameter(torch.empty(width))
        self.action_type = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(observation_dim + action_dim, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.heads = nn.ModuleList(_head(width) for _ in range(ensemble))
        for token in (self.value_token, self.observation_type, self.action_type, self.position):
            nn.init.normal_(token, std=TOKEN_STD)

    @classmethod
    def of_size(
        cls, size: str, observation_dim: int, action_dim: int, depth: int = 2, ensemble: int = 2
    ) -> Self:
        """A critic of a named size (`tiny` 0.1M … `xxl` 101M parameters at depth 2).

        Raises:
            InputError: there is no such size.
        """
        if size not in SIZES:
            raise InputError(f"there is no size {size!r}; choose one of {', '.join(SIZES)}")
        chosen = SIZES[size]
        return cls(observation_dim, action_dim, chosen.width, chosen.heads, depth, ensemble)

    @property
    def num_tokens(self) -> int:
        """L = 1 + S + A."""
        return 1 + self.observation_dim + self.action_dim

    @overload
    def __call__(
        self, observations: Tensor, actions: Tensor, return_entropy: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def __call__(
        self, observations: Tensor, actions: Tensor, return_entropy: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def __call__(
        self, observations: Tensor, actions: Tensor, return_entropy: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `forward`; spelled out so that type checkers know what each call returns."""
        result: Tensor | tuple[Tensor, Tensor] = super().__call__(
            observations, actions, return_entropy
        )
        return result

    def forward(
        self,
        observations: Float[Tensor, "B S"],
        actions: Float[Tensor, "B A"],
        return_entropy: bool = False,
    ) -> Float[Tensor, "B E"] | tuple[Float[Tensor, "B E"], Float[Tensor, "N 2"]]:
        """Q of shape `(B, E)`; with `return_entropy` also the entropies `(N, 2)` in nats.

        Column 0 is the `[VALUE]` query, column 1 the mean of all other queries.
        """
        x_BLD = self._embed(observations, actions)
        entropies = []
        for block in self.blocks:
            x_BLD, entropy = block(x_BLD, return_entropy)
            entropies.append(entropy)
        value_BD = self.final_norm(x_BLD[:, 0])
        q_BE = torch.cat([head(value_BD) for head in self.heads], dim=-1)
        return (q_BE, torch.stack(entropies)) if return_entropy else q_BE

    def _embed(self, observations: Tensor, actions: Tensor) -> Float[Tensor, "B L D"]:
        """`x_i = w·scalar_i + b + type + position_i`, behind the `[VALUE]` token."""
        scalars = torch.cat([observations, actions], dim=-1)
        weights_LD, offsets_LD = self._token_tables()
        tokens = torch.addcmul(offsets_LD, scalars.unsqueeze(-1), weights_LD)
        value = self.value_token.expand(len(scalars), 1, -1)
        return torch.cat([value, tokens], dim=1)

    def _token_tables(self) -> tuple[Tensor, Tensor]:
        """Slope and offset of every scalar's token, each `(S + A, D)`."""
        slopes, offsets = [], []
        for embedding, kind, count in (
            (self.observation_embedding, self.observation_type, self.observation_dim),
            (self.action_embedding, self.action_type, self.action_dim),
        ):
            slopes.append(embedding.weight[:, 0].expand(count, -1))
            offsets.append((embedding.bias + kind).expand(count, -1))
        return torch.cat(slopes), torch.cat(offsets) + self.position


def _head(width: int) -> nn.Sequential:
    """Linear(D→D/2), ReLU, Linear(D/2→1)."""
    return nn.Sequential(
        lecun_normal_(nn.Linear(width, width // 2)),
        nn.ReLU(),
        lecun_normal_(nn.Linear(width // 2, 1)),
    )
