"""Checks of the numbers of single rows: rewards, observations, actions."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.blocks import row_blocks
from tql_offline.datasets.episodes import Array
from tql_offline.datasets.findings import Finding, limited
from tql_offline.datasets.views import View, sample
from tql_offline.errors import listed

_LISTED = 8
"""Number of dims that a finding about several of them names."""
_SATURATED = 0.5
"""An action dim is called saturated if more than this share of transitions is at its bound."""
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


def find_bad_numbers(view: View) -> Iterator[Finding]:
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
        yield from limited(found, len(episodes), f"episodes where {name!r} is not finite")


def _rows_where(column: Array, is_bad: Callable[[Array], NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Rows that contain a bad number."""
    if column.dtype.kind != "f":
        return np.zeros(0, np.int64)
    found = [np.zeros(0, np.int64)]
    for rows in row_blocks(len(column), column[:1].nbytes):
        bad = is_bad(column[rows])
        found.append(rows.start + np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)))
    return np.concatenate(found)


def find_rewards(view: View) -> Iterator[Finding]:
    """Find that all rewards are the same number."""
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


def find_large_rewards(view: View) -> Iterator[Finding]:
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


def find_constant_observations(view: View) -> Iterator[Finding]:
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
    some = observations[sample(len(observations))]
    with np.errstate(all="ignore"):  # non-finite numbers have a finding of their own
        size = np.sqrt(np.square(some, dtype=np.float64).mean(axis=0))
        return [int(dim) for dim in np.flatnonzero(size > LARGE_OBSERVATION)]


def images_told(observations: Array) -> str:
    """What observations that training refuses for their shape are; empty of vectors."""
    shape = observations.shape[1:]
    return "" if len(shape) < 2 else f"images of {'x'.join(map(str, shape))}, {NO_ENCODER}"


def find_images(view: View) -> Iterator[Finding]:
    """Find observations that training refuses for their shape."""
    if told := images_told(view.observations):
        yield Finding("warning", "images", f"observations are {told}")


def find_large_observations(view: View) -> Iterator[Finding]:
    """Find dims of observations that training should normalise."""
    if view.observations.ndim == 2 and (dims := large_dims(view.observations)):
        yield Finding(
            "note",
            "observations",
            f"dims of the observations that are mostly beyond ±{LARGE_OBSERVATION:g} from episode "
            f"0, row 0 on: {listed([*map(str, dims)], _LISTED)} ({len(dims)} of "
            f"{view.observations.shape[1]}); train with --set dataset.normalise=true",
        )


def find_choices(view: View) -> Iterator[Finding]:
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


def find_actions(view: View) -> Iterator[Finding]:
    """Find dims of actions that are outside [-1, 1], constant, at their bound or never negative."""
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
