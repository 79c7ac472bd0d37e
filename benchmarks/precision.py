"""Whether TF32 and bfloat16 learn what float32 does: the demo's run in each, over some seeds.

    python benchmarks/precision.py train --runs precision --seeds 0-2
    python benchmarks/precision.py table precision --json precision.json

On a GPU these are its own. A CPU has neither, so there their products are **emulated**: what goes
into a product is rounded as a tensor core rounds it and summed in float32, forward and backward, by
PyTorch's operations; what autocast makes bfloat16 is rounded to it. That shows what the rounding
does to learning, not what a GPU's kernels do. Policies are scored in float32.

`table` puts the curves of each precision, mean over seeds, beside float32's: how far apart they are
at most, and how far one of float32's own seeds is from their mean.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tql_offline.cli.train import parse_seeds
from tql_offline.config import DEFAULT_DATASET, Config, resolve
from tql_offline.datasets.embedded import load_embedded
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.runs import RunFolder, read_json, read_jsonl, write_atomic
from tql_offline.training import run as runs
from tql_offline.training.device import pick_device
from tql_offline.training.evaluation import Evaluator
from tql_offline.training.loop import SilentReporter
from tql_offline.training.provenance import git_commit, on_cpu

aten = torch.ops.aten
PRODUCTS = {
    operation
    for name in ("mm", "bmm", "addmm", "baddbmm")
    for operation in (getattr(aten, name).default, getattr(aten, name).out)
}
SKIPPED = 1000
"""Updates before curves are compared: the entropies of all runs fall from the same height."""


def to_tf32(x: Tensor) -> Tensor:
    """Round float32 to the 10 bits of TF32's mantissa, ties to even."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class Emulated(TorchDispatchMode):
    """Products as tensor cores compute them, of bfloat16 numbers or of float32 as TF32."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.tf32 = precision == "tf32"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func not in PRODUCTS:
            return func(*args, **kwargs)
        if self.tf32:
            return func(*args[:-2], *map(to_tf32, args[-2:]), **kwargs)
        if args[-1].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        assert not kwargs
        exact = func(*(x.float() if isinstance(x, Tensor) else x for x in args))
        return exact.bfloat16()


def unrounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without emulation."""

    def call(*arguments: Any, **options: Any) -> Any:
        with _disable_current_modes():
            return function(*arguments, **options)

    return call


@contextmanager
def emulated(precision: str) -> Iterator[None]:
    """Compute as if the CPU had tensor cores."""
    mode = nullcontext() if precision == "float32" else Emulated(precision)
    with (
        patch.object(runs, "check_execution"),
        patch.object(Evaluator, "score", unrounded(Evaluator.score)),
        sdpa_kernel(SDPBackend.MATH),
        mode,
    ):
        yield


def settings(arguments: argparse.Namespace, precision: str, seed: int) -> Config:
    """The demo's, in a precision; a CPU is told to do what it can of it."""
    real = pick_device(arguments.device).type == "cuda" or precision == "bfloat16"
    return resolve(
        {
            "preset": "pointmaze",
            "dataset": {"name": str(arguments.path or DEFAULT_DATASET)},
            "critic": {"size": "tiny"},
            "seed": seed,
            "steps": arguments.updates,
            "device": arguments.device,
            "execution": {"precision": precision if real else "float32"},
            "evaluation": {"processes": 1},
        }
    )


def train(arguments: argparse.Namespace) -> None:
    """One run after the other, each in `RUNS/PRECISION`."""
    dataset = load(str(arguments.path)) if arguments.path else load_embedded()
    for seed in parse_seeds(arguments.seeds):
        for precision in arguments.precisions.split(","):
            config = settings(arguments, precision, seed)
            on_gpu = pick_device(config.device).type == "cuda"
            folder = arguments.runs / precision
            with nullcontext() if on_gpu else emulated(precision):
                run = runs.run(config, dataset, folder, f"{precision}-{seed}", SilentReporter())
            print(precision, seed, f"{run.path}", flush=True)


# Curves.


@dataclass(frozen=True)
class Curves:
    """What a precision's seeds recorded.

    Attributes:
        steps: `(T,)` of the recorded updates.
        values: by name, `(seeds, T)`: the two layers' entropies of both token groups, and Q.
        successes: by step, of each seed's learned policy, of 50.
    """

    steps: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    successes: dict[int, list[int]]


def curves_of(folder: Path) -> Curves:
    """Read the runs of a precision, all of them finished."""
    lines, successes = [], defaultdict(list)
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        run = RunFolder(path)
        lines.append(list(read_jsonl(run.metrics)))
        for line in read_jsonl(run.evaluations) if run.evaluations.is_file() else ():
            if line["policy"] == "learned":
                successes[line["step"]].append(line["successes"])
    values = {}
    for layer, j in np.ndindex(np.shape(lines[0][0]["entropy"])):
        name = f"entropy, layer {layer + 1}, {('[VALUE]', 'others')[j]}"
        values[name] = np.array([[x["entropy"][layer][j] for x in run] for run in lines])
    values["Q"] = np.array([[x["q_mean"] for x in run] for run in lines])
    return Curves(np.array([x["step"] for x in lines[0]]), values, dict(successes))


def distances(curves: dict[str, Curves]) -> Iterator[dict[str, Any]]:
    """Of each quantity: how far means are from float32's at most, and one seed of float32's."""
    reference = curves["float32"]
    late = reference.steps > min(SKIPPED, reference.steps[-1] // 2)
    for name, values in reference.values.items():
        mean = values.mean(axis=0)
        row: dict[str, Any] = {"quantity": name, "float32 at the end": mean[-1]}
        row["one float32 seed"] = np.abs(values - mean)[:, late].max()
        for precision in curves:
            if precision != "float32":
                other = curves[precision].values[name].mean(axis=0)
                row[precision] = np.abs(other - mean)[late].max()
        yield {key: x if isinstance(x, str) else round(float(x), 4) for key, x in row.items()}


def table(arguments: argparse.Namespace) -> None:
    """Print both tables, and write them with the curves.

    Raises:
        InputError: there is nothing to compare with.
    """
    curves = {p.name: curves_of(p) for p in sorted(arguments.runs.iterdir()) if p.is_dir()}
    if "float32" not in curves:
        raise InputError(f"{arguments.runs} has no runs in float32; train them first")
    rows = list(distances(curves))
    print(markdown(rows))
    steps = sorted(curves["float32"].successes)
    scored = [
        {"precision": name, **{f"{s:,}": _listed(found.successes.get(s, [])) for s in steps}}
        for name, found in curves.items()
    ]
    if steps:
        print(markdown(scored))
    if arguments.json:
        facts = read_json(next(arguments.runs.glob("*/*/provenance.json")))
        document = {
            "command": " ".join(["python", *sys.argv]),
            "git_commit": git_commit(),
            "device": facts["device"],
            "versions": facts["versions"],
            "emulated": on_cpu(facts),
            "distances": rows,
            "successes of 50, by update": scored,
            "curves": {
                name: {
                    "steps": found.steps.tolist(),
                    **{k: v.tolist() for k, v in found.values.items()},
                }
                for name, found in curves.items()
            },
        }
        write_atomic(arguments.json, json.dumps(document, indent=1) + "\n")


def _listed(successes: list[int]) -> str:
    return ", ".join(map(str, successes))


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of rows with the same keys."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, r.values())) for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags and run a part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("train", help="train the runs")
    part.add_argument("--runs", type=Path, required=True)
    part.add_argument("--precisions", default="float32,tf32,bfloat16")
    part.add_argument("--seeds", default="0-2")
    part.add_argument("--updates", type=int, default=8000)
    part.add_argument("--device", default="auto")
    part.add_argument("--path", type=Path, help="packed data, where no simulator is; no scores")
    part.set_defaults(do=train)
    part = parts.add_parser("table", help="compare the runs")
    part.add_argument("runs", type=Path)
    part.add_argument("--json", type=Path)
    part.set_defaults(do=table)
    arguments = parser.parse_args(argv)
    try:
        arguments.do(arguments)
    except InputError as error:
        print(f"precision.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
