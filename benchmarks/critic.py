"""What the exact savings of the transformer critic and its hand-written passes spare.

    python benchmarks/critic.py

Ratios of medians, the two sides in turn in one run: forward and backward with entropy of the plain
path over the fast one, that of the savings with PyTorch's operations over the fast one, and forward
multiply-adds of the fast path over the plain one's (PyTorch's counter).
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tql_offline.bench.ours import pytorch_operations
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

    def savings_alone() -> None:
        with pytorch_operations():
            backward(critic(*inputs, return_entropy=True))

    speed = time_ratio(
        lambda: backward(critic.forward_plain(*inputs)),
        lambda: backward(critic(*inputs, return_entropy=True)),
    )
    by_hand = time_ratio(savings_alone, lambda: backward(critic(*inputs, return_entropy=True)))
    plain = count(lambda: critic.forward_plain(*inputs))
    with_entropy = count(lambda: critic(*inputs, return_entropy=True)) / plain
    without = count(lambda: critic(*inputs)) / plain
    return (
        f"{size:>7}  plain/fast time {speed:.2f}, without passes by hand {by_hand:.2f}  "
        f"multiply-adds fast/plain {with_entropy:.3f} with entropy, {without:.3f} without"
    )


def main() -> None:
    """Print all lines."""
    for size in ("small", "medium"):
        print(compare_paths(size), flush=True)


if __name__ == "__main__":
    main()
