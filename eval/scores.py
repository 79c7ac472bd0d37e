"""From episodes to an evaluation's score, and which scores of a table are near its best."""

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
        protocol: says which.
        success_rate: fraction of successful episodes in [0, 1]; of a protocol with goals, the mean
            over goals, which have equally many episodes. None where the environment reports none.
        return_mean: mean undiscounted return of the episodes.
        reference: of the dataset, where the score is normalised.

    Raises:
        InputError: the score is normalised and there is no reference, or of a success that is not
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
