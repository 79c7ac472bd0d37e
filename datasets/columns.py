"""Reading flat columns from npz and HDF5 files; every value in them is taken as hostile."""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.episodes import Array
from tql_offline.errors import InputError

Floats = NDArray[np.float32]

MAX_COLUMNS = 64
HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
_NUMBER_KINDS = "biuf"


def read_columns(path: Path) -> dict[str, Array]:
    """Read every numeric column of an `.npz` or HDF5 file.

    Raises:
        InputError: the file is missing, cut off, of another format, or holds anything but numbers.
    """
    if not path.is_file():
        raise InputError(f"data file {path} does not exist; check the path")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in HDF5_SUFFIXES:
        return _read_hdf5(path)
    raise InputError(f"{path} is neither .npz nor HDF5 ({', '.join(HDF5_SUFFIXES)}); convert it")


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        # Opened here: np.load leaves its own handle open when the archive turns out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            _check_names(path, archive.files)
            return {name: archive[name] for name in archive.files}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise InputError(
            f"{path} is not a whole npz file of plain arrays ({_first_line(error)}); "
            "delete it and download or collect it again"
        ) from error


def _read_hdf5(path: Path) -> dict[str, Array]:
    try:
        with h5py.File(path, "r") as file:
            names = [
                name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)
            ]
            _check_names(path, names)
            return {name: _hdf5_column(path, file, name) for name in names}
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole HDF5 file ({_first_line(error)}); "
            "delete it and download or convert it again"
        ) from error


def _hdf5_column(path: Path, file: h5py.File, name: str) -> Array:
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        raise InputError(
            f"{path} holds {name!r}, which is not a plain array of its own; "
            "store each column as one dataset at the top of the file"
        )
    column: Array = item[...]
    return column


def _check_names(path: Path, names: list[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise InputError(f"{path} holds {len(names)} columns, more than {MAX_COLUMNS}; split it")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def require_matrix(columns: Mapping[str, Array], name: str, rows: int | None, path: Path) -> Floats:
    """A column as float32 `(rows, width)`.

    Raises:
        InputError: it is missing, not numeric, not two-dimensional, or of other length.
    """
    column = _require(columns, name, path)
    if column.ndim != 2 or column.shape[1] == 0:
        raise InputError(
            f"column {name!r} of {path} has shape {column.shape} where (rows, dims) is needed; "
            "write one row per step"
        )
    _check_rows(column, name, rows, path)
    return _finite(column.astype(np.float32, copy=False), name, path)


def require_vector(columns: Mapping[str, Array], name: str, rows: int, path: Path) -> Floats:
    """A column as float32 `(rows,)`.

    Raises:
        InputError: it is missing, not numeric, not one number a row, or of other length.
    """
    column = _require(columns, name, path)
    if column.size != len(column):
        raise InputError(
            f"column {name!r} of {path} has shape {column.shape} where one number per row is needed"
        )
    _check_rows(column, name, rows, path)
    return _finite(column.reshape(-1).astype(np.float32), name, path)


def _require(columns: Mapping[str, Array], name: str, path: Path) -> Array:
    if name not in columns:
        raise InputError(
            f"{path} has no column {name!r} (it has: {', '.join(columns) or 'none'}); "
            "name the columns as docs/data.md does"
        )
    column = columns[name]
    if column.dtype.kind not in _NUMBER_KINDS or column.ndim == 0:
        raise InputError(f"column {name!r} of {path} holds {column.dtype} where numbers are needed")
    return column


def _check_rows(column: Array, name: str, rows: int | None, path: Path) -> None:
    if rows is not None and len(column) != rows:
        raise InputError(
            f"column {name!r} of {path} has {len(column)} rows where 'observations' has {rows}; "
            "the file is damaged, so collect or download it again"
        )


def _finite(column: Floats, name: str, path: Path) -> Floats:
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
