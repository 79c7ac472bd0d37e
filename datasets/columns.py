"""Flat columns of npz and HDF5 files; every value in them is taken as hostile."""

import zipfile
from collections.abc import Collection
from pathlib import Path

import h5py

from tql_offline.datasets.hdf5 import read_hdf5
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

    Beside the columns themselves no more than some blocks of rows are held (and one chunk of an
    HDF5 file whose chunks are larger).

    Args:
        path: the file.
        mend: what the user is told to do about a damaged file.
        only: the columns to keep. Others are read to see that they are whole, and come back with
            no rows: their names are those of the file. None keeps all.
        floats: columns that become float32 while they are read, where they are numbers. One too
            large for float32 becomes infinite.
        flat: the file is in D4RL's layout: groups at the top are left alone.

    Returns:
        Arrays that share no memory with one another, in the file's order.

    Raises:
        InputError: the file is missing, damaged, of another format or layout, too large, or holds
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
    """Whether a file is of D4RL's layout, by the names of its columns; not if it has no names."""
    try:
        if not is_there(path):
            return False
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return any(f"{name}.npy" in archive.NameToInfo for name in FLAT_COLUMNS)
        with h5py.File(path, "r") as file:
            return any(name in file for name in FLAT_COLUMNS)
    except Exception:  # whatever it is, reading names it
        return False
