"""Checks of how one row follows another: resets, jumps, repeats."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.blocks import row_blocks
from tql_offline.datasets.episodes import Array
from tql_offline.datasets.findings import FEW, Finding, limited
from tql_offline.datasets.views import View, sample
from tql_offline.errors import numbered

_SMOOTH = 0.2
"""A dim is smooth if its usual step is less than this fraction of its own spread."""
_JUMP = 10.0
"""A jump is more than this many usual steps of a smooth dim, and more than half its spread."""
_WRAP = 0.9
"""A dim that wraps around moves by more than this fraction of its range."""
_RESET = 1.5
"""In a reset a dim usually moves more than this many times as far as in 95 % of other steps."""
_REPEATED = 0.01
"""Repeats are reported if more than this share of transitions repeat the one before."""


def find_resets(view: View) -> Iterator[Finding]:
    """Find what may be resets recorded as steps, as by vector environments that reset themselves.

    An episode's last observation is then the first of the next one, and either its last step or the
    next one's first goes from one episode to another. Where neither is larger than others, one long
    episode was cut into pieces; it may have been so, too, where what happens at the cuts is large.
    """
    if view.observations.ndim != 2 or not (view.observation_counts > view.lengths).all():
        return
    firsts = view.observation_starts[1:]
    is_same = (view.observations[firsts - 1] == view.observations[firsts]).all(axis=1)
    if is_same.sum() < FEW or is_same.mean() <= 0.5:
        return
    # Where the task ended, the observation after the last step is not trained on.
    bootstraps = np.ones(len(firsts), bool)
    if view.masks is not None:
        bootstraps = view.masks[view.lasts[:-1]] != 0
    if _is_far(view, firsts[is_same & bootstraps] - 1):
        told = "write the last observation itself, as Gymnasium has it in info['final_obs']"
        yield _reset(is_same & bootstraps, told)
    elif _is_far(view, firsts[is_same] + 1):
        told = (
            "leave out the row after each end, whose action the environment ignores (Gymnasium's "
            "AutoresetMode.NEXT_STEP)"
        )
        yield _reset(is_same, told)


def _reset(episodes: NDArray[np.bool_], mend: str) -> Finding:
    return Finding(
        "note",
        "reset",
        f"the last observation of {episodes.sum():,} of {len(episodes) + 1:,} episodes (first "
        f"{int(np.argmax(episodes))}) is the next one's first, and the step to or from it is "
        f"larger than others; if it is a reset, it is trained on as if it were a step: {mend}",
    )


def _is_far(view: View, rows: NDArray[np.int64]) -> bool:
    """Whether a dim usually moves further to these rows than nearly ever inside episodes."""
    inside = np.ones(len(view.observations), bool)
    inside[view.observation_starts] = inside[rows] = False
    others = np.flatnonzero(inside)
    if min(len(rows), len(others)) < FEW:
        return False
    with np.errstate(all="ignore"):  # non-finite numbers have a finding of their own
        usual = np.quantile(_moves(view, others), 0.95, axis=0)
        here = np.median(_moves(view, rows), axis=0)
        return bool(((usual > 0) & (here > _RESET * usual)).any())


def _moves(view: View, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each dim moves to some of these rows from the ones before."""
    rows = rows[sample(len(rows))]
    now, before = (view.observations[part].astype(np.float64) for part in (rows, rows - 1))
    return np.abs(now - before)


def find_jumps(view: View, runs: list[slice] | None = None) -> Iterator[Finding]:
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
    yield from limited(found, len(bad), "such jumps")


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
    rows = sample(len(flat) - 1)
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


def find_duplicates(view: View, *, whole_episodes: bool = True) -> Iterator[Finding]:
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
    yield from limited(found, len(bad), "such episodes")


def find_repeats(view: View) -> Iterator[Finding]:
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
