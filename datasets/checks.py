"""Checks of what is or looks wrong with data; a finding is one sentence with episode and row.

A finding is a warning if the data cannot be intended as they are (last observations that are all
0, a jump where an end is missing, a NaN or an infinity), and a note if they may be (a reward that
is the same everywhere, an action dim that is never used). Every check works a block at a time on a
`View`, which any reader can make. `quick_check` looks at only part of the rows, so that it can run
before every training.
"""

from dataclasses import replace

import numpy as np

from tql_offline.datasets.checks_of_ends import find_last_rows, find_marks
from tql_offline.datasets.checks_of_numbers import (
    find_actions,
    find_bad_numbers,
    find_choices,
    find_constant_observations,
    find_images,
    find_large_observations,
    find_large_rewards,
    find_rewards,
)
from tql_offline.datasets.checks_of_steps import (
    find_duplicates,
    find_jumps,
    find_repeats,
    find_resets,
)
from tql_offline.datasets.episodes import Episodes
from tql_offline.datasets.findings import Finding, warnings_first
from tql_offline.datasets.views import View, view_of

QUICK_ROWS = 2**14
"""Number of rows that `quick_check` looks at, in `_QUICK_BLOCKS` runs spread over the data."""
_QUICK_BLOCKS = 32


def check(view: View, *, jumps: bool = True, goes_on: bool = False) -> list[Finding]:
    """All findings, warnings first.

    Args:
        view: the data.
        jumps: whether a jump is a fault; False if the environment itself teleports.
        goes_on: whether episodes are meant to go on after the task's end, as OGBench's do.
    """
    found = [
        *find_images(view),
        *find_bad_numbers(view),
        *find_marks(view, goes_on),
        *(() if goes_on else find_resets(view)),
        *find_last_rows(view),
        *(find_jumps(view) if jumps else ()),
        *find_rewards(view),
        *find_large_rewards(view),
        *find_constant_observations(view),
        *find_large_observations(view),
        *find_choices(view),
        *find_actions(view),
        *find_duplicates(view),
        *find_repeats(view),
    ]
    return warnings_first(found)


def quick_check(episodes: Episodes, *, jumps: bool = True, goes_on: bool = False) -> list[Finding]:
    """Findings from loaded data, in which only part of the observations and actions is read.

    Masks, episode lengths and rewards (but for their size, which training may scale) are checked in
    full, steps and actions in `QUICK_ROWS` rows, duplicate episodes by two rows each, and dims of
    observations until each has changed. Numbers that are not finite are refused on loading.
    """
    whole = view_of(episodes)
    part = _part(whole)
    found = [
        *find_marks(whole, goes_on),
        *(() if goes_on else find_resets(whole)),
        *find_last_rows(whole),
        *(find_jumps(whole, _runs(len(whole.observations))) if jumps else ()),
        *find_rewards(whole),
        *find_constant_observations(whole),
        *find_choices(part),
        *find_actions(part),
        *find_duplicates(whole, whole_episodes=False),
    ]
    return warnings_first(found)


def check_spaces(view: View, env_id: str) -> list[Finding]:
    """Compare the dims of observations and actions with the environment's.

    Raises:
        InputError: there is no such environment, or its spaces do not hold vectors.
    """
    from tql_offline.eval.environments import describe  # imports MuJoCo, so only when needed

    described = describe(env_id, None)
    return [
        Finding(
            "warning",
            "spaces",
            f"the data have {'x'.join(map(str, have))} {what} dims from episode 0, row 0 on, but "
            f"{env_id} has {want}; name the environment the data came from",
        )
        for what, have, want in (
            ("observation", view.observations.shape[1:], described["observation_dim"]),
            ("action", view.actions.shape[1:], described["action_dim"]),
        )
        # A column of one number a row is refused by training, which names its shape.
        if have not in ((want,), ())
    ]


def _runs(rows: int) -> list[slice]:
    """Runs of rows spread over the data; all rows if there are few."""
    if rows <= QUICK_ROWS:
        return [slice(0, rows)]
    length = QUICK_ROWS // _QUICK_BLOCKS
    return [
        slice(start, start + length)
        for start in np.linspace(0, rows - length, _QUICK_BLOCKS, dtype=np.int64).tolist()
    ]


def _part(view: View) -> View:
    """The view with some of the actions, which know where they lie."""
    runs = _runs(len(view.actions))
    rows = np.concatenate([np.arange(run.start, run.stop) for run in runs])
    return replace(view, actions=view.actions[rows], sampled=rows)
