"""Checks of where episodes and the task end: marks, time limits, last rows."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.episodes import Array
from tql_offline.datasets.findings import FEW, Finding, limited
from tql_offline.datasets.views import View
from tql_offline.errors import numbered


def find_marks(view: View, goes_on: bool) -> Iterator[Finding]:
    """Compare ends of the task with ends of episodes."""
    masks = view.masks
    if masks is None:
        return
    bad = np.flatnonzero((masks != 0) & (masks != 1))
    if len(bad):
        yield Finding(
            "warning",
            "masks",
            f"column 'masks' has {float(masks[bad[0]]):g} in {view.place(int(bad[0]))}; write 0 "
            "where the task itself ended and 1 elsewhere",
        )
        return
    ended = np.asarray(masks == 0)
    if ended.mean() > 0.5 and not goes_on:
        yield Finding(
            "warning",
            "masks",
            f"{100 * ended.mean():.3g} % of all transitions have mask 0 (first "
            f"{view.place(int(np.argmax(ended)))}), so almost nothing bootstraps; write "
            "0 only where the task itself ended",
        )
        return
    inside = ended.copy()
    inside[view.lasts] = False
    if inside.any() and not goes_on:
        episodes = np.logical_or.reduceat(inside, view.starts).sum()
        yield Finding(
            "note",
            "masks",
            f"{numbered(int(episodes), 'episode continues', 'episodes continue')} after the task "
            f"ended (first {view.place(int(np.argmax(inside)))}, mask 0), as OGBench's do; unless "
            "that is intended, end each episode where its task ends",
        )
    yield from (limits := list(_limits(view, ended)))
    if not limits and not goes_on:
        yield from _ended_at_one_length(view, ended)
    if not ended.any() and len(np.unique(view.lengths)) > 1 and not goes_on:
        yield Finding(
            "note",
            "masks",
            f"no mask is 0 although episodes have {view.lengths.min()} to {view.lengths.max()} "
            f"transitions (shortest: episode {int(view.lengths.argmin())}); if some end because "
            "the task does, write mask 0 there",
        )


def _limits(view: View, ended: NDArray[np.bool_]) -> Iterator[Finding]:
    """Find time limits that are stored as ends of the task, and rows without any mark."""
    timeouts = np.zeros_like(ended) if view.timeouts is None else view.timeouts != 0
    both = ended & timeouts
    if both.sum() >= FEW and (both == timeouts).all() and _are_limits(view, ended, timeouts):
        yield Finding(
            "warning",
            "timeouts",
            f"each of the {both.sum():,} timeouts is a terminal, too (first "
            f"{view.place(int(np.argmax(both)))}), as where 'done' is stored, so no time limit "
            "bootstraps; write 'terminals' as terminals & ~timeouts",
        )
    elif both.any():
        yield Finding(
            "note",
            "timeouts",
            f"{numbered(int(both.sum()), 'transition is', 'transitions are')} both terminal and "
            f"timeout (first {view.place(int(np.argmax(both)))}); each is treated as a terminal",
        )
    if view.timeouts is None or view.terminals is None:
        return
    if not view.terminals.any() and not timeouts.any():
        yield Finding(
            "warning",
            "timeouts",
            f"neither 'terminals' nor 'timeouts' marks any of the {len(ended)} rows; mark the ends "
            "of episodes",
        )


def _are_limits(view: View, ended: NDArray[np.bool_], timeouts: NDArray[np.bool_]) -> bool:
    """Whether timeouts that are terminals, too, are more than the task's ends marked twice."""
    lengths = view.lengths[timeouts[view.lasts]]
    return bool((ended & ~timeouts).any()) or len(np.unique(lengths)) == 1


def _ended_at_one_length(view: View, ended: NDArray[np.bool_]) -> Iterator[Finding]:
    """Find that the longest episodes are equally long and all end the task, as at a time limit."""
    longest = view.lengths.max()
    at = np.flatnonzero(view.lengths == longest)
    nearly = (view.lengths >= longest - 3).sum() - len(at)
    if longest > 1 and len(at) >= FEW and len(at) > nearly and ended[view.lasts[at]].all():
        yield Finding(
            "note",
            "masks",
            f"the {len(at):,} longest episodes (first {at[0]}) all have {longest:,} transitions "
            "and end the task; if that is a time limit, write mask 1 there, so that it bootstraps",
        )


def find_last_rows(view: View) -> Iterator[Finding]:
    """Find last rows that hold a transition, or no observation of their own."""
    if view.last_masks is not None and view.masks is not None:
        bad = np.flatnonzero((view.last_masks == 0) & (view.masks[view.lasts] != 0)).tolist()
        found = (
            Finding(
                "warning",
                "last-row",
                f"episode {episode} has mask 0 in its last row, "
                f"{view.observation_starts[episode] + view.lengths[episode]}, and 1 before it, but "
                "the last row holds only the last observation, so the task's end is lost; give "
                "every episode a last row of its own",
            )
            for episode in bad
        )
        # The masks in OGBench's own last rows are meaningless; they matter only if every end of the
        # task lies there.
        if len(bad) and bool((view.masks != 0).all()):
            yield from limited(found, len(bad), "such episodes")
    if view.last_rewards is not None and view.rewards is not None:
        alone = (
            view.rewards.min() == view.rewards.max()
            and not np.isin(view.last_rewards, view.rewards[:1]).all()
        )
        if alone:
            episode = int(np.flatnonzero(view.last_rewards != view.rewards[0])[0])
            yield Finding(
                "warning",
                "last-row",
                f"every reward other than {float(view.rewards[0]):g} is in an episode's last "
                f"row (first in episode {episode}), which is not used; give every episode a last "
                "row of its own for the observation after the last action",
            )
    yield from _copied_last_rows(view)


def last_rows_look_like_steps(lengths: NDArray[np.int64], *pairs: tuple[Array, Array]) -> bool:
    """Whether last rows, of which only the observation is used, look like recorded steps.

    They do if episodes differ in length, as where the task ends them, and last rows have actions
    and rewards of their own. OGBench's files hold such actions, too, but no rewards, and their
    episodes are equally long; what fills an unused row otherwise is the same in all or a copy.

    Args:
        lengths: `(E,)` transitions of each episode.
        pairs: of actions and of rewards, those of the last rows and of the rows before, `(E, ...)`.
    """
    return len(np.unique(lengths)) > 1 and all(_are_their_own(*pair) for pair in pairs)


def _are_their_own(last: Array, before: Array) -> bool:
    """Whether the rows are neither all the same nor all copies of the rows before them."""
    return not ((last == last[0]).all() or (last == before).all())


def _copied_last_rows(view: View) -> Iterator[Finding]:
    seen = (view.observation_counts == view.lengths + 1) & (view.lengths > 1)
    if view.masks is not None:  # where the task ended, nothing looks at the last observation
        seen &= view.masks[view.lasts] != 0
    whole = np.flatnonzero(seen)
    if len(whole) < 2:
        return
    last = view.observation_starts[whole] + view.lengths[whole]
    flat = view.observations.reshape(len(view.observations), -1)
    if not flat[last].any() and flat[last - 1].any(axis=1).all():
        yield Finding(
            "warning",
            "last-row",
            f"the last observation of every episode is 0 (first at row {last[0]}), so the true "
            "ones are lost; write the observation that followed each last action",
        )
        return
    # Compared with the step before: an observation that never moves repeats everywhere.
    if (flat[last] == flat[last - 1]).all() and not (flat[last - 1] == flat[last - 2]).all():
        yield Finding(
            "warning",
            "last-row",
            f"the last observation of every episode repeats the one before it (first at row "
            f"{last[0]}), so the true ones are lost; write the observation that followed each last "
            "action",
        )
