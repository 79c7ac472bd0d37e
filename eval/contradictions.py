"""Whether a `result.json` belongs to the settings of its run folder."""

from pathlib import PureWindowsPath
from typing import Any

from tql_offline.config import WITHOUT_CRITIC, as_its_version, validate
from tql_offline.datasets.catalogue import suite_of
from tql_offline.datasets.names import MINARI_PREFIX, with_task
from tql_offline.documents import flatten
from tql_offline.errors import InputError, shown
from tql_offline.setting_effects import (
    first_unlike,
    flat_settings,
    lasting_settings,
    policy_settings,
)


def contradiction(config: dict[str, Any], began: Any, result: dict[str, Any]) -> str:
    """How a result is not one of its run's settings, as the end of a sentence; empty if it is.

    Args:
        config: `config.toml`; empty if it is unusable.
        began: the settings that the run began with, if they were recorded.
        result: `result.json`; empty if there is none.
    """
    if not (config and result):
        return ""
    now, told = _as_meant(config), result.get("settings")
    pairs = [("gives", _identity(result), _identity_of(now, configured_method(config)))]
    if isinstance(told, dict):
        pairs.append(("gives", _of_policy(flatten(as_its_version(told))), _of_policy(now)))
    if isinstance(began, dict):
        pairs.append(("is of a run that began with", flatten(began), lasting_settings(now)))
    for verb, recorded, have in pairs:
        if unlike := first_unlike(recorded, have):
            key, one, other = unlike
            return f"{verb} {key} {shown(one)} where config.toml has {shown(other)}"
    return ""


def configured_method(config: dict[str, Any]) -> str:
    """The method that settings name; empty if they are not whole."""
    if not {"objective", "critic", "entropy"} <= config.keys():
        return ""  # defaults would make it a different method
    try:
        return validate(config, source="config.toml").method
    except InputError:
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
