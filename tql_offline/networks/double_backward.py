"""Second derivatives through backward passes that are written by hand.

PyTorch's `once_differentiable` would refuse them in `.backward()` but leave them out of
`torch.autograd.grad` without a word, and a gradient penalty would be wrong.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Backward = Callable[..., Any]
Plain = Callable[[Any], tuple[Callable[..., Any], Sequence[Tensor]]]


def twice_differentiable(plain: Plain) -> Callable[[Backward], Backward]:
    """Let a `Function`'s backward pass be differentiated, through its plain expression.

    Args:
        plain: gives, for a `ctx`, the expression in PyTorch's operations and the tensors that it
            takes, which are the first arguments of `forward`.
    """

    def decorate(backward: Backward) -> Backward:
        once = once_differentiable(backward)

        @wraps(backward)
        def either(ctx: Any, *gradients: Tensor) -> Any:
            if not torch.is_grad_enabled():  # it is with `create_graph=True` alone
                return once(ctx, *gradients)
            others = len(ctx.needs_input_grad)
            found = _through(*plain(ctx), gradients)
            return (*found, *[None] * (others - len(found)))

        return either

    return decorate


def _through(
    expression: Callable[..., Any], inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of an expression, each of which can be differentiated again."""
    # Aliases: an input may itself depend on another one, and that path is not the expression's.
    inputs = [x.view_as(x) for x in inputs]
    outputs = expression(*inputs)
    pairs = zip(outputs if isinstance(outputs, tuple) else (outputs,), gradients, strict=True)
    # An output that nothing depends on, such as an entropy that was not asked for, has none.
    used = [(y, dy) for y, dy in pairs if y.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in used],
            wanted,
            [dy for _, dy in used],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if x.requires_grad else None for x in inputs]
