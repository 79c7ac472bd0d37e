"""What one update costs by objective, critic and size: parameters, arithmetic, kept activations.

    python benchmarks/cost.py > docs/cost.md

Counted, not timed: multiply-adds, half of `flops_per_update` (training/arithmetic.py), and bytes
that the forward passes keep for the backward ones, both per transition of a batch, for cube-double.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tql_offline.agents import make_agent
from tql_offline.batch import Batch
from tql_offline.config import Config, resolve
from tql_offline.networks import (
    SIZES,
    MLPCritic,
    PerceiverCritic,
    cpu_kernels,
    kernels,
)
from tql_offline.networks.mlp_critic import parameters_of_size
from tql_offline.training.arithmetic import flops_per_update

OBSERVATION_DIM, ACTION_DIM, BATCH = 37, 5, 256
OBJECTIVES: dict[str, dict[str, Any]] = {
    "flow": {},
    "implicit": {"objective": "implicit"},
    "rebrac": {"objective": "rebrac"},
    "floq": {"objective": "floq"},
    "conservative, n = 1": {"objective": "conservative", "conservative": {"samples": 1}},
    "conservative, n = 4": {"objective": "conservative", "conservative": {"samples": 4}},
    "conservative, n = 10": {"objective": "conservative"},
    "the same, max-backup": {"objective": "conservative", "conservative": {"backup": "best"}},
}
"""Of the transformer and the MLP; the Perceiver has one, pac."""


ABOUT = f"""Per transition of a batch of {BATCH}: multiply-adds, how many times the first row's,
and memory kept for the backward pass on a CPU without the kernels in C. What a batch needs once,
such as the tables of the first projection, is shared out. Times 2 × {BATCH} the first are
`flops_per_update` of `result.json`, so of rebrac, whose policy steps at every other update, the
mean; its memory is that of an update with the policy's step. The conservative objective evaluates
the critic at 3n sampled actions per state more, and with max-backup the target's at n;
`conservative.rows_at_once` bounds the memory of these to one pass, at the price of one forward pass
more. Not counted, being no products of matrices: pac's target compares all pairs of its values,
which for puzzle-4x4's 901 are 208M at a time (0.8 GB), and on a CPU most of an update."""


@dataclass(frozen=True)
class Cost:
    """Of one update, per transition of its batch."""

    multiply_adds: float
    kept_bytes: float


def random_batch(rows: int) -> Batch:
    """Transitions of cube-double's shape."""
    states = torch.randn(2, rows, OBSERVATION_DIM)
    actions = torch.rand(2, rows, ACTION_DIM) * 1.9 - 0.95
    ones = torch.ones(rows)
    return Batch(states[0], actions[0], -ones, states[1], ones, -ones, actions[1], ones)


def config_of(settings: dict[str, Any], kind: str, size: str) -> Config:
    """The settings of a cell of the tables."""
    dataset = {"name": "cube-double-play-singletask-task1-v0"}
    critic = {"kind": kind, "size": size}
    config = resolve(settings | {"critic": critic, "dataset": dataset, "batch_size": BATCH})
    assert config.flow.hidden == (512,) * 4  # what the page says
    return config


def cost(settings: dict[str, Any], kind: str, size: str) -> Cost:
    """Count one update at batch `BATCH`.

    Bytes are affine in the batch, and so many rows of a large critic fill no memory here: two small
    batches give them.
    """
    config = config_of(settings, kind, size)
    flops = flops_per_update(config, OBSERVATION_DIM, ACTION_DIM)
    assert flops is not None
    two, four = (kept_bytes(config, rows) for rows in (2, 4))
    return Cost(flops / 2 / BATCH, (two + (BATCH - 2) * (four - two) / 2) / BATCH)


def kept_bytes(config: Config, rows: int) -> int:
    """What an update in which the policy steps, too, keeps for its backward passes."""
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
    # A machine without a C compiler prints this page, too.
    with kernels.turned_off(cpu_kernels), saved_tensors_hooks(keep, lambda t: t):
        agent.update(random_batch(rows), generator, step=2)
    return sum(storage.nbytes() for storage in kept.values())


def size_table() -> Iterator[str]:
    """Markdown rows: the three critics of each size."""
    yield "| size | transformer | MLP | ratio | MLP hidden layers | Perceiver | ratio | its width |"
    yield "|---|---|---|---|---|---|---|---|"
    dims = (OBSERVATION_DIM, ACTION_DIM)
    for size in SIZES:
        with torch.device("meta"):
            mlp, perceiver = MLPCritic.of_size(size, *dims), PerceiverCritic.of_size(size, *dims)
        wanted = parameters_of_size(size, *dims, depth=2, ensemble=2)
        counts = [sum(p.numel() for p in critic.parameters()) for critic in (mlp, perceiver)]
        of_mlp, of_perceiver = (f"{count:,} | {count / wanted:.3f}" for count in counts)
        width = next(p for p in mlp.parameters() if p.ndim == 2).shape[0]
        row = (size, f"{wanted:,}", of_mlp, f"2 × 4 × {width}", of_perceiver)
        yield f"| {' | '.join(row)} | {perceiver.latents.shape[1]} |"


def cost_table(kind: str, sizes: list[str]) -> Iterator[str]:
    """Markdown rows: arithmetic and kept activations per objective, at each size."""
    yield f"| {kind} | {' | '.join(sizes)} |"
    yield "|---|" + "---|" * len(sizes)
    flow: dict[str, Cost] = {}
    of_perceiver = {"pac": {"objective": "pac"}}
    for name, settings in (of_perceiver if kind == "perceiver" else OBJECTIVES).items():
        costs = {size: cost(settings, kind, size) for size in sizes}
        flow = flow or costs  # the first row
        cells = (cell(costs[size], flow[size]) for size in sizes)
        yield f"| {name} | {' | '.join(cells)} |"


def cell(cost: Cost, flow: Cost) -> str:
    """A cost, and its ratio to the flow objective's."""
    ratio, kept = cost.multiply_adds / flow.multiply_adds, cost.kept_bytes / 2**20
    return f"{cost.multiply_adds / 1e6:,.0f}M (× {ratio:.2f}), {kept:,.1f} MiB"


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
    print(
        "The critics of a size have as many parameters, to 5 % (a test); PAC's is the Perceiver.\n"
    )
    print("\n".join(size_table()))
    print("\n## One update\n")
    print(ABOUT)
    for kind in ("transformer", "mlp", "perceiver"):
        print()
        print("\n".join(cost_table(kind, sizes)))


if __name__ == "__main__":
    main()
