"""Multi-head attention that can also report the entropy of its weights.

It has several implementations: the plain one, which the others are tested against; on a CPU, a C
kernel that works on one head at a time (cpu_kernels.py); on a GPU, a kernel that keeps a head's
weights in registers (triton_attention.py); and, for many tokens, a fused kernel whose log-sum-exp
also gives the entropy, in memory linear in L.

Shape suffixes: B batch, L tokens, D width, H heads, K = D/H width of one head.
"""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from tql_offline.networks import cpu_kernels, kernels

triton_enabled = find_spec("triton") is not None
"""Whether the register kernel may be used; compile.py disables it where Triton cannot build it."""

if triton_enabled:
    from tql_offline.networks import triton_attention

LONG = 128
"""Beyond this many tokens no L×L matrix is formed (benchmarks/attention.py: times and memory)."""


def attention_with_entropy(
    q_BHLK: Float[Tensor, "B H L K"],
    k_BHLK: Float[Tensor, "B H L K"],
    v_BHLK: Float[Tensor, "B H L K"],
) -> tuple[Float[Tensor, "B H L K"], Float[Tensor, "B H L"]]:
    """Softmax attention with scale 1/√K and the entropy of each query's weights, in nats.

    `e_i = -Σ_j p_ij log p_ij`, at most ln L (TQL, arXiv 2602.01439). The weights are formed in
    full: this is the plain path.
    """
    log_p_BHLL = attention_log_weights(q_BHLK, k_BHLK)
    return log_p_BHLL.exp() @ v_BHLK, weights_entropy(log_p_BHLL)


def attention_log_weights(
    q_BHLK: Float[Tensor, "B H L K"], k_BHLK: Float[Tensor, "B H L K"]
) -> Float[Tensor, "B H L L"]:
    """Logarithm of each query's softmax weights, `log p_ij`, with scale 1/√K.

    They are at least float32 even if the products are bfloat16: the entropy is a sum of small
    terms.
    """
    scores = q_BHLK @ k_BHLK.mT * q_BHLK.shape[-1] ** -0.5
    return torch.log_softmax(at_least_float32(scores), dim=-1)


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 if it has fewer bits."""
    return x.float() if x.dtype.itemsize < 4 else x


def weights_entropy(log_p_BHLL: Float[Tensor, "B H L L"]) -> Float[Tensor, "B H L"]:
    """`-Σ_j p_ij log p_ij` in nats."""
    return -(log_p_BHLL.exp() * log_p_BHLL).sum(dim=-1)


def group_entropy(entropy_BHL: Float[Tensor, "B H L"]) -> Float[Tensor, "2"]:
    """Mean entropy over batch and heads of two token groups: the `[VALUE]` query, all others."""
    return torch.stack([entropy_BHL[..., 0].mean(), entropy_BHL[..., 1:].mean()])


def mix(
    qkv_BL3D: Float[Tensor, "B L 3D"], heads: int, return_entropy: bool
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "2"] | None]:
    """Attention over projected tokens and, on request, both token groups' mean entropy.

    Args:
        qkv_BL3D: queries, keys and values, concatenated.
        heads: H.
        return_entropy: whether to compute the second result.
    """
    if in_c(qkv_BL3D, 3, heads):
        mixed_BLD, entropy_BHL = cpu_kernels.Attention.apply(qkv_BL3D, 3, heads, return_entropy)
        return mixed_BLD, group_entropy(entropy_BHL) if return_entropy else None
    if in_registers(qkv_BL3D, 3, heads):
        mixed_BLD, entropy_BHL, _ = triton_attention.attend(as_products_take(qkv_BL3D), 3, heads)
        return mixed_BLD, group_entropy(entropy_BHL) if return_entropy else None
    q, k, v = (split_heads(part, heads) for part in qkv_BL3D.chunk(3, dim=-1))
    entropy = None
    if not return_entropy:
        mixed_BHLK = functional.scaled_dot_product_attention(q, k, v)
    elif qkv_BL3D.shape[1] <= LONG:
        mixed_BHLK, entropy_BHL = attention_with_entropy(q, k, v)
        entropy = group_entropy(entropy_BHL)
    else:
        mixed_BHLK = functional.scaled_dot_product_attention(q, k, v)
        entropy = group_entropy(LongEntropy.apply(q, k))
    return mixed_BHLK.transpose(1, 2).flatten(2), entropy


def value_weights(
    qk_BL2D: Float[Tensor, "B L 2D"], heads: int
) -> tuple[Float[Tensor, "B H L"], Float[Tensor, "2"]]:
    """The `[VALUE]` query's weights, and both token groups' mean entropy.

    Args:
        qk_BL2D: queries and keys, concatenated.
        heads: H.
    """
    if in_c(qk_BL2D, 2, heads):
        p_BHL, entropy_BHL = cpu_kernels.Attention.apply(qk_BL2D, 2, heads, True)
        return p_BHL, group_entropy(entropy_BHL)
    if in_registers(qk_BL2D, 2, heads):
        p_BHL, entropy_BHL, _ = triton_attention.attend(as_products_take(qk_BL2D), 2, heads)
        return p_BHL, group_entropy(entropy_BHL)
    q, k = (split_heads(part, heads) for part in qk_BL2D.chunk(2, dim=-1))
    if qk_BL2D.shape[1] <= LONG:
        log_p_BHLL = attention_log_weights(q, k)
        return log_p_BHLL[:, :, 0].exp(), group_entropy(weights_entropy(log_p_BHLL))
    p_BH1L = attention_log_weights(q[:, :, :1], k).exp()
    return p_BH1L.squeeze(2), group_entropy(LongEntropy.apply(q, k))


def in_c(joint: Tensor, parts: int, heads: int) -> bool:
    """Whether the C kernel applies: few tokens on a CPU, in float32."""
    return kernels.by_hand(joint) and cpu_kernels.takes_attention(joint, parts, heads)


def in_registers(qkv: Tensor, parts: int, heads: int) -> bool:
    """Whether the register kernel applies: few tokens, tensor-core precision, a known width."""
    if not (kernels.enabled and triton_enabled and qkv.is_cuda and qkv.shape[1] <= LONG):
        return False
    if not torch.compiler.is_compiling() and kernels.is_transformed():
        return False  # its backward pass has no derivative
    low = torch.is_autocast_enabled("cuda") or torch.backends.cuda.matmul.allow_tf32
    known = qkv.dtype in (torch.float32, torch.bfloat16)
    return low and known and qkv.shape[2] // parts // heads in (16, 32, 64, 128)


def as_products_take(x: Tensor) -> Tensor:
    """Make x contiguous, in the dtype of the products around it."""
    if torch.is_autocast_enabled("cuda"):
        x = x.to(torch.get_autocast_dtype("cuda"))
    return x.contiguous()


def split_heads(x_BLD: Float[Tensor, "B L D"], heads: int) -> Float[Tensor, "B H L K"]:
    """Cut the width into heads."""
    split: Tensor = x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


class LongEntropy(Function):
    """Entropy of each query's weights, `(B, H, L)` in nats, in memory linear in L.

    `e_i = lse_i - scale·q_i·m_i` with the log-sum-exp and `m_i = Σ_j p_ij k_j`, the attention
    applied to the keys as values: a fused kernel gives both. From
    `de_i/ds_ij = -scale·p_ij·q_i·(k_j - m_i)` it follows that the gradient is that of the attention
    to the keys for an incoming gradient of `-g_i·scale·q_i`: the kernel's own backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q_BHLK: Tensor, k_BHLK: Tensor) -> Tensor:
        """Attend to the keys."""
        scale = q_BHLK.shape[-1] ** -0.5
        mean_key, lse, *random = _fused_forward(q_BHLK, k_BHLK, scale)
        ctx.save_for_backward(q_BHLK, k_BHLK, mean_key, lse, *random)
        entropy: Tensor = lse[..., : q_BHLK.shape[2]] - scale * (q_BHLK * mean_key).sum(-1)
        return entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel's backward pass, without the values' gradient."""
        q_BHLK, *_ = ctx.saved_tensors
        scale = q_BHLK.shape[-1] ** -0.5
        incoming = -scale * gradients[0].unsqueeze(-1) * q_BHLK
        return _fused_backward(incoming.to(q_BHLK.dtype), *ctx.saved_tensors, scale=scale)


def _fused_forward(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Attention with the keys as values, its log-sum-exp, and what else the backward pass needs."""
    aten: Any = torch.ops.aten
    if q.device.type == "cpu":
        result = aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, scale=scale)
    else:
        result = aten._scaled_dot_product_efficient_attention(q, k, k, None, True, scale=scale)
    return tuple(result)


def _fused_backward(
    incoming: Tensor, q: Tensor, k: Tensor, out: Tensor, lse: Tensor, *random: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    aten: Any = torch.ops.aten
    if q.device.type == "cpu":
        dq, dk, _ = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            incoming, q, k, k, out, lse, 0.0, False, scale=scale
        )
    else:
        wanted = [True, True, False, False]
        dq, dk, *_ = aten._scaled_dot_product_efficient_attention_backward(
            incoming, q, k, k, None, out, lse, *random, 0.0, wanted, scale=scale
        )
    return dq, dk
