"""The buffer: every column on the training device, indices drawn there.

Data that a device cannot hold stay in main memory, and indices are drawn there, too.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tql_offline.batch import Batch
from tql_offline.datasets.blocks import row_blocks
from tql_offline.datasets.episodes import Array, Episodes
from tql_offline.datasets.returns import AfterCut, targets
from tql_offline.errors import InputError

_STAGING_BYTES = 2**24
"""Pinned memory through which a column is copied."""


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A dataset's columns in one place; the next observation is a row of the same matrix.

    Attributes:
        observations: `(N + E, n_s)` every episode's observations, its last one included; images
            `(N + E, height, width, channels)` stay uint8, and only batches become float32.
        actions: `(N, n_a)`.
        returns: `(N,)` n-step returns.
        discounts: `(N,)` γ^m·mask.
        returns_to_go: `(N,)`.
        start_rows: `(N,)` row of s; int32 if that can count all rows, otherwise int64.
        end_rows: `(N,)` row of the observation to bootstrap from, of the same type.
        device: where batches go: the columns' own, unless these stay in main memory.
    """

    observations: Tensor
    actions: Tensor
    returns: Tensor
    discounts: Tensor
    returns_to_go: Tensor
    start_rows: Tensor
    end_rows: Tensor
    device: torch.device

    @property
    def num_transitions(self) -> int:
        """N, the number of transitions."""
        return len(self.actions)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(column.nbytes for column in vars(self).values() if isinstance(column, Tensor))

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw transitions uniformly with replacement, without leaving the device."""
        index = torch.randint(
            self.num_transitions, (batch_size,), generator=generator, device=self.actions.device
        )
        return self.take(index)

    def sample_on_host(self, batch_size: int, *seeds: int) -> Batch:
        """`sample` by NumPy's generator of these seeds, whose numbers no device is waited for."""
        random = np.random.default_rng(seeds)
        return self.take(torch.from_numpy(random.integers(self.num_transitions, size=batch_size)))

    def take(self, index: Tensor) -> Batch:
        """The transitions at the given indices `(B,)`."""
        batch = self._take(index.to(self.actions.device))
        if self.actions.device.type == self.device.type:
            return batch
        return Batch(*(_sent(column, self.device) for column in batch))

    def _take(self, index: Tensor) -> Batch:
        start_rows, end_rows = self.start_rows[index], self.end_rows[index]
        # m steps later in the same episode is m transitions later; if the episode ended, the
        # transition found there starts at another row.
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
    """Observations as float32; image bytes, 0 to 255, become 0 to 1."""
    numbers = observations.float()
    return numbers.div_(255) if observations.dtype == torch.uint8 else numbers


def _sent(column: Tensor, device: torch.device) -> Tensor:
    """A batch's column on a device, which copies it while the host goes on."""
    if device.type != "cuda":
        return column.to(device)
    return column.pin_memory().to(device, non_blocking=True)


def make_buffer(
    episodes: Episodes,
    *,
    n_step: int,
    discount: float,
    device: torch.device,
    after_cut: AfterCut = "worst",
    on_host: bool = False,
) -> Buffer:
    """Put a dataset on a device.

    In main memory, observations and actions share the dataset's, which must no longer change.
    Other devices get a copy, made a part at a time.

    Args:
        episodes: the dataset.
        n_step: n ≥ 1 steps of reward before the bootstrap.
        discount: γ in (0, 1].
        device: where training runs.
        after_cut: what returns-to-go assume beyond a cut; see `returns.targets`.
        on_host: keep the columns in main memory and copy batches alone.

    Raises:
        InputError: n or γ is out of range, or the columns need more memory than the device has
            free.
    """
    if n_step < 1 or not 0 < discount <= 1:
        raise InputError(
            f"a buffer of {n_step} steps of reward at a discount of {discount} is none; give at "
            "least 1 step, and a discount above 0 and up to 1"
        )
    device = torch.device(device)
    found = targets(episodes, n_step, discount, after_cut)
    start_rows = episodes.start_rows()
    columns = {
        "observations": episodes.observations,
        "actions": episodes.actions,
        "returns": found.returns,
        "discounts": found.discounts,
        "returns_to_go": found.returns_to_go,
        "start_rows": start_rows,
        "end_rows": np.add(start_rows, found.steps, out=found.steps),
    }
    home = torch.device("cpu") if on_host else device
    _check_memory(sum(column.nbytes for column in columns.values()), home)
    there = {name: _on_device(column, home) for name, column in columns.items()}
    return Buffer(**there, device=device)


def _on_device(column: Array, device: torch.device) -> Tensor:
    """A column on a device; on the CPU it shares the array's memory."""
    host = torch.as_tensor(column)
    if device.type == "cpu":
        return host
    there = torch.empty(host.shape, dtype=host.dtype, device=device)
    _copy_in_blocks(host, there, pinned=device.type == "cuda")
    return there


def _copy_in_blocks(host: Tensor, there: Tensor, pinned: bool) -> None:
    """Copy through two small buffers: one is filled while the other is being copied.

    Pinned memory copies fastest, but is too costly for a whole column.
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
    for copy in copies:  # before the stages' memory is reused
        copy.synchronize()


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _total = torch.cuda.mem_get_info(device)
    if needed > 0.9 * free:
        raise InputError(
            f"the dataset needs {needed / 2**30:.1f} GiB on {device}, which has {free / 2**30:.1f} "
            "GiB free; keep it in main memory (training: --set execution.data=host), or use a "
            "device with more memory"
        )
