"""The device-resident buffer: every column on the training device, indices drawn there."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_offline.batch import Batch
from tql_offline.datasets.episodes import Episodes
from tql_offline.errors import InputError


@dataclass(frozen=True)
class NStepTable:
    """What an n-step target needs of each of the N transitions, computed once.

    Attributes:
        returns: `(N,)` float32, `Σ_{k<m} γ^k r_{i+k}`.
        discounts: `(N,)` float32, `γ^m·mask` with the mask of the m-th step.
        steps: `(N,)` int64, m ≤ n: fewer where the episode or the task ended sooner.
    """

    returns: NDArray[np.float32]
    discounts: NDArray[np.float32]
    steps: NDArray[np.int64]


def n_step_table(episodes: Episodes, n: int, discount: float) -> NStepTable:
    """Compute n-step returns and discounts of every transition.

    A window stops at the episode's last transition (and bootstraps from the observation after it)
    and at a step whose mask is 0 (and does not bootstrap). Cost: n passes over N numbers.
    """
    transitions = np.arange(episodes.num_transitions)
    last = np.repeat(episodes.last_transitions(), episodes.lengths)
    returns = np.zeros(len(transitions))
    steps = np.zeros(len(transitions), dtype=np.int64)
    open_window = np.ones(len(transitions), dtype=bool)
    for k in range(n):
        open_window &= transitions + k <= last
        here = transitions[open_window] + k
        returns[open_window] += discount**k * episodes.rewards[here]
        steps[open_window] += 1
        open_window[open_window] = episodes.masks[here] > 0
    discounts = discount**steps * episodes.masks[transitions + steps - 1]
    return NStepTable(returns.astype(np.float32), discounts.astype(np.float32), steps)


def returns_to_go(episodes: Episodes, discount: float) -> NDArray[np.float32]:
    """A lower bound on the behaviour's discounted return from each transition on, `(N,)`.

    Backwards in time, over all episodes at once: `G_t = r_t + γ·mask_t·G_{t+1}`. What follows the
    cut of an episode is not known; it counts as the worst reward of the data forever (or as 0,
    which an end would give, if that is worse): with -1 a step a task that was never done is worth
    -1/(1-γ), as in Cal-QL's code, and not the few steps that were left before the cut.
    """
    worst = min(float(episodes.rewards.min()), 0.0)
    forever = 1 / (1 - discount) if discount < 1 else np.inf
    after_cut = worst * forever if worst else 0.0
    starts = np.cumsum(episodes.lengths) - episodes.lengths
    returns = np.zeros(episodes.num_transitions + 1)
    for step in range(int(episodes.lengths.max()) - 1, -1, -1):
        here = starts[episodes.lengths > step] + step
        last = step + 1 == episodes.lengths[episodes.lengths > step]
        beyond = np.where(last, after_cut, returns[here + 1])
        ongoing = episodes.masks[here] > 0
        returns[here] = episodes.rewards[here]
        returns[here[ongoing]] += discount * beyond[ongoing]
    return returns[:-1].astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A dataset's columns on one device; the next observation is a row of the same matrix.

    Attributes:
        observations: `(N + E, n_s)` every episode's observations, its last one included.
        actions: `(N, n_a)`.
        returns: `(N,)` n-step returns.
        discounts: `(N,)` γ^m·mask.
        returns_to_go: `(N,)`.
        start_rows: `(N,)` int64, observation row of s.
        end_rows: `(N,)` int64, observation row of the observation to bootstrap from.
    """

    observations: Tensor
    actions: Tensor
    returns: Tensor
    discounts: Tensor
    returns_to_go: Tensor
    start_rows: Tensor
    end_rows: Tensor

    @property
    def num_transitions(self) -> int:
        """N."""
        return len(self.actions)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw transitions uniformly with replacement, without leaving the device."""
        index = torch.randint(
            self.num_transitions, (batch_size,), generator=generator, device=self.actions.device
        )
        return self.take(index)

    def take(self, index: Tensor) -> Batch:
        """The transitions of given indices `(B,)`."""
        start_rows, end_rows = self.start_rows[index], self.end_rows[index]
        # m steps on in the same episode are m transitions on; where the episode ended, the
        # transition found there starts in another row.
        later = (index + end_rows - start_rows).clamp(max=self.num_transitions - 1)
        return Batch(
            observations=self.observations[start_rows].float(),
            actions=self.actions[index],
            rewards=self.returns[index],
            next_observations=self.observations[end_rows].float(),
            discounts=self.discounts[index],
            returns_to_go=self.returns_to_go[index],
            next_actions=self.actions[later],
            next_action_mask=(self.start_rows[later] == end_rows).float(),
        )


def make_buffer(
    episodes: Episodes, *, n_step: int, discount: float, device: torch.device
) -> Buffer:
    """Put a dataset on a device.

    Args:
        episodes: the dataset.
        n_step: n ≥ 1 steps of reward before the bootstrap.
        discount: γ in (0, 1].
        device: where training runs.

    Raises:
        InputError: the columns need more memory than the device has free.
    """
    table = n_step_table(episodes, n_step, discount)
    start_rows = episodes.start_rows()
    columns = {
        "observations": episodes.observations,
        "actions": episodes.actions,
        "returns": table.returns,
        "discounts": table.discounts,
        "returns_to_go": returns_to_go(episodes, discount),
        "start_rows": start_rows,
        "end_rows": start_rows + table.steps,
    }
    _check_memory(sum(column.nbytes for column in columns.values()), device)
    return Buffer(**{name: torch.as_tensor(c).to(device) for name, c in columns.items()})


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _total = torch.cuda.mem_get_info(device)
    if needed > 0.9 * free:
        raise InputError(
            f"the dataset needs {needed / 2**30:.1f} GiB on {device}, which has {free / 2**30:.1f} "
            "GiB free; use a smaller dataset or a device with more memory"
        )
