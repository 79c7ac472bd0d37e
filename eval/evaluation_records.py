"""Evaluations as `evaluations.jsonl` and `result.json` record them.

An evaluation is taken only if it is what it says: of its protocol's number of episodes, with the
score that they give.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tql_offline.documents import MAX_KEY
from tql_offline.errors import InputError, listed, numbered, shown
from tql_offline.eval.protocol import (
    Scale,
    episode_seeds,
    evaluations_counted,
    known_protocol,
    protocol_label,
    scores_success,
)
from tql_offline.eval.record_files import MAX_NUMBERS, Reading, count, number, read_lines

_MAX_NUMBERS_NAMED = 3
MAX_VERSIONS = 20
"""Most package versions kept of an evaluation."""
_SAME_SCORE = 1e-3
"""Relative distance up to which a score is that of its episodes: files may round."""
_LEAST_RANGE = 1e-6
"""Least range of reference scores; below it a normalised score cannot be drawn sensibly."""


@dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """One evaluation episode.

    Attributes:
        seed: seed of the environment's reset.
        total: undiscounted return.
        length: number of environment steps.
        success: None if the task has no notion of success.
    """

    seed: int | None
    total: float
    length: int | None
    success: bool | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One policy evaluated once, at one step of training.

    Attributes:
        step: number of updates done.
        policy: `learned` or `behaviour`.
        protocol: name and version.
        counted: how many of the last evaluations make a score.
        episodes: number of episodes played.
        successes: how many of them succeeded; None if success is not defined.
        score: score in the protocol's unit; NaN if none was given.
        details: every episode, if they were recorded.
        versions: versions of the simulators, if they were recorded.
        reference: the scores that it was normalised by, in words; empty if it was not.
        normalised_by: the same as numbers, if they are usable.
        max_episode_steps: the environment's limit; None if it has none or it was not recorded.
    """

    step: int
    policy: str
    protocol: str
    counted: int
    env_id: str
    success_timing: str
    episodes: int
    successes: int | None
    return_mean: float
    length_mean: float
    score: float
    details: tuple[RecordedEpisode, ...]
    versions: tuple[tuple[str, str], ...] = ()
    reference: str = ""
    normalised_by: Scale | None = None
    max_episode_steps: int | None = None


class _Sieve:
    """Takes the evaluations of one file that are what they say.

    Attributes:
        unlike: how many are of another number of episodes than their protocol's, by protocol and
            number.
    """

    def __init__(self, name: str, reading: Reading) -> None:
        self.name, self.reading = name, reading
        self.unlike: dict[str, Counter[int]] = {}

    def takes(self, evaluation: Evaluation, success_rate: float, place: str) -> bool:
        """Whether an evaluation is of its protocol's episodes, and its score theirs.

        A score of other episodes is another measurement, whatever protocol it names; these are
        counted, and named by `warn_of_unlike`.
        """
        if other_number(evaluation) is not None:
            self.unlike.setdefault(evaluation.protocol, Counter())[evaluation.episodes] += 1
        elif misstated := _misstated(evaluation, success_rate):
            self.reading.warn(f"{place} {misstated} and was left out")
        else:
            return True
        self.reading.has_left_out = True
        return False

    def warn_of_unlike(self) -> None:
        """Name the evaluations that were left out for their number of episodes."""
        for label, numbers in self.unlike.items():
            protocol = known_protocol(label)
            assert protocol is not None  # of an unknown one, every number fits
            some = listed([str(number) for number in numbers], _MAX_NUMBERS_NAMED)
            several = numbered(numbers.total(), "evaluation", "evaluations")
            self.reading.warn(
                f"{self.name} has {several} of {some} episodes where "
                f"{label} has {protocol.episodes_played}, left out"
            )


def _misstated(evaluation: Evaluation, success_rate: float) -> str:
    """What is wrong with an evaluation's score, by its own outcome; empty if nothing is known."""
    true = _true_score(evaluation, success_rate)
    if not abs(evaluation.score - true) > _SAME_SCORE * max(abs(true), 1.0):  # one may be NaN
        return ""
    return f"has a score of {evaluation.score:g} where its episodes give {true:g}"


def _true_score(evaluation: Evaluation, success_rate: float) -> float:
    """The score that an evaluation's outcome gives; NaN if its protocol or its scale is unknown."""
    known = known_protocol(evaluation.protocol)
    if known is None:
        return math.nan
    if known.score == "success":
        return 100 * success_rate
    if known.score == "return":
        return evaluation.return_mean
    scale = evaluation.normalised_by
    return math.nan if scale is None else scale.of(evaluation.return_mean)


def _need_count(line: dict[str, Any], key: str) -> int:
    value = count(line.get(key))
    if value is None:
        raise InputError(f"has no count {key!r}")
    return value


def read_evaluations(path: Path, reading: Reading) -> tuple[Evaluation, ...]:
    """Evaluations in order of step; of two with the same key, the later line wins."""
    found: dict[tuple[int, str, str, str, str], Evaluation] = {}
    sieve = _Sieve(path.name, reading)
    left = MAX_NUMBERS
    for line_number, line in read_lines(path, reading):
        left -= len(line.get("episodes") or ()) if isinstance(line.get("episodes"), list) else 1
        if left < 0:
            reading.warn(f"{path.name} is too long; line {line_number} and the rest were left out")
            break
        try:
            evaluation = parse_evaluation(line)
        except InputError as error:
            reading.warn(f"{path.name} line {line_number} {error} and was left out")
            continue
        place = f"{path.name} line {line_number}"
        if not sieve.takes(evaluation, _success_rate(evaluation), place):
            continue
        if not _rate_agrees(evaluation, line.get("success_rate")):
            reading.warn(
                f"{path.name} line {line_number} gives a success rate of {line['success_rate']!r}, "
                f"but its episodes give {evaluation.successes}/{evaluation.episodes}, shown here"
            )
        key = evaluation_key(evaluation)
        if found.get(key, evaluation) != evaluation:
            reading.warn(
                f"{path.name} line {line_number} repeats step {evaluation.step} "
                f"({evaluation.policy}) with another outcome; the later one is shown"
            )
        found[key] = evaluation
    sieve.warn_of_unlike()
    return tuple(sorted(found.values(), key=lambda e: e.step))


def other_number(evaluation: Evaluation) -> int | None:
    """The number of episodes of an evaluation's protocol, if the evaluation has another."""
    protocol = known_protocol(evaluation.protocol)
    if protocol is None or evaluation.episodes == protocol.episodes_played:
        return None
    return protocol.episodes_played


def has_own_episodes(evaluation: Evaluation) -> bool:
    """Whether recorded seeds show that an evaluation is of its protocol's own episodes."""
    protocol = known_protocol(evaluation.protocol)
    if protocol is None or len(evaluation.details) != protocol.episodes_played:
        return False
    return [episode.seed for episode in evaluation.details] == episode_seeds(protocol)


def evaluation_key(evaluation: Evaluation) -> tuple[int, str, str, str, str]:
    """The key by which two evaluations of one run are the same."""
    return (
        evaluation.step,
        evaluation.policy,
        evaluation.protocol,
        evaluation.env_id,
        evaluation.success_timing,
    )


def parse_evaluation(line: dict[str, Any]) -> Evaluation:
    """Check one line of `evaluations.jsonl`.

    Raises:
        InputError: the end of a sentence that starts with the line's number.
    """
    raw = line.get("episodes")
    if not isinstance(raw, list) or not raw or not all(isinstance(e, dict) for e in raw):
        raise InputError("has no list of episodes")
    details = tuple(_episode(e) for e in raw)
    protocol = line.get("protocol")
    return Evaluation(
        step=_need_count(line, "step"),
        policy=_text(line.get("policy"), "policy"),
        protocol=protocol_label(protocol),
        counted=_counted(protocol),
        env_id=str(line.get("env_id") or ""),
        success_timing=str(line.get("success_timing") or ""),
        episodes=len(details),
        successes=_successes(details) if scores_success(protocol) else None,
        return_mean=fmean([e.total for e in details]),
        length_mean=fmean([math.nan if e.length is None else e.length for e in details]),
        score=number(line.get("score")),
        details=details,
        versions=_versions(line),
        reference=_reference(line),
        normalised_by=_normalised_by(line),
        max_episode_steps=count(line.get("max_episode_steps")),
    )


def _versions(line: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    versions = line.get("versions")
    known = versions.items() if isinstance(versions, dict) else ()
    named = sorted((k[:MAX_KEY], v[:MAX_KEY]) for k, v in known if isinstance(v, str))
    return tuple(named[:MAX_VERSIONS])


def _reference(line: dict[str, Any]) -> str:
    reference = line.get("reference")
    if not isinstance(reference, dict):
        return ""
    low, high, scale = _scale(reference)
    source = str(reference.get("source"))[:MAX_KEY]
    return f"{low:.6g} is 0 and {high:.6g} is {scale:g}, from {source}"


def _normalised_by(line: dict[str, Any]) -> Scale | None:
    reference = line.get("reference")
    if not isinstance(reference, dict):
        return None
    scale = _scale(reference)
    low, high, factor = scale
    return scale if high - low > _LEAST_RANGE and 0 < factor < math.inf else None


def _scale(reference: dict[str, Any]) -> Scale:
    """The numbers of reference scores; NaN if they are not numbers."""
    return Scale(
        number(reference.get("min")), number(reference.get("max")), number(reference.get("scale"))
    )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"has no {name!r}")
    return value


def _episode(raw: dict[str, Any]) -> RecordedEpisode:
    success = raw.get("success")
    if success is not None and success not in (0, 1):
        raise InputError(
            f"has an episode whose success is {shown(success)}, neither true nor false"
        )
    return RecordedEpisode(
        seed=count(raw.get("seed")),
        total=number(raw.get("return")),
        length=count(raw.get("length")),
        success=None if success is None else bool(success),
    )


def _successes(episodes: tuple[RecordedEpisode, ...]) -> int | None:
    known = [e.success for e in episodes if e.success is not None]
    return sum(known) if len(known) == len(episodes) else None


def _counted(protocol: Any) -> int:
    """How many evaluations a protocol counts; a file's own word is taken of unknown ones alone."""
    if known := known_protocol(protocol_label(protocol)):
        return evaluations_counted(known.counted)
    return evaluations_counted(protocol.get("counted") if isinstance(protocol, dict) else None)


def _rate_agrees(evaluation: Evaluation, recorded: Any) -> bool:
    distance = abs(number(recorded) - _success_rate(evaluation))
    return math.isnan(distance) or distance < 1e-6


def _success_rate(evaluation: Evaluation) -> float:
    successes = evaluation.successes
    return math.nan if successes is None else successes / evaluation.episodes


def evaluations_of_result(
    result: dict[str, Any], name: str, reading: Reading
) -> tuple[Evaluation, ...]:
    """Evaluations as summarised in a result's file, for a run whose episodes are gone."""
    rows = result.get("evaluations")
    found: dict[tuple[int, str, str, str, str], Evaluation] = {}
    sieve = _Sieve(name, reading)
    for index, row in enumerate(rows if isinstance(rows, list) else []):
        try:
            evaluation = _evaluation_of_result(row, result)
        except InputError as error:
            reading.warn(f"{name} evaluation {index + 1} {error} and was left out")
            continue
        place = f"{name} evaluation {index + 1}"
        if not sieve.takes(evaluation, number(row.get("success_rate")), place):
            continue
        if found.setdefault(evaluation_key(evaluation), evaluation) is not evaluation:
            reading.warn(
                f"{name} evaluation {index + 1} repeats step {evaluation.step} "
                f"({evaluation.policy}) and was left out"
            )
    sieve.warn_of_unlike()
    return tuple(sorted(found.values(), key=lambda e: e.step))


def _evaluation_of_result(row: Any, result: dict[str, Any]) -> Evaluation:
    if not isinstance(row, dict):
        raise InputError("is not an object")
    episodes = _need_count(row, "episodes")
    if episodes == 0:
        raise InputError("has no episodes")
    rate = number(row.get("success_rate"))
    if rate < 0 or rate > 1:
        raise InputError(f"has a success rate of {rate:g}, which is not within 0 and 1,")
    protocol = result.get("protocol")
    known = known_protocol(protocol_label(protocol))
    is_of_success = known is not None and known.score == "success"
    if is_of_success and math.isnan(rate) and not math.isnan(number(row.get("score"))):
        raise InputError("has a score of success without a success rate")
    return Evaluation(
        step=_need_count(row, "step"),
        policy=_text(row.get("policy"), "policy"),
        protocol=protocol_label(protocol),
        counted=_counted(protocol),
        env_id=str(row.get("env_id") or result.get("task") or ""),
        success_timing=str(row.get("success_timing") or ""),
        episodes=episodes,
        successes=round(rate * episodes) if scores_success(protocol) and 0 <= rate <= 1 else None,
        return_mean=number(row.get("return_mean")),
        length_mean=math.nan,
        score=number(row.get("score")),
        details=(),
        versions=_versions(row),
        reference=_reference(row),
        normalised_by=_normalised_by(row),
        max_episode_steps=count(row.get("max_episode_steps")),
    )


def compare_with_result(
    evaluations: tuple[Evaluation, ...], result: dict[str, Any], reading: Reading
) -> None:
    """Warn if `result.json` claims a success rate other than the episodes show."""
    played: dict[tuple[int, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        played.setdefault((evaluation.step, evaluation.policy), []).append(evaluation)
    rows = result.get("evaluations")
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or count(row.get("step")) is None:
            continue
        same = played.get((row["step"], str(row.get("policy"))), [])
        if len(same) == 1 and not _rate_agrees(same[0], row.get("success_rate")):
            reading.warn(
                f"result.json gives {row['policy']} at step {row['step']} a success rate of "
                f"{row['success_rate']!r}, but its episodes give "
                f"{same[0].successes}/{same[0].episodes}, shown here"
            )
