"""n-step targets and returns-to-go of a whole dataset, computed once.

In C where there is a compiler (returns.c), otherwise in NumPy, to the same bits.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tql_offline import native
from tql_offline.datasets.blocks import empty_vector, row_blocks
from tql_offline.datasets.episodes import Episodes

AfterCut = Literal["worst", "last", "nothing"]
"""The rewards that are assumed beyond the cut of an episode."""

SOURCE = Path(__file__).with_name("returns.c")
FLAGS = ("-ffp-contract=off",)

_ROW_BYTES = 64
"""Memory per transition of a block while NumPy computes its window."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the rewards from each of the N transitions on come to.

    Attributes:
        returns: `(N,)` float32, `Σ_{k<m} γ^k r_{i+k}`.
        discounts: `(N,)` float32, `γ^m·mask` with the mask of the m-th step.
        steps: `(N,)` m ≤ n, of `Episodes.row_dtype`; less than n where the episode or the task
            ended sooner.
        returns_to_go: `(N,)` float32, the behaviour's discounted return.
    """

    returns: NDArray[np.float32]
    discounts: NDArray[np.float32]
    steps: NDArray[np.integer[Any]]
    returns_to_go: NDArray[np.float32]


def targets(episodes: Episodes, n: int, discount: float, after_cut: AfterCut = "worst") -> Targets:
    """Compute n-step returns and discounts and the return-to-go of every transition.

    A window stops at the episode's last transition (and bootstraps from the observation after it)
    and at a step whose mask is 0 (and does not bootstrap).

    Returns-to-go go backwards: `G_t = r_t + γ·mask_t·G_{t+1}`. The rewards after a cut are unknown;
    Cal-QL's code (arXiv 2303.05479) assumes one of three things:

        worst    the worst reward of the data forever (or 0, the value of an end, if that is worse):
                 a lower bound; with a reward of -1 per step, a task that was never solved is worth
                 -1/(1-γ), not the few steps left before the cut
        last     the episode's last reward forever (kitchen)
        nothing  the sum stops at the cut (dense rewards)
    """
    count = episodes.num_transitions
    found = Targets(
        returns=empty_vector(count, np.float32),
        discounts=empty_vector(count, np.float32),
        steps=empty_vector(count, episodes.row_dtype),
        returns_to_go=empty_vector(count, np.float32),
    )
    longest = min(n, int(episodes.lengths.max()))
    powers = np.array([discount**k for k in range(longest + 1)])
    beyond = _after_cuts(episodes, discount, after_cut)
    library = native.library(SOURCE, *FLAGS)
    if isinstance(library, native.UnavailableError) or found.steps.dtype != np.intc:
        goes_on = episodes.masks > 0
        goes_on[episodes.last_transitions()] = False
        for rows in row_blocks(count, _ROW_BYTES):
            _fill_windows(found, episodes, goes_on, np.arange(rows.start, rows.stop), powers)
        _fill_returns_to_go(found, episodes, discount, beyond)
    else:
        _fill_in_c(library, found, episodes, discount, powers, beyond)
    return found


def _after_cuts(episodes: Episodes, discount: float, after_cut: AfterCut) -> NDArray[np.float64]:
    """Assumed returns beyond each episode's end, `(E,)`; see `targets`."""
    every: NDArray[np.float64] = {
        "worst": np.full(episodes.num_episodes, min(float(episodes.rewards.min()), 0.0)),
        "last": episodes.rewards[episodes.last_transitions()].astype(np.float64),
        "nothing": np.zeros(episodes.num_episodes),
    }[after_cut]
    every[every != 0] *= 1 / (1 - discount) if discount < 1 else np.inf
    every += 0.0  # -0.0 becomes 0.0
    return every


def _fill_in_c(
    library: ctypes.CDLL,
    found: Targets,
    episodes: Episodes,
    discount: float,
    powers: NDArray[np.float64],
    beyond: NDArray[np.float64],
) -> None:
    """Fill in all targets, some episodes at a time on each of PyTorch's threads."""
    ends = np.cumsum(episodes.lengths, dtype=ctypes.c_long)
    rewards, masks = map(np.ascontiguousarray, (episodes.rewards, episodes.masks))
    columns = (rewards, masks, found.returns, found.discounts, found.steps, found.returns_to_go)
    library.targets(
        ctypes.c_long(episodes.num_episodes),
        _address(ends),
        ctypes.c_int(len(powers) - 1),
        ctypes.c_double(discount),
        *[_address(array) for array in (powers, beyond, *columns)],
        ctypes.c_int(torch.get_num_threads()),
    )


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _fill_windows(
    found: Targets,
    episodes: Episodes,
    goes_on: NDArray[np.bool_],
    at: NDArray[np.int64],
    powers: NDArray[np.float64],
) -> None:
    """Fill in returns, discounts and steps of the transitions `at`."""
    returns = 0.0 + episodes.rewards[at].astype(np.float64)  # -0.0 becomes 0.0, as in a sum
    steps = np.ones(len(at), dtype=np.int64)
    running = np.flatnonzero(goes_on[at])
    for k in range(1, len(powers) - 1):
        ahead = at[running] + k  # no running window reaches beyond the data
        returns[running] += np.float32(powers[k]) * episodes.rewards[ahead]
        steps[running] += 1
        running = running[goes_on[ahead]]
    found.returns[at] = returns
    found.steps[at] = steps
    found.discounts[at] = powers[steps] * episodes.masks[at + steps - 1]


def _fill_returns_to_go(
    found: Targets, episodes: Episodes, discount: float, beyond: NDArray[np.float64]
) -> None:
    """Fill in returns-to-go, a step of all episodes at a time, from the last one backwards."""
    order = np.argsort(-episodes.lengths, kind="stable")  # those that have a step t come first
    lengths, after = episodes.lengths[order], beyond[order]
    starts = (np.cumsum(episodes.lengths) - episodes.lengths)[order]
    for step in reversed(range(int(lengths[0]))):
        have = np.searchsorted(-lengths, -step)
        rows = starts[:have] + step
        now = episodes.rewards[rows].astype(np.float64)
        np.add(now, discount * after[:have], out=now, where=episodes.masks[rows] > 0)
        found.returns_to_go[rows] = after[:have] = now
