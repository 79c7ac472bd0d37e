"""Checkpoints: one folder per step, written aside and renamed; nothing is unpickled.

checkpoints/<step>/
  critic.safetensors, …     one file per network, under its own parameter names
  optimizers.safetensors    "<optimizer>.<index>.<moment>"
  random.safetensors        "generator": state of the training generator
  state.json                schema, step, dims; a folder without it is no checkpoint
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tql_offline.agents import Agent
from tql_offline.errors import InputError
from tql_offline.runs import read_json, write_json

SCHEMA = "tql-offline/checkpoint/1"


@dataclass(frozen=True, kw_only=True)
class State:
    """What `state.json` says besides the tensors."""

    step: int
    observation_dim: int
    action_dim: int
    schema: str = SCHEMA


def save(folder: Path, agent: Agent, generator: torch.Generator, state: State) -> Path:
    """Write a checkpoint under `folder/<step>`; a reader sees all of it or nothing."""
    final = folder / str(state.step)
    aside = folder / f".{state.step}.{os.getpid()}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for name, network in agent.networks.items():
            save_file(_detached(network.state_dict()), aside / f"{name}.safetensors")
        save_file(_optimizer_tensors(agent), aside / "optimizers.safetensors")
        save_file({"generator": generator.get_state()}, aside / "random.safetensors")
        write_json(aside / "state.json", asdict(state))
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def read_state(checkpoint: Path) -> State:
    """Read `state.json` of a checkpoint folder.

    Raises:
        InputError: it is missing, damaged, or of another schema.
    """
    path = checkpoint / "state.json"
    document = read_json(path)
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has schema {document.get('schema')!r} where {SCHEMA!r} is needed; "
            "use the version of tql-offline that wrote it"
        )
    numbers = {k: document.get(k) for k in ("step", "observation_dim", "action_dim")}
    for key, value in numbers.items():
        if not isinstance(value, int) or not 0 <= value < 10**9:
            raise InputError(
                f"{key!r} in {path} is {value!r}; restore it from the run that wrote it"
            )
    return State(**numbers)  # type: ignore[arg-type]


def load_networks(checkpoint: Path, agent: Agent) -> None:
    """Fill an agent's networks from a checkpoint.

    Raises:
        InputError: a file is missing, damaged, or does not fit the agent.
    """
    for name, network in agent.networks.items():
        path = checkpoint / f"{name}.safetensors"
        try:
            network.load_state_dict(_load(path), strict=True)
        except RuntimeError as error:
            raise InputError(
                f"{path} does not fit the run's config.toml ({_last_line(error)}); "
                "restore both from the same run"
            ) from error


def load_training_state(checkpoint: Path, agent: Agent, generator: torch.Generator) -> None:
    """Fill optimizers and generator, so that training goes on as if never stopped.

    Raises:
        InputError: a file is missing, damaged, or does not fit the agent.
    """
    path = checkpoint / "optimizers.safetensors"
    tensors = _load(path)
    try:
        for name, optimizer in agent.optimizers.items():
            _restore_optimizer(optimizer, name, tensors)
        generator.set_state(_load(checkpoint / "random.safetensors")["generator"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{checkpoint} lacks part of the training state ({error}); continue from another one"
        ) from error


def _last_line(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(agent: Agent) -> dict[str, Tensor]:
    return {
        f"{name}.{index}.{key}": value.detach().contiguous()
        for name, optimizer in agent.optimizers.items()
        for index, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, name: str, tensors: dict[str, Tensor]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        owner, _, rest = key.partition(".")
        if owner == name:
            index, _, moment = rest.partition(".")
            state.setdefault(int(index), {})[moment] = tensor
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if sorted(state) not in ([], list(range(count))):
        raise ValueError(f"moments of {count} parameters are needed for optimizer {name}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; restore the checkpoint or use another one") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); use another checkpoint") from error
    return tensors
