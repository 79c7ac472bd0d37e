"""Columns of a required type, shape and length, checked to be finite."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.blocks import first_bad
from tql_offline.datasets.episodes import Array
from tql_offline.datasets.reading import NUMBER_KINDS, Columns, Floats
from tql_offline.errors import InputError

Number = TypeVar("Number", bound=np.generic)


def require_matrix(columns: Mapping[str, Array], name: str, rows: int | None, path: Path) -> Floats:
    """A column as float32 `(rows, width)`.

    Raises:
        InputError: it is missing, not numeric, not finite, not 2-D, or of the wrong length.
    """
    column = _matrix(columns, name, rows, path)
    return _finite(_as_float32(column), name, columns, path)


def require_states(columns: Mapping[str, Array], name: str, rows: int, path: Path) -> Array:
    """A column `(rows, width)` in its stored type, on which its meaning depends.

    Raises:
        InputError: as for `require_matrix`.
    """
    return _finite(_matrix(columns, name, rows, path), name, columns, path)


def _matrix(columns: Mapping[str, Array], name: str, rows: int | None, path: Path) -> Array:
    column = require_numbers(columns, name, rows, path)
    if column.ndim != 2:
        raise InputError(
            f"column {name!r} of {path} has shape {column.shape} where (rows, dims) is needed; "
            "write one row per step"
        )
    return column


def require_vector(columns: Mapping[str, Array], name: str, rows: int, path: Path) -> Floats:
    """A column as float32 `(rows,)`.

    Raises:
        InputError: it is missing, not numeric, not finite, not one number per row, or of the wrong
            length.
    """
    column = _vector(columns, name, rows, path)
    return _finite(_as_float32(column), name, columns, path)


def _vector(columns: Mapping[str, Array], name: str, rows: int, path: Path) -> Array:
    column = require_numbers(columns, name, rows, path)
    if column.size != len(column):
        raise InputError(
            f"column {name!r} of {path} has shape {column.shape} where one number per row is "
            "needed; write one number per step"
        )
    return column.reshape(-1)


def require_marks(
    columns: Mapping[str, Array], name: str, rows: int, path: Path
) -> NDArray[np.bool_]:
    """Where a column, as float32, is not 0, `(rows,)`.

    Raises:
        InputError: as for `require_vector`.
    """
    column = _vector(columns, name, rows, path)
    if column.dtype.kind == "f":
        column = require_vector(columns, name, rows, path)
    return cast(NDArray[np.bool_], column != 0)


def require_masks(masks: Floats, path: Path, row: Callable[[int], int] = int) -> None:
    """Check that masks are 0 or 1.

    Args:
        masks: `(N,)`.
        path: their file, for the message.
        row: maps the index of a mask to its row in the file, if they differ.

    Raises:
        InputError: a mask is neither.
    """
    bad = first_bad(masks, lambda block: (block != 0) & (block != 1))
    if bad is not None:
        raise InputError(
            f"column 'masks' of {path} has {masks[bad]:g} at row {row(bad[0])}; write 0 where the "
            "task itself ended and 1 elsewhere"
        )


def require_numbers(
    columns: Mapping[str, Array], name: str, rows: int | None, path: Path | str
) -> Array:
    """A column of rows of numbers as it is stored.

    Raises:
        InputError: it is missing, empty, not numeric, or of the wrong length.
    """
    if name not in columns:
        raise InputError(
            f"{path} has no column {name!r} (it has: {', '.join(columns) or 'none'}); "
            "name the columns as docs/data.md does"
        )
    column = columns[name]
    if column.dtype.kind not in NUMBER_KINDS or column.ndim == 0 or 0 in column.shape:
        raise InputError(
            f"column {name!r} of {path} holds {column.dtype} of shape {column.shape} where rows of "
            "numbers are needed; write one row per step"
        )
    if rows is not None and len(column) != rows:
        raise InputError(
            f"column {name!r} of {path} has {len(column)} rows where 'observations' has {rows}; "
            "write every column with one row per step"
        )
    return column


def _as_float32(column: Array) -> Floats:
    # A number that float32 cannot hold becomes infinite, which `_finite` reports.
    with np.errstate(over="ignore"):
        return column.astype(np.float32, copy=False)


def _finite(
    column: NDArray[Number], name: str, columns: Mapping[str, Array], path: Path
) -> NDArray[Number]:
    was_seen = isinstance(columns, Columns) and name in columns.finite
    if was_seen and column.dtype == columns[name].dtype:
        return column
    bad = first_bad(column, lambda block: ~np.isfinite(block))
    if bad is not None:
        raise InputError(
            f"column {name!r} of {path} is not finite at row {bad[0]}; remove that episode"
        )
    return column
