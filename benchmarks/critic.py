"""What the exact savings of the transformer critic spare, and plain against fused attention.

    python benchmarks/critic.py

Ratios of medians, the two sides in turn in one run: forward and backward with entropy of the plain
path over the fast one, forward multiply-adds of the fast path over the plain one's (PyTorch's
counter), and on a CPU forward time of the fused attention kernel over plain products.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tql_offline.networks import TransformerCritic

BATCH, OBSERVATION_DIM, ACTION_DIM = 256, 37, 5
ROUNDS, WARM_UP = 10, 3


def time_ratio(slow: Callable[[], object], fast: Callable[[], object]) -> float:
    """Median time of `slow` over that of `fast`, run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + WARM_UP):
        for function, spent in zip((slow, fast), times, strict=True):
            started = time.perf_counter()
            function()
            spent.append(time.perf_counter() - started)
    return statistics.median(times[0][WARM_UP:]) / statistics.median(times[1][WARM_UP:])


def count(forward: Callable[[], object]) -> int:
    """Multiply-adds of a forward pass, twice over."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return int(counter.get_total_flops())


def compare_paths(size: str) -> str:
    """One line on the fast against the plain path at a size."""
    critic = TransformerCritic.of_size(size, OBSERVATION_DIM, ACTION_DIM)
    inputs = torch.randn(BATCH, OBSERVATION_DIM), torch.rand(BATCH, ACTION_DIM)

    def backward(pair: tuple[Tensor, Tensor]) -> None:
        (pair[0].mean() + pair[1].mean()).backward()

    speed = time_ratio(
        lambda: backward(critic.forward_plain(*inputs)),
        lambda: backward(critic(*inputs, return_entropy=True)),
    )
    plain = count(lambda: critic.forward_plain(*inputs))
    with_entropy = count(lambda: critic(*inputs, return_entropy=True)) / plain
    without = count(lambda: critic(*inputs)) / plain
    return (
        f"{size:>7}  plain/fast time {speed:.2f}  multiply-adds fast/plain "
        f"{with_entropy:.3f} with entropy, {without:.3f} without"
    )


def compare_attention(batch: int, heads: int, tokens: int) -> str:
    """One line on the fused kernel against plain products."""
    q, k, v = (torch.randn(batch, tokens, heads, 32).transpose(1, 2) for _ in range(3))
    ratio = time_ratio(
        lambda: functional.scaled_dot_product_attention(q, k, v),
        lambda: torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v,
    )
    return f"attention {batch}×{heads}×{tokens}: fused/plain forward time {ratio:.2f}"


def main() -> None:
    """Print all lines."""
    for size in ("small", "medium"):
        print(compare_paths(size), flush=True)
    for shape in ((256, 2, 5), (256, 4, 43), (32, 4, 512)):
        print(compare_attention(*shape), flush=True)


if __name__ == "__main__":
    main()
