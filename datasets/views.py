"""Data as the checks see them, in any layout and with any fault."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.d4rl import cuts_at_limit, mark_jumps
from tql_offline.datasets.episodes import Array, Episodes, NoTransitionError
from tql_offline.datasets.reading import Floats
from tql_offline.datasets.required import require_numbers

AS_STEPS = (
    "if each row is a step, as d3rlpy has it, add a column 'timeouts', 1 where an episode was cut "
    "off (docs/data.md)"
)
"""How to tell that rows marked by `terminals` hold steps."""

SAMPLE = 2**12
"""Number of rows from which what is typical of them is estimated."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Data as the checks see them: E episodes with N transitions, from any layout.

    Attributes:
        observations: `(R, ...)` numbers, episode after episode, R the sum of `observation_counts`.
        actions: `(N, n_a)` numbers.
        lengths: `(E,)` number of transitions in each episode.
        observation_counts: `(E,)`, one more than `lengths` unless the last observation is lost.
        rewards: `(N,)`, or None if the data have none.
        masks: `(N,)` 0 where the task ended, or None if the data do not say.
        terminals: `(N,)` nonzero where `terminals` marks a row, in a layout of one row per step.
        timeouts: `(N,)` nonzero where an episode was cut off, if the layout marks it separately.
        last_actions: `(E, n_a)` the unused actions in each episode's last row.
        last_rewards: `(E,)` the unused reward in each episode's last row.
        last_masks: `(E,)` the unused mask in each episode's last row.
        sampled: `(N',)` the transitions of `actions`, if these are a sample.
        row_a_step: whether the file has one row per transition. Rows of `observations`, where last
            observations were inserted, are then not the file's.
    """

    observations: Array
    actions: Array
    lengths: NDArray[np.int64]
    observation_counts: NDArray[np.int64]
    rewards: Array | None = None
    masks: Array | None = None
    terminals: Array | None = None
    timeouts: Array | None = None
    last_actions: Array | None = None
    last_rewards: Array | None = None
    last_masks: Array | None = None
    sampled: NDArray[np.int64] | None = None
    row_a_step: bool = False

    @property
    def starts(self) -> NDArray[np.int64]:
        """First transition of each episode, `(E,)`."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def lasts(self) -> NDArray[np.int64]:
        """Last transition of each episode, `(E,)`."""
        return np.cumsum(self.lengths) - 1

    @property
    def observation_starts(self) -> NDArray[np.int64]:
        """First observation row of each episode, `(E,)`."""
        return np.cumsum(self.observation_counts) - self.observation_counts

    def place(self, transition: int) -> str:
        """Place in the file of a transition, or of a row of `actions`: `episode 3, row 17`."""
        if self.sampled is not None:
            transition = int(self.sampled[transition])
        episode = int(np.searchsorted(np.cumsum(self.lengths), transition, side="right"))
        row = self.observation_starts[episode] + transition - self.starts[episode]
        return f"episode {episode}, row {transition if self.row_a_step else row}"

    def place_of_row(self, row: int) -> str:
        """Place of an observation row, `episode 3, row 17`; an inserted one has its step's."""
        episode = int(np.searchsorted(np.cumsum(self.observation_counts), row, side="right"))
        if self.row_a_step:
            step = min(row - self.observation_starts[episode], self.lengths[episode] - 1)
            row = self.starts[episode] + step
        return f"episode {episode}, row {row}"


def sample(count: int) -> NDArray[np.int64]:
    """Of so many rows, at most `SAMPLE` that are spread over all."""
    return np.linspace(0, count - 1, min(SAMPLE, count), dtype=np.int64)


def view_of(episodes: Episodes) -> View:
    """The view of loaded data."""
    return View(
        observations=episodes.observations,
        actions=episodes.actions,
        lengths=episodes.lengths,
        observation_counts=episodes.lengths + 1,
        rewards=episodes.rewards,
        masks=episodes.masks,
    )


def view_of_columns(columns: Mapping[str, Array], name: str) -> View:
    """The view of a file's columns in OGBench's layout, with any numbers in them.

    Args:
        columns: columns by name.
        name: the file's name, for errors.

    Raises:
        InputError: a required column is missing, is not of numbers, or differs from the
            observations in its number of rows.
        NoTransitionError: an episode has no transition.
    """
    rows = len(require_numbers(columns, "observations", None, name))
    terminals = require_numbers(columns, "terminals", rows, name).reshape(rows, -1)[:, 0]
    is_last = np.asarray(terminals != 0)
    is_last[-1] = True  # the rows after the last mark are an episode, too
    counts = np.diff(np.flatnonzero(is_last), prepend=-1)
    if counts.min() < 2:
        row = int(np.cumsum(counts)[counts.argmin()] - 1)
        fault = f"{name} has an episode without a transition, which ends at row {row}"
        raise as_steps(NoTransitionError(fault, "leave it out"), columns, is_last)
    own: dict[str, Array] = {}
    for column in ("rewards", "masks"):
        if column in columns:
            values = require_numbers(columns, column, rows, name).reshape(rows, -1)[:, 0]
            own |= {column: values[~is_last], f"last_{column}": values[is_last]}
    actions = require_numbers(columns, "actions", rows, name).reshape(rows, -1)
    return View(
        observations=columns["observations"],
        actions=actions[~is_last],
        lengths=counts - 1,
        observation_counts=counts,
        rewards=own.get("rewards"),
        masks=own.get("masks", np.ones(rows - len(counts), np.float32)),  # as the loader has it
        last_actions=actions[is_last],
        last_rewards=own.get("last_rewards"),
        last_masks=own.get("last_masks"),
    )


def as_steps(
    error: NoTransitionError, columns: Mapping[str, Array], is_last: NDArray[np.bool_]
) -> NoTransitionError:
    """The error, with advice on the layout where each row of its columns seems to be a step.

    They do if rows that end an episode have actions and rewards of their own.

    Args:
        error: what is wrong with the columns in OGBench's layout.
        columns: the columns by name.
        is_last: `(rows,)`, true on each episode's last row.
    """
    own = [columns[key] for key in ("actions", "rewards") if key in columns]
    are_complete = len(own) == 2 and all(len(column) == len(is_last) for column in own)
    ends = np.flatnonzero(is_last)
    if not are_complete or not all(_are_own(c, ends) for c in own):
        return error
    return NoTransitionError(
        f"{error.fault} in OGBench's layout, while rows that 'terminals' marks have actions and "
        "rewards of their own",
        f"{AS_STEPS}; otherwise leave it out",
    )


def _are_own(column: Array, ends: NDArray[np.int64]) -> bool:
    """Whether last rows are neither all the same nor all copies of the rows before them."""
    later = ends[np.diff(ends, prepend=-1) > 1]
    are_copies = len(later) > 0 and bool((column[later] == column[later - 1]).all())
    return not (are_copies or bool((column[ends] == column[ends[:1]]).all()))


def view_of_flat(
    columns: Mapping[str, Array], name: str, max_episode_steps: int | None = None
) -> View:
    """The view of columns in D4RL's layout: one row per transition, `terminals` and `timeouts`.

    Each row's next observation is the next row's observation; an episode's last one is in
    `next_observations` or lost. Episodes are cut where training cuts them.

    Args:
        columns: columns by name.
        name: the file's name, for errors.
        max_episode_steps: step at which episodes end if there are no `timeouts`.

    Raises:
        InputError: a column is missing, is not of numbers, or has a wrong number of rows.
    """
    observations = require_numbers(columns, "observations", None, name)
    rows = len(observations)
    marks = {
        column: require_numbers(columns, column, rows, name).reshape(rows, -1)[:, 0]
        for column in ("terminals", "timeouts", "rewards", "masks")
        if column in columns
    }
    if "terminals" in marks:  # without masks, these are the task's ends
        marks.setdefault("masks", 1 - (marks["terminals"] != 0).astype(np.float32))
    ends = np.zeros(rows, bool)
    for column in ("terminals", "timeouts"):
        ends |= np.asarray(marks.get(column, np.zeros(rows)) != 0)
    if "timeouts" not in marks:
        ends |= cuts_at_limit(ends, max_episode_steps)
    ends[-1] = True
    extra, after = 0, None
    if "next_observations" in columns:
        after = require_numbers(columns, "next_observations", rows, name)
    if after is not None and after.shape == observations.shape:  # else training refuses them
        observations = observations.astype(np.result_type(observations, after), copy=False)
        if observations.dtype.kind == "f":
            mark_jumps(cast(Floats, observations), cast(Floats, after), ends, name)
        observations = np.insert(observations, np.flatnonzero(ends) + 1, after[ends], axis=0)
        extra = 1
    lengths = np.diff(np.flatnonzero(ends), prepend=-1)
    return View(
        observations=observations,
        actions=require_numbers(columns, "actions", rows, name).reshape(rows, -1),
        lengths=lengths,
        observation_counts=lengths + extra,
        rewards=marks.get("rewards"),
        masks=marks.get("masks"),
        terminals=marks.get("terminals"),
        timeouts=marks.get("timeouts"),
        row_a_step=True,
    )
