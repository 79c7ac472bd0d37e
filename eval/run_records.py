"""Tolerant reading of what a report shows about one run folder.

A run may be unfinished, still running, or damaged. Anything unreadable is left out and named in
`Run.warnings`; no function here that reads a folder raises because of its contents.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tql_offline.config import WatchConfig, as_its_version
from tql_offline.documents import MAX_CONFIG_BYTES, flatten, parse_toml, read_bounded
from tql_offline.errors import InputError
from tql_offline.eval.contradictions import configured_method, contradiction
from tql_offline.eval.curve_records import Curve, read_curves, read_seconds
from tql_offline.eval.evaluation_records import (
    Evaluation,
    compare_with_result,
    evaluations_of_result,
    read_evaluations,
)
from tql_offline.eval.inspections import DOCUMENT, Inspection, read_inspection
from tql_offline.eval.protocol import counted_steps, is_planned, known_protocol
from tql_offline.eval.record_files import (
    MAX_SENTENCE,
    MAX_WARNINGS,
    Reading,
    count,
    fault_of,
    read_document,
    read_lines,
    refuse_link,
)
from tql_offline.runs import RESULT_SCHEMA, RunFolder


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
    reading = Reading()
    config = _read_config(folder.config, reading)
    provenance = read_document(folder.provenance, reading) or {}
    result = _read_result(folder.result, reading)
    if unlike := contradiction(config, provenance.get("settings"), result):
        reading.fault = f"{unlike} (restore both files from one copy of the run)"
        reading.warn(f"{folder.result.name} {reading.fault}")
    evaluations = read_evaluations(folder.evaluations, reading)
    compare_with_result(evaluations, result, reading)
    # Where lines were left out, result.json's are of the same episodes.
    if not evaluations and not reading.has_left_out:
        evaluations = evaluations_of_result(result, folder.result.name, reading)
        if evaluations:
            reading.warn("evaluations.jsonl holds no evaluation; the scores are result.json's")
    points, logged = read_curves(folder.metrics, reading, curves) if timed else ({}, 0)
    for _, line in islice(read_lines(folder.warnings, reading), MAX_WARNINGS):
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
        seconds=read_seconds(folder.timing, reading) if timed else math.nan,
        inspection=_read_inspection(folder.inspection, reading),
        method=configured_method(config),
        saved=_last_checkpoint(folder),
        fault=reading.fault,
        ended=None if result else _read_ending(folder.ended, reading),
        warnings=tuple(reading.warnings),
    )


def _read_ending(path: Path, reading: Reading) -> Ending | None:
    document = read_document(path, reading) if path.exists() else None
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
    reading = Reading()
    result = _read_result(path, reading)
    facts = result.get("provenance")
    name = result.get("run")
    evaluations = evaluations_of_result(result, path.name, reading)
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


def _read_config(path: Path, reading: Reading) -> dict[str, Any]:
    try:
        refuse_link(path)
        return as_its_version(parse_toml(read_bounded(path, MAX_CONFIG_BYTES)))
    except InputError as error:
        reading.warn(f"{path.name} cannot be used ({error}); its settings are left out")
    except ValueError as error:
        reading.warn(f"{path.name} is not valid TOML ({error}); its settings are left out")
    return {}


def _without_settings(facts: dict[str, Any]) -> dict[str, Any]:
    """Provenance, flattened, without the settings that it records, which are config.toml's."""
    return flatten({key: value for key, value in facts.items() if key != "settings"})


def _last_checkpoint(folder: RunFolder) -> int:
    try:
        return max(folder.checkpoint_steps(), default=0)
    except OSError:
        return 0


def _read_result(path: Path, reading: Reading) -> dict[str, Any]:
    if not (path.exists() or path.is_symlink()):
        return {}
    result = read_document(path, reading)
    if result is None:
        mend = "" if path.is_symlink() else " (`train --resume` writes it again)"
        reading.fault = f"{fault_of(path)}{mend}"
        return {}
    if result.get("schema") != RESULT_SCHEMA:
        schema = str(result.get("schema"))[:80]
        reading.warn(
            f"{path.name} has schema {schema!r} where {RESULT_SCHEMA!r} is known, and was left out"
        )
        reading.fault = f"is of schema {schema!r}"
        return {}
    return result


def _read_inspection(folder: Path, reading: Reading) -> Inspection | None:
    if not (folder / DOCUMENT).is_file():
        return None
    try:
        return read_inspection(folder)
    except InputError as error:
        reading.warn(f"inspect/{DOCUMENT} was left out: {error}")
        return None
