"""The kernels of cpu_kernels.c: attention, GELU and the first projection on a CPU, in float32.

They are compiled on first use (`native`). Without gcc, on CPUs without AVX2, for other dtypes and
shapes, and under a dispatch mode (one that counts operations, say), callers use PyTorch's
operations instead: the same numbers up to rounding.
"""

import ctypes
import platform
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from tql_offline import native
from tql_offline.networks.double_backward import twice_differentiable

SOURCE = Path(__file__).with_name("cpu_kernels.c")
FLAGS = ("-mavx2", "-mfma")
LANES, MOST_TOKENS, MOST_WIDTH = 8, 128, 64
"""As in the C source: floats per vector, and how large a head may be."""

enabled = True
"""If False, PyTorch's operations are used instead; see `kernels.turned_off`."""


@cache
def has_vectors() -> bool:
    """Whether the CPU has the vector instructions that the kernels need."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def can_exist() -> bool:
    """Whether the kernels can be compiled for this system and CPU at all."""
    return platform.system() != "Windows" and has_vectors()


def why_not() -> str:
    """The reason why the kernels are not available, or ""; compiles them if needed."""
    library = _library()
    return str(library) if isinstance(library, native.UnavailableError) else ""


def usable() -> bool:
    """Whether the kernels are available and not turned off."""
    return enabled and not why_not()


def takes(first: Tensor, *others: Tensor) -> bool:
    """Whether the kernels accept these tensors: plain, the first with rows of whole vectors."""
    return (
        usable()
        and first.shape[-1] % LANES == 0
        and all(map(_is_plain, (first, *others)))
        and _MODES() == 0
        and _EARLY_MODES() == 0
    )


def takes_attention(joint: Tensor, parts: int, heads: int) -> bool:
    """Whether the kernels accept attention over `joint (B, L, parts·D)`."""
    length, width = joint.shape[1], joint.shape[2] // (parts * heads)
    fit = length <= MOST_TOKENS and width <= MOST_WIDTH and width % LANES == 0
    return fit and joint.shape[2] == parts * heads * width > 0 and takes(joint)


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor's memory is its value: contiguous float32, no subclass, not lazy."""
    return (
        type(x) in (Tensor, Parameter)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.is_contiguous()
        and not x.is_neg()
        and not x._is_zerotensor()
    )


# The number of active dispatch modes, for which PyTorch has no public name. If it is unknown, the
# kernels accept nothing.
_MODES = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_EARLY_MODES = getattr(torch._ops, "_len_torch_dispatch_stack_pre_dispatch", lambda: 0)


class Attention(Function):
    """Softmax attention over queries, keys and, optionally, values, `joint (B, L, parts·D)`.

    Returns, for three parts, the mixed values `(B, L, D)`; for two, the first query's weights
    `(B, H, L)`; and with `return_entropy` the entropy of each query's weights `(B, H, L)` in nats,
    otherwise an empty tensor. Keeps no weights: the backward pass recomputes them.
    """

    @staticmethod
    def plain(joint: Tensor, sizes: Sequence[int], return_entropy: bool) -> tuple[Tensor, Tensor]:
        """The same in PyTorch's operations."""
        from tql_offline.networks import attention  # which imports this module

        *_, heads, _, parts = sizes
        q, k, *v = (attention.split_heads(part, heads) for part in joint.chunk(parts, dim=-1))
        log_p = attention.attention_log_weights(q, k)
        p = log_p.exp()
        out = (p @ v[0]).transpose(1, 2).flatten(2) if v else p[:, :, 0]
        return out, attention.weights_entropy(log_p) if return_entropy else log_p.new_empty(0)

    @staticmethod
    def forward(
        ctx: Any, joint: Tensor, parts: int, heads: int, return_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Attend, one head at a time."""
        batch, length, width = joint.shape
        shape = (batch, length, width // parts) if parts == 3 else (batch, heads, length)
        out, lse = joint.new_empty(shape), joint.new_empty(batch, heads, length)
        entropy = torch.empty_like(lse) if return_entropy else lse.new_empty(0)
        ctx.sizes = (batch, length, heads, width // parts // heads, parts)
        _call("attention_forward", ctx.sizes, joint, out, lse, entropy)
        ctx.save_for_backward(joint, lse, entropy)
        return out, entropy

    @staticmethod
    @twice_differentiable(lambda ctx: (Attention.expression(ctx), ctx.saved_tensors[:1]))
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """`ds_ij = p_ij·(dp_ij - Σ_j p_ij·dp_ij - g_i·(log p_ij + e_i))`, a head at a time."""
        joint, lse, entropy = (x.contiguous() for x in ctx.saved_tensors)
        given = [gradient.contiguous() for gradient in gradients]
        djoint = torch.empty_like(joint)
        _call("attention_backward", ctx.sizes, joint, lse, entropy, *given, djoint)
        return djoint, None, None, None

    @staticmethod
    def expression(ctx: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """`plain` of the queries, keys and values alone."""
        has_entropy = ctx.saved_tensors[2].numel() > 0
        return partial(Attention.plain, sizes=ctx.sizes, return_entropy=has_entropy)


def gelu(x_RF: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Write `gelu(x + bias)` to `out`."""
    _call("gelu_forward", x_RF.shape, x_RF, bias, out)
    return out


def gelu_backward(x_RF: Tensor, bias: Tensor, gradient: Tensor, out: Tensor) -> Tensor:
    """Multiply the gradient by `gelu'(x + bias)` in place; recompute `gelu(x + bias)` in `out`."""
    _call("gelu_backward", x_RF.shape, x_RF, bias, gradient, out)
    return out


def affine(a: Tensor, r: Tensor, p: Tensor, q: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """Write `a_bl·P_l + r_bl·R_l + S` to `out (B, L, C)`."""
    _call("affine_forward", out.shape, a, r, p, q, shift, out)
    return out


def affine_backward(
    dy: Tensor, a: Tensor, r: Tensor, p: Tensor, q: Tensor, learns: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of a and r and, if `learns`, of P, R and S."""
    da, dr = torch.empty_like(a), torch.empty_like(r)
    _call("affine_backward", dy.shape, dy, p, q, da, dr)
    if not learns:
        return da, dr, None, None, None
    dp, dq, dshift = (torch.empty_like(p) for _ in range(3))
    _call("affine_tables_backward", dy.shape, dy, a, r, dp, dq, dshift)
    return da, dr, dp, dq, dshift.sum(0)


def _call(name: str, sizes: Sequence[int], *tensors: Tensor) -> None:
    """Run a kernel on PyTorch's number of threads; an empty tensor is a null pointer."""
    library = _library()
    assert not isinstance(library, native.UnavailableError)
    pointers = (ctypes.c_void_p(x.data_ptr() if x.numel() else None) for x in tensors)
    threads = ctypes.c_int(torch.get_num_threads())
    getattr(library, name)(*map(ctypes.c_long, sizes), *pointers, threads)


def _library() -> ctypes.CDLL | native.UnavailableError:
    if not has_vectors():
        return native.UnavailableError("the CPU has no AVX2")
    return native.library(SOURCE, *FLAGS)
