"""n-step targets and returns-to-go of a whole dataset, computed once in NumPy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.blocks import BLOCK_BYTES, empty_vector, row_blocks
from tql_offline.datasets.episodes import Episodes

AfterCut = Literal["worst", "last", "nothing"]
"""The rewards that are assumed beyond the cut of an episode."""

_WORK_BYTES = 16
"""Memory per transition while its targets are computed: a float64 and an int64."""


@dataclass(frozen=True)
class NStepTable:
    """The parts of the n-step target of each of the N transitions, computed once.

    Attributes:
        returns: `(N,)` float32, `Σ_{k<m} γ^k r_{i+k}`.
        discounts: `(N,)` float32, `γ^m·mask` with the mask of the m-th step.
        steps: `(N,)` m ≤ n, of `Episodes.row_dtype`; less than n where the episode or the task
            ended sooner.
    """

    returns: NDArray[np.float32]
    discounts: NDArray[np.float32]
    steps: NDArray[np.integer[Any]]


def n_step_table(episodes: Episodes, n: int, discount: float) -> NStepTable:
    """Compute n-step returns and discounts of every transition.

    A window stops at the episode's last transition (and bootstraps from the observation after it)
    and at a step whose mask is 0 (and does not bootstrap). Cost: at most n passes over N numbers, a
    block at a time, and a second pass over the windows that stop early.
    """
    count = episodes.num_transitions
    goes_on = episodes.masks > 0
    goes_on[episodes.last_transitions()] = False
    table = NStepTable(
        returns=empty_vector(count, np.float32),
        discounts=empty_vector(count, np.float32),
        steps=empty_vector(count, episodes.row_dtype),
    )
    longest = min(n, int(episodes.lengths.max()))
    for rows in row_blocks(count, _WORK_BYTES):
        _fill_whole(table, episodes, rows, longest, discount)
        for some in _stopped(goes_on, rows, longest):
            _fill_stopped(table, episodes, goes_on, some, longest, discount)
    return table


def _fill_whole(
    table: NStepTable, episodes: Episodes, rows: slice, n: int, discount: float
) -> None:
    """Fill in consecutive transitions as if every window had n steps."""
    returns = 0.0 + episodes.rewards[rows].astype(np.float64)  # -0.0 becomes 0.0, as in a sum
    for k in range(1, n):
        # The windows' k-th steps are contiguous, too.
        ahead = episodes.rewards[rows.start + k : rows.stop + k]
        returns[: len(ahead)] += discount**k * ahead
    masks = episodes.masks[rows.start + n - 1 : rows.stop + n - 1]
    table.returns[rows] = returns
    table.steps[rows] = n
    table.discounts[rows.start : rows.start + len(masks)] = discount**n * masks.astype(np.float64)


def _stopped(goes_on: NDArray[np.bool_], rows: slice, n: int) -> Iterator[NDArray[np.int64]]:
    """Yield, in blocks, the transitions of `rows` whose windows stop before n steps."""
    whole = np.ones(rows.stop - rows.start, dtype=np.bool_)
    for k in range(n - 1):
        ahead = goes_on[rows.start + k : rows.stop + k]
        whole[: len(ahead)] &= ahead
    stopped = np.flatnonzero(~whole) + rows.start
    for some in row_blocks(len(stopped), 4 * _WORK_BYTES):
        yield stopped[some]


def _fill_stopped(
    table: NStepTable,
    episodes: Episodes,
    goes_on: NDArray[np.bool_],
    at: NDArray[np.int64],
    n: int,
    discount: float,
) -> None:
    """Fill in the transitions `at`, each window up to the step where it stops."""
    returns = 0.0 + episodes.rewards[at].astype(np.float64)
    steps = np.ones(len(at), dtype=np.int64)
    running = np.flatnonzero(goes_on[at])
    for k in range(1, n):
        ahead = at[running] + k  # no running window reaches beyond the data
        returns[running] += discount**k * episodes.rewards[ahead]
        steps[running] += 1
        running = running[goes_on[ahead]]
    table.returns[at] = returns
    table.steps[at] = steps
    table.discounts[at] = discount**steps * episodes.masks[at + steps - 1]


def returns_to_go(
    episodes: Episodes, discount: float, after_cut: AfterCut = "worst"
) -> NDArray[np.float32]:
    """The behaviour's discounted return from each transition on, `(N,)`.

    Computed backwards in time, over all episodes at once: `G_t = r_t + γ·mask_t·G_{t+1}`. The
    rewards after a cut are unknown; Cal-QL's code (arXiv 2303.05479) assumes one of three things:

        worst    the worst reward of the data forever (or 0, the value of an end, if that is worse):
                 a lower bound; with a reward of -1 per step, a task that was never solved is worth
                 -1/(1-γ), not the few steps left before the cut
        last     the episode's last reward forever (kitchen)
        nothing  the sum stops at the cut (dense rewards)
    """
    # Longest first, so that the episodes that have a step t come first.
    order = np.argsort(-episodes.lengths, kind="stable")
    lengths = episodes.lengths[order]
    starts = (np.cumsum(episodes.lengths) - episodes.lengths)[order]
    beyond = _after_cuts(episodes, discount, after_cut)[order]
    returns = empty_vector(episodes.num_transitions, np.float32)
    stop = int(lengths[0])
    while stop:
        stop = _fill_backwards(returns, episodes, starts, lengths, beyond, stop, discount)
    return returns


def _after_cuts(episodes: Episodes, discount: float, after_cut: AfterCut) -> NDArray[np.float64]:
    """Assumed returns beyond each episode's end, `(E,)`; see `returns_to_go`."""
    every: NDArray[np.float64] = {
        "worst": np.full(episodes.num_episodes, min(float(episodes.rewards.min()), 0.0)),
        "last": episodes.rewards[episodes.last_transitions()].astype(np.float64),
        "nothing": np.zeros(episodes.num_episodes),
    }[after_cut]
    every[every != 0] *= 1 / (1 - discount) if discount < 1 else np.inf
    every += 0.0  # -0.0 becomes 0.0
    return every


def _fill_backwards(
    returns: NDArray[np.float32],
    episodes: Episodes,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    beyond: NDArray[np.float64],
    stop: int,
    discount: float,
) -> int:
    """Fill in the returns of some steps before `stop`, about a block of numbers in all.

    Args:
        returns: `(N,)`, filled in.
        episodes: the dataset.
        starts: `(E,)` first transition of each episode, the longest episode first.
        lengths: `(E,)` lengths in the same order.
        beyond: `(E,)` returns from `stop` on; updated to those from the returned step on.
        stop: the first step that is already filled in.
        discount: γ.

    Returns:
        The first step that is now filled in.
    """
    room = BLOCK_BYTES // _WORK_BYTES
    num_active = int(np.searchsorted(-lengths, -(stop - 1)))  # a lower bound for the last step
    steps = np.arange(max(stop - max(room // max(num_active, 1), 1), 0), stop)
    active = np.searchsorted(-lengths, -steps)  # episodes that have each step: more at earlier ones
    too_many = int(np.count_nonzero(active * (stop - steps) > room))
    steps = steps[min(too_many, len(steps) - 1) :]
    counts = active[-len(steps) :].tolist()
    first = int(steps[0])
    if lengths[0] == lengths[-1]:  # a rectangle, so a slice of it is a view
        rewards, masks, there = (
            column.reshape(len(lengths), -1)[:, first:stop]
            for column in (episodes.rewards, episodes.masks, returns)
        )
        there[:] = _backwards(rewards, masks, counts, beyond, discount)
        return first
    here = starts[: counts[0], None] + steps
    inside = steps < lengths[: counts[0], None]
    # Indices beyond the data are clipped; the numbers read there belong to no episode's step.
    rewards, masks = (c.take(here, mode="clip") for c in (episodes.rewards, episodes.masks))
    returns[here[inside]] = _backwards(rewards, masks, counts, beyond, discount)[inside]
    return first


def _backwards(
    rewards: NDArray[np.float32],
    masks: NDArray[np.float32],
    counts: list[int],
    beyond: NDArray[np.float64],
    discount: float,
) -> NDArray[np.float64]:
    """Returns from `(episodes, steps)` rewards; `counts[t]` episodes have a t-th step."""
    total = rewards.T.astype(np.float64, order="C")  # a row per step
    ongoing = np.ascontiguousarray(masks.T > 0)
    goes_on = np.all(ongoing, axis=1)
    for row, count in reversed(list(enumerate(counts))):
        now, after = total[row, :count], beyond[:count]
        if goes_on[row]:  # same result, much faster
            now += discount * after
        else:
            np.add(now, discount * after, out=now, where=ongoing[row, :count])
        after[:] = now
    return total.T
