"""result.json: a finished run in one versioned document (docs/result-schema.md)."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tql_offline.config import Config, read_complete
from tql_offline.documents import flatten, is_whole
from tql_offline.errors import InputError, shown
from tql_offline.eval import protocol as protocols
from tql_offline.files import read_json, read_jsonl, write_json
from tql_offline.runs import RESULT_SCHEMA, RunFolder
from tql_offline.setting_effects import first_unlike, flat_settings, lasting_settings

MAX_NUMBER = 1e300
"""A number beyond it is not a return; an int may be beyond any float."""


def open_run(path: Path) -> tuple[RunFolder, Config]:
    """Open a run folder and read its settings.

    Raises:
        InputError: it is not a run folder, its config.toml is damaged or has settings of another
            run, or one of its files is a link.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise InputError(f"{path} is not a run folder (it has no config.toml); check the path")
    folder.refuse_links()
    config = read_complete(folder.config)
    _refuse_other_settings(folder, config)
    return folder, config


def _refuse_other_settings(folder: RunFolder, config: Config) -> None:
    """Refuse settings of another run: its policy would pass for one that they trained."""
    try:
        began = read_json(folder.provenance).get("settings")
    except InputError:  # who needs more of it names its fault
        return
    if not isinstance(began, dict):  # of a version that recorded none
        return
    now = lasting_settings(flat_settings(config))
    if unlike := first_unlike(flatten(began), now):
        key, before, after = unlike
        otherwise = "train a new run with it"
        if key == "optimizer.schedule_steps" and not config.optimizer.schedule_steps:
            key, otherwise = "steps", "give it more updates by `train --resume --steps`"
        raise InputError(
            f"run {folder.path} began with {key} {shown(before)} where its config.toml has "
            f"{shown(after)} now; restore that setting, or {otherwise}"
        )


def own_protocol(config: Config, provenance: Mapping[str, Any]) -> str:
    """The protocol that a run is judged by.

    This is its config's or, for a run trained without an environment, the one that it was first
    scored by: nothing had been planned by the config's.
    """
    environment = provenance.get("environment") or {}
    named = environment.get("protocol") if environment.get("given_later") else None
    return named if isinstance(named, str) and named else config.evaluation.protocol


def is_complete(folder: RunFolder, config: Config) -> bool:
    """Whether the run has the checkpoint of its last update."""
    return config.steps in folder.checkpoint_steps()


def read_provenance(folder: RunFolder) -> dict[str, Any]:
    """The run's provenance.json, with everything that the other commands need from it.

    Raises:
        InputError: it is damaged; the message names the key.
    """
    provenance = read_json(folder.provenance)
    dataset, environment = provenance.get("dataset"), provenance.get("environment")
    checks = {
        "critic_parameters": _is_count(provenance.get("critic_parameters")),
        "dataset": isinstance(dataset, dict) and isinstance(dataset.get("sha256"), str),
        "environment": environment is None
        or (isinstance(environment, dict) and isinstance(environment.get("env_id"), str)),
    }
    for key, is_usable in checks.items():
        if not is_usable:
            raise InputError(
                f"{folder.provenance} has no usable {key!r}; restore it from the run that wrote it"
            )
    return provenance


def read_evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    """The run's evaluations, each with everything that a result takes from it.

    Raises:
        InputError: a line is damaged; the message names it and the key.
    """
    lines = list(read_jsonl(folder.evaluations))
    for number, line in enumerate(lines, start=1):
        for key, is_usable in _LINE_CHECKS.items():
            if not is_usable(line.get(key)):
                raise InputError(
                    f"{folder.evaluations} line {number} has no usable {key!r}; remove the line"
                )
    return lines


def _is_count(value: Any) -> bool:
    return is_whole(value, 0)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < MAX_NUMBER


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("name"))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


_LINE_CHECKS: dict[str, Callable[[Any], bool]] = {
    "policy": _is_text,
    "step": _is_count,
    "protocol": _is_named,
    "episodes": _is_list,
    "success_rate": lambda value: value is None or _is_finite(value),
    "return_mean": _is_finite,
    "score": _is_finite,
}
"""What a result takes from a line of evaluations.jsonl."""


def action_bounds(
    table: Mapping[str, Any], action_dim: int, path: Path
) -> list[list[float]] | None:
    """The environment's least and greatest actions; None if a table has none.

    Args:
        table: table of a model or of a run's dataset.
        action_dim: how many numbers each has.
        path: path of its file.

    Raises:
        InputError: they are not two rows of finite numbers, each least below its greatest.
    """
    bounds = table.get("action_bounds")
    if bounds is None:
        return None
    are_two = isinstance(bounds, list) and len(bounds) == 2
    fit = are_two and all(_are_numbers(row, action_dim) for row in bounds)
    if not fit or not all(low < high for low, high in zip(*bounds, strict=True)):
        raise InputError(
            f"'action_bounds' in {path} are not {action_dim} least and as many greatest actions; "
            "restore them from the run that wrote it"
        )
    rows: list[list[float]] = bounds
    return rows


def _are_numbers(row: Any, count: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == count
        and all(type(x) in (int, float) and abs(x) <= sys.float_info.max for x in row)
    )


def write_result(folder: RunFolder) -> None:
    """Write result.json from a complete run's other files (docs/result-schema.md).

    Raises:
        InputError: one of them is damaged, or the run has no checkpoint.
    """
    folder, config = open_run(folder.path)
    provenance = read_provenance(folder)
    steps = folder.checkpoint_steps()
    if not steps:
        raise InputError(f"run {folder.path} has no checkpoint yet; let it train to its end")
    protocol = protocols.get(own_protocol(config, provenance))
    latest = {
        (line["policy"], line["step"]): line
        for line in read_evaluations(folder)
        if line["protocol"]["name"] == protocol.name
    }
    write_json(
        folder.result,
        {
            "schema": RESULT_SCHEMA,
            "run": folder.path.name,
            "method": config.method,
            "objective": config.objective,
            "critic": config.critic.kind if config.has_critic else "none",
            "entropy": config.entropy.mode if provenance.get("tokens") else "none",
            "size": config.critic.size if config.has_critic else "",
            "parameters": provenance["critic_parameters"],
            "flops_per_update": provenance.get("flops_per_update"),
            "dataset": config.dataset.name,
            "dataset_sha256": provenance["dataset"]["sha256"],
            "task": (provenance.get("environment") or {}).get("env_id"),
            "seed": config.seed,
            "protocol": asdict(protocol),
            "updates": steps[-1],
            "settings": config.model_dump(mode="json"),
            "evaluations": [_summary(line) for line in latest.values()],
            "warnings": [str(line.get("sentence")) for line in read_jsonl(folder.warnings)],
            "provenance": provenance,
        },
    )


def _summary(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "policy": line["policy"],
        "step": line["step"],
        "episodes": len(line["episodes"]),
        "success_rate": line["success_rate"],
        "return_mean": line["return_mean"],
        "score": line["score"],
        "env_id": line.get("env_id"),
        "success_timing": line.get("success_timing"),
        "max_episode_steps": line.get("max_episode_steps"),
        "versions": line.get("versions"),
        "reference": line.get("reference"),
    }
