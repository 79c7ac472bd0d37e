"""Data as the checks see them, of whatever layout and however wrong."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.episodes import Array, Episodes
from tql_offline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class View:
    """Data as the checks see them: E episodes with N transitions, whatever layout they came in.

    Attributes:
        observations: `(R, ...)` numbers, episode after episode, R the sum of `observation_counts`.
        actions: `(N, n_a)` numbers.
        lengths: `(E,)` transitions of each episode.
        observation_counts: `(E,)`: one more than `lengths` where no last observation is lost.
        rewards: `(N,)`, or None where the data have none.
        masks: `(N,)` 0 where the task ended, or None where the data do not say.
        terminals: `(N,)` nonzero where `terminals` marks a row, in a layout of a row a step.
        timeouts: `(N,)` nonzero where an episode was cut off, where the layout says it apart.
        last_rewards: `(E,)` what stands for a reward in each episode's last row, which is not used.
        last_masks: `(E,)` likewise.
        sampled: `(N',)` the transitions that `actions` are of, where they are not of all.
        row_a_step: whether the file has a row for each transition and no more, so that rows of
            `observations`, where last ones were put in, are not the file's.
    """

    observations: Array
    actions: Array
    lengths: NDArray[np.int64]
    observation_counts: NDArray[np.int64]
    rewards: Array | None = None
    masks: Array | None = None
    terminals: Array | None = None
    timeouts: Array | None = None
    last_rewards: Array | None = None
    last_masks: Array | None = None
    sampled: NDArray[np.int64] | None = None
    row_a_step: bool = False

    @property
    def starts(self) -> NDArray[np.int64]:
        """First transition of each episode, `(E,)`."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def observation_starts(self) -> NDArray[np.int64]:
        """First observation row of each episode, `(E,)`."""
        return np.cumsum(self.observation_counts) - self.observation_counts

    def place(self, transition: int) -> str:
        """`episode 3, row 17`: where a transition lies, or one of `actions`, in the file."""
        if self.sampled is not None:
            transition = int(self.sampled[transition])
        episode = int(np.searchsorted(np.cumsum(self.lengths), transition, side="right"))
        row = self.observation_starts[episode] + transition - self.starts[episode]
        return f"episode {episode}, row {transition if self.row_a_step else row}"

    def place_of_row(self, row: int) -> str:
        """`episode 3, row 17` of an observation row; one that was put in is its step's."""
        episode = int(np.searchsorted(np.cumsum(self.observation_counts), row, side="right"))
        if self.row_a_step:
            step = min(row - self.observation_starts[episode], self.lengths[episode] - 1)
            row = self.starts[episode] + step
        return f"episode {episode}, row {row}"


def view_of(episodes: Episodes) -> View:
    """The view of data that were loaded."""
    return View(
        observations=episodes.observations,
        actions=episodes.actions,
        lengths=episodes.lengths,
        observation_counts=episodes.lengths + 1,
        rewards=episodes.rewards,
        masks=episodes.masks,
    )


def view_of_columns(columns: Mapping[str, Array], name: str) -> View:
    """The view of a file's columns in OGBench's layout, whatever numbers they hold.

    Args:
        columns: by name.
        name: of the file, for errors.

    Raises:
        InputError: a column that is needed is missing, holds no numbers, or has other rows than
            the observations; or no row ends an episode.
    """
    rows = len(_numbers(columns, "observations", None, name))
    terminals = _numbers(columns, "terminals", rows, name).reshape(rows, -1)[:, 0]
    is_last = np.asarray(terminals != 0)
    if rows:
        is_last[-1] = True  # what comes after the last mark is an episode, too
    counts = np.diff(np.flatnonzero(is_last), prepend=-1)
    if rows == 0 or counts.min() < 2:
        row = int(np.cumsum(counts)[counts.argmin()] - 1) if rows else 0
        raise InputError(
            f"{name} has an episode without a transition, which ends at row {row}; leave it out"
        )
    own: dict[str, Array] = {}
    for column in ("rewards", "masks"):
        if column in columns:
            values = _numbers(columns, column, rows, name).reshape(rows, -1)[:, 0]
            own |= {column: values[~is_last], f"last_{column}": values[is_last]}
    return View(
        observations=columns["observations"],
        actions=_numbers(columns, "actions", rows, name).reshape(rows, -1)[~is_last],
        lengths=counts - 1,
        observation_counts=counts,
        rewards=own.get("rewards"),
        masks=own.get("masks", np.ones(rows - len(counts), np.float32)),  # as the loader has it
        last_rewards=own.get("last_rewards"),
        last_masks=own.get("last_masks"),
    )


def _numbers(columns: Mapping[str, Array], column: str, rows: int | None, name: str) -> Array:
    if column not in columns:
        raise InputError(f"{name} has no column {column!r}; name the columns as docs/data.md does")
    values = columns[column]
    if values.dtype.kind not in "biuf" or values.ndim == 0 or 0 in values.shape:
        raise InputError(f"column {column!r} of {name} holds no rows of numbers; write it again")
    if rows is not None and len(values) != rows:
        raise InputError(
            f"column {column!r} of {name} has {len(values)} rows where 'observations' has {rows}; "
            "write every column with one row per step"
        )
    return values


def view_of_flat(columns: Mapping[str, Array], name: str) -> View:
    """The view of columns in D4RL's layout: one row per transition, `terminals` and `timeouts`.

    Each row's next observation is the next row's observation; the last one of an episode is in
    `next_observations` or lost.

    Raises:
        InputError: as `view_of_columns`.
    """
    observations = _numbers(columns, "observations", None, name)
    rows = len(observations)
    marks = {
        column: _numbers(columns, column, rows, name).reshape(rows, -1)[:, 0]
        for column in ("terminals", "timeouts", "rewards", "masks")
        if column in columns
    }
    if "terminals" in marks:  # which are the task's ends where no masks say so
        marks.setdefault("masks", 1 - (marks["terminals"] != 0).astype(np.float32))
    ends = np.zeros(rows, bool)
    for column in ("terminals", "timeouts"):
        ends |= np.asarray(marks.get(column, np.zeros(rows)) != 0)
    ends[-1] = True
    lengths = np.diff(np.flatnonzero(ends), prepend=-1)
    extra = 0
    if "next_observations" in columns:
        after = _numbers(columns, "next_observations", rows, name)
        observations = np.insert(observations, np.flatnonzero(ends) + 1, after[ends], axis=0)
        extra = 1
    return View(
        observations=observations,
        actions=_numbers(columns, "actions", rows, name).reshape(rows, -1),
        lengths=lengths,
        observation_counts=lengths + extra,
        rewards=marks.get("rewards"),
        masks=marks.get("masks"),
        terminals=marks.get("terminals"),
        timeouts=marks.get("timeouts"),
        row_a_step=True,
    )
