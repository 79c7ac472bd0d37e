"""Reading flat columns from npz and HDF5 files; every value in them is taken as hostile."""

import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.episodes import Array
from tql_offline.errors import InputError

Floats = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)

MAX_COLUMNS = 64
MAX_BYTES = 256 * 2**30
"""More than the columns of any file may unpack to."""
HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
_NUMBER_KINDS = "biuf"
_FREE_BYTES = 2**30
_PACKING = 1100
"""Deflate, the packing of npz and HDF5, makes nothing more than 1032 times smaller."""
_FOREIGN_COLUMNS = ("timeouts", "next_observations")


def read_columns(path: Path, mend: str = "write it again as docs/data.md says") -> dict[str, Array]:
    """Read every column of an `.npz` or HDF5 file.

    Args:
        path: the file.
        mend: what the user is told to do about a damaged file.

    Raises:
        InputError: the file is missing, damaged, of another format or layout, too large, or holds
            anything but plain arrays.
    """
    if not path.is_file():
        raise InputError(f"data file {path} does not exist; check the path")
    if path.suffix == ".npz":
        with _damage_named(path, "npz file", mend):
            return _read_npz(path)
    if path.suffix in HDF5_SUFFIXES:
        with _damage_named(path, "HDF5 file", mend):
            return _read_hdf5(path)
    raise InputError(f"{path} is neither .npz nor HDF5 ({', '.join(HDF5_SUFFIXES)}); convert it")


@contextmanager
def _damage_named(path: Path, kind: str, mend: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one sentence."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            f"the columns of {path} do not fit into memory; split the file, or use a machine with "
            "more memory"
        ) from error
    # What zipfile, its packers, NumPy and HDF5 raise on hostile bytes is in no document.
    except Exception as error:
        raise InputError(
            f"{path} is not a whole {kind} of plain arrays ({_first_line(error)}); {mend}"
        ) from error


def _read_npz(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        _check_names(path, list(members))
        _check_size(path, sum(member.file_size for member in members.values()))
        return {name: _npz_column(archive, member) for name, member in members.items()}


def _npz_column(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """One array.

    Raises:
        ValueError: its header does not describe the bytes that follow.
    """
    with archive.open(member) as file:
        shape, dtype = _npy_header(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename!r} holds objects")
        # NumPy makes room for what the header claims before it reads any of it.
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename!r} claims shape {shape} of {dtype}, but is not it")
        file.seek(0)
        column: Array = np.lib.format.read_array(file, allow_pickle=False)
        return column


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"npy format version {version} is unknown")
    shape, _fortran_order, dtype = read[version](file)
    return shape, dtype


def _read_hdf5(path: Path) -> dict[str, Array]:
    with h5py.File(path, "r") as file:
        names = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
        _check_names(path, names)
        items = {name: _hdf5_item(path, file, name) for name in names}
        _check_size(path, sum(item.nbytes for item in items.values()))
        return {name: item[...] for name, item in items.items()}


def _hdf5_item(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        raise InputError(
            f"{path} holds {name!r}, which is not a plain array of its own; "
            "store each column as one dataset at the top of the file"
        )
    if item.shape is None or item.dtype.hasobject:
        raise InputError(
            f"{path} holds {name!r}, which is not an array of numbers; leave that column out"
        )
    return item


def _check_names(path: Path, names: list[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise InputError(f"{path} holds {len(names)} columns, more than {MAX_COLUMNS}; split it")
    for foreign in _FOREIGN_COLUMNS:
        if foreign in names:
            raise InputError(
                f"{path} has a column {foreign!r}, which is D4RL's layout; write it in the layout "
                "of docs/data.md, where 'terminals' marks each episode's last row, which holds the "
                "last observation"
            )


def _check_size(path: Path, claimed: int) -> None:
    size = path.stat().st_size
    if claimed > MAX_BYTES:
        raise InputError(
            f"{path} claims {claimed} bytes of columns, more than {MAX_BYTES}; split it"
        )
    if claimed > max(_FREE_BYTES, _PACKING * size):
        raise InputError(
            f"{path} claims {claimed} bytes of columns, more than its {size} bytes can hold; "
            "write it again with every row of every column"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def require_matrix(columns: Mapping[str, Array], name: str, rows: int | None, path: Path) -> Floats:
    """A column as float32 `(rows, width)`.

    Raises:
        InputError: it is missing, not numeric, not finite, not two-dimensional, or of other length.
    """
    column = _matrix(columns, name, rows, path)
    return _finite(_as_float32(column), name, path)


def require_states(columns: Mapping[str, Array], name: str, rows: int, path: Path) -> Array:
    """A column `(rows, width)` in the type it was stored in, which its meaning depends on.

    Raises:
        InputError: as `require_matrix`.
    """
    return _finite(_matrix(columns, name, rows, path), name, path)


def _matrix(columns: Mapping[str, Array], name: str, rows: int | None, path: Path) -> Array:
    column = _require(columns, name, path)
    if column.ndim != 2 or column.shape[1] == 0:
        raise InputError(
            f"column {name!r} of {path} has shape {column.shape} where (rows, dims) is needed; "
            "write one row per step"
        )
    _check_rows(column, name, rows, path)
    return column


def require_vector(columns: Mapping[str, Array], name: str, rows: int, path: Path) -> Floats:
    """A column as float32 `(rows,)`.

    Raises:
        InputError: it is missing, not numeric, not one number a row, or of other length.
    """
    column = _require(columns, name, path)
    if column.size != len(column):
        raise InputError(
            f"column {name!r} of {path} has shape {column.shape} where one number per row is "
            "needed; write one number per step"
        )
    _check_rows(column, name, rows, path)
    return _finite(_as_float32(column.reshape(-1)), name, path)


def _require(columns: Mapping[str, Array], name: str, path: Path) -> Array:
    if name not in columns:
        raise InputError(
            f"{path} has no column {name!r} (it has: {', '.join(columns) or 'none'}); "
            "name the columns as docs/data.md does"
        )
    column = columns[name]
    if column.dtype.kind not in _NUMBER_KINDS or column.ndim == 0:
        raise InputError(
            f"column {name!r} of {path} holds {column.dtype} of shape {column.shape} where rows of "
            "numbers are needed; write one row per step"
        )
    return column


def _check_rows(column: Array, name: str, rows: int | None, path: Path) -> None:
    if rows is not None and len(column) != rows:
        raise InputError(
            f"column {name!r} of {path} has {len(column)} rows where 'observations' has {rows}; "
            "write every column with one row per step"
        )


def _as_float32(column: Array) -> Floats:
    # A number that float32 cannot hold becomes infinite, which `_finite` names.
    with np.errstate(over="ignore"):
        return column.astype(np.float32, copy=False)


def _finite(column: NDArray[Number], name: str, path: Path) -> NDArray[Number]:
    bad = ~np.isfinite(column)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise InputError(
            f"column {name!r} of {path} is not finite at row {row}; remove that episode"
        )
    return column


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
