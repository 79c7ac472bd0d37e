"""Large arrays a block at a time, so that nothing of a column's size is ever held beside it.

A block is some rows of a column: few enough that what is computed from them stays in the cache and
small beside the column, many enough that threads pay. Reading, packing and NumPy's arithmetic let
other threads run meanwhile.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tql_offline.cores import usable_cores

Result = TypeVar("Result")
Task = TypeVar("Task")
Number = TypeVar("Number", bound=np.generic)

BLOCK_BYTES = 2**20
"""Of what is worked on at once: about what a core's own cache holds."""
TASK_BYTES = 2**22
"""Of what a thread is given at once: handing it over costs as much as reading some 100 KB."""
_HUGE_PAGE = 2**21
_THREADS = min(4, usable_cores())


def empty_vector(count: int, dtype: DTypeLike) -> NDArray[Any]:
    """`np.empty` of one dimension, on huge pages where it is large.

    Before memory can be filled the kernel clears it, which of small pages takes several times
    longer than copying into it. NumPy asks for huge ones from 4 MiB on only.
    """
    dtype = np.dtype(dtype)
    num_bytes = count * dtype.itemsize
    if num_bytes < _HUGE_PAGE:
        return np.empty(count, dtype)
    pages = -(-num_bytes // _HUGE_PAGE)
    room = np.empty((pages + 1) * _HUGE_PAGE, np.uint8)
    start = -room.ctypes.data % _HUGE_PAGE
    return room[start : start + num_bytes].view(dtype)


def row_blocks(
    rows: int, row_bytes: int, *, multiple: int = 1, block_bytes: int = BLOCK_BYTES
) -> list[slice]:
    """Slices that cover rows in order, each of about `block_bytes`.

    Args:
        rows: how many there are.
        row_bytes: what one takes, or makes take.
        multiple: every slice but the last has a multiple of so many rows.
        block_bytes: what a slice is to take.
    """
    size = max(block_bytes // max(row_bytes, 1) // multiple, 1) * multiple
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def in_threads(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """What a function gives of each task, in order; several are under way at once.

    Whatever it gives is kept until it is asked for, so it must be small.
    """
    if len(tasks) < 2:  # threads take longer to begin than a task does
        yield from map(function, tasks)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(function, tasks)


def first_bad(
    column: NDArray[Number], is_bad: Callable[[NDArray[Number]], NDArray[np.bool_]]
) -> tuple[int, ...] | None:
    """Index of the first element that is bad, or None.

    Args:
        column: `(rows, ...)`.
        is_bad: from a block `(some rows, ...)` to booleans of the same shape.
    """
    for rows in row_blocks(len(column), column[:1].nbytes):
        bad = is_bad(column[rows])
        if bad.any():
            row, *rest = (int(i) for i in np.argwhere(bad)[0])
            return (rows.start + row, *rest)
    return None
