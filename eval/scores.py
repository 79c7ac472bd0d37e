"""Score of an evaluation from its episodes, and the scores of a table that are near its best."""

from collections.abc import Sequence

import numpy as np

from tql_offline.errors import InputError
from tql_offline.eval.protocol import Protocol
from tql_offline.eval.references import Reference


def evaluation_score(
    protocol: Protocol,
    *,
    success_rate: float | None,
    return_mean: float,
    reference: Reference | None = None,
) -> float:
    """The score of one evaluation: success in percent, the mean return, or that return normalised.

    Args:
        protocol: says which of these the score is.
        success_rate: fraction of successful episodes in [0, 1]; under a protocol with goals, the
            mean over goals, which have equally many episodes. None if success is not reported.
        return_mean: mean undiscounted return of the episodes.
        reference: the dataset's reference scores, if the score is normalised.

    Raises:
        InputError: the score is normalised and there is no reference, or it is success and none is
            reported.
    """
    if protocol.score == "success":
        if success_rate is None:
            raise InputError(f"protocol {protocol.name!r} scores success; there is none reported")
        return 100.0 * success_rate
    if protocol.score == "return":
        return return_mean
    if reference is None:
        raise InputError(
            f"protocol {protocol.name!r} normalises returns; give the reference scores of the data"
        )
    return reference.normalised(return_mean)


def bold(scores: Sequence[float], fraction: float) -> list[bool]:
    """Whether each score of a table's row is printed bold: those near the best are.

    Near means at least `best - (1 - fraction) |best|`. That is `fraction * best` for a positive
    best, and for a negative one it still includes the best itself. A score that is alone in its row
    has nothing to be better than, nor have scores that are all the same.

    Args:
        scores: one row, higher is better; NaN for a missing score.
        fraction: the protocol's `bold`.

    >>> bold([100.0, 95.0, 94.0], 0.95)
    [True, True, False]
    >>> bold([0.0, 0.0], 0.95)
    [False, False]
    """
    known = [score for score in scores if not np.isnan(score)]
    best = max(known, default=float("nan"))
    threshold = best - (1 - fraction) * abs(best)
    # 0.95 is not a binary fraction: without a tolerance, 95 of 100 could fall below.
    differ = len(set(known)) > 1
    return [differ and bool(score >= threshold - 1e-9 * abs(best)) for score in scores]
