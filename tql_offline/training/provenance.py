"""What a number depends on besides the settings: versions, device, code and data."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tql_offline.agents import Agent
from tql_offline.own_code import code_of_class
from tql_offline.version import __version__, installed_version

PACKAGES = ("torch", "numpy", "mujoco", "gymnasium", "ogbench", "minari", "safetensors", "h5py")

SWEEP_COMMAND = "TQL_OFFLINE_SWEEP_COMMAND"
"""Environment variable by which a sweep tells its runs the command to record."""


def collect_provenance(
    device: torch.device, dataset: dict[str, Any], environment: dict[str, Any] | None
) -> dict[str, Any]:
    """Describe this process for `provenance.json`.

    Args:
        device: where training runs.
        dataset: name, path, sha256, source and counts.
        environment: id, limits, success timing and versions, or None without one.
    """
    return {
        "tql_offline": __version__,
        "git_commit": git_commit(),
        "command": _command(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "dataset": dataset,
        "environment": environment,
    }


def _command() -> list[str]:
    """What was typed: of a sweep's run the sweep, as the run itself has a config that is gone."""
    if of_sweep := os.environ.get(SWEEP_COMMAND):
        return shlex.split(of_sweep)
    name = Path(sys.argv[0]).name
    return ["tql-offline" if name == "__main__.py" else name, *sys.argv[1:]]


def own_code(agent: Agent) -> dict[str, str] | None:
    """Name and SHA-256 of the file of a method of one's own; None for the package's.

    Of the class's own file or, if it was typed into a session, of its bytecode.
    """
    method = type(agent)
    is_ours = method.__module__.startswith("tql_offline.agents.")
    return None if is_ours else code_of_class(method)


def resumed_code(
    before: Mapping[str, Any], now: Mapping[str, str], step: int, *, is_scored: bool
) -> dict[str, Any]:
    """The record of one's own method's code for a run that goes on from a step with `now`.

    `resumed_with` lists the versions after the first, each with the step that it went on from.
    Versions of which the run has kept nothing are left out.

    Args:
        before: the record so far; it may be foreign.
        now: what `own_code` returns.
        step: the step of the checkpoint that was loaded.
        is_scored: whether the run has scores of that step, which a version that went on from it
            may have made.
    """
    found = before.get("resumed_with")
    listed = [entry for entry in found if _is_version(entry)] if isinstance(found, list) else []
    later = [entry for entry in listed if entry["step"] < step + is_scored]
    if (later or [before])[-1].get("sha256") != now["sha256"]:
        later.append({"step": step, "sha256": now["sha256"]})
    first = {key: value for key, value in before.items() if key != "resumed_with"}
    return first | ({"resumed_with": later} if later else {})


def _is_version(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("step"), int) and "sha256" in entry


def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages that can change a result; None where not installed."""
    return {name: installed_version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    """`cpu (x86_64)` or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()})"


def on_cpu(provenance: Mapping[str, Any]) -> bool | None:
    """Whether a run with this provenance was trained on a CPU; None if it does not say."""
    name = str(provenance.get("device") or "")
    return name.startswith("cpu (") if name else None


def git_commit() -> str | None:
    """Commit of the checkout this code runs from, with `-dirty` if changed; None without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(root, "status", "--porcelain") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
