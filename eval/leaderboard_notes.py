"""Sentences beside a leaderboard: what it lacks, and what its numbers are."""

import math
from collections.abc import Iterator, Sequence

from tql_offline.errors import listed, numbered
from tql_offline.eval.ended import survivors
from tql_offline.eval.leaderboard import Board
from tql_offline.eval.measured import Measured
from tql_offline.eval.protocol import known_protocol, protocols
from tql_offline.eval.report_tables import grouped
from tql_offline.eval.rows import MAX_NAMED
from tql_offline.eval.scaling import Scaling

_FORMULAS = {
    "success": "success = info['success'] at the last step; score = 100 × success rate",
    "return": "score = mean undiscounted return",
    "normalised": "score = scale × (mean return - min) / (max - min), with the references that "
    "each evaluation records",
}
_TIMINGS = {"pre": "before the action ('pre')", "post": "after the action ('post')"}


def without_scaling(board: Board, scalings: Sequence[Scaling]) -> Iterator[str]:
    """Yield which methods have runs of several sizes that cannot be compared, and why."""
    sizes: dict[str, dict[str, set[str]]] = {}
    uncounted = set()
    for run in sorted(board.runs, key=lambda run: (run.method, run.parameters or 0)):
        if run.size:
            sizes.setdefault(run.method, {}).setdefault(run.size, set()).add(run.task)
        if run.size and not run.parameters:
            uncounted.add(run.method)
    compared, all_lost = {scaling.method for scaling in scalings}, board.lost
    for method, by_size in sizes.items():
        if method not in compared and len(by_size) > 1 and method in uncounted:
            yield (
                f"{method}, {', '.join(by_size)}: not all of these runs record the number of their "
                "critic's parameters, so they are not compared by size."
            )
            continue
        tasks = [task for found in by_size.values() for task in found]
        lost = {size: n for size in by_size if (n := all_lost.get(f"{method} {size}"))}
        if method not in compared and len(by_size) > 1 and len(tasks) == len(set(tasks)):
            yield (
                f"{method}, {', '.join(by_size)}: no task has runs of two of these sizes, so "
                f"an effect of size cannot be told from one of the task.{survivors(lost)}"
            )


def without_average(board: Board, scalings: Sequence[Scaling]) -> Iterator[str]:
    """Yield why scores are averaged over no tasks, if that is so."""
    if not board.averages(board.tasks):
        by_size = "; scores by size are shown task by task" if scalings else ""
        each = "Plain returns are" if board.kind else "Scores of an unknown protocol may be"
        yield (
            f"{each} on each task's own scale, so they have no average and no profile over several "
            f"tasks{by_size}."
        )


def unlike_updates(board: Board) -> Iterator[str]:
    """Yield which columns had how many updates, the odd ones first, if runs of a task differ."""
    on_task: dict[str, set[int]] = {}
    columns: dict[int, dict[str, None]] = {}
    for run in board.runs:
        on_task.setdefault(run.task, set()).add(run.updates)
        columns.setdefault(run.updates, {})[run.label] = None
    if any(len(updates) > 1 for updates in on_task.values()):
        ordered = sorted(columns.items(), key=lambda item: (len(item[1]), item[0]))
        told = [f"{grouped(count)} of {listed([*of], MAX_NAMED)}" for count, of in ordered]
        more = f"; and {len(told) - MAX_NAMED} more" if len(told) > MAX_NAMED else ""
        yield f"Runs of one task differ in their updates: {'; '.join(told[:MAX_NAMED])}{more}."


def unlike_devices(scalings: Sequence[Scaling], board: Board) -> Iterator[str]:
    """Yield which methods' sizes were timed on several devices."""
    for scaling in scalings:
        timed = [run for run in board.runs if run.method == scaling.method and run.seconds > 0]
        devices = sorted({run.device for run in timed if run.device})
        if len(devices) > 1:
            yield (
                f"Updates/s and hours of {scaling.method} are of several devices "
                f"({listed(devices, MAX_NAMED)}), so they do not tell what a larger size costs."
            )


def below_behaviour(board: Board) -> Iterator[str]:
    """Yield where every run of a method scores less than a policy cloned from its data."""
    methods: dict[str, dict[str, list[Measured]]] = {}
    for run in sorted(board.runs, key=lambda run: (run.method, run.parameters or 0)):
        cell = f"of {run.size} on {run.task}" if run.size else f"on {run.task}"
        methods.setdefault(run.method, {}).setdefault(cell, []).append(run)
    for method, cells in methods.items():
        below = {cell: runs for cell, runs in cells.items() if _is_below(runs)}
        if not below:
            continue
        where = "" if len(below) == len(cells) else f" {listed(list(below), MAX_NAMED)}"
        told = [run for runs in below.values() for run in runs]
        known = [run for run in told if not math.isnan(run.behaviour)]
        who = f"all {len(known)} runs{where} score" if known[1:] else f"the one run{where} scores"
        episodes = ", in the same episodes" if all(run.in_same_episodes for run in known) else ""
        without = len(told) - len(known)
        more = f" ({without} more {'has' if without == 1 else 'have'} no score of it)"
        yield (
            f"{method}: {who} below the behaviour policy cloned from the same data{episodes}"
            f"{more if without else ''}."
        )


def _is_below(runs: Sequence[Measured]) -> bool:
    """Whether there are behaviour scores, and every run that has one scores less."""
    known = [run for run in runs if not math.isnan(run.behaviour)]
    return bool(known) and all(run.score < run.behaviour for run in known)


def left_out(board: Board, core: Board) -> Iterator[str]:
    """Yield which tasks and columns of runs are left out of comparisons over several tasks."""
    tasks = [task for task in board.tasks if task not in core.tasks]
    labels = [label for label in board.measured if label not in core.measured]
    if not core.measured or not (tasks or labels):
        return
    yield (
        f"Comparisons over several tasks cover the {len(core.tasks)} of {len(board.tasks)} tasks "
        f"and {len(core.measured)} of {len(board.measured)} methods for which every method has "
        f"every task; left out: {listed([*tasks, *labels], MAX_NAMED)}."
    )


def shortfall(board: Board) -> Iterator[str]:
    """Yield how many cells fall short of a full result under the protocol, if some do."""
    known = known_protocol(board.setting.protocol)
    if known not in protocols():  # one's own numbers, by which no result is full or less
        return
    updates: dict[tuple[str, str, str], list[int]] = {}
    for run in board.runs:
        updates.setdefault((run.task, run.dataset_sha256, run.label), []).append(run.updates)
    seeds = sum(len(found) < known.seeds for found in updates.values())
    short = sum(min(found) < known.training_steps for found in updates.values())
    if seeds or short:
        yield (
            f"A full result of {board.setting.protocol} is "
            f"{numbered(known.seeds, 'seed', 'seeds')} of {grouped(known.training_steps)} updates: "
            f"of {numbered(len(updates), 'cell', 'cells')}, {_have(seeds)} fewer seeds and "
            f"{_have(short)} shorter runs."
        )


def _have(number: int) -> str:
    return f"{number} {'has' if number == 1 else 'have'}"


def formulas(board: Board) -> Iterator[str]:
    """Yield how a board's scores are defined, and the references of each row that has some."""
    timing = board.setting.success_timing
    for number in sorted({run.counted for run in board.runs}):
        yield formula(board.setting.protocol, number, timing)
    references = {run.task: run.reference for run in board.runs if run.reference}
    for task in filter(references.get, board.tasks):
        yield f"{task}: of the mean return, {references[task]}."


def formula(protocol: str, number: int, success_timing: str) -> str:
    """The meaning of a score under a protocol.

    Args:
        protocol: name and version.
        number: how many of the last evaluations count.
        success_timing: the moment of judging success; empty if unknown.
    """
    known = known_protocol(protocol)
    meaning = _FORMULAS[known.score] if known else "its score is shown as recorded"
    counts = "the last evaluation" if number == 1 else f"the last {number} evaluations"
    timing = f"; success judged on the state {_TIMINGS.get(success_timing, success_timing)}"
    return (
        f"{protocol or 'unnamed protocol'}: {meaning}; counted: {counts}"
        f"{timing if success_timing else ''}."
    )
