"""Tolerant reading of what a report shows about one run folder.

A run may be unfinished, still running, or damaged. Anything unreadable is left out and named in
`Run.warnings`; no function here that reads a folder raises because of its contents.
"""

import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PureWindowsPath
from statistics import fmean
from typing import Any, BinaryIO

from tql_offline.config import WITHOUT_CRITIC, WatchConfig, as_its_version, validate
from tql_offline.datasets.catalogue import suite_of
from tql_offline.datasets.names import MINARI_PREFIX, with_task
from tql_offline.documents import (
    MAX_CONFIG_BYTES,
    MAX_DOCUMENT_BYTES,
    MAX_KEY,
    MAX_LINE_BYTES,
    flatten,
    is_whole,
    parse_json,
    parse_toml,
    read_bounded,
)
from tql_offline.errors import InputError, listed, numbered, shown
from tql_offline.eval.inspections import DOCUMENT, Inspection, read_inspection
from tql_offline.eval.protocol import (
    Scale,
    counted_steps,
    episode_seeds,
    evaluations_counted,
    is_planned,
    known_protocol,
    protocol_label,
    scores_success,
)
from tql_offline.files import read_json
from tql_offline.runs import RESULT_SCHEMA, RunFolder
from tql_offline.setting_effects import (
    first_unlike,
    flat_settings,
    lasting_settings,
    policy_settings,
)

MAX_NUMBERS = 5 * 10**6
"""Most numbers kept of a run's curves, and of its evaluations' episodes."""

MAX_CURVES = 500
MAX_WARNINGS = 1000
_MAX_NUMBERS_NAMED = 3
MAX_VERSIONS = 20
"""Most package versions kept of an evaluation."""
_SAME_SCORE = 1e-3
"""Relative distance up to which a score is that of its episodes: files may round."""
_LEAST_RANGE = 1e-6
"""Least range of reference scores; below it a normalised score cannot be drawn sensibly."""
MAX_SENTENCE = 500
"""Most characters kept of a warning from training."""

LAYERED = tuple(
    of + name for of in ("", "value_") for name in ("entropy", "entropy_target", "temperature")
)
"""Metrics with one pair per layer, the [VALUE] query's number and the other queries'; of the
critic, and of V if it is a transformer."""


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


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A logged number over training: `values[i]` (NaN where it was not finite) at `steps[i]`."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run's own numbers ended it (`ended.json`).

    Attributes:
        step: the update by which they did.
        rule: the rule of `watch` that stopped it; empty if a number was no longer finite.
        sentence: what held.
    """

    step: int
    rule: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, as far as it could be read.

    Attributes:
        name: the folder's name.
        config: `config.toml`, flattened: `critic.size`.
        provenance: `provenance.json`, flattened, without the settings that the run began with.
        result: `result.json`; empty if the run is unfinished.
        evaluations: evaluations, ascending in step.
        curves: curves by metric; layered ones are `entropy/<layer>/<group>`, group 0 the [VALUE]
            query.
        warnings: one sentence for everything that was left out or is inconsistent.
        seconds: time spent in updates (`timing.jsonl`); NaN if it is not recorded.
        inspection: what `inspect` found, if it was run.
        method: name of the method by its config; empty if that is unusable.
        saved: step of its last checkpoint, 0 before the first.
        logged: last step in `metrics.jsonl`, 0 before the first.
        fault: why its `result.json` cannot be used; empty if it can, or is not there.
        ended: how its own numbers ended it before it had a result, if they did.
    """

    folder: RunFolder
    name: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    result: dict[str, Any]
    evaluations: tuple[Evaluation, ...]
    curves: dict[str, Curve]
    warnings: tuple[str, ...]
    seconds: float = math.nan
    inspection: Inspection | None = None
    method: str = ""
    saved: int = 0
    logged: int = 0
    fault: str = ""
    ended: Ending | None = None

    @property
    def finished(self) -> bool:
        """Whether the run wrote its result."""
        return bool(self.result)

    def plans(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation was planned by training, not asked for on another checkpoint.

        Under an unknown protocol, or in a run of unknown length, every evaluation counts.
        """
        protocol = known_protocol(evaluation.protocol)
        steps = self.steps_planned
        return protocol is None or not steps or is_planned(protocol, steps, evaluation.step)

    def lacking(self, evaluations: Sequence[Evaluation]) -> tuple[int, ...]:
        """The updates that count for a finished run's score but have no evaluation among these.

        Args:
            evaluations: one or more evaluations of one policy under one protocol.
        """
        protocol, steps = known_protocol(evaluations[0].protocol), self.steps_planned
        if protocol is None or not steps or not self.finished:
            return ()
        there = {evaluation.step for evaluation in evaluations}
        return tuple(step for step in counted_steps(protocol, steps) if step not in there)

    @property
    def steps_planned(self) -> int | None:
        """Number of updates of the whole run; None if unknown."""
        return count(self.config.get("steps")) or count(self.result.get("updates"))

    @property
    def steps_done(self) -> int:
        """The last update that left a trace."""
        return max([self.saved, self.logged, *(e.step for e in self.evaluations)])


@dataclass
class _Reading:
    """Warnings gathered while one run is read.

    Attributes:
        warnings: the sentences.
        unlike: how many evaluations are of another number of episodes than their protocol's, by
            protocol and number.
        has_left_out: whether an evaluation was left out for its episodes or its score.
        fault: why the result cannot be used, as the end of a sentence about it.
    """

    warnings: list[str] = field(default_factory=list)
    unlike: dict[str, Counter[int]] = field(default_factory=dict)
    has_left_out: bool = False
    fault: str = ""

    def warn(self, text: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)

    def takes(self, evaluation: Evaluation, success_rate: float, place: str) -> bool:
        """Whether an evaluation is what it says: of its protocol's episodes, its score theirs.

        A score of other episodes is another measurement, whatever protocol it names; these are
        counted, and named by `warn_of_unlike`.
        """
        if other_number(evaluation) is not None:
            self.unlike.setdefault(evaluation.protocol, Counter())[evaluation.episodes] += 1
        elif misstated := _misstated(evaluation, success_rate):
            self.warn(f"{place} {misstated} and was left out")
        else:
            return True
        self.has_left_out = True
        return False

    def warn_of_unlike(self, name: str) -> None:
        """Name the evaluations of a file that were left out for their number of episodes."""
        for label, numbers in self.unlike.items():
            protocol = known_protocol(label)
            assert protocol is not None  # of an unknown one, every number fits
            some = listed([str(number) for number in numbers], _MAX_NUMBERS_NAMED)
            several = numbered(numbers.total(), "evaluation", "evaluations")
            self.warn(
                f"{name} has {several} of {some} episodes where "
                f"{label} has {protocol.episodes_played}, left out"
            )


def read_run(
    folder: RunFolder, *, curves: Collection[str] | None = None, timed: bool = True
) -> Run:
    """Read a run folder.

    Args:
        folder: a run folder, finished, unfinished or damaged.
        curves: the metrics whose curves to keep; None for all. Of thousands of runs, all curves
            would take gigabytes.
        timed: whether to read curves and the time spent in updates at all, which takes longest.

    Returns:
        What could be read; the rest is named in its `warnings`.
    """
    reading = _Reading()
    config = _read_config(folder.config, reading)
    provenance = _read_document(folder.provenance, reading) or {}
    result = _read_result(folder.result, reading)
    if contradiction := _contradiction(config, provenance.get("settings"), result):
        reading.fault = f"{contradiction} (restore both files from one copy of the run)"
        reading.warn(f"{folder.result.name} {reading.fault}")
    evaluations = _read_evaluations(folder.evaluations, reading)
    _compare_with_result(evaluations, result, reading)
    # Where lines were left out, result.json's are of the same episodes.
    if not evaluations and not reading.has_left_out:
        evaluations = _evaluations_of_result(result, folder.result.name, reading)
        if evaluations:
            reading.warn("evaluations.jsonl holds no evaluation; the scores are result.json's")
    points, logged = _read_curves(folder.metrics, reading, curves) if timed else ({}, 0)
    for _, line in islice(_read_lines(folder.warnings, reading), MAX_WARNINGS):
        reading.warn(f"training: {str(line.get('sentence'))[:MAX_SENTENCE]}")
    return Run(
        folder=folder,
        name=folder.path.name or folder.path.resolve().name,
        config=flatten(config),
        provenance=_without_settings(provenance),
        result=result,
        evaluations=evaluations,
        curves=points,
        logged=logged,
        seconds=_read_seconds(folder.timing, reading) if timed else math.nan,
        inspection=_read_inspection(folder.inspection, reading),
        method=_method(config),
        saved=_last_checkpoint(folder),
        fault=reading.fault,
        ended=None if result else _read_ending(folder.ended, reading),
        warnings=tuple(reading.warnings),
    )


def _read_ending(path: Path, reading: _Reading) -> Ending | None:
    document = _read_document(path, reading) if path.exists() else None
    if document is None:
        return None
    rule = document.get("rule")
    return Ending(
        step=count(document.get("step")) or 0,
        rule=rule if isinstance(rule, str) and rule in WatchConfig.model_fields else "",
        sentence=str(document.get("sentence"))[:MAX_SENTENCE],
    )


def read_result(path: Path) -> Run:
    """Read a `result.json` outside a run folder, under any name.

    Returns:
        A run without curves; what could not be read is named in its `warnings`.
    """
    reading = _Reading()
    result = _read_result(path, reading)
    facts = result.get("provenance")
    name = result.get("run")
    evaluations = _evaluations_of_result(result, path.name, reading)
    return Run(
        folder=RunFolder(path.parent),
        name=name if isinstance(name, str) and name else path.stem,
        config={},
        provenance=_without_settings(facts) if isinstance(facts, dict) else {},
        result=result,
        evaluations=evaluations,
        curves={},
        warnings=tuple(reading.warnings),
    )


def lookup(flat: dict[str, Any], *names: str) -> Any:
    """The value of the first name that is a key, or the last part of a key, of a flattened table.

    >>> lookup({"critic.size": "xl", "size": "tiny"}, "size")
    'tiny'
    >>> lookup({"versions.mujoco": "3.3.0"}, "mujoco")
    '3.3.0'
    """
    for name in names:
        if name in flat:
            return flat[name]
        for key, value in flat.items():
            if key.endswith(f".{name}"):
                return value
    return None


def _read_config(path: Path, reading: _Reading) -> dict[str, Any]:
    try:
        _refuse_link(path)
        return as_its_version(parse_toml(read_bounded(path, MAX_CONFIG_BYTES)))
    except InputError as error:
        reading.warn(f"{path.name} cannot be used ({error}); its settings are left out")
    except ValueError as error:
        reading.warn(f"{path.name} is not valid TOML ({error}); its settings are left out")
    return {}


def _method(config: dict[str, Any]) -> str:
    if not {"objective", "critic", "entropy"} <= config.keys():
        return ""  # defaults would make it a different method
    try:
        return validate(config, source="config.toml").method
    except InputError:
        return ""


def _without_settings(facts: dict[str, Any]) -> dict[str, Any]:
    """Provenance, flattened, without the settings that it records, which are config.toml's."""
    return flatten({key: value for key, value in facts.items() if key != "settings"})


def _contradiction(config: dict[str, Any], began: Any, result: dict[str, Any]) -> str:
    """How a result is not one of its run's settings, as the end of a sentence; empty if it is.

    Args:
        config: `config.toml`; empty if it is unusable.
        began: the settings that the run began with, if they were recorded.
        result: `result.json`; empty if there is none.
    """
    if not (config and result):
        return ""
    now, told = _as_meant(config), result.get("settings")
    pairs = [("gives", _identity(result), _identity_of(now, _method(config)))]
    if isinstance(told, dict):
        pairs.append(("gives", _of_policy(flatten(as_its_version(told))), _of_policy(now)))
    if isinstance(began, dict):
        pairs.append(("is of a run that began with", flatten(began), lasting_settings(now)))
    for verb, recorded, have in pairs:
        if unlike := first_unlike(recorded, have):
            key, one, other = unlike
            return f"{verb} {key} {shown(one)} where config.toml has {shown(other)}"
    return ""


def _as_meant(document: dict[str, Any]) -> dict[str, Any]:
    """Flattened settings with the defaults of those left out; as they are if they are unusable."""
    try:
        return flat_settings(validate(document, source=""))
    except InputError:
        return flatten(document)


def _of_policy(flat: dict[str, Any]) -> dict[str, Any]:
    return policy_settings(str(flat.get("objective")), flat)


def _identity(result: dict[str, Any]) -> dict[str, Any]:
    """What a result says its run is, as far as a version recorded it."""
    keys = ("seed", "method", "objective", "size", "updates", "dataset")
    return _comparable({key: result[key] for key in keys if result.get(key) is not None})


def _identity_of(flat: dict[str, Any], method: str) -> dict[str, Any]:
    """The same by a run's settings."""
    keys = {"seed": "seed", "objective": "objective", "updates": "steps", "dataset": "dataset.name"}
    if flat.get("objective") not in WITHOUT_CRITIC:
        keys["size"] = "critic.size"
    found = {key: flat[name] for key, name in keys.items() if name in flat}
    named = {"method": method} if method else {}
    return _comparable(named | found)


def _comparable(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with one name for the same data: one's own are named by a file, which may be moved."""
    name = facts.get("dataset")
    if not isinstance(name, str) or name.startswith(MINARI_PREFIX):
        return facts
    called = with_task(name)
    is_own = suite_of(called) == "own"
    return facts | {"dataset": PureWindowsPath(called).name if is_own else called}


def _last_checkpoint(folder: RunFolder) -> int:
    try:
        return max(folder.checkpoint_steps(), default=0)
    except OSError:
        return 0


def _refuse_link(path: Path) -> None:
    """Refuse a link: in someone else's run it could expose any of the reader's files.

    Raises:
        InputError: the path is a link.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link; put the file itself there")


def _read_document(path: Path, reading: _Reading) -> dict[str, Any] | None:
    try:
        _refuse_link(path)
        return read_json(path)
    except InputError:
        reading.warn(f"{path.name} {_state(path)} and was left out")
        return None


def _state(path: Path) -> str:
    """The reason a document could not be read, as the middle of a sentence."""
    if path.is_symlink():
        return "is a link"
    if not path.exists():
        return "is missing"
    if path.is_file() and path.stat().st_size > MAX_DOCUMENT_BYTES:
        return f"is larger than {MAX_DOCUMENT_BYTES // 2**20} MiB"
    return "is not a valid JSON object"


def _read_result(path: Path, reading: _Reading) -> dict[str, Any]:
    if not (path.exists() or path.is_symlink()):
        return {}
    result = _read_document(path, reading)
    if result is None:
        mend = "" if path.is_symlink() else " (`train --resume` writes it again)"
        reading.fault = f"{_state(path)}{mend}"
        return {}
    if result.get("schema") != RESULT_SCHEMA:
        schema = str(result.get("schema"))[:80]
        reading.warn(
            f"{path.name} has schema {schema!r} where {RESULT_SCHEMA!r} is known, and was left out"
        )
        reading.fault = f"is of schema {schema!r}"
        return {}
    return result


def _read_inspection(folder: Path, reading: _Reading) -> Inspection | None:
    if not (folder / DOCUMENT).is_file():
        return None
    try:
        return read_inspection(folder)
    except InputError as error:
        reading.warn(f"inspect/{DOCUMENT} was left out: {error}")
        return None


def _read_lines(path: Path, reading: _Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the readable objects of a JSON-lines file with their line numbers."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        reading.warn(f"{path.name} is not a plain file and was left out")
        return
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            yield from _parse_lines(file, path.name, reading)
    except OSError as error:
        reading.warn(f"{path.name} cannot be read ({error.strerror}) and was left out")


def _parse_lines(
    file: BinaryIO, name: str, reading: _Reading
) -> Iterator[tuple[int, dict[str, Any]]]:
    line_number = 0
    while line := file.readline(MAX_LINE_BYTES):
        line_number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            reading.warn(f"{name} line {line_number} is too long; it and the rest were left out")
            return
        document = _parse_line(line)
        if document is None:
            reading.warn(f"{name} line {line_number} is not a JSON object and was left out")
        else:
            yield line_number, document


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        document = parse_json(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def number(value: Any) -> float:
    """A JSON value as a float; NaN if it is not a number or too large to draw."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    # Beyond 1e30 an axis is useless and matplotlib overflows; an int may exceed any float.
    return float(value) if abs(value) < 1e30 else math.nan


def count(value: Any) -> int | None:
    """A JSON value as a count; None if it is not one (floats stop being exact at 2**53)."""
    return value if is_whole(value, 0, 2**53 - 1) else None


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


def _read_evaluations(path: Path, reading: _Reading) -> tuple[Evaluation, ...]:
    """Evaluations in order of step; of two with the same key, the later line wins."""
    found: dict[tuple[int, str, str, str, str], Evaluation] = {}
    left = MAX_NUMBERS
    for line_number, line in _read_lines(path, reading):
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
        if not reading.takes(evaluation, _success_rate(evaluation), place):
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
    reading.warn_of_unlike(path.name)
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
        number(reference.get("min")),
        number(reference.get("max")),
        number(reference.get("scale")),
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


def _evaluations_of_result(
    result: dict[str, Any], name: str, reading: _Reading
) -> tuple[Evaluation, ...]:
    """Evaluations as summarised in a result's file, for a run whose episodes are gone."""
    rows = result.get("evaluations")
    found: dict[tuple[int, str, str, str, str], Evaluation] = {}
    for index, row in enumerate(rows if isinstance(rows, list) else []):
        try:
            evaluation = _evaluation_of_result(row, result)
        except InputError as error:
            reading.warn(f"{name} evaluation {index + 1} {error} and was left out")
            continue
        place = f"{name} evaluation {index + 1}"
        if not reading.takes(evaluation, number(row.get("success_rate")), place):
            continue
        if found.setdefault(evaluation_key(evaluation), evaluation) is not evaluation:
            reading.warn(
                f"{name} evaluation {index + 1} repeats step {evaluation.step} "
                f"({evaluation.policy}) and was left out"
            )
    reading.warn_of_unlike(name)
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


def _compare_with_result(
    evaluations: tuple[Evaluation, ...], result: dict[str, Any], reading: _Reading
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


def _read_curves(
    path: Path, reading: _Reading, wanted: Collection[str] | None
) -> tuple[dict[str, Curve], int]:
    """Logged numbers by name, and the last step; of a step that is repeated, the later line wins.

    A resumed run repeats steps.
    """
    points: dict[str, dict[int, float]] = {}
    left, last = MAX_NUMBERS, 0
    for line_number, line in _read_lines(path, reading):
        step = count(line.get("step"))
        if step is None:
            reading.warn(f"{path.name} line {line_number} has no count 'step' and was left out")
            continue
        last = max(last, step)
        for name, value in _numbers(line, wanted):
            if name in points or len(points) < MAX_CURVES:
                points.setdefault(name, {})[step] = value
        left -= len(line)
        if left < 0:
            reading.warn(f"{path.name} is too long; what follows line {line_number} was left out")
            break
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # most curves have the same steps
    return {name: _curve(points[name], shared) for name in sorted(points)}, last


def _read_seconds(path: Path, reading: _Reading) -> float:
    """Seconds spent in updates; of a step that a resumed run repeats, the later line wins.

    Updates between a line and a stop were not timed: they are counted at the rate of the rest.
    """
    spent: dict[int, tuple[float, float]] = {}
    for _, line in _read_lines(path, reading):
        seconds, rate = number(line.get("seconds")), number(line.get("updates_per_second"))
        spent[count(line.get("step")) or 0] = seconds, seconds * rate
        if len(spent) > MAX_NUMBERS:
            return math.nan
    if not spent:
        return math.nan
    seconds = math.fsum(seconds for seconds, _ in spent.values())
    timed = math.fsum(updates for _, updates in spent.values())
    return seconds * max(spent) / timed if timed > 0 else seconds


def _numbers(line: dict[str, Any], wanted: Collection[str] | None) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if wanted is not None and key not in wanted:
            continue
        if key in LAYERED and isinstance(value, list):
            yield from _layer_numbers(key, value)
        elif key != "step" and (value is None or isinstance(value, int | float)):
            yield key[:MAX_KEY], number(value)


def _layer_numbers(key: str, layers: list[Any]) -> Iterator[tuple[str, float]]:
    for layer, groups in enumerate(layers):
        if isinstance(groups, list) and len(groups) == 2:
            for group, value in enumerate(groups):
                yield f"{key}/{layer}/{group}", number(value)


def _curve(points: dict[int, float], shared: dict[tuple[int, ...], tuple[int, ...]]) -> Curve:
    steps = tuple(sorted(points))
    values = array("d", [points[step] for step in steps])  # a quarter of a tuple's memory
    return Curve(steps=shared.setdefault(steps, steps), values=values)
