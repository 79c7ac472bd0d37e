"""What one update costs by objective, critic and size: parameters, arithmetic, kept activations.

    python benchmarks/cost.py > docs/cost.md

Counted, not timed: multiply-adds by PyTorch's counter (one is two operations), and the bytes that
the forward passes keep for the backward ones, both per transition of a batch, for cube-double.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from tql_offline.agents import make_agent
from tql_offline.batch import Batch
from tql_offline.config import resolve
from tql_offline.networks import SIZES, MLPCritic, TransformerCritic

OBSERVATION_DIM, ACTION_DIM, BATCH = 37, 5, 2
OBJECTIVES: dict[str, dict[str, Any]] = {
    "flow": {},
    "implicit": {"objective": "implicit"},
    "rebrac": {"objective": "rebrac"},
    "conservative, n = 1": {"objective": "conservative", "conservative": {"samples": 1}},
    "conservative, n = 4": {"objective": "conservative", "conservative": {"samples": 4}},
    "conservative, n = 10": {"objective": "conservative"},
}


@dataclass(frozen=True)
class Cost:
    """Of one update, per transition of its batch."""

    multiply_adds: float
    kept_bytes: float


def random_batch() -> Batch:
    """Transitions of cube-double's shape."""
    states = torch.randn(2, BATCH, OBSERVATION_DIM)
    actions = torch.rand(2, BATCH, ACTION_DIM) * 1.9 - 0.95
    ones = torch.ones(BATCH)
    return Batch(states[0], actions[0], -ones, states[1], ones, -ones, actions[1], ones)


def cost(settings: dict[str, Any], kind: str, size: str) -> Cost:
    """Count one update, in which the policy steps too."""
    dataset = {"name": "cube-double-play-singletask-task1-v0"}
    config = resolve(settings | {"critic": {"kind": kind, "size": size}, "dataset": dataset})
    assert config.flow.hidden == (512,) * 4  # what the page says
    agent = make_agent(config, OBSERVATION_DIM, ACTION_DIM, torch.device("cpu"))
    weights = {
        p.untyped_storage().data_ptr() for n in agent.networks.values() for p in n.parameters()
    }
    # Held until the end: another one could take a freed one's address.
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:  # weights lie in memory anyway
            kept[storage.data_ptr()] = storage
        return tensor

    generator = torch.Generator().manual_seed(0)
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda t: t):
        agent.update(random_batch(), generator, step=2)
    return Cost(
        counter.get_total_flops() / 2 / BATCH, sum(s.nbytes() for s in kept.values()) / BATCH
    )


def parameters(size: str) -> tuple[int, int]:
    """Parameters of the transformer and of the MLP critic."""
    with torch.device("meta"):
        critics = [
            kind.of_size(size, OBSERVATION_DIM, ACTION_DIM)
            for kind in (TransformerCritic, MLPCritic)
        ]
    transformer, mlp = (sum(p.numel() for p in critic.parameters()) for critic in critics)
    return transformer, mlp


def size_table() -> Iterator[str]:
    """Markdown rows: the two critics of each size."""
    yield "| size | transformer | MLP | MLP / transformer | MLP hidden layers |"
    yield "|---|---|---|---|---|"
    for size in SIZES:
        transformer, mlp = parameters(size)
        with torch.device("meta"):
            member = MLPCritic.of_size(size, OBSERVATION_DIM, ACTION_DIM).members[0]
        width = next(p for p in member.parameters() if p.ndim == 2).shape[0]
        row = (size, f"{transformer:,}", f"{mlp:,}", f"{mlp / transformer:.3f}", f"2 × 4 × {width}")
        yield f"| {' | '.join(row)} |"


def cost_table(kind: str, sizes: list[str]) -> Iterator[str]:
    """Markdown rows: arithmetic and kept activations per objective, at each size."""
    yield f"| {kind} | {' | '.join(sizes)} |"
    yield "|---|" + "---|" * len(sizes)
    flow = {size: cost({}, kind, size) for size in sizes}
    for name, settings in OBJECTIVES.items():
        cells = []
        for size in sizes:
            this = cost(settings, kind, size)
            ratio = this.multiply_adds / flow[size].multiply_adds
            kept = this.kept_bytes / 2**20
            cells.append(f"{this.multiply_adds / 1e6:,.0f}M (× {ratio:.1f}), {kept:,.1f} MiB")
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print docs/cost.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    sizes = parser.parse_args().sizes
    print("# Critics and the cost of an update\n")
    print(
        "Written by `python benchmarks/cost.py`: cube-double's shape (37 observation and 5 action"
    )
    print("dims, 43 tokens), ensembles of two, policies of 4×512.\n")
    print("## Parameters\n")
    print("An MLP critic has as many parameters as the transformer of its size, to 5 % (a test).\n")
    print("\n".join(size_table()))
    print("\n## One update\n")
    print("Per transition of the batch: multiply-adds (and how many times those of the flow")
    print("objective), and memory kept for the backward pass. The conservative objective evaluates")
    print("the critic at 3n sampled actions per state more; `conservative.rows_at_once` bounds the")
    print("memory of these to one pass, at the price of one forward pass more.")
    for kind in ("transformer", "mlp"):
        print()
        print("\n".join(cost_table(kind, sizes)))


if __name__ == "__main__":
    main()
