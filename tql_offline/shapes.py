"""Operations on tensors without numbers, in a fraction of PyTorch's time for them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class ShapesAtOnce(TorchDispatchMode):
    """Gives the results of a network's commonest operations on `meta` without working them out.

    PyTorch derives a LayerNorm's, a GELU's or a sum's shape on `meta` by its Python decompositions,
    0.3 to 7 ms each, which come to three quarters of the time in which an update is counted. All
    other operations, and all on other devices, are PyTorch's. Enter it before a `FlopCounterMode`,
    which then sees every operation first.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operation's result: the only thing that PyTorch asks of a mode."""
        if func in RESULTS and args[0].is_meta:
            result = RESULTS[func](*args)  # no keyword of theirs changes a shape or type
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))


def _first(tensor: Tensor, *_: Any) -> Tensor:
    """Of an operation in place: the tensor itself."""
    return tensor


def _like_first(tensor: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(tensor)


def _of_both(first: Tensor, second: Any, *_: Any) -> Any:
    """An element-wise operation's, broadcast; whole numbers are left to PyTorch."""
    kind = torch.result_type(first, second)
    if not kind.is_floating_point:
        return NotImplemented
    shape = first.shape
    if isinstance(second, Tensor) and second.shape != shape:
        shape = torch.broadcast_shapes(shape, second.shape)
    return first.new_empty(shape, dtype=kind)


def _product(bias: Tensor, first: Tensor, second: Tensor) -> Any:
    if first.shape[1] != second.shape[0]:
        return NotImplemented  # PyTorch says what is wrong
    torch.broadcast_shapes(bias.shape, (first.shape[0], second.shape[1]))
    return first.new_empty(first.shape[0], second.shape[1])


def _layer_norm(inputs: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = (*inputs.shape[: -len(shape)], *(1 for _ in shape))
    return torch.empty_like(inputs), inputs.new_empty(rows), inputs.new_empty(rows)


def _layer_norm_backward(
    _gradient: Tensor,
    inputs: Tensor,
    _shape: Sequence[int],
    _mean: Tensor,
    _rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    each = zip((inputs, weight, bias), needed, strict=True)
    return [torch.empty_like(t) if t is not None and asked else None for t, asked in each]


RESULTS: Mapping[Any, Callable[..., Any]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.addmm.default: _product,
    **dict.fromkeys(
        (
            aten.gelu.default,
            aten.gelu_backward.default,
            aten.zeros_like.default,
            aten.mul.Scalar,
            aten.sqrt.default,
            aten.div.Scalar,
            aten.pow.Tensor_Scalar,
            aten.clamp.default,
        ),
        _like_first,
    ),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor), _of_both),
    **dict.fromkeys(
        (
            aten.add_.Tensor,
            aten.mul_.Tensor,
            aten.addcmul_.default,
            aten.addcdiv_.default,
            aten.lerp_.Scalar,
            aten.uniform_.default,
            aten.normal_.default,
        ),
        _first,
    ),
}
