"""A measured change with size beside the one that a paper prints for the same method and tasks."""

import math
from collections.abc import Iterator, Sequence

from tql_offline.eval.leaderboard import Board
from tql_offline.eval.protocol import known_protocol
from tql_offline.eval.published import PublishedSize, published_scores
from tql_offline.eval.scaling import Scaling, SizePoint

_SAME_SIZE = 0.1
"""Parameters that differ by less are one size: those of the first layer depend on the task."""


def claim_sentences(
    board: Board, scalings: Sequence[Scaling], printed: Sequence[PublishedSize]
) -> Iterator[str]:
    """What the runs of a board say of the changes that a paper prints, a sentence a method.

    Only of a method that was trained at the paper's smallest and largest size.
    """
    for scaling in scalings:
        sizes = sorted(
            (point for point in printed if point.ours == scaling.method),
            key=lambda point: point.parameters,
        )
        if len(sizes) > 1:
            small, large = (_point_of(scaling, point) for point in (sizes[0], sizes[-1]))
            if small is scaling.points[0] and large is not None:
                claimed = _printed_change(sizes[0], sizes[-1])
                yield f"{claimed} {_measured_change(board, scaling, large, sizes)}"


def _point_of(scaling: Scaling, printed: PublishedSize) -> SizePoint | None:
    near = (
        point
        for point in scaling.points
        if math.isclose(point.parameters, printed.parameters, rel_tol=_SAME_SIZE)
    )
    return next(near, None)


def _printed_change(small: PublishedSize, large: PublishedSize) -> str:
    change = large.mean - small.mean
    return (
        f"Printed for {large.method} from {_millions(small)} to {_millions(large)}: {small.mean:g} "
        f"to {large.mean:g} %, {change:+g} points ({100 * change / small.mean:+.0f} %)."
    )


def _measured_change(
    board: Board, scaling: Scaling, large: SizePoint, sizes: Sequence[PublishedSize]
) -> str:
    """The verdict, or why these runs give none."""
    tasks = {score.task for score in published_scores() if score.source == sizes[0].source}
    if missing := len(tasks.difference(scaling.tasks)):
        return f"No verdict: {missing} of its {len(tasks)} tasks are not among these runs."
    protocol = known_protocol(board.setting.protocol)
    updates = min(run.updates for run in board.runs if run.method == scaling.method)
    if protocol is not None and updates < protocol.training_steps:
        return (
            f"No verdict: it is of {protocol.training_steps:,} updates, and some of these runs are "
            f"of {updates:,}."
        )
    claimed, change = sizes[-1].mean - sizes[0].mean, large.difference
    if math.isnan(change.low):
        return "No verdict: one run of a task has no interval."
    found = "within" if change.low <= claimed <= change.high else "outside"
    return (
        f"Measured over the same tasks: {change.value:+.1f} "
        f"[{change.low:+.1f}, {change.high:+.1f}] points; what is printed, in doubt itself "
        f"(docs/claim.md), lies {found} the interval of these runs.{_timing(board)}"
    )


def _timing(board: Board) -> str:
    if board.setting.success_timing == "post":
        return ""
    return " Success was judged after the action there (`post`), and not here."


def _millions(point: PublishedSize) -> str:
    return f"{point.parameters / 1e6:g}M"
