"""Flat columns of npz and HDF5 files; no value in them is trusted."""

import zipfile
from collections.abc import Collection
from pathlib import Path

from tql_offline.datasets.hdf5 import opened_hdf5, read_hdf5
from tql_offline.datasets.npz import read_npz
from tql_offline.datasets.reading import FLAT_COLUMNS, Columns, Wanted, damage_named, is_there
from tql_offline.errors import InputError

HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")


def read_columns(
    path: Path,
    mend: str = "write it again as docs/data.md says",
    *,
    only: Collection[str] | None = None,
    floats: Collection[str] = (),
    flat: bool = False,
) -> "Columns":
    """Read the columns of an `.npz` or HDF5 file, each straight into the memory it stays in.

    Besides the columns themselves, no more than a few blocks of rows are held in memory (and one
    chunk of an HDF5 file whose chunks are larger).

    Args:
        path: the file.
        mend: advice to the user about a damaged file.
        only: the columns to keep; None keeps all. Others are read to check that they are intact,
            and returned under their names without rows.
        floats: columns that become float32 while they are read, if they are numbers. Numbers too
            large for float32 become infinite.
        flat: whether the file is in D4RL's layout, in which top-level groups, but for those
            in a column's place, are ignored.

    Returns:
        Arrays that share no memory with one another, in the file's order.

    Raises:
        InputError: the file is missing, damaged, in another format or layout, too large, or holds
            anything but plain arrays.
    """
    if not is_there(path):
        raise InputError(f"data file {path} does not exist; check the path")
    wanted = Wanted(only, floats, flat)
    if path.suffix == ".npz":
        with damage_named(path, "npz file", mend):
            return read_npz(path, wanted)
    if path.suffix in HDF5_SUFFIXES:
        with damage_named(path, "HDF5 file", mend):
            return read_hdf5(path, wanted)
    raise InputError(f"{path} is neither .npz nor HDF5 ({', '.join(HDF5_SUFFIXES)}); convert it")


def is_flat(path: Path) -> bool:
    """Whether a file has D4RL's layout, by the names of its columns; False if unreadable."""
    try:
        if not is_there(path):
            return False
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return any(f"{name}.npy" in archive.NameToInfo for name in FLAT_COLUMNS)
        with opened_hdf5(path) as file:
            return any(name in file for name in FLAT_COLUMNS)
    except Exception:  # any fault is reported on reading
        return False
