"""Writing a run's policies as a model folder: all or nothing, and the same bytes every time."""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tql_offline.config import OBJECTIVES, Config, is_own
from tql_offline.errors import InputError, shown
from tql_offline.files import part_of, put_folder, write_atomic, write_json, writing
from tql_offline.own_code import refuse_brought
from tql_offline.runs import RunFolder
from tql_offline.sharing.acting import CPU, Acting, load_acting
from tql_offline.sharing.card import make_card
from tql_offline.sharing.model import ACTION_DTYPES, SCHEMA, ModelFolder
from tql_offline.sharing.onnx_policies import TOLERANCE, Comparison, check_onnx, export_onnx
from tql_offline.sharing.scores import scores_of_step
from tql_offline.training import checkpoint
from tql_offline.training.checkpoint import chosen_checkpoint
from tql_offline.training.result import (
    action_bounds,
    is_complete,
    open_run,
    read_provenance,
)
from tql_offline.version import __version__

MAX_TEXT, MAX_VERSIONS = 4000, 50
"""Most characters of a text, and most packages, that are taken over from a run folder."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        folder: the model folder.
        facts: its `model.json`.
        comparison: comparison of its `policy.onnx` with the original; None without one.
    """

    folder: Path
    facts: Mapping[str, Any]
    comparison: Comparison | None


def default_folder(run: Path) -> Path:
    """Where a run's model goes by default: `models/<run>`."""
    return Path("models") / run.resolve().name


def export_run(
    path: Path, out: Path, *, step: int | None = None, force: bool = False, onnx: bool = True
) -> Exported:
    """Write the policies of a run's checkpoint as a model folder.

    Args:
        path: the run folder, of a finished run or of one that was stopped.
        out: the model folder, which must not exist.
        step: step of the checkpoint; None takes the last.
        force: whether an earlier export may be there; it is replaced once the new one is complete.
        onnx: whether to write `policy.onnx`, too.

    Raises:
        InputError: there is no such run or checkpoint, one of its files is damaged, the method's
            code lies with the run, the folder exists or cannot be written, or the policy cannot be
            written as ONNX.
    """
    run, config = open_run(path)
    chosen = chosen_checkpoint(run, step)
    refuse_brought(config.objective, path)
    check_destination(out, force=force)
    if onnx:
        check_onnx()
    state = checkpoint.read_state(chosen)
    acting = load_acting(config, state.observation_dim, state.action_dim, chosen, CPU)
    facts = _facts(run, config, state, acting)
    aside = ModelFolder(part_of(out))
    try:
        comparison = _write(aside, config, acting, facts, onnx)
        with writing(out):
            put_folder(aside.path, out)
    finally:
        shutil.rmtree(aside.path, ignore_errors=True)
    return Exported(folder=out, facts=facts, comparison=comparison)


def check_destination(out: Path, *, force: bool) -> None:
    """Check that a model may be written to a folder.

    Raises:
        InputError: it exists and is not to be replaced, or holds more than an earlier export.
    """
    if not out.name:
        raise InputError(f"{str(out)!r} names no folder to write to; give --out a name")
    if not (out.exists() or out.is_symlink()):
        return
    if out.is_symlink() or not out.is_dir():
        raise InputError(f"{out} is a link or no folder; choose another --out")
    if not force:
        raise InputError(f"{out} exists already; choose another --out, or give --force")
    model = ModelFolder(out)
    ours = {model.document, model.config, model.onnx, model.card}
    for entry in sorted(out.iterdir()):
        if entry.is_dir() or (entry not in ours and entry.suffix != ".safetensors"):
            raise InputError(
                f"{entry} is not of an earlier export, and --force would remove it; move it away "
                "or choose another --out"
            )
    if any(out.iterdir()) and not model.document.is_file():
        raise InputError(f"{out} is not an earlier export; choose another --out")


def _write(
    model: ModelFolder, config: Config, acting: Acting, facts: dict[str, Any], onnx: bool
) -> Comparison | None:
    shutil.rmtree(model.path, ignore_errors=True)
    with writing(model.path, "the model"):
        model.path.mkdir(parents=True)
        for name, network in acting.networks.items():
            checkpoint.save_network(network, model.path / f"{name}.safetensors")
    write_atomic(model.config, config.to_toml())
    comparison = None
    if onnx:
        comparison = export_onnx(acting, config.flow.flow_steps, model.onnx)
        facts["onnx"] = _sentence(comparison)
    write_json(model.document, facts)
    write_atomic(model.card, make_card(facts))
    return comparison


def _sentence(comparison: Comparison) -> str:
    if not comparison.rows:
        return "Its actions were not compared with the original's."
    text = f"Its actions are the original's to {TOLERANCE:g}, by {comparison.rows} observations"
    if comparison.ties:
        text += (
            f"; {comparison.ties} of them were left out, at which rounding errors of the "
            "observation alone move the original's own action further"
        )
    return f"{text}."


def _facts(
    run: RunFolder, config: Config, state: checkpoint.State, acting: Acting
) -> dict[str, Any]:
    """`model.json`, except what is known of `policy.onnx` once that is written."""
    provenance = read_provenance(run)
    environment = provenance.get("environment") or {}
    task, flattened = environment.get("env_id"), environment.get("flattened")
    has_critic = config.has_critic
    return {
        "schema": SCHEMA,
        "tql_offline": __version__,
        "run": _brief(run.path.resolve().name),
        "method": config.method,
        "objective": config.objective,
        "own_method": _own_method(config.objective),
        "critic": config.critic.kind if has_critic else "none",
        "size": config.critic.size if has_critic else "",
        "parameters": provenance["critic_parameters"],
        "step": state.step,
        "updates": config.steps,
        "finished": is_complete(run, config),
        "seed": config.seed,
        "observation_dim": state.observation_dim,
        "flattened": _brief(flattened) if flattened is not None else None,
        "action_dim": state.action_dim,
        **_actions(run, provenance, state.action_dim),
        "policies": dict(acting.noise_dims),
        "networks": list(acting.networks),
        "onnx": "",
        "dataset": _brief(_dataset_name(config.dataset.name)),
        "dataset_sha256": _brief(provenance["dataset"]["sha256"]),
        "task": _brief(task) if task is not None else None,
        "evaluations": scores_of_step(run, state.step, tuple(acting.noise_dims)),
        "command": _command(provenance.get("command")),
        "device": _brief(provenance.get("device") or "not recorded"),
        "git_commit": _brief(provenance.get("git_commit") or ""),
        "versions": {"tql_offline": _brief(provenance.get("tql_offline") or "not recorded")}
        | _versions(provenance.get("versions")),
    }


def _actions(run: RunFolder, provenance: Mapping[str, Any], action_dim: int) -> dict[str, Any]:
    """Bounds and type of the environment's own actions; those of the data may be rounded."""
    environment, data = provenance.get("environment") or {}, provenance["dataset"]
    bounds = action_bounds(data, action_dim, run.provenance)
    own = action_bounds(environment, action_dim, run.provenance) if bounds else None
    dtype = environment.get("action_dtype") if own else None
    return {
        "action_bounds": own or bounds,
        "action_dtype": dtype if dtype in ACTION_DTYPES else ACTION_DTYPES[0],
    }


def _own_method(objective: str) -> str:
    """`module:Class` of a method outside the package; empty for one of its own."""
    return OBJECTIVES.get(objective, objective) if is_own(objective) else ""


def _dataset_name(name: str) -> str:
    """A dataset's name; for a user's own file, without its folders.

    >>> _dataset_name("/home/ann/logs.hdf5"), _dataset_name("D4RL/pen/human-v2")
    ('logs.hdf5', 'D4RL/pen/human-v2')
    """
    path = Path(name)
    return path.name if path.suffix or path.is_absolute() else name


def _command(words: Any) -> str:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return ""
    return _brief(shlex.join(words))


def _versions(table: Any) -> dict[str, str]:
    """Versions of the packages that were installed."""
    items = list(table.items())[:MAX_VERSIONS] if isinstance(table, dict) else []
    return {_brief(name): _brief(version) for name, version in items if version is not None}


def _brief(value: Any) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else shown(value)
