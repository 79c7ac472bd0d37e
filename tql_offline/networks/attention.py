"""Multi-head attention that can also report the entropy of its weights.

Shape suffixes: B batch, L tokens, H heads, K width of one head.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

PLAIN_TOKENS = 128
"""Up to so many tokens a CPU takes plain products instead of the fused kernel. It is no clear gain:
fused/plain forward time was 0.79 at 5 tokens, 1.08 at 43, 0.35 at 512 (benchmarks/critic.py)."""


def attention(
    q_BHLK: Float[Tensor, "B H L K"],
    k_BHLK: Float[Tensor, "B H L K"],
    v_BHLK: Float[Tensor, "B H L K"],
) -> Float[Tensor, "B H L K"]:
    """Softmax attention with scale 1/√K: plain products on a CPU with few tokens, else fused."""
    if q_BHLK.device.type == "cpu" and q_BHLK.shape[-2] <= PLAIN_TOKENS:
        scores_BHLL = q_BHLK @ k_BHLK.mT * q_BHLK.shape[-1] ** -0.5
        return torch.softmax(scores_BHLL, dim=-1) @ v_BHLK
    return functional.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK)


def attention_with_entropy(
    q_BHLK: Float[Tensor, "B H L K"],
    k_BHLK: Float[Tensor, "B H L K"],
    v_BHLK: Float[Tensor, "B H L K"],
) -> tuple[Float[Tensor, "B H L K"], Float[Tensor, "B H L"]]:
    """Softmax attention and the entropy of each query's weights, in nats.

    `e_i = -Σ_j p_ij log p_ij`, at most ln L (TQL, arXiv 2602.01439). The weights are formed in
    full: this is the plain path that every faster one is tested against.
    """
    log_p_BHLL = attention_log_weights(q_BHLK, k_BHLK)
    return log_p_BHLL.exp() @ v_BHLK, weights_entropy(log_p_BHLL)


def attention_log_weights(
    q_BHLK: Float[Tensor, "B H L K"], k_BHLK: Float[Tensor, "B H L K"]
) -> Float[Tensor, "B H L L"]:
    """Logarithm of each query's softmax weights, `log p_ij`, with scale 1/√K."""
    return torch.log_softmax(q_BHLK @ k_BHLK.mT * q_BHLK.shape[-1] ** -0.5, dim=-1)


def weights_entropy(log_p_BHLL: Float[Tensor, "B H L L"]) -> Float[Tensor, "B H L"]:
    """`-Σ_j p_ij log p_ij` in nats."""
    return -(log_p_BHLL.exp() * log_p_BHLL).sum(dim=-1)


def group_entropy(entropy_BHL: Float[Tensor, "B H L"]) -> Float[Tensor, "2"]:
    """Mean entropy over batch and heads of two token groups: the `[VALUE]` query, all others."""
    return torch.stack([entropy_BHL[..., 0].mean(), entropy_BHL[..., 1:].mean()])
