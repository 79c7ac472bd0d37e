"""D4RL's HDF5 layout, one row per transition, read with h5py alone.

    row               :   0    1    2  |   3    4  |
    observations      : [s0,  s1,  s2, |  s0,  s1, ]
    actions, rewards  : [a0,  a1,  a2, |  a0,  a1, ]
    terminals         : [ 0,   0,   1, |   0,   0, ]    the task ended: mask 0
    timeouts          : [ 0,   0,   0, |   0,   1, ]    cut off: mask 1, bootstraps
    next_observations : [s1,  s2,  s3, |  s1,  s2, ]    in some files

An episode ends at either mark (if both are set, the task ended), and at the file's last row.
Without `timeouts`, it also ends at the environment's step limit, as in D4RL's `qlearning_dataset`.

In a file with `masks`, as made by OGBench's loader and code built on it, mask 0 says where the task
ended. Its `terminals` then only end episodes, which may go on after the task's end.

The observation after an episode's last row is in that row of `next_observations`. Without these it
is lost, and as in `qlearning_dataset` a transition that needs it to bootstrap is left out; one that
ended the task does not, and is kept with its own observation in that place. Where
`next_observations` and the next row's observation differ, an end is missing and the episode is cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.action_bounds import OutOfBoundsError
from tql_offline.datasets.blocks import first_bad, row_blocks
from tql_offline.datasets.catalogue import Entry
from tql_offline.datasets.episodes import (
    ACTION_BOUND,
    ACTION_TOLERANCE,
    Array,
    Episodes,
)
from tql_offline.datasets.findings import Finding
from tql_offline.datasets.names import d4rl_folder
from tql_offline.datasets.reading import Floats
from tql_offline.datasets.required import (
    require_marks,
    require_masks,
    require_matrix,
    require_vector,
)
from tql_offline.errors import InputError, numbered

FLOATS = ("observations", "actions", "rewards", "masks", "next_observations")

ENVIRONMENTS = {
    "halfcheetah": "HalfCheetah-v4",
    "hopper": "Hopper-v4",
    "walker2d": "Walker2d-v4",
}
"""Gymnasium's environments with D4RL's observations, actions and rewards, by family.

Version 4 is D4RL's version 2 with MuJoCo's own bindings; version 5 has different rewards and
frictions (Farama-Foundation/Gymnasium#526, #572).
"""

_SAME = 1e-4
"""Relative difference up to which two observations count as the same, rounded differently."""


def d4rl_file(entry: Entry) -> Path:
    """The file of one of D4RL's datasets.

    Raises:
        InputError: it is not on this machine; the message names the command that fetches it.
    """
    path = d4rl_folder() / entry.files[0].name
    if not path.is_file():
        raise InputError(
            f"dataset {entry.name} is not here: {path} does not exist; run "
            f"`tql-offline download {entry.name}`"
        )
    return path


def environment_of(entry: Entry) -> tuple[str | None, str]:
    """The environment that policies are scored in, or None, and a sentence on what differs."""
    env_id = ENVIRONMENTS.get(entry.family)
    if env_id is None:
        return None, (
            f"D4RL's environment of {entry.name} is not in Gymnasium, so policies are not scored; "
            "give --env with an environment of the same observations and actions"
        )
    return env_id, (
        f"policies are scored in {env_id}, where D4RL's published scores are of its own "
        "environment on mujoco-py; compare them with care"
    )


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows that become transitions.

    Attributes:
        ends: `(N,)` whether a row is its episode's last.
        kept: `(N,)` whether a row's transition is kept: all but ends whose next observation is
            needed but lost.
    """

    ends: NDArray[np.bool_]
    kept: NDArray[np.bool_]


def episodes_of(
    columns: Mapping[str, Array],
    path: Path,
    *,
    max_episode_steps: int | None = None,
    clips: bool = False,
) -> tuple[Episodes, list[Finding]]:
    """Make episodes from columns in D4RL's layout.

    Args:
        columns: columns of the file.
        path: the file, for messages.
        max_episode_steps: step at which episodes end if the file has no `timeouts`.
        clips: clip actions to [-1, 1], as D4RL's environments do, and say so; otherwise actions
            outside are an error.

    Returns:
        The episodes, and what was left out, cut or changed.

    Raises:
        InputError: a column is missing or unusable, or no transition is left.
    """
    observations = require_matrix(columns, "observations", None, path)
    count = len(observations)
    if not count:
        raise InputError(f"{path} holds no rows; get the file again")
    actions = require_matrix(columns, "actions", count, path)
    rewards = require_vector(columns, "rewards", count, path)
    terminals = require_marks(columns, "terminals", count, path)
    after = None
    if "next_observations" in columns:
        after = require_matrix(columns, "next_observations", count, path)
        if after.shape != observations.shape:
            raise InputError(
                f"column 'next_observations' of {path} has {after.shape[1]} dims where "
                f"'observations' has {observations.shape[1]}; get the file again"
            )
    ended = _task_ends(columns, terminals, path)
    found = [*_clip(actions, path, clips), *_bootstrapping(terminals, ended)]
    ends = terminals | _cuts(columns, terminals, max_episode_steps, path)
    ends[-1] = True
    if after is not None:
        found += mark_jumps(observations, after, ends, path.name)
    rows = _Rows(ends=ends, kept=~ends | ended | (after is not None))
    return _episodes(rows, observations, after, actions, rewards, ended, path), [
        *found,
        *_lost(rows),
    ]


def _clip(actions: Floats, path: Path, clips: bool) -> list[Finding]:
    """Clip in place; unless `clips`, refuse actions outside [-1, 1]."""

    def is_outside(block: Array) -> NDArray[np.bool_]:
        return np.asarray(np.abs(block) > 1 + ACTION_TOLERANCE)

    bad = first_bad(actions, is_outside)
    if bad is not None and not clips:
        row, dim = bad
        raise OutOfBoundsError(f"column 'actions' of {path}", float(actions[bad]), row, dim)
    outside = 0 if bad is None else int(is_outside(actions).any(axis=1).sum())
    np.clip(actions, -ACTION_BOUND, ACTION_BOUND, out=actions)
    if not outside:
        return []
    told = f"{outside:,} actions outside [-1, 1] were clipped to it, as the environment does"
    return [Finding("note", "actions", told)]


def _task_ends(
    columns: Mapping[str, Array], terminals: NDArray[np.bool_], path: Path
) -> NDArray[np.bool_]:
    """Rows at which the task ended: by the masks, or without masks by the terminals."""
    if "masks" not in columns:
        return terminals
    masks = require_vector(columns, "masks", len(terminals), path)
    require_masks(masks, path)
    return np.asarray(masks == 0)


def _bootstrapping(terminals: NDArray[np.bool_], ended: NDArray[np.bool_]) -> list[Finding]:
    count = int((terminals & ~ended).sum())
    if not count:
        return []
    told = (
        f"{count:,} of {int(terminals.sum()):,} rows that 'terminals' marks have mask 1: they end "
        "an episode, not the task, and bootstrap"
    )
    return [Finding("note", "masks", told)]


def _cuts(
    columns: Mapping[str, Array],
    terminals: NDArray[np.bool_],
    limit: int | None,
    path: Path,
) -> NDArray[np.bool_]:
    """Rows at which episodes were cut off: by the file, or failing that by the step limit."""
    if "timeouts" in columns:
        return require_marks(columns, "timeouts", len(terminals), path)
    return cuts_at_limit(terminals, limit)


def cuts_at_limit(terminals: NDArray[np.bool_], limit: int | None) -> NDArray[np.bool_]:
    """Rows at which a step limit cuts episodes that end at `terminals` `(N,)`; None cuts none."""
    if limit is None:
        return np.zeros(len(terminals), bool)
    index = np.arange(len(terminals))
    starts = np.zeros(len(terminals), np.int64)
    starts[1:][terminals[:-1]] = index[1:][terminals[:-1]]
    steps = index - np.maximum.accumulate(starts)
    return np.asarray(steps % limit == limit - 1)


def mark_jumps(
    observations: Floats, after: Floats, ends: NDArray[np.bool_], name: str
) -> list[Finding]:
    """Mark missing ends, where the next observation is not the next row's.

    Args:
        observations: `(N, ...)`.
        after: `(N, ...)` the observation after each step.
        ends: `(N,)` the ends of episodes, where missing ones are added.
        name: the file's name.

    Returns:
        The finding that some were missing, if they were.
    """
    found, first = 0, -1
    for rows in row_blocks(len(ends) - 1, observations[:1].nbytes):
        now, then = after[rows], observations[rows.start + 1 : rows.stop + 1]
        with np.errstate(invalid="ignore"):  # numbers that are not finite are reported elsewhere
            differ = np.abs(now - then) > _SAME * np.maximum(1, np.abs(then))
        jumps = differ.reshape(len(differ), -1).any(axis=1) & ~ends[rows]
        if first < 0 and jumps.any():
            first = rows.start + int(np.argmax(jumps))
        found += int(jumps.sum())
        ends[rows] |= jumps
    if not found:
        return []
    told = (
        f"at {numbered(found, 'row', 'rows')} of {name} (first {first}) the next observation "
        "is not the next row's although no end is marked; episodes are cut there and bootstrap"
    )
    return [Finding("warning", "jump", told)]


def _lost(rows: _Rows) -> list[Finding]:
    count = int((~rows.kept).sum())
    if not count:
        return []
    first = int(np.argmin(rows.kept))
    one = f"transition at the cut of an episode (row {first}) has no next observation and is"
    several = (
        f"transitions at cuts of episodes (first row {first}) have no next observation and are"
    )
    told = (
        f"{numbered(count, one, several)} left out, as D4RL's qlearning_dataset does; "
        "'next_observations' would keep them"
    )
    return [Finding("note", "last-row", told)]


def _episodes(
    rows: _Rows,
    observations: Floats,
    after: Floats | None,
    actions: Floats,
    rewards: Floats,
    ended: NDArray[np.bool_],
    path: Path,
) -> Episodes:
    ends = np.flatnonzero(rows.ends)
    spans = np.diff(ends, prepend=-1)
    lengths = spans - ~rows.kept[ends]
    if not lengths.any():
        raise InputError(
            f"{path} has no transition whose next observation is known, as every row is a cut or "
            "an end without one; add a column 'next_observations', or get the file again"
        )
    # A one-row episode whose next observation is lost has no transition at all.
    used = np.repeat(lengths > 0, spans)
    closing = ends[rows.kept[ends]]
    last = observations[closing] if after is None else after[closing]
    is_used = used if not used.all() else slice(None)
    places = (np.cumsum(used))[closing]  # after this many used rows
    return Episodes(
        observations=np.insert(observations[is_used], places, last, axis=0),
        actions=actions[rows.kept],
        rewards=rewards[rows.kept],
        masks=(~ended[rows.kept]).astype(np.float32),
        lengths=lengths[lengths > 0],
    )
