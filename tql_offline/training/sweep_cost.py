"""What a grid of runs costs before any of it is trained: updates, and operations of their products.

No rate of a device is assumed: `bench` measures one, and operations divided by it are seconds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from tql_offline.config import Config, DataConfig
from tql_offline.datasets.catalogue import find_or_none
from tql_offline.errors import InputError
from tql_offline.training.arithmetic import flops_per_update
from tql_offline.training.data import load_named
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
        uncounted: runs whose operations are not known, which `flops` leaves out: their data are
            not here and in no catalogue, or of images, or a method of one's own cannot be counted.
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
        runs: the runs; data in no catalogue are loaded, once, for their dims.
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
    dims = _dims(config.dataset)
    flops = flops_per_update(config, *dims) if dims else None
    return None if flops is None else config.steps * flops


@cache
def _dims(wanted: DataConfig) -> tuple[int, int] | None:
    entry = find_or_none(wanted.name)
    if entry and entry.observation_dim is not None and entry.action_dim is not None:
        return entry.observation_dim, entry.action_dim
    try:
        episodes = load_named(wanted).episodes
    except InputError:  # said where they are trained on
        return None
    shape = episodes.observations.shape[1:]
    return (*shape, episodes.actions.shape[1]) if len(shape) == 1 else None
