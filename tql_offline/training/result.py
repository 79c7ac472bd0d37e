"""result.json: a finished run in one versioned document (docs/result-schema.md)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tql_offline.config import Config, read_toml, validate
from tql_offline.errors import InputError
from tql_offline.eval import protocol as protocols
from tql_offline.runs import RESULT_SCHEMA, RunFolder, read_json, read_jsonl, write_json


def open_run(path: Path) -> tuple[RunFolder, Config]:
    """A run folder and its settings.

    Raises:
        InputError: it is no run folder, or its config.toml is damaged.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise InputError(f"{path} is not a run folder (it has no config.toml); check the path")
    return folder, validate(read_toml(folder.config), source=str(folder.config))


def write_result(folder: RunFolder) -> None:
    """Write result.json from the run's other files (docs/result-schema.md)."""
    folder, config = open_run(folder.path)
    provenance = read_json(folder.provenance)
    protocol = protocols.get(config.evaluation.protocol)
    latest = {
        (line["policy"], line["step"]): line
        for line in read_jsonl(folder.evaluations)
        if line["protocol"]["name"] == protocol.name
    }
    write_json(
        folder.result,
        {
            "schema": RESULT_SCHEMA,
            "run": folder.path.name,
            "method": "TQL" if config.entropy.mode == "layerwise" else f"TQL-{config.entropy.mode}",
            "objective": config.objective,
            "critic": config.critic.kind,
            "entropy": config.entropy.mode,
            "size": config.critic.size,
            "parameters": provenance["critic_parameters"],
            "dataset": config.dataset.name,
            "dataset_sha256": provenance["dataset"]["sha256"],
            "task": (provenance["environment"] or {}).get("env_id"),
            "seed": config.seed,
            "protocol": asdict(protocol),
            "updates": config.steps,
            "evaluations": [_summary(line) for line in latest.values()],
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
    }
