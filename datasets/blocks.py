"""Work on large arrays a block at a time, so that no second array of a column's size is held.

A block is some rows of a column: few enough that what is computed from them stays in the cache and
is small compared with the column, many enough that threads pay off. Reading, packing and NumPy's
arithmetic let other threads run meanwhile.
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
"""Size of a block that is worked on at once: about what a core's own cache holds."""
TASK_BYTES = 2**22
"""Size of a thread's task: handing one over costs as much as reading about 100 KB."""
_HUGE_PAGE = 2**21
_THREADS = min(4, usable_cores())


def empty_vector(count: int, dtype: DTypeLike) -> NDArray[Any]:
    """Make a one-dimensional `np.empty`, on huge pages if it is large.

    The kernel clears memory before it can be filled, which with small pages takes several times
    longer than copying into it. NumPy asks for huge pages only from 4 MiB on.
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
        rows: number of rows.
        row_bytes: bytes that a row takes, temporaries included.
        multiple: the number of rows in every slice but the last is a multiple of this.
        block_bytes: bytes that a slice should take.
    """
    size = max(block_bytes // max(row_bytes, 1) // multiple, 1) * multiple
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def in_threads(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """Yield a function's result for each task, in order; several tasks run at once.

    Results are kept until they are asked for, so they must be small.
    """
    if len(tasks) < 2:  # starting threads takes longer than a task
        yield from map(function, tasks)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(function, tasks)


def first_bad(
    column: NDArray[Number], is_bad: Callable[[NDArray[Number]], NDArray[np.bool_]]
) -> tuple[int, ...] | None:
    """Index of the first bad element, or None.

    Args:
        column: `(rows, ...)`.
        is_bad: maps a block `(some rows, ...)` to booleans of the same shape.
    """
    for rows in row_blocks(len(column), column[:1].nbytes):
        bad = is_bad(column[rows])
        if bad.any():
            row, *rest = (int(i) for i in np.argwhere(bad)[0])
            return (rows.start + row, *rest)
    return None
