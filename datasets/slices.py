"""Datasets that come as a folder of npz slices, such as OGBench's of 100M transitions.

The slices are the folder's `*.npz` in the order of their names, without `*-val.npz`, OGBench's
validation data. Each is a complete file, so that no episode continues in the next one.
"""

import hashlib
import math
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tql_offline.datasets.blocks import empty_vector
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.episodes import Array
from tql_offline.datasets.npz import npy_header, npz_members, read_npz
from tql_offline.datasets.reading import (
    Columns,
    Wanted,
    check_size,
    damage_named,
    is_there,
    machine_bytes,
)
from tql_offline.errors import InputError, shown

MAX_SLICES = 10_000
_BESIDE = 29
"""Bytes per row that the buffer takes besides the columns: 12 targets, 8 rows, 9 marks."""


@dataclass(frozen=True)
class _Header:
    """What a slice's header says about one column."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def slice_paths(folder: Path, count: int = 0) -> list[Path]:
    """The files of a folder of slices, in order.

    Args:
        folder: the folder.
        count: how many to take, from the first on; 0 takes all.

    Raises:
        InputError: there are none, too many, or fewer than `count`.
    """
    try:
        found = sorted(path for path in folder.iterdir() if _is_slice(path))
    except OSError as error:
        raise InputError(
            f"folder {folder} cannot be read ({error.strerror}); check the path"
        ) from error
    paths = [path for path in found if not path.stem.endswith("-val")]
    if not paths or len(paths) > MAX_SLICES:
        raise InputError(
            f"folder {folder} holds {len(paths)} npz files where 1 to {MAX_SLICES} slices are "
            "needed; give the folder that the slices lie in"
        )
    if count > len(paths):
        raise InputError(
            f"folder {folder} holds {len(paths)} slices where {count} are asked for; ask for fewer"
        )
    return paths[:count] if count else paths


def _is_slice(path: Path) -> bool:
    # macOS puts `._x.npz` beside a copied `x.npz`.
    return path.suffix == ".npz" and not path.name.startswith(".")


def read_slices(
    paths: Sequence[Path],
    mend: str = "get that slice again",
    *,
    only: Collection[str],
    floats: Collection[str] = (),
) -> Columns:
    """Read slices one after the other, each straight into its place in the whole columns.

    Their total size is known from their headers and compared with the free memory first. Besides
    the columns, no more than a few blocks of rows are held in memory.

    Args:
        paths: the slices' files.
        mend: advice to the user about a damaged slice.
        only: the columns to keep, of those that the files have.
        floats: columns that become float32.

    Returns:
        The columns that `read_columns` would return for one file with all their rows.

    Raises:
        InputError: a slice is damaged, differs from the first in its columns, widths or types, or
            ends inside an episode; or there is not enough memory.
    """
    wanted = _Place(only, floats)
    headers = []
    for path in paths:
        with _named(path, mend):
            headers.append(_headers(path, wanted))
    _check_alike(paths, headers)
    _check_memory(paths, headers, wanted)
    whole = Columns()
    for name, first in headers[0].items():
        rows = sum(header[name].shape[0] for header in headers)
        dtype = wanted.dtype(name, first.dtype)
        wanted.whole[name] = empty_vector(rows * math.prod(first.shape[1:]), dtype)
        whole[name] = wanted.whole[name].reshape(rows, *first.shape[1:])
    whole.finite = set(whole)
    done = 0
    for path, header in zip(paths, headers, strict=True):
        done += _read_into(whole, wanted, path, header, done, mend)
    return whole


def _read_into(
    whole: Columns, wanted: "_Place", path: Path, header: dict[str, _Header], done: int, mend: str
) -> int:
    """Read a slice into the whole columns from row `done` on, and return its number of rows."""
    wanted.begin(done, header)
    with _named(path, mend):
        part = read_npz(path, wanted)
    count = next(iter(header.values())).shape[0]
    for name, read in header.items():
        if part[name].shape != read.shape or part[name].dtype != whole[name].dtype:
            raise InputError(f"{path} was changed while it was read; try again")
        if not part[name].flags.c_contiguous:  # in Fortran order in the file, and so in its place
            whole[name][done : done + count] = part[name].copy()
    whole.finite &= part.finite
    if "terminals" in whole and not np.all(whole["terminals"][done + count - 1] != 0):
        raise InputError(
            f"slice {path} ends inside an episode: 'terminals' does not mark its last row; {mend}"
        )
    return count


class _Place(Wanted):
    """Columns whose memory is part of the whole columns' memory."""

    def __init__(self, only: Collection[str], floats: Collection[str]) -> None:
        super().__init__(only, floats)
        self.whole: dict[str, Array] = {}
        self.starts: dict[str, int] = {}

    def begin(self, row: int, header: dict[str, _Header]) -> None:
        """Set the row at which the next slice goes."""
        self.starts = {name: row * math.prod(h.shape[1:]) for name, h in header.items()}

    def room(self, name: str, count: int, dtype: np.dtype[Any]) -> Array:
        """The column's part of the whole column."""
        start = self.starts[name]
        part = self.whole[name][start : start + count]
        if len(part) != count or part.dtype != dtype:
            raise ValueError(f"{shown(name)} was changed while it was read")
        return part


def _headers(path: Path, wanted: _Place) -> dict[str, _Header]:
    """Shapes and types of the kept columns.

    Raises:
        ValueError: a header does not describe the bytes that follow.
    """
    headers = {}
    with zipfile.ZipFile(path) as archive:
        members = npz_members(path, archive.infolist())
        check_size(path, sum(member.file_size for member in members.values()))
        for name, member in members.items():
            if not wanted.keeps(name):
                continue
            with archive.open(member) as file:
                shape, _fortran_order, dtype = npy_header(file)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or dtype.subdtype or file.tell() + size != member.file_size:
                    raise ValueError(f"{shown(name)} is not the plain array it claims to be")
            if not shape or 0 in shape:
                raise ValueError(f"{shown(name)} has no rows")
            headers[name] = _Header(shape, dtype)
    if len({header.shape[0] for header in headers.values()}) != 1:
        raise ValueError("its columns are missing or of different lengths")
    return headers


@contextmanager
def _named(path: Path, mend: str) -> Iterator[None]:
    if not is_there(path):
        raise InputError(f"slice {path} is no file; {mend}")
    with damage_named(path, "npz file", mend):
        yield


def _check_alike(paths: Sequence[Path], headers: Sequence[dict[str, _Header]]) -> None:
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        if header.keys() != first.keys():
            odd = sorted(header.keys() ^ first.keys())[0]
            raise InputError(
                f"slices {paths[0]} and {path.name} do not have the same columns ({shown(odd)}); "
                "leave only slices of one dataset in the folder"
            )
        for name, column in header.items():
            if column.shape[1:] != first[name].shape[1:] or column.dtype != first[name].dtype:
                raise InputError(
                    f"column {shown(name)} of slice {path} has rows {column.shape[1:]} of "
                    f"{column.dtype} where {paths[0].name} has {first[name].shape[1:]} of "
                    f"{first[name].dtype}; leave only slices of one dataset in the folder"
                )


def _check_memory(
    paths: Sequence[Path], headers: Sequence[dict[str, _Header]], wanted: _Place
) -> None:
    """Compare the memory that slices will take with what is free, before any is taken."""
    needed = sum(_planned_bytes(header, wanted) for header in headers)
    free = available_bytes()
    if needed > free:
        fitting = int(len(paths) * free / needed)
        raise InputError(
            f"{len(paths)} slices of {paths[0].parent} need {needed / 2**30:.1f} GiB of memory "
            f"where {free / 2**30:.1f} GiB are free; take fewer with --slices {max(fitting, 1)}"
        )


def _planned_bytes(header: dict[str, _Header], wanted: _Place) -> int:
    rows = next(iter(header.values())).shape[0]
    columns = (
        math.prod(column.shape) * wanted.dtype(name, column.dtype).itemsize
        for name, column in header.items()
    )
    return sum(columns) + _BESIDE * rows


def available_bytes() -> int:
    """Memory available without swapping, if the system says, but no more than `machine_bytes`."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return machine_bytes()
    return min(1024 * free, machine_bytes())


def slices_sha256(paths: Sequence[Path]) -> str:
    """SHA-256, in hex, of what `sha256sum` prints for the slices in their folder."""
    lines = (f"{file_sha256(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
