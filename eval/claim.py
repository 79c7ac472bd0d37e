"""Comparison of a measured change with size and the one a paper prints for the same tasks."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tql_offline.config import resolve
from tql_offline.datasets.catalogue import find
from tql_offline.errors import InputError, listed
from tql_offline.eval.leaderboard import Board
from tql_offline.eval.measured import Measured
from tql_offline.eval.protocol import known_protocol
from tql_offline.eval.published import PublishedSize, published_tasks, task_deviations
from tql_offline.eval.rows import task_of
from tql_offline.eval.statistics import Estimate, estimate_difference
from tql_offline.eval.variants import Settings, are_known, differing, effective
from tql_offline.setting_effects import flat_settings

_MADE_BY: dict[str, dict[str, Any]] = {
    "TQL": {},
    "TQL-none": {"entropy": {"mode": "none"}},
    "FQL": {"preset": "fql"},
    "floq": {"preset": "floq"},
    "PAC": {"preset": "pac"},
}
"""Method → its settings on top of the preset of a task's family."""
_SAME_SIZE = 0.1
"""Relative difference of parameters within one size: the first layer depends on the task."""
SEEDS = 8
"""Seeds of a printed mean, by OGBench's protocol; the paper's own number is not known here."""
_ROUNDING = 1 / 6
"""Variance, due to rounding, of a difference of two means printed as whole percents."""
_OURS = ("execution.precision",)
"""Settings of ours that have no counterpart in the paper."""
_UNTOLD = {"critic.counted": ("ensemble", "member"), "floq.critic_width": ("0", "512")}
"""Settings on which the paper is silent: the default, and another reading (docs/claim.md)."""
_NO_VERDICT = "No verdict: "
_MAX_NAMED = 3


def claim_sentences(board: Board, printed: Sequence[PublishedSize]) -> Iterator[str]:
    """Yield what a board's runs say about the changes that a paper prints, one text per method.

    Only methods that were trained at both the paper's smallest and its largest size have one.
    """
    for method in _MADE_BY:
        sizes = sorted((p for p in printed if p.called_here == method), key=lambda p: p.parameters)
        if len(sizes) < 2:
            continue
        ends = sizes[0], sizes[-1]
        names = dict.fromkeys(run.method for run in board.runs if _is_variant(run, method))
        told = {name: text for name in names if (text := _told_of(board, name, *ends))}
        judged = {name: t for name, t in told.items() if not t.startswith(_NO_VERDICT)}
        # Variants with settings that are not the paper's are silent beside one that has them.
        for name, text in (judged or told).items():
            which = "" if name == method else f"{name}: "
            yield f"{_printed_change(*ends)} {which}{text}"


def _told_of(board: Board, name: str, small: PublishedSize, large: PublishedSize) -> str:
    """The verdict on a variant, or why there is none; empty if a size was not trained."""
    of_small, of_large = (
        [run for run in board.runs if _is_of(run, name, point)] for point in (small, large)
    )
    return _verdict(board, of_small, of_large, small, large) if of_small and of_large else ""


def _is_variant(run: Measured, method: str) -> bool:
    return run.method == method or run.method.startswith(f"{method} (")


def _is_of(run: Measured, name: str, point: PublishedSize) -> bool:
    """Whether a run is of a method, or one of its variants, at a printed size."""
    have = _counted(run)
    return run.method == name and math.isclose(have, point.parameters, rel_tol=_SAME_SIZE)


def _counted(run: Measured) -> float:
    """The parameters that the size of a run counts; 0 if unknown."""
    have = run.parameters or 0
    if _untold(run.settings)["critic.counted"] != "member":
        return have
    members = run.settings.get("critic.ensemble", "")
    return have / int(members) if members.isdecimal() and int(members) else 0


def _untold(settings: Settings) -> dict[str, str]:
    """What is not told of the paper's runs, as settings have it."""
    return {key: settings.get(key, usual) for key, (usual, *_) in _UNTOLD.items()}


def _printed_change(small: PublishedSize, large: PublishedSize) -> str:
    change = large.mean - small.mean
    return (
        f"Printed for {large.method} from {_millions(small)} to {_millions(large)}: {small.mean:g} "
        f"to {large.mean:g} %, {change:+g} points ({100 * change / small.mean:+.0f} %)."
    )


def _verdict(
    board: Board,
    small: list[Measured],
    large: list[Measured],
    printed_small: PublishedSize,
    printed_large: PublishedSize,
) -> str:
    """The measured change against the printed one, or why they cannot be compared."""
    tasks = published_tasks(printed_small.source)
    if why := _unlike(board, small, large, tasks, printed_small.called_here):
        return f"{_NO_VERDICT}{why}."
    measured = estimate_difference(
        _scores(large, tasks), _scores(small, tasks), is_rate=board.is_rate
    )
    if math.isnan(measured.low):
        return f"{_NO_VERDICT}a task with a single run gives no interval."
    gap = measured.value - (printed_large.mean - printed_small.mean)
    variances = map(_printed_variance, (printed_small, printed_large))
    # Both are about twice a standard error.
    reach = math.hypot(measured.high - measured.low, 4 * math.sqrt(sum(variances) + _ROUNDING)) / 2
    explained = "no more than" if abs(gap) <= reach else "more than"
    return (
        f"Measured over the same tasks{_reading(small[0])}: {measured.value:+.1f} "
        f"[{measured.low:+.1f}, {measured.high:+.1f}] points, {_direction(measured)}; this differs "
        f"from the printed change by {gap:+.1f} ± {reach:.1f}, {explained} seeds and rounding "
        f"explain (taking the printed ± as the mean of the tasks' deviations over {SEEDS} seeds)."
        f"{_timing(board)}"
    )


def _reading(run: Measured) -> str:
    """How its size is counted, where it is not all parameters of the critic."""
    found = [f"{key} {v}" for key, v in _untold(run.settings).items() if v != _UNTOLD[key][0]]
    return f" with {' and '.join(found)}" if found else ""


def _unlike(
    board: Board, small: list[Measured], large: list[Measured], tasks: set[str], method: str
) -> str:
    """Why runs do not reproduce the printed experiment; empty if they do."""
    have = {run.task for run in small} & {run.task for run in large}
    if missing := len(tasks - have):
        return f"{missing} of its {len(tasks)} tasks are not covered by runs of both sizes"
    protocol = known_protocol(board.setting.protocol)
    wanted = protocol.training_steps if protocol else 0
    runs = [run for run in (*small, *large) if run.task in tasks]
    if any(run.updates != wanted for run in runs):
        return f"it is for {wanted:,} updates, unlike some of these runs"
    sizes = {run.size for run in runs}
    lost = [run for run in board.ended if task_of(run.task) in tasks and run.size in sizes]
    if any(run.method == small[0].method for run in lost):
        return "runs of these sizes diverged or were stopped, and the others are survivors"
    if any(_is_of_other_data(run) for run in runs):
        return "some of these runs were trained on data other than the published"
    pairs = [(run.settings, _settings(run, method)) for run in runs]
    if not all(are_known(have) and paper for have, paper in pairs):
        return "the settings of some of these runs are not known"
    pairs += [(_untold(run.settings), _untold(runs[0].settings)) for run in runs]
    keys = dict.fromkeys(key for pair in pairs for key in differing(pair) if key not in _OURS)
    if keys:
        named = listed(list(keys), _MAX_NAMED)
        return f"some of these runs differ from the paper's settings ({named})"
    return ""


def _is_of_other_data(run: Measured) -> bool:
    published = find(run.task).files[0].sha256  # not known for every file
    return published is not None and run.dataset_sha256 != published


def _settings(run: Measured, method: str) -> Settings:
    """The paper's settings for a method and a run's task and size, by the presets; or none."""
    chosen = {"dataset": {"name": run.task}, "critic": {"size": run.size}}
    try:
        config = resolve({**_MADE_BY[method], **chosen})
    except InputError:
        return {}
    settings = effective(flat_settings(config), config.objective)
    known = {key: run.settings.get(key) for key in _UNTOLD}
    return settings | {key: v for key, v in known.items() if v is not None and v in _UNTOLD[key]}


def _scores(runs: list[Measured], tasks: set[str]) -> list[list[float]]:
    return [[run.score for run in runs if run.task == task] for task in sorted(tasks)]


def _printed_variance(point: PublishedSize) -> float:
    """Variance of a printed mean over tasks, assuming independent runs."""
    deviations = task_deviations(point).values()
    return math.fsum(d**2 for d in deviations) / len(deviations) ** 2 / (SEEDS - 1)


def _direction(change: Estimate) -> str:
    if change.low > 0:
        return "a rise"
    return "a fall" if change.high < 0 else "neither a rise nor a fall"


def _timing(board: Board) -> str:
    if board.setting.success_timing in ("", "post"):
        return ""
    return " Success was not judged as in ogbench 1.1.0 (`post`), which the paper's tables follow."


def _millions(point: PublishedSize) -> str:
    return f"{point.parameters / 1e6:g}M"
