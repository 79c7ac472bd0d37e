"""Checks of what is or looks wrong with data; a finding is one sentence with episode and row.

A finding is a warning if the data cannot be intended as they are (last observations that are all
0, a jump where an end is missing, a NaN or an infinity), and a note if they may be (a reward that
is the same everywhere, an action dim that is never used). Every check works a block at a time on a
`View`, which any reader can make. `quick_check` looks at only part of the rows, so that it can run
before every training.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.blocks import row_blocks
from tql_offline.datasets.episodes import Array, Episodes
from tql_offline.datasets.findings import Finding, warnings_first
from tql_offline.datasets.views import View, view_of
from tql_offline.errors import listed, numbered

_LISTED = 8
"""Number of dims that a finding about several of them names."""
SHOWN = 5
"""Number of findings of one kind that are listed one by one; the others are counted."""
QUICK_ROWS = 2**14
"""Number of rows that `quick_check` looks at, in `_QUICK_BLOCKS` runs spread over the data."""
_QUICK_BLOCKS = 32
_SAMPLE = 2**12
"""Number of steps from which the typical step of each dim is estimated."""
_SMOOTH = 0.2
"""A dim is smooth if its usual step is less than this fraction of its own spread."""
_JUMP = 10.0
"""A jump is more than this many usual steps of a smooth dim, and more than half its spread."""
_WRAP = 0.9
"""A dim that wraps around moves by more than this fraction of its range."""
_FEW = 3
"""Number of ends of episodes from which on their being alike is no chance."""
_RESET = 3.0
"""A reset is a step in which a dim usually moves more than this many times as far as otherwise."""
_SATURATED = 0.5
"""An action dim is called saturated if more than this share of transitions is at its bound."""
_REPEATED = 0.01
"""Repeats are reported if more than this share of transitions repeat the one before."""
NO_ENCODER = (
    "for which there is no encoder here; train on data whose observations are numbers, such as "
    "OGBench's without 'visual-'"
)
"""The end of a sentence about data that are images."""
LARGE_OBSERVATION = 100.0
"""Typical size of an observation dim beyond which a network sees little more than its sign."""
LARGE_REWARD = 1e3
"""A reward is large if it is above this or below its negative."""
_BOUND = 1 - 2e-5
_TOLERANCE = 1e-3


def check(view: View, *, jumps: bool = True, goes_on: bool = False) -> list[Finding]:
    """All findings, warnings first.

    Args:
        view: the data.
        jumps: whether a jump is a fault; False if the environment itself teleports.
        goes_on: whether episodes are meant to go on after the task's end, as OGBench's do.
    """
    resets = [] if goes_on else list(_resets(view))
    found = [
        *_images(view),
        *_bad_numbers(view),
        *_marks(view, goes_on),
        *resets,
        *_last_rows(view),
        *(_jumps(view) if jumps and not resets else ()),
        *_rewards(view),
        *_large_rewards(view),
        *_constant_observations(view),
        *_large_observations(view),
        *_choices(view),
        *_actions(view),
        *_duplicates(view),
        *_repeats(view),
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
    resets = [] if goes_on else list(_resets(whole))
    found = [
        *_marks(whole, goes_on),
        *resets,
        *_last_rows(whole),
        *(_jumps(whole, _runs(len(whole.observations))) if jumps and not resets else ()),
        *_rewards(whole),
        *_constant_observations(whole),
        *_choices(part),
        *_actions(part),
        *_duplicates(whole, whole_episodes=False),
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


def _limited(found: Iterator[Finding], count: int, what: str) -> Iterator[Finding]:
    """Yield the first findings of a kind, then how many more there are."""
    for number, finding in enumerate(found):
        if number == SHOWN:
            more = count - SHOWN
            yield Finding(finding.level, finding.kind, f"{more:,} more {what}, not listed here")
            return
        yield finding


def _last_rows(view: View) -> Iterator[Finding]:
    """Find last rows that hold a transition, or no observation of their own."""
    if view.last_masks is not None and view.masks is not None:
        ends = np.cumsum(view.lengths) - 1
        bad = np.flatnonzero((view.last_masks == 0) & (view.masks[ends] != 0)).tolist()
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
            yield from _limited(found, len(bad), "such episodes")
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


def last_rows_look_like_steps(view: View) -> bool:
    """Whether last rows, of which only the observation is used, look like recorded steps.

    They do if episodes differ in length, as where the task ends them, and last rows have actions
    and rewards of their own. OGBench's files hold such actions, too, but no rewards, and their
    episodes are equally long; what fills an unused row otherwise is the same in all or a copy.
    """
    if view.last_actions is None or view.last_rewards is None or view.rewards is None:
        return False
    ends = np.cumsum(view.lengths) - 1
    return (
        len(np.unique(view.lengths)) > 1
        and _are_their_own(view.last_actions, view.actions[ends])
        and _are_their_own(view.last_rewards, view.rewards[ends])
    )


def _are_their_own(last: Array, before: Array) -> bool:
    """Whether the rows are neither all the same nor all copies of the rows before them."""
    return not ((last == last[0]).all() or (last == before).all())


def _copied_last_rows(view: View) -> Iterator[Finding]:
    seen = (view.observation_counts == view.lengths + 1) & (view.lengths > 1)
    if view.masks is not None:  # where the task ended, nothing looks at the last observation
        seen &= view.masks[np.cumsum(view.lengths) - 1] != 0
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


def _bad_numbers(view: View) -> Iterator[Finding]:
    """Find numbers that are not finite: the first of each column and episode."""
    columns = {"observations": view.observations, "actions": view.actions}
    columns |= {"rewards": view.rewards} if view.rewards is not None else {}
    columns |= {"masks": view.masks} if view.masks is not None else {}
    for name, column in columns.items():
        bad = _rows_where(column, lambda block: ~np.isfinite(block))
        counts = view.observation_counts if name == "observations" else view.lengths
        bounds = np.cumsum(counts)
        episodes, first = np.unique(np.searchsorted(bounds, bad, side="right"), return_index=True)
        found = (
            Finding(
                "warning",
                "not-finite",
                f"column {name!r} is not finite in "
                f"{view.place_of_row(row) if name == 'observations' else view.place(row)}; remove "
                "that episode",
            )
            for row in bad[first].tolist()
        )
        yield from _limited(found, len(episodes), f"episodes where {name!r} is not finite")


def _rows_where(column: Array, is_bad: Callable[[Array], NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Rows that contain a bad number."""
    if column.dtype.kind != "f":
        return np.zeros(0, np.int64)
    found = [np.zeros(0, np.int64)]
    for rows in row_blocks(len(column), column[:1].nbytes):
        bad = is_bad(column[rows])
        found.append(rows.start + np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)))
    return np.concatenate(found)


def _marks(view: View, goes_on: bool) -> Iterator[Finding]:
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
    lasts = np.cumsum(view.lengths) - 1
    inside = ended.copy()
    inside[lasts] = False
    if inside.any() and not goes_on:
        episodes = np.logical_or.reduceat(inside, view.starts).sum()
        yield Finding(
            "note",
            "masks",
            f"{numbered(int(episodes), 'episode continues', 'episodes continue')} after the task "
            f"ended (first {view.place(int(np.argmax(inside)))}, mask 0), as OGBench's do; unless "
            "that is intended, end each episode where its task ends",
        )
    yield from _limits(view, ended)
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
    if both.sum() >= _FEW and (both == timeouts).all():
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
    else:
        yield from _ended_at_one_length(view, ended)
    if view.timeouts is None or view.terminals is None:
        return
    if not view.terminals.any() and not timeouts.any():
        yield Finding(
            "warning",
            "timeouts",
            f"neither 'terminals' nor 'timeouts' marks any of the {len(ended)} rows (all in "
            "episode 0); mark the ends of episodes",
        )


def _ended_at_one_length(view: View, ended: NDArray[np.bool_]) -> Iterator[Finding]:
    """Find that the longest episodes are equally long and all end the task, as at a time limit."""
    longest = view.lengths.max()
    at = np.flatnonzero(view.lengths == longest)
    nearly = (view.lengths >= longest - 3).sum() - len(at)
    lasts = np.cumsum(view.lengths)[at] - 1
    if longest > 1 and len(at) >= _FEW and len(at) > nearly and ended[lasts].all():
        yield Finding(
            "note",
            "masks",
            f"the {len(at):,} longest episodes (first {at[0]}) all have {longest:,} transitions "
            "and end the task; if that is a time limit, write mask 1 there, so that it bootstraps",
        )


def _resets(view: View) -> Iterator[Finding]:
    """Find resets recorded as steps, as by vector environments that reset themselves.

    An episode's last observation is then the first of the next one, and either its last step or the
    next one's first jumps from one episode to another. Where neither jumps, one long episode was
    cut into pieces. Where there are such resets, `_jumps` would find each with other advice.
    """
    if view.observations.ndim != 2 or not (view.observation_counts > view.lengths).all():
        return
    firsts = view.observation_starts[1:]
    is_same = (view.observations[firsts - 1] == view.observations[firsts]).all(axis=1)
    if is_same.sum() < _FEW or is_same.mean() <= 0.5:
        return
    # Where the task ended, the observation after the last step is not trained on.
    bootstraps = np.ones(len(firsts), bool)
    if view.masks is not None:
        bootstraps = view.masks[view.starts[1:] - 1] != 0
    if _jump_at(view, firsts[is_same & bootstraps] - 1):
        told = "write the last observation itself, as Gymnasium has it in info['final_obs']"
        yield _reset(is_same & bootstraps, told)
    elif _jump_at(view, firsts[is_same] + 1):
        told = (
            "leave out the row after each end, whose action the environment ignores (Gymnasium's "
            "AutoresetMode.NEXT_STEP)"
        )
        yield _reset(is_same, told)


def _reset(episodes: NDArray[np.bool_], mend: str) -> Finding:
    return Finding(
        "warning",
        "reset",
        f"the last observation of {episodes.sum():,} of {len(episodes) + 1:,} episodes (first "
        f"{int(np.argmax(episodes))}) is the next one's first, and there is a jump to or from it, "
        f"so a reset is trained on as if it were a step; {mend}",
    )


def _jump_at(view: View, rows: NDArray[np.int64]) -> bool:
    """Whether a dim usually moves much further to these rows than to others."""
    if len(rows) < _FEW:
        return False
    usual, here = _median_step(view, np.arange(1, len(view.observations))), _median_step(view, rows)
    return bool(((usual > 0) & (here > _RESET * usual)).any())


def _median_step(view: View, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each dim usually moves to these rows from the ones before."""
    rows = rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows)), dtype=np.int64)]
    now, before = (view.observations[part].astype(np.float64) for part in (rows, rows - 1))
    with np.errstate(all="ignore"):  # non-finite numbers have a finding of their own
        return np.asarray(np.median(np.abs(now - before), axis=0))


def _jumps(view: View, runs: list[slice] | None = None) -> Iterator[Finding]:
    """Find steps inside an episode that are far larger than usual."""
    flat = view.observations.reshape(len(view.observations), -1)
    if view.observations.ndim != 2 or len(flat) < 32:
        return  # images may change arbitrarily
    ends = np.cumsum(view.observation_counts) - 1
    is_end = np.zeros(len(flat), bool)
    is_end[ends] = True
    motion = _typical(flat, is_end)
    if not len(motion.dims):
        return
    limit = np.maximum(_JUMP * motion.usual, 0.5 * motion.spread)
    bad: list[tuple[int, int, float]] = []
    for run in runs or [slice(0, len(flat))]:
        for rows in row_blocks(run.stop - run.start - 1, 3 * flat[:1].nbytes):
            here = slice(run.start + rows.start, run.start + rows.stop + 1)
            steps = _steps(flat[here], motion.dims)
            far = (steps > limit) & ~is_end[here][:-1, None]
            for row in np.flatnonzero(far.any(axis=1)).tolist():
                at = here.start + row
                if not _is_turn(flat[at : at + 2, motion.dims], far[row], motion):
                    ratio = np.where(far[row], steps[row] / motion.usual, 0)
                    bad.append((at, int(motion.dims[ratio.argmax()]), float(ratio.max())))
    found = (
        Finding(
            "warning",
            "jump",
            f"{view.place_of_row(row)}: dim {dim} of the next observation is {ratio:.0f} usual "
            "steps away, so the end of an episode is missing there or rows are out of order; "
            "mark the end",
        )
        for row, dim, ratio in bad
    )
    yield from _limited(found, len(bad), "such jumps")


def _steps(rows: Array, dims: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each dim moves from row to row; an angle that wraps around moves little."""
    with np.errstate(all="ignore"):  # non-finite numbers have a finding of their own
        steps = np.abs(np.diff(rows[:, dims].astype(np.float64), axis=0))
    turn = 2 * np.pi
    return np.where((steps > 0.95 * turn) & (steps <= turn), turn - steps, steps)


def _is_turn(pair: Array, far: NDArray[np.bool_], motion: "_Motion") -> bool:
    """Whether what moves far in a step only has two ways to say the same.

    One dim alone that crosses its range wraps around, as degrees and phases do; several that change
    their sign together are a rotation's quaternion.

    Args:
        pair: `(2, dims)` the smooth dims before and after the step.
        far: `(dims,)` which of them move far.
        motion: how they usually move.
    """
    now, then = pair[:, far].astype(np.float64)
    if len(now) == 1:
        # Were no other dim smooth, nothing would speak against an end.
        return len(far) > 1 and bool(abs(then - now)[0] > _WRAP * motion.extent[far][0])
    return bool((np.abs(now + then) <= 2 * motion.usual[far]).all())


@dataclass(frozen=True, kw_only=True)
class _Motion:
    """How the dims that move smoothly usually do.

    Attributes:
        dims: their indices; the others are of the same length.
        usual: the step that 95 % of steps do not exceed.
        spread: standard deviation.
        extent: greatest less least number.
    """

    dims: NDArray[np.int64]
    usual: NDArray[np.float64]
    spread: NDArray[np.float64]
    extent: NDArray[np.float64]


def _typical(flat: Array, is_end: NDArray[np.bool_]) -> _Motion:
    """How the dims that move smoothly usually do, in a sample of the rows; none if it is small."""
    rows = np.unique(np.linspace(0, len(flat) - 2, min(_SAMPLE, len(flat) - 1), dtype=np.int64))
    rows = rows[~is_end[rows]]
    every = np.arange(flat.shape[1])
    now, after = flat[rows].astype(np.float64), flat[rows + 1].astype(np.float64)
    good = np.isfinite(now).all(axis=1) & np.isfinite(after).all(axis=1)
    if good.sum() < 16:
        nothing = np.zeros(0)
        return _Motion(dims=every[:0], usual=nothing, spread=nothing, extent=nothing)
    now, after = now[good], after[good]
    pairs = np.stack([now, after], axis=1).reshape(-1, flat.shape[1])
    steps = _steps(pairs, every)[::2]
    usual, spread = np.quantile(steps, 0.95, axis=0), now.std(axis=0)
    moves = np.median(steps, axis=0) > 1e-9 * spread
    smooth = np.flatnonzero(moves & (usual > 0) & (usual < _SMOOTH * spread))
    return _Motion(
        dims=smooth,
        usual=usual[smooth],
        spread=spread[smooth],
        extent=np.ptp(now[:, smooth], axis=0),
    )


def _rewards(view: View) -> Iterator[Finding]:
    if view.rewards is None:
        return
    low, high = view.rewards.min(), view.rewards.max()
    if low != high:
        return
    if low == 0:
        yield Finding(
            "warning",
            "rewards",
            f"the reward of all {len(view.rewards):,} transitions from episode 0, row 0 on is 0, "
            "so there is nothing to learn; check whether the rewarded rows were lost",
        )
    else:
        yield Finding(
            "note",
            "rewards",
            f"the reward of all {len(view.rewards):,} transitions from episode 0, row 0 on is "
            f"{float(low):g}: if solving the task is rewarded differently, behaviour never solved "
            "it",
        )


def _large_rewards(view: View) -> Iterator[Finding]:
    """Find the largest reward, if values learnt from it are out of the critic's reach."""
    if view.rewards is None:
        return
    low, high = float(view.rewards.min()), float(view.rewards.max())
    worst = low if -low > high else high
    if not np.isfinite(worst) or abs(worst) <= LARGE_REWARD:
        return  # a number that is not finite has a finding of its own
    place = view.place(int(np.argmax(view.rewards == worst)))
    scale = 10.0 ** -math.floor(math.log10(abs(worst)))
    yield Finding(
        "note",
        "rewards",
        f"the reward is {worst:g} in {place}, too large for a critic at the usual learning rates "
        "to follow; train with "
        f"--set dataset.reward_scale={scale:g}",
    )


def _constant_observations(view: View) -> Iterator[Finding]:
    """Find dims of observations that never change; of images, none are."""
    observations = view.observations
    if observations.ndim != 2:
        return
    dims = np.arange(observations.shape[1])
    for rows in row_blocks(len(observations), observations[:1].nbytes):
        # One that changes is not looked at again: most data are done after the first block.
        dims = dims[(observations[rows][:, dims] == observations[0, dims]).all(axis=0)]
        if not len(dims):
            return
    names = listed([*map(str, dims)], _LISTED)
    yield Finding(
        "note",
        "observations",
        f"dims of the observations that never change from episode 0, row 0 on: {names} "
        f"({len(dims)} of {observations.shape[1]}); drop those that the task has no use for if the "
        "environment lets you",
    )


def large_dims(observations: Array) -> list[int]:
    """Dims of observations `(N, n_s)` so large that a network sees little more than their sign.

    Those whose root mean square exceeds `LARGE_OBSERVATION`, of rows spread over all.
    """
    rows = np.linspace(0, len(observations) - 1, min(_SAMPLE, len(observations)), dtype=np.int64)
    with np.errstate(all="ignore"):  # non-finite numbers have a finding of their own
        size = np.sqrt(np.square(observations[rows], dtype=np.float64).mean(axis=0))
        return [int(dim) for dim in np.flatnonzero(size > LARGE_OBSERVATION)]


def images_told(observations: Array) -> str:
    """What observations that training refuses for their shape are; empty of vectors."""
    shape = observations.shape[1:]
    return "" if len(shape) < 2 else f"images of {'x'.join(map(str, shape))}, {NO_ENCODER}"


def _images(view: View) -> Iterator[Finding]:
    """Find observations that training refuses for their shape."""
    if told := images_told(view.observations):
        yield Finding("warning", "images", f"observations are {told}")


def _large_observations(view: View) -> Iterator[Finding]:
    """Find dims of observations that training should normalise."""
    if view.observations.ndim == 2 and (dims := large_dims(view.observations)):
        yield Finding(
            "note",
            "observations",
            f"dims of the observations that are mostly beyond ±{LARGE_OBSERVATION:g} from episode "
            f"0, row 0 on: {listed([*map(str, dims)], _LISTED)} ({len(dims)} of "
            f"{view.observations.shape[1]}); train with --set dataset.normalise=true",
        )


def _choices(view: View) -> Iterator[Finding]:
    """Find actions that look like discrete choices, stored like continuous actions."""
    actions = view.actions
    if not len(actions) or not np.isfinite(actions).all():
        return
    whole = np.rint(actions)
    if np.ptp(whole) and np.abs(actions - whole).max() <= 1 - _BOUND:
        yield Finding(
            "warning",
            "actions",
            f"every action from episode 0, row 0 on is a whole number ({whole.min():g} to "
            f"{whole.max():g}); policies here need continuous actions, so do not use these data if "
            "the actions are discrete choices",
        )


def _actions(view: View) -> Iterator[Finding]:
    actions = view.actions
    if actions.dtype.kind != "f" or not len(actions):
        return
    low, high = actions.min(axis=0), actions.max(axis=0)
    at_bound = np.mean(np.abs(actions) >= _BOUND, axis=0)
    for dim in range(actions.shape[1]):
        if not np.isfinite([low[dim], high[dim]]).all():
            continue  # has a finding of its own
        if max(-low[dim], high[dim]) > 1 + _TOLERANCE:
            worst = int(np.argmax(np.abs(actions[:, dim])))
            yield Finding(
                "warning",
                "actions",
                f"dim {dim} of the actions is {actions[worst, dim]:g} in {view.place(worst)}, "
                "outside [-1, 1]; scale the actions to it",
            )
        elif low[dim] == high[dim]:
            yield Finding(
                "note",
                "actions",
                f"dim {dim} of the actions is {low[dim]:g} in every transition from episode 0, row "
                "0 on; drop it if the environment lets you",
            )
        elif at_bound[dim] > _SATURATED:
            first = int(np.argmax(np.abs(actions[:, dim]) >= _BOUND))
            yield Finding(
                "note",
                "actions",
                f"dim {dim} of the actions is at its bound in {100 * at_bound[dim]:.3g} % of the "
                f"transitions (first {view.place(first)}); check whether they were clipped",
            )
    if low.min() >= 0 and high.max() <= 1 and (low < high).all() and len(actions) > 100:
        yield Finding(
            "note",
            "actions",
            "no action from episode 0, row 0 on is below 0 in any dim; scale them to [-1, 1] if "
            "they are in [0, 1]",
        )


def _duplicates(view: View, *, whole_episodes: bool = True) -> Iterator[Finding]:
    """Find episodes that occur twice, judged by all observations or by a few."""
    seen: dict[tuple[int, bytes], int] = {}
    bad = []
    for episode, (start, count) in enumerate(
        zip(view.observation_starts.tolist(), view.observation_counts.tolist(), strict=True)
    ):
        rows = slice(start, start + count) if whole_episodes else [start, start + count // 2]
        data = np.ascontiguousarray(view.observations[rows])
        key = count, hashlib.blake2b(data.data, digest_size=16).digest()
        earlier = seen.setdefault(key, episode)
        if earlier != episode:
            bad.append((episode, earlier))
    which = "" if whole_episodes else "length, first and middle "
    found = (
        Finding(
            "note",
            "duplicate",
            f"episode {episode} has the same {which}observations as episode {earlier}; leave one "
            "out if it is there by mistake",
        )
        for episode, earlier in bad
    )
    yield from _limited(found, len(bad), "such episodes")


def _repeats(view: View) -> Iterator[Finding]:
    """Find transitions that repeat the observation and action of the one before."""
    lengths = view.lengths
    if len(view.observations) < len(view.actions):
        return
    count, first = 0, -1
    starts = np.zeros(len(view.actions), bool)
    starts[view.starts] = True
    shift = np.repeat(view.observation_starts - view.starts, lengths)
    flat = view.observations.reshape(len(view.observations), -1)
    for rows in row_blocks(len(view.actions) - 1, 3 * max(flat[:1].nbytes, 1)):
        index = np.arange(rows.start + 1, rows.stop + 1)
        index = index[~starts[index]]
        here = index + shift[index]
        same = (view.actions[index] == view.actions[index - 1]).all(axis=1)
        same[same] = (flat[here[same]] == flat[here[same] - 1]).all(axis=1)
        count += int(same.sum())
        if first < 0 and same.any():
            first = int(index[np.argmax(same)])
    if count > _REPEATED * len(view.actions):
        yield Finding(
            "note",
            "repeat",
            f"{numbered(count, 'transition repeats', 'transitions repeat')} the observation and "
            f"action of the one before (first {view.place(first)}); check whether rows were "
            "written twice",
        )
