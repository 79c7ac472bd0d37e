"""Common parts of reading npz and HDF5 columns: bounds, names, and numbers read in threads."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tql_offline.cores import memory_limit
from tql_offline.datasets.blocks import TASK_BYTES, empty_vector, in_threads, row_blocks
from tql_offline.datasets.episodes import Array
from tql_offline.documents import require_plain
from tql_offline.errors import InputError, first_line

Floats = NDArray[np.float32]
NUMBER_KINDS = "biuf"

MAX_COLUMNS = 64
MAX_BYTES = 256 * 2**30
"""Most bytes that a file's columns may unpack to."""
FREE_BYTES = 2**28
_PACKING = 1100
"""Largest packing ratio allowed; deflate, as in npz and HDF5, reaches no more than 1032."""
FLAT_COLUMNS = ("timeouts", "next_observations")
COLUMNS = ("observations", "actions", "rewards", "masks", "terminals", *FLAT_COLUMNS)
"""Columns of the layouts of docs/data.md, of which nothing may be ignored."""
STEP_MARKS = (
    "truncations",
    "truncateds",
    "truncated",
    "terminations",
    "terminateds",
    "terminated",
    "episode_terminals",
    "dones",
    "done",
)
"""Marks of each step, as in Gymnasium or d3rlpy, that none of our layouts has."""
HAS_PREADV = hasattr(os, "preadv")  # not on Windows, where the libraries read


def is_there(path: Path) -> bool:
    """Whether a path is that of a plain file.

    Raises:
        InputError: it is that of a folder, a pipe or a device.
    """
    try:
        require_plain(path)
        return path.is_file()
    except OSError:  # a name too long, or a folder without permission
        return False


class Columns(dict[str, Array]):
    """A file's columns by name.

    Attributes:
        finite: names of the columns found to be finite while they were read, when every block of
            them was in the cache anyway; other columns may be either. Code that changes a column
            must remove its name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.finite: set[str] = set()

    def add(self, name: str, column: Array, is_finite: bool) -> None:
        """Add a column."""
        self[name] = column
        if is_finite:
            self.finite.add(name)


@dataclass
class Wanted:
    """What to do with a file's columns: the arguments of `read_columns`."""

    only: Collection[str] | None
    floats: Collection[str]
    flat: bool = False
    held: int = 0

    def room(self, name: str, count: int, dtype: np.dtype[Any]) -> Array:  # noqa: ARG002
        """Allocate memory for `count` numbers of a kept column; `name` is for overriding methods.

        Raises:
            MemoryError: together with earlier columns it exceeds the machine's memory. Allocating
                would not fail; the system would kill the process once the memory is filled.
        """
        self.held += count * dtype.itemsize
        if self.held > machine_bytes():
            raise MemoryError
        return empty_vector(count, dtype)

    def keeps(self, name: str) -> bool:
        """Whether a column is kept."""
        return self.only is None or name in self.only

    def dtype(self, name: str, stored: np.dtype[Any]) -> np.dtype[Any]:
        """The type in which to keep a column; observations of bytes may be images and stay so."""
        may_be_images = stored == np.uint8 and name == "observations"
        convert = name in self.floats and stored.kind in NUMBER_KINDS and not may_be_images
        return np.dtype(np.float32) if convert else stored


@cache
def machine_bytes() -> int:
    """The memory of the machine, or of this container or job if less; looked up once.

    `MAX_BYTES` if the system does not say.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return MAX_BYTES
    limit = memory_limit()
    return total if limit is None else min(total, limit)


@contextmanager
def damage_named(path: Path, kind: str, mend: str) -> Iterator[None]:
    """Turn any error while a file is read into one sentence."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            f"the columns of {path} do not fit into memory; split the file, or use a machine with "
            "more memory"
        ) from error
    # It is undocumented what zipfile, its decompressors, NumPy and HDF5 raise on hostile bytes.
    except Exception as error:
        raise InputError(
            f"{path} is not a whole {kind} of plain arrays ({first_line(error)}); {mend}"
        ) from error


def check_names(path: Path, names: list[str], flat: bool) -> None:
    """Refuse too many columns, marks of no layout and, unless `flat`, D4RL's columns.

    Raises:
        InputError: such columns exist; the message names the file and what to do.
    """
    if len(names) > MAX_COLUMNS:
        raise InputError(f"{path} holds more than {MAX_COLUMNS} columns; split it")
    check_marks(path, names)
    if flat:
        return
    for foreign in FLAT_COLUMNS:
        if foreign in names:
            raise InputError(
                f"{path} has a column {foreign!r}, which is D4RL's layout; write it in the layout "
                "of docs/data.md, where 'terminals' marks each episode's last row, which holds the "
                "last observation"
            )


def check_marks(path: Path, names: Collection[str]) -> None:
    """Refuse columns that mark ends and would be ignored.

    Raises:
        InputError: such columns exist; the message names the file and what to do.
    """
    if "timeouts" in names:  # every end is marked: by these and `terminals`
        return
    for marks in STEP_MARKS:
        if marks in names:
            raise InputError(
                f"{path} has a column {marks!r}, which no layout of docs/data.md has; where each "
                "row is a step, name the marks as D4RL does: 'terminals' where the task ended, "
                "'timeouts' where an episode was cut off"
            )
    if "valids" in names and "next_observations" not in names:
        raise InputError(
            f"{path} has a column 'valids', as OGBench's loader makes with compact_dataset=True, "
            "where 'terminals' marks two rows of each episode; write 1 - valids as 'terminals' and "
            "leave 'valids' out"
        )


def check_size(path: Path, claimed: int) -> None:
    """Refuse a claim of more bytes than a file of its size can hold, even packed.

    Raises:
        InputError: the claim is too large; the message names the file and the claim.
    """
    size = path.stat().st_size
    if claimed > MAX_BYTES:
        raise InputError(
            f"{path} claims {claimed} bytes of columns, more than {MAX_BYTES}; split it"
        )
    if claimed > max(FREE_BYTES, _PACKING * size):
        raise InputError(
            f"{path} claims {claimed} bytes of columns, more than its {size} bytes can hold; "
            "write it again with every row of every column"
        )


def known_finite(block: Array) -> bool:
    """Whether all numbers are known to be finite, found without a boolean for each."""
    if block.dtype.kind != "f" or not block.size:
        return False
    numbers = cast(Floats, block)
    return bool(np.isfinite(numbers.min()) and np.isfinite(numbers.max()))  # NaN makes both NaN


@dataclass(frozen=True)
class Place:
    """Where a column lies in a file.

    Attributes:
        name: of the column.
        offset: of its first byte.
        flat: the vector to fill.
    """

    name: str
    offset: int
    flat: Array


def read_in_threads(
    file: int, places: Sequence[Place]
) -> Iterator[tuple[Place, NDArray[np.uint8], bool]]:
    """Fill vectors from their places in a file.

    Returns:
        For each block, in order: its place, its bytes, and whether its numbers are known to be
        finite.
    """

    def read(task: tuple[Place, slice]) -> tuple[Place, NDArray[np.uint8], bool]:
        place, here = task
        part, is_finite, size = place.flat[here], True, place.flat.itemsize
        data = part.view(np.uint8)
        for rows in row_blocks(len(part), size):
            start, stop = rows.start * size, rows.stop * size
            read_at(file, place.offset + here.start * size + start, data[start:stop])
            is_finite &= known_finite(part[rows])
        return place, data, is_finite

    tasks = [
        (place, here)
        for place in places
        if place.flat.itemsize
        for here in row_blocks(len(place.flat), place.flat.itemsize, block_bytes=TASK_BYTES)
    ]
    yield from in_threads(read, tasks)


def read_at(file: int, offset: int, data: NDArray[np.uint8]) -> None:
    """Fill bytes from a place in a file; safe to call from any thread.

    Raises:
        EOFError: the file ends too soon.
    """
    done = 0
    while done < len(data):
        # Unlike seek and read, it may be called by several threads at once.
        count = os.preadv(file, [data[done:].data], offset + done)
        if not count:
            raise EOFError("an array ends too soon")
        done += count
