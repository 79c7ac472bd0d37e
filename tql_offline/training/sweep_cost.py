"""What a grid of runs costs before any of it is trained: updates, and operations of their products.

No rate of a device is assumed: `bench` measures one, and operations divided by it are seconds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tql_offline.config import Config
from tql_offline.datasets.catalogue import find_or_none
from tql_offline.training.arithmetic import flops_per_update
from tql_offline.training.suite import PlannedRun


@dataclass(frozen=True, kw_only=True)
class MethodCost:
    """Runs of one method and size.

    Attributes:
        method: the method's name in the literature.
        size: critic size; empty without a critic.
        runs: number of runs.
        updates: of all of them.
        flops: operations of the matrix products in their updates; a multiply-add is two.
        uncounted: runs on data whose dims are in no catalogue, which `flops` leaves out.
    """

    method: str
    size: str
    runs: int
    updates: int
    flops: int
    uncounted: int


def costs(
    runs: Iterable[PlannedRun], counted: Callable[[int], None] = lambda _: None
) -> list[MethodCost]:
    """The cost of runs by method and size, in the order of their first run.

    Args:
        runs: the runs, none of which is read from disk.
        counted: called with 1 after each run.
    """
    groups: dict[tuple[str, str], list[tuple[int, int | None]]] = {}
    for run in runs:
        config = run.config
        key = config.method, config.critic.size if config.has_critic else ""
        groups.setdefault(key, []).append((config.steps, _flops(config)))
        counted(1)
    return [_cost(*key, found) for key, found in groups.items()]


def _cost(method: str, size: str, found: list[tuple[int, int | None]]) -> MethodCost:
    return MethodCost(
        method=method,
        size=size,
        runs=len(found),
        updates=sum(steps for steps, _ in found),
        flops=sum(flops or 0 for _, flops in found),
        uncounted=sum(flops is None for _, flops in found),
    )


def _flops(config: Config) -> int | None:
    """Operations of all updates of a run; None if its data's dims are not known."""
    entry = find_or_none(config.dataset.name)
    if entry is None or entry.observation_dim is None or entry.action_dim is None:
        return None
    flops = flops_per_update(config, entry.observation_dim, entry.action_dim)
    return None if flops is None else config.steps * flops
