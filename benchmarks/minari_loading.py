"""A million transitions in Minari's HDF5 storage, loaded here and read by h5py one array at a time.

python benchmarks/minari_loading.py --episodes 2000
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.load import load

COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")


def write(folder: Path, episodes: int, steps: int) -> None:
    """Episodes of 11 observation dims and 3 action dims, as Minari stores them."""
    rng = np.random.default_rng(0)
    data = folder / "data"
    data.mkdir()
    with h5py.File(data / "main_data.hdf5", "w", track_order=True) as file:
        for number in range(episodes):
            group = file.create_group(f"episode_{number}")
            arrays: tuple[NDArray[Any], ...] = (
                rng.normal(size=(steps + 1, 11)),
                rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
                rng.normal(size=steps),
                np.zeros(steps, bool),
                np.zeros(steps, bool),
            )
            for name, array in zip(COLUMNS, arrays, strict=True):
                shape = (None, *array.shape[1:])
                group.create_dataset(name, data=array, chunks=True, maxshape=shape)
    metadata = {
        "data_format": "hdf5",
        "total_episodes": episodes,
        "observation_space": box(11, 1e308),
        "action_space": box(3, 1.0),
    }
    (data / "metadata.json").write_text(json.dumps(metadata))


def box(dim: int, bound: float) -> str:
    """A space as Minari writes it."""
    bounds = {"low": [-bound] * dim, "high": [bound] * dim}
    return json.dumps({"type": "Box", "dtype": "float64", "shape": [dim], **bounds})


def read_plainly(folder: Path) -> None:
    """Every array, by h5py alone."""
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        for number in range(len(file)):
            for name in COLUMNS:
                file[f"episode_{number}"][name][()]


def seconds(work: Callable[[], object]) -> float:
    """Of the second of two turns."""
    for _ in range(2):
        begin = time.perf_counter()
        work()
    return time.perf_counter() - begin


def main() -> None:
    """Print both times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=500, help="of each episode")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        write(folder, options.episodes, options.steps)
        print(f"loaded: {seconds(lambda: load(str(folder))):.1f} s")
        print(f"h5py alone: {seconds(lambda: read_plainly(folder)):.1f} s")


if __name__ == "__main__":
    main()
