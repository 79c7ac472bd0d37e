"""Bounds of a user's own actions, which are mapped to -1 and 1.

They are given as a list of numbers: the least and the greatest action of all dims, or all dims'
least ones, followed by all dims' greatest.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from tql_offline.config import are_bounds
from tql_offline.datasets.episodes import Array
from tql_offline.datasets.reading import Columns
from tql_offline.errors import AdvisedError, InputError, shown

BOUNDS_SETTING = "--set 'dataset.action_bounds=[{low},{high}]'"
"""How training is told bounds; quoted, since zsh expands brackets."""
_ANY_BOUNDS = BOUNDS_SETTING.format(low="LOW", high="HIGH")


class OutOfBoundsError(AdvisedError):
    """Actions of a user's own data lie outside [-1, 1], or outside the bounds that were given.

    Args:
        column: the column, and its file.
        action: the first of them, scaled by the bounds if any were given.
        row: its row in the file.
        dim: its dim.
        bounds: least and greatest action of this dim, if bounds were given.
        option: how the caller is told bounds.
    """

    def __init__(
        self,
        column: str,
        action: float,
        row: int,
        dim: int,
        bounds: Sequence[float] = (),
        option: str = _ANY_BOUNDS,
    ) -> None:
        low, high = bounds or (-1, 1)
        stored = low + (action + 1) / 2 * (high - low)
        given, advice = "", f"name their bounds by {option}, or scale the actions into it"
        if bounds:
            given = "the given bounds "
            advice = f"name the least and the greatest action of the data by {option}"
        place = f"row {row}, dim {dim}"
        fault = f"{column} has {stored:g} at {place}, outside {given}[{low:g}, {high:g}]"
        super().__init__(fault, advice)
        self.args = (column, action, row, dim, bounds, option)

    def told(self, bounds: Sequence[float], option: str = _ANY_BOUNDS) -> Self:
        """The same error where these bounds were given, with another way to give them."""
        column, action, row, dim, *_ = self.args
        dims = len(bounds) // 2
        return type(self)(
            column, action, row, dim, bounds[dim % dims :: dims] if bounds else (), option
        )


def checked_bounds(bounds: Sequence[Any]) -> tuple[float, ...]:
    """Bounds as a list of numbers; they may also be given as two arrays, a `Box`'s low and high.

    Raises:
        InputError: they are no least actions and as many greatest.

    >>> checked_bounds([-2, 2]), checked_bounds((np.array([-2, 0]), np.array([2, 5])))
    ((-2.0, 2.0), (-2.0, 0.0, 2.0, 5.0))
    """
    try:
        given = np.asarray(bounds, np.float64)
        numbers = tuple(given.ravel().tolist())
        are_two = given.ndim == 1 or (given.ndim == 2 and len(given) == 2)
        if not numbers or (are_two and are_bounds(numbers)):
            return numbers
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"action bounds {shown(bounds)} are not the least and the greatest action; give two "
        "numbers, or all dims' least actions and then all dims' greatest"
    )


def bounds_by_dim(
    action_dim: int, bounds: Sequence[float]
) -> tuple[list[float], list[float]] | None:
    """Least and greatest actions of each dim, as a dataset stores them; None if none are given.

    Raises:
        InputError: they are of another number of dims.

    >>> bounds_by_dim(2, (-1, 1)), bounds_by_dim(2, (-2, 0, 2, 5))
    (([-1.0, -1.0], [1.0, 1.0]), ([-2.0, 0.0], [2.0, 5.0]))
    """
    dims = len(bounds) // 2
    if dims not in (0, 1, action_dim):
        raise InputError(
            f"action bounds of {dims} dims are given for actions of {action_dim}; give two numbers "
            f"for all dims, or {action_dim} least actions and then {action_dim} greatest"
        )
    rows = [[float(bound) for bound in half] for half in (bounds[:dims], bounds[dims:])]
    low, high = (row * action_dim if dims == 1 else row for row in rows)
    return (low, high) if dims else None


def scale_actions(columns: Mapping[str, Array], bounds: Sequence[float]) -> None:
    """Scale `actions` from given bounds, if any, to [-1, 1] in place.

    What are no numbers, and columns that are not `(rows, dims)`, are reported later.

    Raises:
        InputError: the bounds are of another number of dims.
    """
    actions = columns.get("actions")
    # Integers would be recorded as scaled, and trained on as they are.
    assert not bounds or actions is None or actions.dtype.kind not in "biu", "read them as floats"
    if actions is None or actions.dtype.kind != "f" or actions.ndim != 2:
        return
    if pair := bounds_by_dim(actions.shape[1], bounds):
        low, high = (np.array(row) for row in pair)
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported as not finite
            np.subtract(actions, ((low + high) / 2).astype(actions.dtype), out=actions)
            np.divide(actions, ((high - low) / 2).astype(actions.dtype), out=actions)
        if isinstance(columns, Columns):
            columns.finite.discard("actions")


def as_setting(low: Sequence[float], high: Sequence[float]) -> dict[str, str]:
    """Bounds as `BOUNDS_SETTING` takes them, once where all dims share them; empty if infinite.

    They have the digits that give the same float32 or, if they are none, float64 again.

    >>> BOUNDS_SETTING.format(**as_setting([-2, -2], [2, 2]))
    "--set 'dataset.action_bounds=[-2,2]'"
    >>> as_setting([-2, -1], [2, 1]), as_setting([0], [np.inf])
    ({'low': '-2,-1', 'high': '2,1'}, {})
    >>> as_setting([-0.3], [float(np.float32(2 * np.pi / 3))])
    {'low': '-0.3', 'high': '2.0943952'}
    """
    if not np.isfinite([*low, *high]).all():
        return {}
    dims = 1 if len({*low}) == len({*high}) == 1 else None
    rows = {"low": low[:dims], "high": high[:dims]}
    return {key: ",".join(map(_shortest, row)) for key, row in rows.items()}


def _shortest(bound: float) -> str:
    single = np.float32(bound)
    return str(single if single == bound else np.float64(bound)).removesuffix(".0")
