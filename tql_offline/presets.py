"""Presets (presets.toml): settings by environment family and by method, and how they merge."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tql_offline.datasets.names import MINARI_PREFIX
from tql_offline.errors import InputError, did_you_mean, shown

DEFAULT_DATASET = "pointmaze-medium-navigate-singletask-task1-v0"
"""Collected on the spot if missing, so that `train` needs no network."""
DEFAULT_OBJECTIVE = "flow"
"""TQL's objective."""


@cache
def presets() -> dict[str, dict[str, dict[str, Any]]]:
    """All presets as nested overrides, by name, for environment families and for methods."""
    return tomllib.loads(files("tql_offline").joinpath("presets.toml").read_text(encoding="utf-8"))


def family_of(dataset: str) -> str:
    """The family whose name a dataset's starts with; empty if none, or for a user's own file.

    >>> family_of("puzzle-4x4-play-singletask-task1-v0")
    'puzzle-4x4'
    >>> family_of("D4RL/pen/human-v2")
    'D4RL'
    >>> family_of("puzzle_logs.hdf5")
    ''
    """
    if Path(dataset).suffix:
        return ""
    name = dataset.removeprefix(MINARI_PREFIX)
    matches = [one for one in presets()["family"] if name.startswith((f"{one}-", f"{one}/"))]
    return max(matches, key=len, default="")


def split_preset(preset: Any, dataset: str) -> tuple[str, str]:
    """A preset's family and method; if it names no family, the dataset's is taken."""
    family, method = "", ""
    names = preset.split("+") if isinstance(preset, str) else [shown(preset)]
    for name in names if preset else []:
        if (known := spelt(name, presets()["family"])) and not family:
            family = known
        elif (known := spelt(name, presets()["method"])) and not method:
            method = known
        else:
            raise _unknown_preset(preset, name)
    return family or family_of(dataset), method


def spelt(name: str, known: Iterable[str]) -> str:
    """The one of some known names that a name means but for case, '-' and '_'; empty if none.

    >>> spelt("Cal_QL", ["cql", "cal-ql"]), spelt("QL", ["cql", "cal-ql"])
    ('cal-ql', '')
    """
    return {_letters(one): one for one in known}.get(_letters(name), "")


def _letters(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")


def _unknown_preset(preset: Any, name: str) -> InputError:
    """The error of a preset with a part that is none; it asks for the nearest, or lists all."""
    families, methods = presets()["family"], presets()["method"]
    if name not in {*families, *methods} and (near := did_you_mean(name, [*families, *methods])):
        return InputError(f"preset {shown(preset)} is not a family, a method or both; {near}")
    return InputError(
        f"preset {shown(preset)} is not a family ({', '.join(families)}), a method "
        f"({', '.join(methods)}) or family+method; choose from these"
    )


def preset_overrides(family: str, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that presets make, given those of the config file and the flags."""
    preset, own = dict(presets()["family"].get(family, {})), presets()["method"].get(method, {})
    by_size, by_objective, by_data = (preset.pop(key, {}) for key in ("at", "for", "data"))
    preset = merge(preset, by_data.get(_within(family, dataset_name(given)), {}))
    objective = given.get("objective", own.get("objective", DEFAULT_OBJECTIVE))
    if isinstance(objective, str):
        preset = merge(preset, by_objective.get(objective, {}))
    critic = {**_table(own, "critic"), **_table(given, "critic")}
    if isinstance(critic.get("size"), str) and critic.get("kind", "transformer") == "transformer":
        preset = merge(preset, by_size.get(critic["size"], {}))
    return merge(preset, own)


def _within(family: str, dataset: str) -> str:
    """A dataset's name without its family and version; empty for another family's.

    >>> _within("hopper", "hopper-medium-replay-v2")
    'medium-replay'
    """
    found = re.fullmatch(rf"{re.escape(family)}-(.+?)(-v\d+)?", dataset)
    return found[1] if found else ""


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document.get(name)
    return table if isinstance(table, Mapping) else {}


def dataset_name(document: Mapping[str, Any]) -> str:
    """The dataset that settings name, or the default."""
    name = _table(document, "dataset").get("name")
    return name if isinstance(name, str) and name else DEFAULT_DATASET


def layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`merge` of settings, in which one given above clears the one below that it excludes.

    `entropy.target` clears `entropy.targets_nats`, and `conservative.lagrange = false` clears
    `conservative.target_gap`.

    >>> layered({"entropy": {"targets_nats": [[3.0, 3.0]]}}, {"entropy": {"target": 0.5}})
    {'entropy': {'targets_nats': [], 'target': 0.5}}
    """
    entropy = _table(above, "entropy")
    gives_fraction = (
        bool({"target", "last_target"} & set(entropy)) and "targets_nats" not in entropy
    )
    if gives_fraction and "targets_nats" in _table(below, "entropy"):
        below = merge(below, {"entropy": {"targets_nats": []}})
    if _table(above, "conservative").get("lagrange") is False:
        below = merge(below, {"conservative": {"target_gap": 0.0}})
    return merge(below, above)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested dictionaries; `above` takes precedence.

    >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged
