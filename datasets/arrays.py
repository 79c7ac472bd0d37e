"""A dataset made from arrays in memory instead of a file with the same columns."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from tql_offline.datasets.episodes import Array
from tql_offline.datasets.load import Dataset, checked_bounds, own_dataset
from tql_offline.datasets.reading import FLAT_COLUMNS
from tql_offline.errors import InputError


def from_arrays(
    columns: Mapping[str, ArrayLike],
    name: str,
    *,
    env_id: str | None = None,
    action_bounds: Sequence[float] = (),
) -> Dataset:
    """Make a dataset from columns in one of the layouts of docs/data.md.

    With `timeouts` or `next_observations` each row is a step, as in D4RL's files and d3rlpy's
    datasets; without them an episode's last row, marked by `terminals`, holds only its last
    observation, as in OGBench's.

    Args:
        columns: `observations`, `actions`, `rewards`, `terminals` and so on; they are copied.
        name: the dataset's name in the config and in every result.
        env_id: the Gymnasium environment to score policies in.
        action_bounds: lower and upper bound of the actions, mapped to -1 and 1; also in the config.

    Raises:
        InputError: a column is missing, of the wrong length or not finite, or actions lie outside
            [-1, 1].

    >>> columns = {"observations": np.zeros((4, 3)), "actions": np.zeros((4, 1)),
    ...     "rewards": np.ones(4), "terminals": [0, 1, 0, 0], "timeouts": [0, 0, 0, 1],
    ...     "next_observations": np.zeros((4, 3))}
    >>> from_arrays(columns, "mine").episodes.lengths
    array([2, 2])
    """
    if not name.isprintable() or not name:
        raise InputError(f"dataset name {name!r} is not one that can be printed; give another")
    arrays = {key: _array(key, column) for key, column in columns.items()}
    digest: Future[str] = Future()
    digest.set_result(_sha256(columns))
    is_flat = any(key in arrays for key in FLAT_COLUMNS)
    bounds = checked_bounds(action_bounds)
    data = own_dataset(arrays, Path(name), digest, env_id, bounds, flat=is_flat)
    return replace(data, name=name, source="arrays")


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
