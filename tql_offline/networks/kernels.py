"""The critic's costly operations with hand-written backward passes, for eager PyTorch on a CPU.

Each computes the plain expression in its docstring one slice of the batch at a time, so that what
one pass writes is still in the cache when the next one reads it, and keeps only what the backward
pass needs. Where available, C kernels do the passes over a slice (cpu_kernels.py). `torch.compile`
and GPUs fuse the plain expressions themselves. Tests compare the three, gradients included.

Shape suffixes: B batch, L tokens, D width, R rows (all leading dims flattened), F = 4D hidden
width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from tql_offline.networks import cpu_kernels
from tql_offline.networks.double_backward import twice_differentiable

ROWS = 1024
"""Rows of a slice of an MLP: of 4·128 float32 they are 2 MiB, about the caches of two cores."""

NUMBERS = 2**17
"""Numbers in a slice of the first projection: 0.5 MiB of float32."""

# gelu(x) = x·σ(w) in its tanh form, with w = x·(LINEAR + CUBIC·x²): a sigmoid costs a third of a
# tanh (docs/log.md).
LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = LINEAR * 0.044715


enabled = True
"""If False, PyTorch's own operations are used instead; see `turned_off`."""


@contextmanager
def turned_off(module: ModuleType) -> Iterator[None]:
    """Turn off this module's kernels, or only those in C (`cpu_kernels`), within the block."""
    before = module.enabled
    module.enabled = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.enabled = before  # type: ignore[attr-defined]


def by_hand(x: Tensor) -> bool:
    """Whether to use this module's kernels: on a CPU, outside `torch.compile`, without autocast.

    Nor under `torch.func`'s transforms (`vmap`, `grad`), which see through PyTorch's own operations
    alone.
    """
    on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return enabled and on_cpu and not torch.is_autocast_enabled("cpu") and not is_transformed()


# PyTorch has no public name for whether `torch.func` transforms what is computed.
is_transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


class AlignedLinear(nn.Linear):
    """A linear layer that on a GPU is as fast with 43 inputs as with 48.

    Tensor cores need row lengths that are multiples of 8; others go to kernels four times slower
    (docs/speed.md). The padding zeros change no result.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`W·x + b`."""
        inputs, outputs = -self.in_features % 8, -self.out_features % 8
        if not (x.is_cuda and enabled and (inputs or outputs)):
            return super().forward(x)
        weight = functional.pad(self.weight, (0, inputs, 0, outputs))
        bias = functional.pad(self.bias, (0, outputs))
        y = functional.linear(functional.pad(x, (0, inputs)), weight, bias)
        return y[..., : self.out_features]


def gelu(x_RF: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Write `gelu(x + bias)` to `out`."""
    if cpu_kernels.takes(x_RF, bias, out):
        return cpu_kernels.gelu(x_RF, bias, out)
    x_RF = x_RF + bias
    return gelu_gate(x_RF, out=out).mul_(x_RF)


def gelu_backward(x_RF: Tensor, bias: Tensor, gradient: Tensor) -> Tensor:
    """Multiply the gradient by `gelu'(x + bias)` in place; return `gelu(x + bias)`."""
    if cpu_kernels.takes(x_RF, bias, gradient):
        return cpu_kernels.gelu_backward(x_RF, bias, gradient, torch.empty_like(x_RF))
    x_RF = x_RF + bias
    gate = gelu_gate(x_RF)
    activated = x_RF * gate
    gradient.mul_(gelu_slope(x_RF, gate, activated))
    return activated


def gelu_gate(x: Tensor, out: Tensor | None = None) -> Tensor:
    """`σ(x·(LINEAR + CUBIC·x²))`, the factor by which GELU's tanh form multiplies x."""
    out = torch.mul(x, x, out=out)
    return out.mul_(CUBIC).add_(LINEAR).mul_(x).sigmoid_()


def gelu_slope(x: Tensor, gate: Tensor, activated: Tensor) -> Tensor:
    """GELU's derivative `σ + x·σ·(1-σ)·(LINEAR + 3·CUBIC·x²)`, given σ and x·σ."""
    slope = (x * x).mul_(3 * CUBIC).add_(LINEAR).mul_(activated)
    return slope.addcmul_(slope, gate, value=-1).add_(gate)


class Gelu(Function):
    """`gelu(x)` in its tanh form."""

    @staticmethod
    def plain(x: Tensor) -> Tensor:
        """The same in PyTorch's operations."""
        return functional.gelu(x, approximate="tanh")

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Activate, keeping x for the backward pass."""
        ctx.save_for_backward(x)
        return Gelu.without_gradient(x)

    @staticmethod
    def without_gradient(x: Tensor) -> Tensor:
        """The same numbers; on a policy's few rows a `Function` costs more than the arithmetic."""
        x_RF = x.reshape(-1, x.shape[-1])
        return gelu(x_RF, x.new_zeros(x.shape[-1]), torch.empty_like(x_RF)).view(x.shape)

    @staticmethod
    @twice_differentiable(lambda ctx: (Gelu.plain, ctx.saved_tensors))
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Multiply by the slope."""
        (x,) = ctx.saved_tensors
        dx = gradients[0].clone(memory_format=torch.contiguous_format)
        rows = (-1, x.shape[-1])
        gelu_backward(x.reshape(rows), x.new_zeros(x.shape[-1]), dx.view(rows))
        return dx


class FeedForward(Function):
    """`W2·gelu(W1·x + b1) + b2` for rows `(R, D)`; weights are laid out as in `nn.Linear`."""

    @staticmethod
    def plain(x_RD: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        """The same in PyTorch's operations."""
        return functional.linear(Gelu.plain(functional.linear(x_RD, w1, b1)), w2, b2)

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, keep: bool
    ) -> Tensor:
        """Go through slices of rows; `keep` keeps the hidden layer before bias and activation."""
        y_RD = torch.empty_like(x_RD)
        kept_RF = x_RD.new_empty(len(x_RD) if keep else 0, len(w1))
        buffers = x_RD.new_empty(2, min(ROWS, len(x_RD)), len(w1))
        for start, (x, y) in enumerate(zip(x_RD.split(ROWS), y_RD.split(ROWS), strict=True)):
            scratch, activated = buffers[:, : len(x)]
            hidden = kept_RF[start * ROWS :][:ROWS] if keep else scratch
            torch.mm(x, w1.T, out=hidden)
            torch.mm(gelu(hidden, b1, activated), w2.T, out=y).add_(b2)
        ctx.save_for_backward(x_RD, w1, b1, w2, b2, kept_RF)
        return y_RD

    @staticmethod
    @twice_differentiable(lambda ctx: (FeedForward.plain, ctx.saved_tensors[:5]))
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Go through slices of rows, summing the weights' gradients over slices in order."""
        x_RD, w1, b1, w2, _, kept_RF = ctx.saved_tensors
        grads = tuple(map(torch.zeros_like, (w1, w1[:, 0], w2, w2[:, 0])))
        dx_RD = torch.empty_like(x_RD)
        learns = any(ctx.needs_input_grad[1:5])
        every = (gradients[0], x_RD, kept_RF, dx_RD)
        for dy, x, hidden, dx in zip(*(t.split(ROWS) for t in every), strict=True):
            dhidden = dy @ w2
            activated = gelu_backward(hidden, b1, dhidden)
            torch.mm(dhidden, w1, out=dx)
            if learns:
                _accumulate(grads, (dhidden, x), (dy, activated))
        return (dx_RD, *(grads if learns else (None,) * 4), None)


def _accumulate(grads: tuple[Tensor, ...], *layers: tuple[Tensor, Tensor]) -> None:
    """Add a slice's share to the gradients of each layer's weight and bias, given its (dy, x)."""
    for (weight, bias), (dy, x) in zip((grads[:2], grads[2:]), layers, strict=True):
        torch.addmm(weight, dy.T, x, out=weight)
        bias.add_(dy.sum(0))


class AffineProjection(Function):
    """`a_bl·P_l + r_bl·R_l + S` for `a, r (B, L)`, `P, R (L, C)`, `S (C,)`: `(B, L, C)`."""

    @staticmethod
    def plain(a: Tensor, r: Tensor, p: Tensor, q: Tensor, shift: Tensor) -> Tensor:
        """The same in PyTorch's operations."""
        return a.unsqueeze(-1) * p + r.unsqueeze(-1) * q + shift

    @staticmethod
    def forward(ctx: Any, a: Tensor, r: Tensor, p: Tensor, q: Tensor, shift: Tensor) -> Tensor:
        """Make two passes over slices of the result."""
        ctx.save_for_backward(a, r, p, q, shift)
        result = a.new_empty(*a.shape, len(shift))
        if cpu_kernels.takes(p, q, shift, a, r):
            return cpu_kernels.affine(a, r, p, q, shift, result)
        size = max(1, NUMBERS // result[0].numel())
        for a_BL1, r_BL1, y in zip(
            a.unsqueeze(-1).split(size),
            r.unsqueeze(-1).split(size),
            result.split(size),
            strict=True,
        ):
            torch.addcmul(shift, r_BL1, q, out=y)
            y.addcmul_(a_BL1, p)
        return result

    @staticmethod
    @twice_differentiable(lambda ctx: (AffineProjection.plain, ctx.saved_tensors))
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Two skinny products per token instead of sums over products as large as the result."""
        a, r, p, q, _ = ctx.saved_tensors
        learns = any(ctx.needs_input_grad[2:])
        if cpu_kernels.takes(p, q, gradients[0], a, r):
            return cpu_kernels.affine_backward(gradients[0], a, r, p, q, learns)
        dy_LBC = gradients[0].transpose(0, 1)
        da, dr = (dy_LBC @ torch.stack([p, q], dim=-1)).permute(2, 1, 0)
        if not learns:
            return da, dr, None, None, None
        weights_L3B = torch.stack([a, r, torch.ones_like(a)]).permute(2, 0, 1)
        dp, dq, dshift = (weights_L3B @ dy_LBC).unbind(1)
        return da, dr, dp, dq, dshift.sum(0)
