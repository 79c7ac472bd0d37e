"""Separate columns for runs of one method that were trained with different settings.

Only runs of one row and size are compared: a column may well have one setting per task, and then a
run with another one is named by it and the others are not. Options that cannot change a policy do
not count as settings here.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tql_offline.config import as_its_version, is_own
from tql_offline.documents import flatten
from tql_offline.errors import listed
from tql_offline.eval.report_tables import as_text
from tql_offline.eval.run_records import Run
from tql_offline.setting_effects import UNSET, policy_settings

if TYPE_CHECKING:
    from tql_offline.eval.measured import Measured

Settings = Mapping[str, str]
"""Flattened settings, such as `flow.alpha` → `300.0`; of a run of unknown ones, `steps` alone."""

_ELSEWHERE = ("objective", "seed", "critic.kind", "critic.size")
"""Settings that the method, the size and the seed already express."""
_SHOWN = 4
"""Most settings that a name shows."""
_WIDTH = 40
_CODE = 8
"""Digits shown of the SHA-256 of one's own method's code."""
_CHANGES = 2
"""Most changes of it in the middle of a run that a name shows."""
_THEN = " then "


def settings_of(run: Run) -> dict[str, str]:
    """The settings a run was trained with that may change its policy."""
    recorded = run.result.get("settings")
    flat = run.config or (flatten(as_its_version(recorded)) if isinstance(recorded, dict) else {})
    settings = effective(flat, as_text(flat.get("objective") or run.result.get("objective")))
    code = _code(run.provenance)
    updates = {} if run.result.get("updates") is None else {"steps": as_text(run.result["updates"])}
    return updates | settings | ({"code": code} if code else {})


def are_known(settings: Settings) -> bool:
    """Whether more is known of a run than its number of updates, which every result tells."""
    return bool(settings.keys() - {"steps"})


def _code(provenance: Mapping[str, Any]) -> str:
    """The version of one's own method's code; of a run that had several, each with where it began.

    A run resumed with other code is one of neither version, and of no other such run unless it
    changed at the same update.
    """
    first, found = (provenance.get(f"own_method.{key}") for key in ("sha256", "resumed_with"))
    later = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    code = as_text(first)[:_CODE] if first else ""
    if not later:
        return code
    changes = [
        f"{as_text(entry.get('sha256'))[:_CODE]} from update {as_text(entry.get('step'))[:_WIDTH]}"
        for entry in later
    ]
    if len(changes) > _CHANGES:
        changes = [f"{len(changes)} others, {_digest(*changes)}"]
    return _THEN.join([code or "unknown", *changes])


def effective(flat: Mapping[str, Any], objective: str) -> dict[str, str]:
    """The flattened settings that may change the policy of an objective."""
    kept = ["objective"] if is_own(objective) else []
    return {
        key: as_text(value)
        for key, value in policy_settings(objective, flat).items()
        if key in kept or not key.startswith(_ELSEWHERE)
    }


def differing(settings: Iterable[Settings]) -> tuple[str, ...]:
    """Keys whose known values differ; a run of an older version may lack some keys."""
    tables = [dict(table) for table in settings]
    own = {key for table in tables for key in table if key.startswith("own.")}
    values: dict[str, set[str]] = {}
    for table in tables:
        # A method's own setting that was not given is not one that is unknown.
        for key, value in {
            **dict.fromkeys(own if are_known(table) else (), UNSET),
            **table,
        }.items():
            values.setdefault(key, set()).add(value)
    return tuple(key for key, found in values.items() if len(found) > 1)


_Cell = tuple[str, str]
"""A task and a size."""


def variant_names(runs: Sequence["Measured"]) -> list[str]:
    """Each run's method, with the settings that distinguish it from others if some differ."""
    methods: dict[str, dict[_Cell, list[Measured]]] = {}
    for run in runs:
        methods.setdefault(run.method, {}).setdefault((run.task, run.size), []).append(run)
    usual = {
        method: {key: _usual_by_cell(cells, key) for key in _differing_within(cells.values())}
        for method, cells in methods.items()
    }
    return [_name(run, _unusual(run, usual[run.method])) for run in runs]


def _differing_within(cells: Iterable[Sequence["Measured"]]) -> dict[str, None]:
    """Keys of settings that differ between the runs of a cell, in order."""
    return dict.fromkeys(key for runs in cells for key in differing(run.settings for run in runs))


def _usual_by_cell(cells: Mapping[_Cell, Sequence["Measured"]], key: str) -> dict[_Cell, str]:
    """What most of a method's runs have on each task and of each size, if it goes by these.

    As presets do, which give each family of tasks its own coefficients. Empty if one value is usual
    everywhere, or none somewhere.
    """
    usual: dict[_Cell, str] = {}
    for cell, runs in cells.items():
        known = [run.settings for run in runs if are_known(run.settings)]
        counts = Counter(settings.get(key, UNSET) for settings in known).most_common(2)
        if len(counts) == 2 and counts[0][1] == counts[1][1]:
            return {}
        if counts:
            usual[cell] = counts[0][0]
    return usual if len(set(usual.values())) > 1 else {}


def _unusual(run: "Measured", usual: Mapping[str, Mapping[_Cell, str]]) -> tuple[str, ...]:
    """The keys by which a run is named: those of which it has not what is usual in its cell."""
    return tuple(
        key
        for key, by_cell in usual.items()
        if not by_cell or by_cell.get((run.task, run.size)) != run.settings.get(key, UNSET)
    )


def choices(runs: Sequence["Measured"], names: Sequence[str]) -> Iterator[str]:
    """Yield a caution about choosing where some runs differ in settings alone, if any do.

    Args:
        runs: as `variant_names` takes them.
        names: what it returns of them.
    """
    found: dict[tuple[str, str], set[str]] = {}
    pairs = sorted(zip(runs, names, strict=True), key=lambda pair: pair[0].parameters or 0)
    for run, name in pairs:
        if are_known(run.settings):
            found.setdefault((run.label, run.task), set()).add(name)
    labels = dict.fromkeys(label for (label, _), each in found.items() if len(each) > 1)
    if labels:
        yield (
            f"Several settings are shown of {listed(list(labels), _SHOWN)}. The best of them by "
            "these scores is biased upwards: choose on tuning seeds and report fresh seeds "
            "(docs/selection.md)."
        )


def unrecorded(runs: Sequence["Measured"]) -> Iterator[str]:
    """Yield of which methods some runs' settings are known and others', pooled with them, are not.

    Args:
        runs: runs whose `method` is their column's.
    """
    methods: dict[str, list[bool]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(are_known(run.settings))
    for method, known in methods.items():
        if len(set(known)) > 1:
            yield (
                f"Settings of {known.count(False)} of {len(known)} runs of {method} are not "
                "recorded; they are taken as the others'."
            )


def unlike_sizes(runs: Sequence["Measured"]) -> Iterator[str]:
    """Yield which cells hold critics of several numbers of parameters, as no run of ours makes."""
    found: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        if run.parameters:
            found.setdefault((run.label, run.task), set()).add(run.parameters)
    for (label, task), counts in found.items():
        if len(counts) > 1:
            told = listed([f"{number:,}" for number in sorted(counts)], _SHOWN)
            yield f"Critics of {label} on {task} differ in their number of parameters: {told}."


def counted_by_member(runs: Sequence["Measured"]) -> Iterator[str]:
    """Yield which columns' sizes count one member, if others' count all of an ensemble."""
    counted: dict[str, set[str]] = {}
    for run in runs:
        counted.setdefault(run.settings.get("critic.counted", "ensemble"), set()).add(run.method)
    if len(counted) > 1 and (names := sorted(counted.get("member", ()))):
        yield (
            f"Sizes of {listed(names, _SHOWN)} count one member of the ensemble, so that all its "
            "members have more parameters than other critics of that size."
        )


def resumed_with_other_code(runs: Sequence["Measured"]) -> Iterator[str]:
    """Yield which runs are of no one version of their own method's code, and which versions."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        code = run.settings.get("code", "")
        if _THEN in code:
            found.setdefault((run.method, code), []).append(run.name)
    for (method, code), names in found.items():
        yield (
            f"The code of {method} was changed and the run resumed (code {code}), so it ended as "
            f"neither version would and is no seed of either: {listed(names, _SHOWN)}."
        )


def _name(run: "Measured", keys: tuple[str, ...]) -> str:
    if not keys:
        return run.method
    if not are_known(run.settings) and keys != ("steps",):
        steps = f", steps {run.settings.get('steps', UNSET)}" if "steps" in keys else ""
        return f"{run.method} (settings unknown{steps})"
    told = [f"{key} {_short(run.settings.get(key, UNSET))}" for key in keys[:_SHOWN]]
    more = [f"variant {_variant(run, keys)}"] if len(keys) > _SHOWN else []
    return f"{run.method} ({', '.join(told + more)})"


def _short(value: str) -> str:
    """A value of a setting as a name shows it: cut, with a digest of the whole, if it is long."""
    if len(value) <= _WIDTH:
        return value
    return f"{value[: _WIDTH - 9]}… {_digest(value)}"


def _variant(run: "Measured", keys: tuple[str, ...]) -> str:
    """A short hash of all the values."""
    return _digest(*(run.settings.get(key, "") for key in keys))


def _digest(*lines: str) -> str:
    """The first digits of the SHA-256 of texts."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()[:6]
