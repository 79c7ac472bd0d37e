"""`tql-offline bench`."""

import os
import shlex
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tql_offline.bench import OBJECTIVES
from tql_offline.cli import app
from tql_offline.cli.tables import print_table, say
from tql_offline.errors import InputError, shown
from tql_offline.files import write_json, writing
from tql_offline.number_lists import split_numbers

if TYPE_CHECKING:
    from tql_offline.bench.workload import Workload

COLUMNS = ("contender", "updates/s#", "ratio#", "CPU ratio#", "GFLOP/s#", "of peak#", "MiB#")
MOST = 4096
"""Most threads and rounds: more must be a typo."""


@app.command()
def bench(
    sizes: Annotated[
        str, typer.Option("--size", help="Transformer critic sizes, e.g. small,xl.")
    ] = "small",
    objectives: Annotated[
        str,
        typer.Option("--objective", help=f"{', '.join(OBJECTIVES)}; comma-separated."),
    ] = "flow",
    batch_sizes: Annotated[
        str, typer.Option("--batch-size", help="Transitions per update, e.g. 256,1024.")
    ] = "256",
    hidden: Annotated[
        str,
        typer.Option(
            help="MLP layer widths, e.g. 256x256, in place of transformers: "
            "for comparing IQL and CQL with d3rlpy's and CORL's."
        ),
    ] = "",
    ways: Annotated[
        str,
        typer.Option(
            help="ours, plain path, without C, eager, compiled, tf32, bfloat16, 2 seeds, 4 seeds, "
            "8 seeds; ratios compare the first with each. Default: ours,plain path."
        ),
    ] = "ours,plain path",
    peers: Annotated[
        bool, typer.Option(help="Also time JAX/Flax, d3rlpy and CORL-style updates.")
    ] = True,
    memory: Annotated[
        bool, typer.Option(help="Also measure peak memory, one process per contender.")
    ] = True,
    seconds: Annotated[float, typer.Option(help="Seconds per contender.", min=0.1)] = 20.0,
    rounds: Annotated[
        int, typer.Option(help="Turns to split these seconds into.", min=1, max=MOST)
    ] = 10,
    threads: Annotated[
        int, typer.Option(help="CPU threads for PyTorch and XLA; 0: PyTorch's choice.", min=0)
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="JSON file for all results.")] = None,
) -> None:
    """Time whole updates: ours, its plain path and others' equivalents, beside matrix products."""
    share_machine(min(threads, MOST))
    # Imported here: they import PyTorch.
    from tql_offline.bench.compare import add_memory, compare, known_names
    from tql_offline.bench.workload import peers_of
    from tql_offline.training.device import pick_device

    if out:
        check_writable(out)
    where = pick_device(device)
    document, results = head(where), list[dict[str, Any]]()

    def write(found: dict[str, Any]) -> None:
        if out:
            write_json(out, found)

    def keep(found: dict[str, Any]) -> None:
        write(document | {"results": [*results, found]})

    for workload in workloads(sizes, objectives, batch_sizes, hidden, where.type):
        names = split(ways, known_names(workload), "way")
        names += [name for name in peers_of(workload) if peers and name not in names]
        results.append(compare(workload, names, seconds, rounds, say, keep))
        write(document | {"results": results})  # measuring memory may outlast patience
        if memory:
            add_memory(workload, results[-1]["rows"], say)
            write(document | {"results": results})
        show(results[-1])


def check_writable(out: Path) -> None:
    """Check that a file can be written, before measuring what goes into it; leave it as it is.

    Raises:
        InputError: it cannot.
    """
    file = out.resolve()
    if not file.parent.is_dir():
        raise InputError(f"{out}: its folder is not there; make it or name another file")
    is_new = not file.exists()
    with writing(out):
        file.open("ab").close()
        if is_new:
            file.unlink()


def share_machine(threads: int) -> None:
    """Give PyTorch and XLA the same number of threads, and keep XLA from taking all GPU memory.

    XLA reads these variables when it is first used, which is later.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    count = str(torch.get_num_threads())
    os.environ |= {"NPROC": count, "OMP_NUM_THREADS": count}
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def workloads(
    sizes: str, objectives: str, batch_sizes: str, hidden: str, device: str
) -> Iterator["Workload"]:
    """Every requested combination.

    Raises:
        InputError: a name is unknown, or a number is not a positive integer.
    """
    from tql_offline.bench.workload import Workload
    from tql_offline.networks import SIZES

    widths = numbers(hidden, "x", "--hidden") if hidden else ()
    chosen = split(objectives, OBJECTIVES, "objective")
    if widths and (other := set(chosen) - {"implicit", "conservative"}):
        raise InputError(
            f"--hidden is for implicit and conservative, not {', '.join(sorted(other))}; "
            "leave it out or choose --objective implicit,conservative"
        )
    chosen_sizes = [""] if widths else split(sizes, SIZES, "size")
    for objective, size, batch_size in product(
        chosen, chosen_sizes, numbers(batch_sizes, ",", "--batch-size")
    ):
        yield Workload(
            objective=objective,
            size=size or "small",
            hidden=widths,
            batch_size=batch_size,
            device=device,
        )


def split(text: str, known: Any, what: str) -> list[str]:
    """The names in a comma-separated list.

    Raises:
        InputError: a name is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    known = list(known)
    if wrong := [name for name in names if name not in known]:
        raise InputError(f"there is no {what} {wrong[0]!r}; choose of {', '.join(known)}")
    return names


def numbers(text: str, separator: str, flag: str) -> tuple[int, ...]:
    """Parse positive whole numbers.

    Raises:
        InputError: a part is not a positive integer below 2^20.
    """
    found = split_numbers(text, separator)
    if found is None or not all(0 < number < 2**20 for number in found):
        raise InputError(
            f"{flag} {shown(text)} is not of positive numbers; write e.g. 256{separator}256"
        )
    return found


def head(device: Any) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    import torch

    from tql_offline.training.provenance import device_name, git_commit, package_versions

    return {
        "command": shlex.join(["tql-offline", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "versions": package_versions(),
    }


def show(result: dict[str, Any]) -> None:
    """Print a table of one workload, and why contenders are missing."""
    rows = result["rows"]
    if rows:
        print_table(result["title"], COLUMNS, [cells(row) for row in rows])
        peak = rows[0]["peak_flops_per_second"] / 1e9
        say(f"{rows[0]['name']}: {rows[0]['note']}; matrix products peak at {peak:,.0f} GFLOP/s")
        say(f"ratio: {rows[0]['name']} over it, per second and per second of CPU time")
    for name, reason in result["left_out"].items():
        say(f"{name} is left out: {reason}")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A contender's row of the table."""
    rate, memory = row["flops_per_second"], row["peak_memory_bytes"]
    return (
        row["name"],
        f"{row['updates_per_second']:,.2f}",
        f"{row['first_over_it']:.2f}",
        f"{row['first_over_it_cpu']:.2f}",
        f"{rate / 1e9:,.1f}" if rate else "",
        f"{row['ratio_to_peak']:.2f}" if rate else "",
        f"{memory / 2**20:,.0f}" if memory is not None else "",
    )
