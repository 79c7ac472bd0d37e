"""The transformer critic of TQL (Dong et al. 2026, arXiv 2602.01439).

Shape suffixes: B batch, S state dims, A action dims, L = 1 + S + A tokens, D width, H heads,
K = D/H width of one head, E ensemble, N blocks.

One token per scalar of state and action, a learned `[VALUE]` token in front; after N pre-norm
blocks the `[VALUE]` output goes to E heads. Parameter names are the checkpoint format.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tql_offline.errors import InputError
from tql_offline.networks import kernels
from tql_offline.networks.attention import (
    at_least_float32,
    attention_log_weights,
    attention_with_entropy,
    group_entropy,
    mix,
    split_heads,
    value_weights,
)
from tql_offline.networks.critic import Critic
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
        self.num_heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = lecun_normal_(nn.Linear(width, 3 * width))
        self.out = lecun_normal_(nn.Linear(width, width))
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = feed_forward(width)

    def forward(
        self, x_BLD: Float[Tensor, "B L D"], return_entropy: bool
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "2"] | None]:
        """Apply the block; with `return_entropy` also give the two token groups' mean entropy."""
        return self.after_projection(x_BLD, self.qkv(self.attention_norm(x_BLD)), return_entropy)

    def after_projection(
        self, x_BLD: Tensor, qkv_BL3D: Tensor, return_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What follows the projection of queries, keys and values."""
        mixed_BLD, entropy = mix(qkv_BL3D, self.num_heads, return_entropy)
        return self.finish(x_BLD, mixed_BLD), entropy

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The two residual updates, of all tokens or of one."""
        x = x + self.out(mixed)
        return x + self._feed_forward(self.mlp_norm(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        first, last = cast("nn.Linear", self.mlp[0]), cast("nn.Linear", self.mlp[2])
        if not kernels.by_hand(x):
            result: Tensor = self.mlp(x)
            return result
        layers = (first.weight, first.bias, last.weight, last.bias)
        result = kernels.FeedForward.apply(x.flatten(0, -2), *layers, torch.is_grad_enabled())
        return result.view(x.shape)

    def forward_plain(
        self, x_BLD: Float[Tensor, "B L D"], return_entropy: bool = True
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "2"] | None]:
        """`forward` as the paper states it, in PyTorch's own operations."""
        qkv_BL3D = self.qkv(self.attention_norm(x_BLD))
        q, k, v = (split_heads(part, self.num_heads) for part in qkv_BL3D.chunk(3, dim=-1))
        if return_entropy:
            mixed_BHLK, entropy_BHL = attention_with_entropy(q, k, v)
        else:
            mixed_BHLK, entropy_BHL = (
                torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v,
                None,
            )
        x_BLD = x_BLD + self.out(mixed_BHLK.transpose(1, 2).flatten(2))
        entropy = None if entropy_BHL is None else group_entropy(entropy_BHL)
        return x_BLD + self.mlp(self.mlp_norm(x_BLD)), entropy


class TransformerCritic(Critic):
    """Q(s, a) as a transformer over one token per scalar.

    Args:
        observation_dim: S, at least 1.
        action_dim: A; 0 makes it a value function of the state, without action tokens.
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
        self.num_tokens = 1 + observation_dim + action_dim
        self.value_token = nn.Parameter(torch.empty(width))
        self.observation_embedding = lecun_normal_(nn.Linear(1, width))
        self.observation_type = nn.Parameter(torch.empty(width))
        if action_dim:
            self.action_embedding = lecun_normal_(nn.Linear(1, width))
            self.action_type = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(observation_dim + action_dim, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.heads = nn.ModuleList(_head(width) for _ in range(ensemble))
        for name, token in self.named_parameters(recurse=False):
            assert name.endswith(("token", "type", "position"))
            nn.init.normal_(token, std=TOKEN_STD)

    @classmethod
    def of_size(
        cls, size: str, observation_dim: int, action_dim: int, depth: int = 2, ensemble: int = 2
    ) -> Self:
        """A critic of a named size (`tiny` 0.1M … `xxl` 105M parameters at depth 2).

        Raises:
            InputError: there is no such size.
        """
        if size not in SIZES:
            raise InputError(f"there is no size {size!r}; choose one of {', '.join(SIZES)}")
        chosen = SIZES[size]
        return cls(observation_dim, action_dim, chosen.width, chosen.heads, depth, ensemble)

    def forward(
        self,
        observations: Float[Tensor, "B S"],
        actions: Float[Tensor, "B A"],
        return_entropy: bool = False,
    ) -> Float[Tensor, "B E"] | tuple[Float[Tensor, "B E"], Float[Tensor, "N 2"]]:
        """Q of shape `(B, E)`; with `return_entropy` also the entropies `(N, 2)` in nats.

        Column 0 is the `[VALUE]` query, column 1 the mean of all other queries. Leading dims may
        also be none or several; Q then has them, too.

        Raises:
            InputError: the shapes do not fit the critic or one another.
        """
        self._check_shapes(observations, actions)
        if observations.ndim != 2:
            return self._of_leading_dims(observations, actions, return_entropy)
        scalars = torch.cat([observations, actions], dim=-1)
        slopes_LD, offsets_LD = self._token_tables()
        x_BLD = tokens_of(scalars, slopes_LD, offsets_LD)
        entropies: list[Tensor | None] = []
        *others, last = cast("Iterable[Block]", self.blocks)
        for index, block in enumerate(others):
            if index == 0:
                # Its products are as small as the tables; its differences need full precision.
                device = "cpu" if scalars.is_meta else scalars.device.type  # meta has no autocast
                with torch.autocast(device, enabled=False):
                    qkv = first_projection(block, scalars, slopes_LD, offsets_LD)
                x_BLD, entropy = block.after_projection(x_BLD, qkv, return_entropy)
            else:
                x_BLD, entropy = block(x_BLD, return_entropy)
            entropies.append(entropy)
        value_BD, entropy = value_token_block(last, x_BLD, return_entropy)
        entropies.append(entropy)
        q_BE = self._read_out(value_BD)
        if not return_entropy:
            return q_BE
        return q_BE, torch.stack([entropy for entropy in entropies if entropy is not None])

    def _check_shapes(self, observations: Tensor, actions: Tensor) -> None:
        have, want = (observations.shape, actions.shape), (self.observation_dim, self.action_dim)
        if (have[0][-1:], have[1][-1:]) != ((want[0],), (want[1],)) or have[0][:-1] != have[1][:-1]:
            raise InputError(
                f"the critic takes observations (B, {want[0]}) and actions (B, {want[1]}), in this "
                f"order, and was given {tuple(have[0])} and {tuple(have[1])}; give these shapes"
            )

    def _of_leading_dims(
        self, observations: Tensor, actions: Tensor, return_entropy: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        leading = observations.shape[:-1]
        states, acts = (x.reshape(leading.numel(), x.shape[-1]) for x in (observations, actions))
        if not return_entropy:
            q = self(states, acts)
            return q.view(*leading, q.shape[-1])
        q, entropy = self(states, acts, return_entropy=True)
        return q.view(*leading, q.shape[-1]), entropy

    def forward_plain(
        self, observations: Tensor, actions: Tensor, return_entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Q and entropies with every token carried through every block: the reference for tests.

        Without `return_entropy`, the entropies have no rows.
        """
        scalars = torch.cat([observations, actions], dim=-1)
        x_BLD = tokens_of(scalars, *self._token_tables())
        entropies = []
        for block in cast("Iterable[Block]", self.blocks):
            x_BLD, entropy = block.forward_plain(x_BLD, return_entropy)
            entropies += [] if entropy is None else [entropy]
        q_BE = self._read_out(x_BLD[:, 0])
        return q_BE, torch.stack(entropies) if entropies else q_BE.new_empty(0, 2)

    def attention_maps(self, observations: Tensor, actions: Tensor) -> Float[Tensor, "N B H L L"]:
        """Every block's attention weights, each query's row over all keys; rows sum to 1.

        Uses the plain computation; the others never hold all of a block's weights.
        """
        x_BLD = tokens_of(torch.cat([observations, actions], dim=-1), *self._token_tables())
        maps = []
        for block in cast("Iterable[Block]", self.blocks):
            q_and_k = block.qkv(block.attention_norm(x_BLD)).chunk(3, dim=-1)[:2]
            q, k = (split_heads(part, block.num_heads) for part in q_and_k)
            maps.append(attention_log_weights(q, k).exp())
            x_BLD, _ = block.forward_plain(x_BLD, return_entropy=False)
        return torch.stack(maps)

    def _read_out(self, value_BD: Tensor) -> Float[Tensor, "B E"]:
        normed = self.final_norm(value_BD)
        return at_least_float32(torch.cat([head(normed) for head in self.heads], dim=-1))

    def _token_tables(self) -> tuple[Float[Tensor, "L D"], Float[Tensor, "L D"]]:
        """Slope and offset of every token, `x_i = slope_i·s_i + offset_i`; [VALUE] has slope 0."""
        value = self.value_token.unsqueeze(0)
        modalities = [(self.observation_embedding, self.observation_type, self.observation_dim)]
        if self.action_dim:
            modalities.append((self.action_embedding, self.action_type, self.action_dim))
        slopes, offsets = [torch.zeros_like(value)], []
        for embedding, kind, count in modalities:
            slopes.append(embedding.weight.T.expand(count, -1))
            offsets.append((embedding.bias + kind).expand(count, -1))
        return torch.cat(slopes), torch.cat([value, torch.cat(offsets) + self.position])


def feed_forward(width: int) -> nn.Sequential:
    """Linear(D→4D), GELU, Linear(4D→D)."""
    return nn.Sequential(
        lecun_normal_(nn.Linear(width, 4 * width)),
        nn.GELU(approximate="tanh"),
        lecun_normal_(nn.Linear(4 * width, width)),
    )


def _head(width: int) -> nn.Sequential:
    """Linear(D→D/2), ReLU, Linear(D/2→1)."""
    return nn.Sequential(
        lecun_normal_(nn.Linear(width, width // 2)),
        nn.ReLU(),
        lecun_normal_(kernels.AlignedLinear(width // 2, 1)),
    )


def tokens_of(
    scalars_BL: Float[Tensor, "B L-1"],
    slopes_LD: Float[Tensor, "L D"],
    offsets_LD: Float[Tensor, "L D"],
) -> Float[Tensor, "B L D"]:
    """`x_i = slope_i·scalar_i + offset_i`, after a `[VALUE]` token of slope 0."""
    return torch.addcmul(offsets_LD, with_value_token(scalars_BL).unsqueeze(-1), slopes_LD)


def with_value_token(scalars_BL: Float[Tensor, "B L-1"]) -> Float[Tensor, "B L"]:
    """Prepend a zero, the scalar of the `[VALUE]` token."""
    return functional.pad(scalars_BL, (1, 0))


def first_projection(
    block: Block,
    scalars_BL: Float[Tensor, "B L-1"],
    slopes_LD: Float[Tensor, "L D"],
    offsets_LD: Float[Tensor, "L D"],
) -> Float[Tensor, "B L 3D"]:
    """`qkv(LN(x_i))` of the first block without a projection per token.

    A token is affine in its scalar s, so after its LayerNorm (γ, β) with 1/σ = r the projection is
    `r·(s·P_i + R_i) + S`, where `P = W(γ·(slope - mean))`, `R = W(γ·(offset - mean))` and
    `S = Wβ + bias` are computed once per batch, and the variance is quadratic in s.
    """
    norm, project = block.attention_norm, block.qkv
    slopes = slopes_LD - slopes_LD.mean(dim=-1, keepdim=True)
    offsets = offsets_LD - offsets_LD.mean(dim=-1, keepdim=True)
    s_BL = with_value_token(scalars_BL)
    variance_BL = (
        s_BL.square() * slopes.square().mean(dim=-1)
        + 2 * s_BL * (slopes * offsets).mean(dim=-1)
        + offsets.square().mean(dim=-1)
    )
    # Rounding may make a variance near 0 negative.
    r_BL = torch.rsqrt(variance_BL.clamp_min(0) + norm.eps)
    p_L3D = (slopes * norm.weight) @ project.weight.T
    r_L3D = (offsets * norm.weight) @ project.weight.T
    tables = (s_BL * r_BL, r_BL, p_L3D, r_L3D, project(norm.bias))
    if kernels.by_hand(s_BL):
        projected: Tensor = kernels.AffineProjection.apply(*tables)
        return projected
    return kernels.AffineProjection.plain(*tables)


def value_token_block(
    block: Block, x_BLD: Float[Tensor, "B L D"], return_entropy: bool
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "2"] | None]:
    """Apply the last block to the `[VALUE]` token alone, the only one that is read.

    Its values are projected once, from the weighted mean of the normed tokens:
    `Σ_j p_j W_v h_j = W_v Σ_j p_j h_j`. The entropy needs queries and keys of all tokens; without
    it the keys are not needed either: the scores are `h_j·(W_kᵀ q_0)` (the key bias shifts all of
    them alike and cancels in the softmax).
    """
    heads = block.num_heads
    h_BLD = block.attention_norm(x_BLD)
    w_q, w_k, w_v = block.qkv.weight.chunk(3)
    b_q, _, b_v = block.qkv.bias.chunk(3)
    entropy = None
    if return_entropy:
        width = len(w_q)
        qk = functional.linear(h_BLD, block.qkv.weight[: 2 * width], block.qkv.bias[: 2 * width])
        p_BHL, entropy = value_weights(qk, heads)
    else:
        q_BHK = functional.linear(h_BLD[:, 0], w_q, b_q).unflatten(-1, (heads, -1))
        q_BHD = torch.einsum("bhk,hkd->bhd", q_BHK, w_k.unflatten(0, (heads, -1)))
        scores_BHL = q_BHD @ h_BLD.mT * q_BHK.shape[-1] ** -0.5
        p_BHL = torch.softmax(at_least_float32(scores_BHL), dim=-1)
    context_BHD = p_BHL @ h_BLD
    mixed_BHK = torch.einsum("bhd,hkd->bhk", context_BHD, w_v.unflatten(0, (heads, -1)))
    return block.finish(x_BLD[:, 0], mixed_BHK.flatten(1) + b_v), entropy
