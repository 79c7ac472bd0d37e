"""A dataset made from arrays in memory instead of a file with the same columns."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from tql_offline.datasets.action_bounds import OutOfBoundsError, checked_bounds
from tql_offline.datasets.episodes import Array, NoLastEndError, NoTransitionError
from tql_offline.datasets.load import TAKEN_FOR_OGBENCH, Dataset, own_dataset
from tql_offline.datasets.reading import FLAT_COLUMNS, check_marks
from tql_offline.datasets.views import AS_STEPS
from tql_offline.errors import InputError

Layout = Literal["steps", "ogbench"]

_BOUNDS_ARGUMENT = "action_bounds=(LOW, HIGH), here and in the config's table 'dataset'"
_STEPS_ARGUMENT = "give layout='steps' if each row is a step, as d3rlpy has it"
_UNCLEAR_LAYOUT = f"{TAKEN_FOR_OGBENCH}; {_STEPS_ARGUMENT}, or layout='ogbench' if this is right"


def from_arrays(
    columns: Mapping[str, ArrayLike],
    name: str,
    *,
    env_id: str | None = None,
    action_bounds: Sequence[ArrayLike] = (),
    layout: Layout | None = None,
) -> Dataset:
    """Make a dataset from columns in one of the layouts of docs/data.md.

    With `timeouts` or `next_observations` each row is a step, as in D4RL's files and d3rlpy's
    datasets; without them an episode's last row, marked by `terminals`, holds only its last
    observation, as in OGBench's. Columns without `masks` do not tell which is meant: unless
    `layout` does, OGBench's is assumed with a warning.

    Args:
        columns: `observations`, `actions`, `rewards`, `terminals` and so on; they are copied.
        name: the dataset's name in the config and in every result.
        env_id: the Gymnasium environment to score policies in.
        action_bounds: least and greatest action, mapped to -1 and 1; or two arrays of them, as a
            `Box` has; also in the config.
        layout: `"steps"` if each row is a step, `terminals` the task's ends and `timeouts`, none
            if there is no such column, the cuts; `"ogbench"` for last rows without a step.

    Raises:
        InputError: a column is missing, of the wrong length or not finite, or one marks ends by a
            name of no layout; actions lie outside [-1, 1]; or the layout is unknown, or not that of
            the columns.

    >>> columns = {"observations": np.zeros((4, 3)), "actions": np.zeros((4, 1)),
    ...     "rewards": np.ones(4), "terminals": [0, 1, 0, 0], "timeouts": [0, 0, 0, 1],
    ...     "next_observations": np.zeros((4, 3))}
    >>> from_arrays(columns, "mine").episodes.lengths
    array([2, 2])
    """
    if not name.isprintable() or not name:
        raise InputError(f"dataset name {name!r} is not one that can be printed; give another")
    bounds = checked_bounds(action_bounds)
    check_marks(Path(name), columns)
    columns = _in_layout(columns, layout)
    arrays = {key: _array(key, column) for key, column in columns.items()}
    digest: Future[str] = Future()
    digest.set_result(_sha256(columns))
    is_flat = any(key in arrays for key in FLAT_COLUMNS)
    if layout is None and not is_flat and "masks" not in arrays:
        warnings.warn(f"dataset {name!r}: {_UNCLEAR_LAYOUT}", stacklevel=2)
    try:
        data = own_dataset(arrays, Path(name), digest, env_id, bounds, flat=is_flat)
    except OutOfBoundsError as error:
        raise error.told(bounds, _BOUNDS_ARGUMENT) from error
    except NoLastEndError as error:
        raise NoLastEndError(error.fault, f"{_STEPS_ARGUMENT}; otherwise mark it") from error
    except NoTransitionError as error:
        advice = error.advice.replace(AS_STEPS, _STEPS_ARGUMENT)
        raise NoTransitionError(error.fault, advice) from error
    return replace(data, name=name, source="arrays")


def _in_layout(columns: Mapping[str, ArrayLike], layout: Layout | None) -> Mapping[str, ArrayLike]:
    """The columns, with `timeouts` of 0 if each row is a step and there are none.

    Raises:
        InputError: the layout is unknown, or not that of the columns.
    """
    if layout not in (None, *get_args(Layout)):
        raise InputError(f"layout {layout!r} is unknown; give one of {', '.join(get_args(Layout))}")
    step_columns = [key for key in FLAT_COLUMNS if key in columns]
    if layout == "ogbench" and step_columns:
        raise InputError(
            f"layout 'ogbench' is given, but column {step_columns[0]!r} says that each row is a "
            "step; leave one of them out"
        )
    if layout != "steps" or step_columns or "terminals" not in columns:
        return columns
    # As a column, they are part of the digest: the same numbers read otherwise are other data.
    return {**columns, "timeouts": np.zeros(_array("terminals", columns["terminals"]).shape)}


def _array(key: str, column: ArrayLike) -> Array:
    """A copy of a column; floats, actions and rewards become float32, as when read from files."""
    try:
        array = np.array(column, order="C")
    except ValueError as error:
        raise InputError(
            f"column {key!r} is no array ({error}); give rows of equal length"
        ) from error
    is_float = array.dtype.kind == "f" or key in ("actions", "rewards")
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported as not finite
        return array.astype(np.float32) if is_float and array.dtype.kind in "fiub" else array


def _sha256(columns: Mapping[str, ArrayLike]) -> str:
    """SHA-256 of names, types, shapes and numbers, independent of the order of the columns."""
    digest = hashlib.sha256()
    for key in sorted(columns):
        array: Array = np.ascontiguousarray(columns[key])
        digest.update(f"{key} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
