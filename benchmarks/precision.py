"""Whether TF32 and bfloat16 learn what float32 does: the demo's run in each, over some seeds.

    python benchmarks/precision.py train --runs precision --seeds 0-2
    python benchmarks/precision.py table precision --json precision.json

or, where a CPU has products of bfloat16, with those (precision.toml has the commands), and `table`.

On a GPU `train` takes its own. A CPU has no TF32 and mostly no bfloat16, so there products are
**emulated**: what goes into a product is rounded as a tensor core rounds it and summed in float32,
forward and backward, by PyTorch's operations; what autocast makes bfloat16 is rounded to it. That
shows what the rounding does to learning, not what a GPU's kernels do. Policies are scored in
float32, but in TF32 where a GPU trains in it: that is a setting of the process.

Whatever rounds otherwise goes another way after some hundred updates, float32 too. So there is a
**control**: float32 by PyTorch's own operations instead of our kernels, the same equations in
another order of sums. `table` says how far each precision ends from float32 with the same seed,
with an interval over seeds, and beside it how far the control does; and how far they were at most.
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

from tql_offline.config import Config, resolve
from tql_offline.datasets.embedded import load_embedded
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.eval.statistics import mean_std, t_interval
from tql_offline.files import read_json, read_jsonl, write_atomic
from tql_offline.networks import kernels
from tql_offline.number_lists import parse_numbers
from tql_offline.presets import DEFAULT_DATASET
from tql_offline.runs import RunFolder
from tql_offline.training import new_run
from tql_offline.training import run as runs
from tql_offline.training.device import pick_device
from tql_offline.training.evaluation import Evaluator
from tql_offline.training.provenance import git_commit, on_cpu
from tql_offline.training.reporters import SilentReporter

aten = torch.ops.aten
PRODUCTS = {
    operation
    for name in ("mm", "bmm", "addmm", "baddbmm")
    for operation in (getattr(aten, name).default, getattr(aten, name).out)
}
CONTROL = "control"
SKIPPED = 1000
"""Updates before curves are compared: the entropies of all runs fall from the same height."""
LATE = 0.2
"""The part of a run, its last, over whose mean precisions are compared."""


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
    exact = precision in ("float32", CONTROL)
    mode = nullcontext() if exact else Emulated(precision)
    with (
        patch.object(new_run, "check_execution"),
        patch.object(Evaluator, "score", unrounded(Evaluator.score)),
        sdpa_kernel(SDPBackend.MATH),
        mode,
    ):
        yield


def settings(arguments: argparse.Namespace, precision: str, seed: int) -> Config:
    """The demo's, in a precision; a CPU is told to do what it can of it."""
    on_gpu = pick_device(arguments.device).type == "cuda"
    told = precision == "bfloat16" or (on_gpu and precision != CONTROL)
    return resolve(
        {
            "preset": "pointmaze",
            "dataset": {"name": str(arguments.path or DEFAULT_DATASET)},
            "critic": {"size": "tiny"},
            "seed": seed,
            "steps": arguments.updates,
            "device": arguments.device,
            "execution": {"precision": precision if told else "float32"},
            "evaluation": {"processes": 1},
            "optimizer": {"policy_weight_decay": 0.0},  # as in the tables, from before it
        }
    )


def train(arguments: argparse.Namespace) -> None:
    """One run after the other, each in `RUNS/PRECISION`."""
    dataset = load(str(arguments.path)) if arguments.path else load_embedded()
    for seed in parse_numbers(arguments.seeds, "--seeds"):
        for precision in arguments.precisions.split(","):
            config = settings(arguments, precision, seed)
            on_gpu = pick_device(config.device).type == "cuda"
            folder = arguments.runs / precision
            with (
                nullcontext() if on_gpu else emulated(precision),
                kernels.turned_off(kernels) if precision == CONTROL else nullcontext(),
            ):
                run = runs.run(config, dataset, folder, f"{precision}-{seed}", SilentReporter())
            print(precision, seed, f"{run.path}", flush=True)


# Curves.


@dataclass(frozen=True)
class Curves:
    """What a precision's seeds recorded.

    Attributes:
        seeds: in order.
        steps: `(T,)` of the recorded updates.
        values: by name, `(seeds, T)`: the two layers' entropies of both token groups, and Q.
        successes: by step, of each seed's learned policy, of 50.
    """

    seeds: list[int]
    steps: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    successes: dict[int, list[int]]

    def late(self, name: str) -> NDArray[np.float64]:
        """`(seeds,)`: the mean of a quantity over the last part of each run."""
        late = self.steps > (1 - LATE) * self.steps[-1]
        mean: NDArray[np.float64] = self.values[name][:, late].mean(axis=1)
        return mean


def curves_of(folder: Path) -> Curves:
    """Read the runs of a precision.

    Raises:
        InputError: one of them is unfinished.
    """
    lines, successes = {}, defaultdict(list)
    for path in sorted(p for p in folder.iterdir() if RunFolder(p).config.is_file()):
        run = RunFolder(path)
        if not run.is_finished():
            raise InputError(f"run {path} is unfinished; delete it, and train it anew")
        lines[int(path.name.rpartition("-")[2].removeprefix("s"))] = list(read_jsonl(run.metrics))
        for line in read_jsonl(run.evaluations) if run.evaluations.is_file() else ():
            if line["policy"] == "learned":
                wins = sum(episode["success"] for episode in line["episodes"])
                successes[line["step"]].append(wins)
    first, *_ = recorded = list(lines.values())
    values = {}
    for layer, j in np.ndindex(np.shape(first[0]["entropy"])):
        name = f"entropy, layer {layer + 1}, {('[VALUE]', 'others')[j]}"
        values[name] = np.array([[x["entropy"][layer][j] for x in run] for run in recorded])
    values["Q"] = np.array([[x["q_mean"] for x in run] for run in recorded])
    return Curves(list(lines), np.array([x["step"] for x in first]), values, dict(successes))


def differences(curves: dict[str, Curves]) -> Iterator[dict[str, Any]]:
    """Of each quantity late in a run, what a precision's mean over seeds has more than float32's.

    With Student's 95 % interval of the differences seed by seed, and these.

    Raises:
        InputError: a precision was not trained over the seeds of float32.
    """
    reference = curves["float32"]
    for precision, found in curves.items():
        if found.seeds != reference.seeds:
            raise InputError(
                f"{precision} has runs of seeds {found.seeds} and float32 of {reference.seeds}; "
                "train what is missing"
            )
    for name in reference.values:
        exact = reference.late(name)
        mean, between = mean_std(exact, ddof=min(1, len(exact) - 1))
        row: dict[str, Any] = {"quantity": name, "float32": mean, "seeds' deviation": between}
        for precision in curves:
            if precision != "float32":
                more = curves[precision].late(name) - exact
                low, high = t_interval(more)
                row[precision] = {"mean": more.mean(), "plus or minus": (high - low) / 2}
                row[precision] |= {"by seed": more.tolist()}
        yield row


def distances(curves: dict[str, Curves]) -> Iterator[dict[str, Any]]:
    """Of each quantity, how far any seed is at most from float32 with that seed, at one update.

    And how far float32's own seeds are from one another.
    """
    reference = curves["float32"]
    late = reference.steps > min(SKIPPED, reference.steps[-1] // 2)
    for name, values in reference.values.items():
        exact = values[:, late]
        row: dict[str, Any] = {"quantity": name, "another seed": float(np.ptp(exact, axis=0).max())}
        for precision in curves:
            if precision != "float32":
                there = curves[precision].values[name][:, late]
                row[precision] = float(np.abs(there - exact).max())
        yield row


def table(arguments: argparse.Namespace) -> None:
    """Print the tables, and write them with the curves.

    Raises:
        InputError: there is nothing to compare with.
    """
    curves = {p.name: curves_of(p) for p in sorted(arguments.runs.iterdir()) if p.is_dir()}
    if "float32" not in curves:
        raise InputError(f"{arguments.runs} has no runs in float32; train them first")
    rows = list(differences(curves))
    apart = list(distances(curves))
    for found in (rows, apart):
        print(markdown([{key: _shown(x) for key, x in row.items()} for row in found]))
    steps = sorted(curves["float32"].successes)
    scored = [
        {"precision": name, **{f"{s:,}": _listed(found.successes.get(s, [])) for s in steps}}
        for name, found in curves.items()
    ]
    if steps:
        print(markdown(scored))
    if arguments.json:
        facts = read_json(next(arguments.runs.glob("*/*/provenance.json")))
        by_sweep = facts["command"][:2] == ["tql-offline", "sweep"]  # of precision.toml
        document = {
            "command": " ".join(["python", *sys.argv]),
            "git_commit": git_commit(),
            "device": facts["device"],
            "versions": facts["versions"],
            "emulated": on_cpu(facts) and not by_sweep,
            "differences": rows,
            "distances": apart,
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


def _shown(cell: Any) -> str:
    if isinstance(cell, dict):
        return f"{cell['mean']:+.3f} ± {cell['plus or minus']:.3f}"
    return cell if isinstance(cell, str) else f"{cell:.3f}"


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
    part.add_argument("--precisions", default=f"float32,{CONTROL},tf32,bfloat16")
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
