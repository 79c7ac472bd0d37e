"""The canonical layout every reader produces: flat columns plus episode boundaries.

Two episodes of 3 and 2 transitions; `|` marks the boundary between them:

    transition      :   0    1    2  |   3    4                      N = 5
    actions         : [a0,  a1,  a2, |  a0,  a1]                     N rows
    rewards, masks  : [r0,  r1,  r2, |  r0,  r1]                     N rows
    observations    : [s0,  s1,  s2,  s3, |  s0,  s1,  s2]           N + E rows
    observation row :   0    1    2    3  |   4    5    6

Transition `i` of episode `e` starts at observation row `i + e` and ends at row `i + e + 1`: the
next observation is the next row, never stored twice. Every episode keeps its last observation.

`masks` is 0 only where the task itself ended (no bootstrap). The end of an episode is kept
separately, in `lengths`; an episode that was merely cut off (truncated) bootstraps from its last
observation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.blocks import empty_vector
from tql_offline.errors import AdvisedError, InputError

Array = NDArray[np.generic]

_MANY_DIMS = 256

ACTION_BOUND = 1 - 1e-5
"""Actions in the data are clipped to ±(1 - 1e-5), as in FQL's code."""

ACTION_TOLERANCE = 1e-3
"""How far outside [-1, 1] an action in a user's own file may lie and still count as rounding."""


class NoTransitionError(AdvisedError):
    """An episode of one row, which in OGBench's layout holds an observation and no transition."""


class NoLastEndError(AdvisedError):
    """A last row that is not marked as an episode's end, as OGBench's layout has it."""


Column = TypeVar("Column", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """A dataset of E episodes with N transitions in the canonical layout.

    Attributes:
        observations: `(N + E, n_s)` float32 (or uint8 images `(N + E, height, width, channels)`).
        actions: `(N, n_a)` float32, each in [-1, 1] for the environments of this package.
        rewards: `(N,)` float32.
        masks: `(N,)` float32; 0 where the task ended at this transition, otherwise 1.
        lengths: `(E,)` int64, number of transitions in each episode, at least 1.
    """

    observations: Array
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    masks: NDArray[np.float32]
    lengths: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check that the columns belong together."""
        transitions = int(self.lengths.sum())
        rows = transitions + len(self.lengths)
        for name, have, want in (
            ("observations", len(self.observations), rows),
            ("actions", len(self.actions), transitions),
            ("rewards", len(self.rewards), transitions),
            ("masks", len(self.masks), transitions),
        ):
            if have != want:
                raise InputError(
                    f"column {name!r} has {have} rows where the episode lengths need {want}; "
                    "write the columns again from one source"
                )
        if len(self.lengths) == 0 or self.lengths.min() < 1:
            raise InputError(
                "the dataset has an episode without a transition; leave such episodes out"
            )

    @property
    def num_transitions(self) -> int:
        """N, the number of (s, a, r, s') tuples."""
        return len(self.actions)

    @property
    def num_episodes(self) -> int:
        """E, the number of episodes."""
        return len(self.lengths)

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """Type of observation row numbers: int32 where it suffices, otherwise int64."""
        return np.dtype(np.int32 if len(self.observations) < 2**31 else np.int64)

    def start_rows(self) -> NDArray[np.integer[Any]]:
        """Observation row at which each transition starts, `(N,)`; it ends one row later.

        The rows are of type `row_dtype`.
        """
        rows: NDArray[np.integer[Any]] = empty_vector(self.num_transitions, self.row_dtype)
        # Each transition starts one row after the previous one, or two across an episode's end.
        rows[:] = 1
        rows[0] = 0
        rows[np.cumsum(self.lengths)[:-1]] = 2
        return np.cumsum(rows, out=rows)

    def last_transitions(self) -> NDArray[np.int64]:
        """Index of each episode's last transition, `(E,)`."""
        return np.cumsum(self.lengths) - 1


def lengths_from_terminals(terminals: Array) -> NDArray[np.int64]:
    """Episode lengths of a file in OGBench's layout, where every episode keeps its last row.

    Args:
        terminals: `(N + E,)`, nonzero on each episode's last row (the one whose action is unused).

    Returns:
        `(E,)` transitions per episode.

    Raises:
        NoLastEndError: the file does not end at an episode's end.
        NoTransitionError: an episode has no transition.

    >>> lengths_from_terminals(np.array([0, 0, 0, 1, 0, 0, 1]))
    array([3, 2])
    """
    ends = np.flatnonzero(terminals)
    if len(ends) == 0 or ends[-1] != len(terminals) - 1:
        raise NoLastEndError(
            f"column 'terminals' does not mark the last of its {len(terminals)} rows as an end of "
            "an episode",
            "mark it, or get the file again if it was cut off",
        )
    lengths = np.diff(ends, prepend=-1) - 1
    if lengths.min() < 1:
        row = int(ends[lengths.argmin()])
        fault = f"the episode that column 'terminals' ends at row {row} has no transition"
        raise NoTransitionError(fault, "leave it out")
    return lengths


def drop_last_rows(
    column: NDArray[Column], lengths: Sequence[int] | NDArray[np.int64]
) -> NDArray[Column]:
    """Keep the N transition rows of an `(N + E, ...)` column, dropping each episode's last row.

    The rows are moved up within the column's own memory, so no second copy is held: `column` must
    be writable and not be used again. Cost: one move per episode.

    Returns:
        `(N, ...)`, the head of `column`.

    >>> drop_last_rows(np.array([1, 2, 3, -1, 4, 5, -1]), [3, 2])
    array([1, 2, 3, 4, 5])
    """
    lengths = np.asarray(lengths)
    firsts = (np.cumsum(lengths) - lengths).tolist()
    # Of matrices that overlap, NumPy copies the source first; of vectors it does not.
    vectors, width = _dims(column), 1
    if column.flags.c_contiguous:
        vectors, width = [column.reshape(-1)], column[:1].size
    for episode, (first, length) in enumerate(zip(firsts, lengths.tolist(), strict=True)):
        start, stop, shift = width * first, width * (first + length), width * episode
        for numbers in vectors:
            numbers[start:stop] = numbers[start + shift : stop + shift]
    return column[: int(lengths.sum())]


def _dims(column: NDArray[Column]) -> list[NDArray[Column]]:
    """Each dim's numbers, one for each row; the whole column if they are too many to go through."""
    if column[:1].size > _MANY_DIMS:
        return [column]
    return [column[:, *index] for index in np.ndindex(column.shape[1:])]
