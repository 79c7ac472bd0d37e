"""The device-resident buffer: every column on the training device, indices drawn there."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_offline.batch import Batch
from tql_offline.datasets.blocks import BLOCK_BYTES, empty_vector, row_blocks
from tql_offline.datasets.episodes import Array, Episodes
from tql_offline.errors import InputError

_STAGING_BYTES = 2**24
"""Of pinned memory a column is copied through."""
_WORK_BYTES = 16
"""What a transition's numbers take while its targets are computed: float64 and int64."""


@dataclass(frozen=True)
class NStepTable:
    """What an n-step target needs of each of the N transitions, computed once.

    Attributes:
        returns: `(N,)` float32, `Σ_{k<m} γ^k r_{i+k}`.
        discounts: `(N,)` float32, `γ^m·mask` with the mask of the m-th step.
        steps: `(N,)` m ≤ n, of the type that counts rows: fewer where the episode or the task
            ended sooner.
    """

    returns: NDArray[np.float32]
    discounts: NDArray[np.float32]
    steps: NDArray[np.integer[Any]]


def n_step_table(episodes: Episodes, n: int, discount: float) -> NStepTable:
    """Compute n-step returns and discounts of every transition.

    A window stops at the episode's last transition (and bootstraps from the observation after it)
    and at a step whose mask is 0 (and does not bootstrap). Cost: at most n passes over N numbers, a
    block at a time, and the windows that stop once more.
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
    """Fill in consecutive transitions as if all windows had n steps."""
    returns = 0.0 + episodes.rewards[rows].astype(np.float64)  # -0.0 becomes 0.0, as in a sum
    for k in range(1, n):
        # The windows' k-th steps lie side by side, too.
        ahead = episodes.rewards[rows.start + k : rows.stop + k]
        returns[: len(ahead)] += discount**k * ahead
    masks = episodes.masks[rows.start + n - 1 : rows.stop + n - 1]
    table.returns[rows] = returns
    table.steps[rows] = n
    table.discounts[rows.start : rows.start + len(masks)] = discount**n * masks.astype(np.float64)


def _stopped(goes_on: NDArray[np.bool_], rows: slice, n: int) -> Iterator[NDArray[np.int64]]:
    """Of consecutive transitions those whose windows of n steps stop before, a block at a time."""
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
    """Fill in given transitions, each window up to the step where it stops."""
    returns = 0.0 + episodes.rewards[at].astype(np.float64)
    steps = np.ones(len(at), dtype=np.int64)
    open_ = np.flatnonzero(goes_on[at])
    for k in range(1, n):
        ahead = at[open_] + k  # none that is open reaches beyond the data
        returns[open_] += discount**k * episodes.rewards[ahead]
        steps[open_] += 1
        open_ = open_[goes_on[ahead]]
    table.returns[at] = returns
    table.steps[at] = steps
    table.discounts[at] = discount**steps * episodes.masks[at + steps - 1]


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
    # Longest first, so that the episodes that have a step t are the first few.
    order = np.argsort(-episodes.lengths, kind="stable")
    lengths = episodes.lengths[order]
    starts = (np.cumsum(episodes.lengths) - episodes.lengths)[order]
    beyond = np.full(len(lengths), after_cut)
    returns = empty_vector(episodes.num_transitions, np.float32)
    stop = int(lengths[0])
    while stop:
        stop = _fill_backwards(returns, episodes, starts, lengths, beyond, stop, discount)
    return returns


def _fill_backwards(
    returns: NDArray[np.float32],
    episodes: Episodes,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    beyond: NDArray[np.float64],
    stop: int,
    discount: float,
) -> int:
    """Fill in the returns of some steps before `stop`, of about a block's numbers in all.

    Args:
        returns: `(N,)`, filled in.
        episodes: the dataset.
        starts: `(E,)` first transition of each episode, the longest episode first.
        lengths: `(E,)` of these episodes.
        beyond: `(E,)` what follows `stop`; afterwards what follows the step returned.
        stop: the first step that is filled in already.
        discount: γ.

    Returns:
        The first step that is filled in now.
    """
    room = BLOCK_BYTES // _WORK_BYTES
    num_active = int(np.searchsorted(-lengths, -(stop - 1)))  # of the last step: at least so many
    steps = np.arange(max(stop - max(room // max(num_active, 1), 1), 0), stop)
    active = np.searchsorted(-lengths, -steps)  # episodes that have each step: more before
    too_many = int(np.count_nonzero(active * (stop - steps) > room))
    steps = steps[min(too_many, len(steps) - 1) :]
    counts = active[-len(steps) :].tolist()
    first = int(steps[0])
    if lengths[0] == lengths[-1]:  # a rectangle, of which part is a view
        rewards, masks, there = (
            column.reshape(len(lengths), -1)[:, first:stop]
            for column in (episodes.rewards, episodes.masks, returns)
        )
        there[:] = _backwards(rewards, masks, counts, beyond, discount)
        return first
    here = starts[: counts[0], None] + steps
    inside = steps < lengths[: counts[0], None]
    # Clipped, what lies beyond the data is some number that no episode has a step for.
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
    """Returns from `(episodes, steps)` rewards, whose t-th step `counts[t]` episodes have."""
    total = rewards.T.astype(np.float64, order="C")  # a row per step
    ongoing = np.ascontiguousarray(masks.T > 0)
    goes_on = np.all(ongoing, axis=1)
    for row, count in reversed(list(enumerate(counts))):
        now, after = total[row, :count], beyond[:count]
        if goes_on[row]:  # the same, much faster
            now += discount * after
        else:
            np.add(now, discount * after, out=now, where=ongoing[row, :count])
        after[:] = now
    return total.T


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A dataset's columns on one device; the next observation is a row of the same matrix.

    Attributes:
        observations: `(N + E, n_s)` every episode's observations, its last one included; images
            `(N + E, height, width, channels)` stay uint8, and only a batch's become float32.
        actions: `(N, n_a)`.
        returns: `(N,)` n-step returns.
        discounts: `(N,)` γ^m·mask.
        returns_to_go: `(N,)`.
        start_rows: `(N,)` observation row of s; int32 where that can count all rows, else int64.
        end_rows: `(N,)` of the same type, observation row of the observation to bootstrap from.
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
        later = (index + (end_rows - start_rows)).clamp(max=self.num_transitions - 1)
        return Batch(
            observations=_floats(self.observations[start_rows]),
            actions=self.actions[index],
            rewards=self.returns[index],
            next_observations=_floats(self.observations[end_rows]),
            discounts=self.discounts[index],
            returns_to_go=self.returns_to_go[index],
            next_actions=self.actions[later],
            next_action_mask=(self.start_rows[later] == end_rows).float(),
        )


def _floats(observations: Tensor) -> Tensor:
    """Float32; bytes of images, 0 to 255, become 0 to 1."""
    numbers = observations.float()
    return numbers.div_(255) if observations.dtype == torch.uint8 else numbers


def make_buffer(
    episodes: Episodes, *, n_step: int, discount: float, device: torch.device
) -> Buffer:
    """Put a dataset on a device.

    On a CPU observations and actions are the dataset's own memory, which must not change any more.
    Elsewhere they are copied there a part at a time.

    Args:
        episodes: the dataset.
        n_step: n ≥ 1 steps of reward before the bootstrap.
        discount: γ in (0, 1].
        device: where training runs.

    Raises:
        InputError: the columns need more memory than the device has free.
    """
    # One after the other: threads that call NumPy this often wait for one another.
    table = n_step_table(episodes, n_step, discount)
    start_rows = episodes.start_rows()
    columns = {
        "observations": episodes.observations,
        "actions": episodes.actions,
        "returns": table.returns,
        "discounts": table.discounts,
        "returns_to_go": returns_to_go(episodes, discount),
        "start_rows": start_rows,
        "end_rows": np.add(start_rows, table.steps, out=table.steps),
    }
    _check_memory(sum(column.nbytes for column in columns.values()), device)
    return Buffer(**{name: _on_device(column, device) for name, column in columns.items()})


def _on_device(column: Array, device: torch.device) -> Tensor:
    """A column on a device; on the CPU it is the array's own memory."""
    host = torch.as_tensor(column)
    if device.type == "cpu":
        return host
    there = torch.empty(host.shape, dtype=host.dtype, device=device)
    _copy_in_blocks(host, there, pinned=device.type == "cuda")
    return there


def _copy_in_blocks(host: Tensor, there: Tensor, pinned: bool) -> None:
    """Copy by way of two small buffers: one is filled while the other's copy is under way.

    Pinned memory copies fastest, but is too dear for a whole column.
    """
    blocks = row_blocks(len(host), host[:1].nbytes, block_bytes=_STAGING_BYTES)
    stages = [torch.empty_like(host[: blocks[0].stop], pin_memory=pinned) for _ in blocks[:2]]
    copies: deque[torch.cuda.Event] = deque()
    for number, rows in enumerate(blocks):
        if len(copies) == len(stages):
            copies.popleft().synchronize()
        stage = stages[number % 2][: rows.stop - rows.start]
        stage.copy_(host[rows])
        there[rows].copy_(stage, non_blocking=pinned)
        if pinned:
            copies.append(torch.cuda.Event())
            copies[-1].record(torch.cuda.current_stream(there.device))
    for copy in copies:  # before the stages' memory is another's
        copy.synchronize()


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _total = torch.cuda.mem_get_info(device)
    if needed > 0.9 * free:
        raise InputError(
            f"the dataset needs {needed / 2**30:.1f} GiB on {device}, which has {free / 2**30:.1f} "
            "GiB free; use a smaller dataset or a device with more memory"
        )
