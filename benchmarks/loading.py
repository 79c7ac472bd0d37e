"""How long a dataset takes from a file to the device, against reading its arrays plainly.

    python benchmarks/loading.py --json loading.json

Writes one dataset in five kinds of file to a temporary folder: observations and actions of
cube-single's width, rewards, masks, terminals, and the time of a step, which no column of ours
keeps; 37 float32 numbers a row, in 1,000 episodes of 1,000 transitions as OGBench's, or of 500 to
1,500 (`--uneven`). Then, in turn in one run and with every file in the page cache:

- plain: all arrays of the file by NumPy or h5py alone, whatever they hold;
- ours: `load` and `make_buffer`, as a training run calls them: columns read, checked, clipped and
  cut, n-step targets and returns-to-go computed, all of it on the device.

Times are medians, the ratio is ours over plain. The file's SHA-256, which a run needs for its
provenance only, goes on beside the first updates: ours ends before it, and the next measurement
begins after it.

Memory is that of a process of its own: the highest resident size while it loads, less the resident
size before, over the bytes of the buffer's columns. A small file of the same kind was loaded
before, so that no library's first use counts.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from tql_offline.datasets.buffer import Buffer, make_buffer
from tql_offline.datasets.checks import quick_check
from tql_offline.datasets.load import Dataset, load
from tql_offline.training.provenance import device_name, git_commit, package_versions

Arrays = dict[str, NDArray[Any]]

EPISODE = 1000
"""Transitions of an episode, as in OGBench's play and navigate data."""
N_STEP, DISCOUNT = 5, 0.99
SMALL_ROWS = 2 * (EPISODE + 1)
"""Of the file that is loaded first."""
TIME_TARGET, MEMORY_TARGET = 1.3, 1.1


def make_columns(rows: int, width: tuple[int, int], uneven: bool) -> Arrays:
    """A dataset in the layout of docs/data.md; its last episode has what rows are left.

    Its numbers are noise: packers make little of them, as of a simulator's.
    """
    observation_dim, action_dim = width
    random = np.random.default_rng(0)
    half = EPISODE // 2 if uneven else 0
    lengths = random.integers(EPISODE - half, EPISODE + half + 1, 2 * rows // EPISODE + 1)
    ends = np.cumsum(lengths + 1) - 1
    terminals = np.zeros(rows, dtype=np.float32)
    terminals[ends[ends < rows]] = 1
    terminals[-2:] = 0, 1
    return {
        "observations": random.standard_normal((rows, observation_dim), dtype=np.float32),
        "actions": 2 * random.random((rows, action_dim), dtype=np.float32) - 1,
        "rewards": -random.integers(0, 3, rows).astype(np.float32),
        "masks": (random.random(rows) > 1e-3).astype(np.float32),
        "terminals": terminals,
        "times": np.arange(rows, dtype=np.float32) / 20,
    }


def write_npz(path: Path, columns: Arrays, **_options: Any) -> None:
    """NumPy's archive without packing."""
    np.savez(path, allow_pickle=False, **columns)


def write_packed_npz(path: Path, columns: Arrays, **_options: Any) -> None:
    """NumPy's archive with packing, as OGBench's files."""
    np.savez_compressed(path, allow_pickle=False, **columns)


def write_hdf5(path: Path, columns: Arrays, **options: Any) -> None:
    """HDF5 with every column at the top."""
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, **options)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        suffix: of its name.
        write: writes columns to a path.
        options: how h5py stores a column.
    """

    suffix: str
    write: Callable[..., None]
    options: dict[str, Any]


KINDS = {
    "npz": Kind(".npz", write_npz, {}),
    "npz, packed": Kind(".npz", write_packed_npz, {}),
    "HDF5": Kind(".hdf5", write_hdf5, {}),
    "HDF5, chunks": Kind(".hdf5", write_hdf5, {"chunks": True}),
    "HDF5, gzip": Kind(".hdf5", write_hdf5, {"compression": "gzip"}),
}


def read_plainly(path: Path) -> Arrays:
    """Every array of a file, by the library that wrote it."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def put_on_device(path: Path, device: torch.device) -> tuple[Dataset, Buffer, float]:
    """What a training run does with an own file.

    Returns:
        The dataset, the buffer, and the moment between the two.
    """
    dataset = load(str(path))
    loaded = time.perf_counter()
    buffer = make_buffer(dataset.episodes, n_step=N_STEP, discount=DISCOUNT, device=device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return dataset, buffer, loaded


@dataclass
class Times:
    """Seconds of one turn.

    Attributes:
        plain: reading the arrays.
        load: from the file to episodes.
        buffer: from episodes to the device.
        check: looking for faults in the episodes, beside the SHA-256, as before training.
        digest: what the SHA-256 takes on from there.
    """

    plain: float
    load: float
    buffer: float
    check: float
    digest: float


def one_turn(path: Path, device: torch.device) -> Times:
    """Time both ways once."""
    started = time.perf_counter()
    arrays = read_plainly(path)
    read = time.perf_counter()
    del arrays
    begun = time.perf_counter()
    dataset, buffer, loaded = put_on_device(path, device)
    ended = time.perf_counter()
    quick_check(dataset.episodes)
    checked = time.perf_counter()
    dataset.digest.result()
    digested = time.perf_counter()
    times = Times(
        read - started, loaded - begun, ended - loaded, checked - ended, digested - checked
    )
    del dataset, buffer
    return times


def status_bytes(name: str) -> int:
    """A size that Linux tells of this process: `VmRSS`, resident now, or `VmHWM`, its maximum."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def peak_memory(way: str, path: Path, small: Path, device: str) -> tuple[int, int]:
    """Load a file in a fresh process, which this is.

    Returns:
        Highest resident size less that before, and bytes of the buffer's columns (0 of arrays that
        were read plainly).
    """
    where = torch.device(device)

    def run(file: Path) -> int:
        if way == "plain":
            read_plainly(file)
            return 0
        dataset, buffer, _ = put_on_device(file, where)
        dataset.digest.result()
        return buffer.nbytes

    run(small)
    Path("/proc/self/clear_refs").write_text("5")  # the maximum begins anew
    before = status_bytes("VmRSS")
    columns = run(path)
    return status_bytes("VmHWM") - before, columns


def in_fresh_process(way: str, path: Path, small: Path, device: torch.device) -> tuple[int, int]:
    """`peak_memory` in a process that has done nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(peak_memory, way, path, small, str(device)).result()


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Numbers of every kind of file."""
    device = torch.device(arguments.device)
    width = (arguments.observations, arguments.actions)
    paths: dict[str, Path] = {}
    smalls: dict[str, Path] = {}
    for size, rows, files in (("large", arguments.rows, paths), ("small", SMALL_ROWS, smalls)):
        columns = make_columns(rows, width, arguments.uneven)
        for number, name in enumerate(arguments.kinds):
            kind = KINDS[name]
            files[name] = folder / f"{number}-{size}{kind.suffix}"
            kind.write(files[name], columns, **kind.options)
    del columns
    turns: dict[str, list[Times]] = {name: [] for name in paths}
    for turn in range(arguments.turns + 1):
        for name, path in paths.items():
            times = one_turn(path, device)
            if turn:  # the first fills the page cache
                turns[name].append(times)
    return [
        summary(
            name,
            turns[name],
            path.stat().st_size,
            in_fresh_process("plain", path, smalls[name], device)[0],
            *in_fresh_process("ours", path, smalls[name], device),
        )
        for name, path in paths.items()
    ]


def summary(
    name: str, turns: list[Times], size: int, plain_peak: int, peak: int, columns: int
) -> dict[str, Any]:
    """Medians and ratios of one kind of file."""
    plain, read, buffer, check, digest = (
        statistics.median(column) for column in zip(*map(astuple, turns), strict=True)
    )
    ours = statistics.median(times.load + times.buffer for times in turns)
    return {
        "file": name,
        "file_bytes": size,
        "column_bytes": columns,
        "plain_s": plain,
        "ours_s": ours,
        "load_s": read,
        "buffer_s": buffer,
        "check_s": check,
        "digest_s": digest,
        "time_ratio": ours / plain,
        "plain_peak_bytes": plain_peak,
        "peak_bytes": peak,
        "memory_ratio": peak / columns,
        "turns": [vars(times) for times in turns],
    }


def table(results: list[dict[str, Any]]) -> str:
    """All kinds of file as a Markdown table."""
    lines = [
        f"| file | MB | plain, ms | ours, ms (load + buffer) | ratio (≤ {TIME_TARGET}) "
        f"| peak / columns (≤ {MEMORY_TARGET}) | quick check, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ms = {name: 1000 * r[f"{name}_s"] for name in ("plain", "ours", "load", "buffer", "check")}
        lines.append(
            f"| {r['file']} | {r['file_bytes'] / 1e6:.0f} | {ms['plain']:.0f} "
            f"| {ms['ours']:.0f} ({ms['load']:.0f} + {ms['buffer']:.0f}) | {r['time_ratio']:.2f} "
            f"| {r['memory_ratio']:.2f} | {ms['check']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print a table, and write all numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1000 * (EPISODE + 1))
    parser.add_argument("--uneven", action="store_true", help="episodes of unlike lengths")
    parser.add_argument("--observations", type=int, default=28, help="dims")
    parser.add_argument("--actions", type=int, default=5, help="dims")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--turns", type=int, default=7, help="of which medians are taken")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(Path(folder), arguments)
    print(table(results))
    document = {
        "command": "python " + " ".join(sys.argv),
        "git_commit": git_commit(),
        "device": device_name(torch.device(arguments.device)),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": package_versions() | {"hdf5": h5py.version.hdf5_version},
        "rows": arguments.rows,
        "observation_dim": arguments.observations,
        "action_dim": arguments.actions,
        "uneven": arguments.uneven,
        "n_step": N_STEP,
        "results": results,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
