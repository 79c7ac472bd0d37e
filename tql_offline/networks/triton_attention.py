"""Attention of few tokens in one GPU kernel per head: values, entropies and their gradients.

With tens of tokens a head's whole L×L matrix fits into registers, so the kernel forms it there,
reads queries, keys and values once, and writes the mixed values and the entropies; nothing L×L
reaches memory, and the backward pass recomputes the weights from each query's log-sum-exp. Products
are in the input's dtype (bfloat16, or float32 with the precision PyTorch is set to), sums in
float32. Tests compare it with the plain path on a GPU or, without one, in Triton's interpreter.

Shape suffixes: B batch, L tokens, D width, H heads, K = D/H width of one head.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _weights(
    base,
    row,
    length,
    width,
    scale,
    L_UP: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A head's queries, keys and scores; keys beyond the last token have scores of -inf."""
    rows, columns = tl.arange(0, L_UP), tl.arange(0, K)
    at = rows[:, None] * row + columns[None, :]
    q = tl.load(base + at, mask=rows[:, None] < length, other=0.0)
    k = tl.load(base + width + at, mask=rows[:, None] < length, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    return q, k, tl.where(rows[None, :] < length, scores, float("-inf"))


@triton.jit
def _forward_kernel(
    qkv,
    result,
    entropy,
    lse,
    length,
    heads,
    scale,
    PARTS: tl.constexpr,
    L_UP: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    width, rows, columns = heads * K, tl.arange(0, L_UP), tl.arange(0, K)
    inside = rows < length
    row = PARTS * width
    base = qkv + program // heads * length * row + program % heads * K
    _, _, scores = _weights(base, row, length, width, scale, L_UP, K, PRECISION)
    most = tl.max(scores, 1)
    log_z = most + tl.log(tl.sum(tl.exp(scores - most[:, None]), 1))
    log_p = tl.where(inside[None, :], scores - log_z[:, None], 0.0)
    p = tl.where(inside[None, :], tl.exp(log_p), 0.0)
    tl.store(entropy + program * length + rows, -tl.sum(p * log_p, 1), mask=inside)
    tl.store(lse + program * length + rows, log_z, mask=inside)
    if PARTS == 3:
        at = rows[:, None] * row + columns[None, :]
        v = tl.load(base + 2 * width + at, mask=inside[:, None], other=0.0)
        mixed = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        out = result + program // heads * length * width + program % heads * K
        at = rows[:, None] * width + columns[None, :]
        tl.store(out + at, mixed.to(v.dtype), mask=inside[:, None])
    else:
        first = tl.sum(tl.where(rows[:, None] == 0, p, 0.0), 0)
        tl.store(result + program * length + rows, first, mask=inside)


@triton.jit
def _backward_kernel(
    qkv,
    lse,
    d_result,
    d_entropy,
    dqkv,
    length,
    heads,
    scale,
    PARTS: tl.constexpr,
    ENTROPY: tl.constexpr,
    L_UP: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`ds_ij = p_ij·(dp_ij - Σ_j p_ij dp_ij - g_i·(log p_ij + e_i))`, g the entropies' gradient."""
    program = tl.program_id(0).to(tl.int64)
    width, rows, columns = heads * K, tl.arange(0, L_UP), tl.arange(0, K)
    inside = rows < length
    row = PARTS * width
    start = program // heads * length * row + program % heads * K
    at = rows[:, None] * row + columns[None, :]
    q, k, scores = _weights(qkv + start, row, length, width, scale, L_UP, K, PRECISION)
    log_z = tl.load(lse + program * length + rows, mask=inside, other=0.0)
    within = inside[:, None] & inside[None, :]
    log_p = tl.where(within, scores - log_z[:, None], 0.0)
    p = tl.where(within, tl.exp(log_p), 0.0)
    if PARTS == 3:
        v = tl.load(qkv + start + 2 * width + at, mask=inside[:, None], other=0.0)
        out = program // heads * length * width + program % heads * K
        out_at = rows[:, None] * width + columns[None, :]
        do = tl.load(d_result + out + out_at, mask=inside[:, None], other=0.0).to(v.dtype)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        dv = tl.dot(tl.trans(p).to(v.dtype), do, input_precision=PRECISION)
        tl.store(dqkv + start + 2 * width + at, dv.to(v.dtype), mask=inside[:, None])
    else:
        first = tl.load(d_result + program * length + rows, mask=inside, other=0.0)
        dp = tl.where(rows[:, None] == 0, first[None, :], 0.0)
    ds = dp - tl.sum(p * dp, 1)[:, None]
    if ENTROPY:
        de = tl.load(d_entropy + program * length + rows, mask=inside, other=0.0)
        ds -= de[:, None] * (log_p - tl.sum(p * log_p, 1)[:, None])
    ds = (ds * p * scale).to(q.dtype)
    dq = tl.dot(ds, k, input_precision=PRECISION)
    dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION)
    tl.store(dqkv + start + at, dq.to(q.dtype), mask=inside[:, None])
    tl.store(dqkv + start + width + at, dk.to(q.dtype), mask=inside[:, None])


def _launch(kernel: Any, qkv: Tensor, parts: int, heads: int, *tensors: Any, **flags: bool) -> None:
    """Run a kernel for every head of every item of the batch."""
    batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // parts
    up, head_width = max(16, triton.next_power_of_2(length)), width // heads
    kernel[(batch * heads,)](
        *tensors,
        length,
        heads,
        head_width**-0.5,
        PARTS=parts,
        L_UP=up,
        K=head_width,
        PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        num_warps=4 if up <= 64 else 8,
        **flags,
    )


@torch.library.custom_op("tql_offline::attend", mutates_args=())
def attend(qkv: Tensor, parts: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over concatenated queries, keys and (if `parts` is 3, not 2) values.

    Args:
        qkv: `(B, L, parts·D)`, contiguous.
        parts: 3, or 2 to get the first query's weights instead of the mixed values.
        heads: H.

    Returns:
        The mixed values `(B, L, D)`, or weights `p_0j (B, H, L)`; entropies `(B, H, L)` in nats;
        and each query's log-sum-exp `(B, H, L)`.
    """
    result, entropy, lse = _empty_results(qkv, parts, heads)
    _launch(_forward_kernel, qkv, parts, heads, qkv, result, entropy, lse)
    return result, entropy, lse


def _empty_results(qkv: Tensor, parts: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // parts
    entropy, lse, first = (
        qkv.new_empty(batch, heads, length, dtype=torch.float32) for _ in range(3)
    )
    return (qkv.new_empty(batch, length, width) if parts == 3 else first), entropy, lse


@torch.library.custom_op("tql_offline::attend_backward", mutates_args=())
def attend_backward(
    qkv: Tensor,
    parts: int,
    heads: int,
    lse: Tensor,
    d_result: Tensor,
    d_entropy: Tensor | None,
) -> Tensor:
    """Gradient of `qkv`, given those of `attend`'s first two results."""
    dqkv = torch.empty_like(qkv)
    given = lse if d_entropy is None else d_entropy.contiguous()
    tensors = (qkv, lse, d_result.contiguous(), given, dqkv)
    entropy = d_entropy is not None
    _launch(_backward_kernel, qkv, parts, heads, *tensors, ENTROPY=entropy)
    return dqkv


@attend.register_fake
def _(qkv: Tensor, parts: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(qkv, parts, heads)


@attend_backward.register_fake
def _(
    qkv: Tensor,
    parts: int,
    heads: int,
    lse: Tensor,
    d_result: Tensor,
    d_entropy: Tensor | None,
) -> Tensor:
    return torch.empty_like(qkv)


def _keep(ctx: Any, inputs: tuple[Tensor, int, int], output: tuple[Tensor, ...]) -> None:
    qkv, ctx.parts, ctx.heads = inputs
    ctx.save_for_backward(qkv, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
    d_result, d_entropy, _ = gradients
    qkv, lse = ctx.saved_tensors
    if d_result is None:
        d_result = torch.zeros_like(_empty_results(qkv, ctx.parts, ctx.heads)[0])
    return attend_backward(qkv, ctx.parts, ctx.heads, lse, d_result, d_entropy), None, None


attend.register_autograd(_backward, setup_context=_keep)
