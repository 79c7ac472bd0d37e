"""From episodes to an evaluation's score, and from evaluations to a run's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tql_offline.errors import InputError
from tql_offline.eval.protocol import Protocol
from tql_offline.eval.references import Reference

_COUNTED = {"last": 1, "last-3": 3}


def evaluation_score(
    protocol: Protocol,
    *,
    success_rate: float,
    return_mean: float,
    reference: Reference | None = None,
) -> float:
    """The score of one evaluation: success in percent, the mean return, or that return normalised.

    Args:
        protocol: says which.
        success_rate: fraction of successful episodes in [0, 1]; of a protocol with goals, the mean
            over goals, which have equally many episodes.
        return_mean: mean undiscounted return of the episodes.
        reference: of the dataset, where the score is normalised.

    Raises:
        InputError: the score is normalised and there is no reference.
    """
    if protocol.score == "success":
        return 100.0 * success_rate
    if protocol.score == "return":
        return return_mean
    if reference is None:
        raise InputError(
            f"protocol {protocol.name!r} normalises returns; give the reference scores of the data"
        )
    return reference.normalised(return_mean)


def counted_evaluations(
    protocol: Protocol, evaluations: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The evaluations that make a run's score, ascending by step.

    Args:
        protocol: its `counted` says how many of the last.
        evaluations: lines of `evaluations.jsonl` of one policy. Where a step was evaluated twice,
            the later line counts.

    Raises:
        InputError: there are fewer evaluations than are counted.
    """
    by_step = {int(line["step"]): line for line in evaluations}
    needed = _COUNTED[protocol.counted]
    if len(by_step) < needed:
        raise InputError(
            f"the run has {len(by_step)} evaluations where protocol {protocol.name!r} counts the "
            f"last {needed}; train longer or choose the protocol 'quick'"
        )
    return [by_step[step] for step in sorted(by_step)[-needed:]]


def run_score(protocol: Protocol, evaluations: Sequence[Mapping[str, Any]]) -> float:
    """A run's score: the mean over its counted evaluations.

    Args:
        protocol: its `counted` says how many of the last.
        evaluations: lines of `evaluations.jsonl` of one policy.

    Raises:
        InputError: there are fewer evaluations than are counted.
    """
    counted = counted_evaluations(protocol, evaluations)
    return float(np.mean([line["score"] for line in counted]))


def bold(scores: Sequence[float], fraction: float) -> list[bool]:
    """Which scores of a table's row are printed bold: those near the best.

    Near means at least `best - (1 - fraction) |best|`. That is `fraction * best` for a positive
    best, and for a negative one it still includes the best itself; a row of zeros is all bold.

    Args:
        scores: one row, higher is better; NaN where there is none.
        fraction: the protocol's `bold`.

    >>> bold([100.0, 95.0, 94.0], 0.95)
    [True, True, False]
    """
    known = [score for score in scores if not np.isnan(score)]
    best = max(known, default=float("nan"))
    threshold = best - (1 - fraction) * abs(best)
    # 0.95 is no binary fraction: without a tolerance 95 of 100 could fall below.
    return [bool(score >= threshold - 1e-9 * abs(best)) for score in scores]
