"""A checkpoint's scores with their intervals, by protocol, from the run's episodes."""

from typing import Any

from tql_offline.errors import InputError, numbered
from tql_offline.eval.evaluation_records import (
    Evaluation,
    evaluation_key,
    other_number,
    parse_evaluation,
)
from tql_offline.eval.protocol import known_protocol
from tql_offline.eval.statistics import t_interval, wilson_interval
from tql_offline.runs import RunFolder
from tql_offline.training.result import read_evaluations

MAX_TEXT = 200

Interval = tuple[float, float]


def scores_of_step(run: RunFolder, step: int, policies: tuple[str, ...]) -> list[dict[str, Any]]:
    """The evaluations of a checkpoint; of two by the same protocol, the later one.

    Args:
        run: the run.
        step: step of the checkpoint.
        policies: whose evaluations to give, in this order.

    Raises:
        InputError: a line of the run's evaluations is damaged.
    """
    found: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(read_evaluations(run), start=1):
        if line["step"] == step and line["policy"] in policies:
            try:
                evaluation = _parsed(line)
                found[evaluation_key(evaluation)] = _score(evaluation)
            except InputError as error:
                raise InputError(
                    f"{run.evaluations} line {number} cannot be used ({error}); remove the line"
                ) from error
    return sorted(found.values(), key=lambda score: policies.index(score["policy"]))


def _parsed(line: dict[str, Any]) -> Evaluation:
    """One line's evaluation.

    Raises:
        InputError: the reason it cannot be used, as the end of a sentence.
    """
    evaluation = parse_evaluation(line)
    if (number := other_number(evaluation)) is not None:
        episodes = numbered(evaluation.episodes, "episode", "episodes")
        raise InputError(f"has {episodes} where {evaluation.protocol} has {number}")
    return evaluation


def _score(evaluation: Evaluation) -> dict[str, Any]:
    protocol = known_protocol(evaluation.protocol)
    default = "return" if evaluation.successes is None else "success"
    unit = protocol.score if protocol else default
    success = _success_interval(evaluation)
    returns = _interval(t_interval([episode.total for episode in evaluation.details]))
    scale = evaluation.normalised_by
    of_unit = {
        "success": success and (100 * success[0], 100 * success[1]),
        "return": returns,
        "normalised": returns and scale and (scale.of(returns[0]), scale.of(returns[1])),
    }
    return {
        "policy": evaluation.policy,
        "protocol": evaluation.protocol[:MAX_TEXT],
        "environment": evaluation.env_id[:MAX_TEXT],
        "success_timing": evaluation.success_timing[:MAX_TEXT],
        "episodes": evaluation.episodes,
        "successes": evaluation.successes,
        "success_interval": success,
        "return_mean": evaluation.return_mean,
        "return_interval": returns,
        "unit": unit,
        "score": evaluation.score,
        "score_interval": of_unit[unit],
    }


def _success_interval(evaluation: Evaluation) -> Interval | None:
    if evaluation.successes is None:
        return None
    return wilson_interval(evaluation.successes, evaluation.episodes)


def _interval(bounds: Interval) -> Interval | None:
    """The interval; None of a single episode, and of episodes that all return the same.

    Such episodes do not tell how others would differ.
    """
    low, high = bounds
    return bounds if low < high else None
