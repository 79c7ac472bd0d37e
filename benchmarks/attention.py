"""Peak memory and time of attention with entropy: the plain form against the log-sum-exp form.

    python benchmarks/attention.py --out attention.json

Forward and backward of one layer of 4 heads of 32 (batch 2) for a loss of the mixed values and the
entropies. Memory is the most that is allocated at once beyond the inputs, counted operation by
operation; what a fused kernel allocates for itself is not seen (it is of a block's size).
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tql_offline.networks.attention import LongEntropy, attention_with_entropy
from tql_offline.training.device import pick_device
from tql_offline.training.provenance import device_name, git_commit, package_versions

BATCH, HEADS, WIDTH = 2, 4, 32
LENGTHS = (43, 512, 4096)
Form = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def linear(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A fused kernel for the values, and one for the entropy."""
    return functional.scaled_dot_product_attention(q, k, v), LongEntropy.apply(q, k)


class PeakBytes(TorchDispatchMode):
    """Counts bytes of storages made inside it and still alive; `most` is their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[Any, int]] = {}
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made_before = {t.untyped_storage()._cdata for t in tree_leaves(args) if torch.is_tensor(t)}
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in made_before:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (
                    StorageWeakRef(storage),
                    storage.nbytes(),
                )
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


def both_passes(form: Form, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward, and backward to the inputs."""
    mixed, entropy = form(*inputs)
    torch.autograd.grad(mixed.mean() + entropy.mean(), inputs)


def measure(form: Form, length: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Peak bytes and median seconds of both passes."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (BATCH, HEADS, length, WIDTH)
    q, k, v = (
        torch.randn(shape, generator=generator, device=device).requires_grad_() for _ in range(3)
    )
    with PeakBytes() as peak:
        both_passes(form, (q, k, v))
    times = []
    for _ in range(rounds):
        synchronise(device)
        started = time.perf_counter()
        both_passes(form, (q, k, v))
        synchronise(device)
        times.append(time.perf_counter() - started)
    return {"peak_bytes": peak.most, "seconds": statistics.median(times)}


def synchronise(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print a line per length and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    forms: dict[str, Form] = {"plain": attention_with_entropy, "linear": linear}
    figures: dict[str, Any] = {}
    print("| L | plain, MiB | linear, MiB | per token, KiB | plain / linear time |")
    print("|---|---|---|---|---|")
    for length in arguments.lengths:
        one = {n: measure(f, length, device, arguments.rounds) for n, f in forms.items()}
        figures[str(length)] = one
        plain, form = one["plain"], one["linear"]
        cells = (
            f"{length:,}",
            f"{plain['peak_bytes'] / 2**20:,.1f}",
            f"{form['peak_bytes'] / 2**20:,.1f}",
            f"{form['peak_bytes'] / 2**10 / length / BATCH:,.1f}",
            f"{plain['seconds'] / form['seconds']:.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.out:
        document = {
            "command": "python " + " ".join(sys.argv),
            "git_commit": git_commit(),
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "versions": package_versions(),
            "shape": {"batch": BATCH, "heads": HEADS, "width": WIDTH},
            "figures": figures,
        }
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
