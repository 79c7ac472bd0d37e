"""Runs that their own numbers ended: they have no score, and a comparison must not forget them.

Large critics are the likeliest to diverge, so that without these runs a comparison of sizes would
be one of survivors.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tql_offline.config import WITHOUT_CRITIC
from tql_offline.datasets.catalogue import suite_of
from tql_offline.errors import listed, numbered
from tql_offline.eval.measured import Setting, task_name
from tql_offline.eval.protocol import namesake
from tql_offline.eval.rows import MAX_NAMED, natural, tasks_of
from tql_offline.eval.run_records import Run
from tql_offline.eval.selection import Pool

WITHOUT_SCORE = "ended without a score, by diverging or by a rule of watch"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that ended without a score, by what its settings say.

    Attributes:
        method: name of its method in the literature.
        size: its critic's size; empty if it has none.
        task: as of a run with a score.
        suite: suite of its dataset.
        protocol: the protocol that was to judge it, as settings name it: `quick:5`.
    """

    method: str
    size: str
    task: str
    suite: str
    protocol: str

    def is_of(self, method: str) -> bool:
        """Whether it may be of a board's method, which may be a variant: `TQL (α 30)`."""
        return bool(self.method) and method.partition(" (")[0] == self.method


def ended_runs(runs: Iterable[Run]) -> tuple[Ended, ...]:
    """Those of some runs that their own numbers ended."""
    return tuple(_ended(run) for run in runs if run.ended)


def _ended(run: Run) -> Ended:
    name, size, protocol = (
        str(run.config.get(key, ""))
        for key in ("dataset.name", "critic.size", "evaluation.protocol")
    )
    return Ended(
        method=run.method,
        size="" if run.config.get("objective") in WITHOUT_CRITIC else size,
        task=task_name(run),
        suite=suite_of(name),
        protocol=protocol,
    )


def ended_on(
    ended: Iterable[Ended], setting: Setting, tasks: Iterable[str], methods: Iterable[str]
) -> tuple[Ended, ...]:
    """Those that would be on a board of this setting, with these rows and methods."""
    known, named = tasks_of(tasks), tuple(methods)
    protocol = namesake(setting.protocol)
    return tuple(
        run
        for run in ended
        if run.suite == setting.suite
        and namesake(run.protocol) == protocol is not None
        and run.task in known
        and any(map(run.is_of, named))
    )


def ended_of_pools(ended: Iterable[Ended], pools: Iterable[Pool]) -> tuple[Ended, ...]:
    """Those that would be of some pools, whatever protocol was to judge them."""
    known = [(pool, tasks_of([pool.task])) for pool in pools]
    return tuple(
        run
        for run in ended
        if any(
            run.is_of(pool.method) and run.size == pool.size and run.task in tasks
            for pool, tasks in known
        )
    )


def ended_notes(ended: Sequence[Ended]) -> Iterator[str]:
    """Yield a sentence on runs that a board lacks."""
    if ended:
        columns = Counter(f"{run.method} {run.size}".strip() for run in ended)
        told = [f"{columns[column]} of {column}" for column in sorted(columns, key=natural)]
        yield (
            f"{numbered(len(ended), 'run', 'runs')} ({listed(told, MAX_NAMED)}) {WITHOUT_SCORE}; "
            "all numbers here are of the others"
        )


def by_size(ended: Iterable[Ended], method: str, tasks: Iterable[str]) -> dict[str, int]:
    """How many of a method's runs on some rows ended without a score, by size."""
    known = tasks_of(tasks)
    return dict(Counter(run.size for run in ended if run.is_of(method) and run.task in known))
