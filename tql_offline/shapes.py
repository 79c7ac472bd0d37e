"""Operations on tensors without numbers, in a fraction of PyTorch's time for them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


Mode = TypeVar("Mode", bound=type[TorchDispatchMode])


def without_compiler(mode: Mode) -> Mode:
    """Free a mode of the decorator that keeps `torch.compile` out of it, and imports it."""
    mode.__torch_dispatch__ = inspect.unwrap(mode.__torch_dispatch__)  # type: ignore[method-assign]
    return mode


@without_compiler
class ShapesAtOnce(TorchDispatchMode):
    """Gives the results of operations on `meta` that networks use, without working them out.

    PyTorch derives many shapes on `meta` by decompositions in Python, which take 0.3 to 7 ms each,
    and import its compiler (2.5 s). Operations that are not in `RESULTS`, cases that a function
    there leaves to PyTorch, and all operations on other devices are PyTorch's own.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operation's result: the only thing that PyTorch asks of a mode."""
        given = kwargs or {}
        if func in RESULTS and _is_meta(args[0], given.get("device")):
            result = RESULTS[func](*args, **given)
            if result is not NotImplemented:
                return result
        return func(*args, **given)


def _is_meta(first: Any, device: torch.device | None) -> bool:
    """Of an operation's first argument (a tensor, several, or a shape) and device."""
    if isinstance(first, Sequence) and first:
        first = first[0]
    if isinstance(first, Tensor):
        return first.is_meta
    return device is not None and device.type == "meta"


def _itself(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    """Of an operation in place."""
    return tensor


def _like_first(tensor: Tensor, *others: Any, **options: Any) -> Any:
    """Whole numbers, of which some operations make others, are left to PyTorch."""
    if not tensor.is_floating_point():
        return NotImplemented
    given = (value for value in (*others, *options.values()) if isinstance(value, torch.dtype))
    return torch.empty_like(tensor, dtype=next(given, None))


def _broadcast(*tensors: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
    """Of an element-wise operation on tensors and numbers; an argument left out is None."""
    first, second = [tensor for tensor in tensors if tensor is not None][:2]
    kind = dtype or torch.result_type(first, second)
    shapes = [tensor.shape for tensor in tensors if isinstance(tensor, Tensor)]
    if not (dtype or kind.is_floating_point):
        return NotImplemented
    return tensors[0].new_empty(torch.broadcast_shapes(*shapes), dtype=kind)


def _compared(first: Tensor, second: Any) -> Any:
    return _broadcast(first, second, dtype=torch.bool)


def _chosen(condition: Tensor, first: Tensor, second: Tensor) -> Any:
    both = _broadcast(first, second)
    return both if both is NotImplemented else _broadcast(both, both, condition)


def _reduced(
    tensor: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, **options: Any
) -> Any:
    """Over some dims, or over all."""
    if not tensor.is_floating_point() or options.get("dtype"):
        return NotImplemented
    over = {dim % max(tensor.ndim, 1) for dim in dims or range(tensor.ndim)}
    left = [1 if i in over else n for i, n in enumerate(tensor.shape) if keepdim or i not in over]
    return tensor.new_empty(left)


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    """Of tensors of one type that differ along one dim alone."""
    first, dim = tensors[0], dim % max(tensors[0].ndim, 1)
    others = {(*t.shape[:dim], *t.shape[dim + 1 :], t.dtype) for t in tensors}
    if len(others) > 1 or not first.ndim:
        return NotImplemented
    together = sum(t.shape[dim] for t in tensors)
    return first.new_empty(*first.shape[:dim], together, *first.shape[dim + 1 :])


def _stacked(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    first = tensors[0]
    if any((t.shape, t.dtype) != (first.shape, first.dtype) for t in tensors):
        return NotImplemented
    dim %= first.ndim + 1
    return first.new_empty(*first.shape[:dim], len(tensors), *first.shape[dim:])


def _product(bias: Tensor, first: Tensor, second: Tensor, **_: Any) -> Any:
    shape = (first.shape[0], second.shape[1])
    if first.shape[1] != second.shape[0] or torch.broadcast_shapes(bias.shape, shape) != shape:
        return NotImplemented
    return first.new_empty(shape)


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


def _drawn(shape: Sequence[int], *, device: torch.device, **options: Any) -> Tensor:
    return torch.empty(shape, device=device, dtype=options.get("dtype"))


RESULTS: Mapping[Any, Callable[..., Any]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.addmm.default: _product,
    aten.cat.default: _joined,
    aten.randn.generator: _drawn,
    aten.stack.default: _stacked,
    aten.where.self: _chosen,
    **dict.fromkeys(
        (
            aten.abs_.default,
            aten.add_.Tensor,
            aten.addcdiv_.default,
            aten.addcmul_.default,
            aten.clamp_min_.default,
            aten.div_.Tensor,
            aten.lerp_.Scalar,
            aten.mul_.Tensor,
            aten.neg_.default,
            aten.normal_.default,
            aten.uniform_.default,
        ),
        _itself,
    ),
    **dict.fromkeys(
        (
            aten._log_softmax.default,
            aten._log_softmax_backward_data.default,
            aten._safe_softmax.default,
            aten._softmax_backward_data.default,
            aten.abs.default,
            aten.clamp.default,
            aten.clamp_min.default,
            aten.cos.default,
            aten.div.Scalar,
            aten.erf.default,
            aten.exp.default,
            aten.gelu.default,
            aten.gelu_backward.default,
            aten.log.default,
            aten.mul.Scalar,
            aten.neg.default,
            aten.pow.Tensor_Scalar,
            aten.relu.default,
            aten.rsqrt.default,
            aten.rsub.Scalar,
            aten.softplus.default,
            aten.softplus_backward.default,
            aten.sqrt.default,
            aten.tanh.default,
            aten.tanh_backward.default,
            aten.threshold_backward.default,
            aten.zeros_like.default,
        ),
        _like_first,
    ),
    **dict.fromkeys(
        (
            aten.add.Tensor,
            aten.clamp.Tensor,
            aten.div.Tensor,
            aten.maximum.default,
            aten.mul.Tensor,
            aten.sub.Tensor,
        ),
        _broadcast,
    ),
    **dict.fromkeys(
        (
            aten.eq.Tensor,
            aten.ge.Scalar,
            aten.gt.Tensor,
            aten.le.Scalar,
            aten.lt.Scalar,
            aten.lt.Tensor,
        ),
        _compared,
    ),
    **dict.fromkeys(
        (
            aten.logsumexp.default,
            aten.mean.default,
            aten.mean.dim,
            aten.std.correction,
            aten.sum.dim_IntList,
        ),
        _reduced,
    ),
}
