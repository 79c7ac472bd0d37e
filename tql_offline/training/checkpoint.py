"""Checkpoints: one folder per step, written under another name first; nothing is unpickled.

checkpoints/<step>/
  critic.safetensors, …     one file per network, under its own parameter names
  optimizers.safetensors    "<optimizer>.<index>.<moment>"
  random.safetensors        "generator": state of the training generator
  window.safetensors        sums and counts of the metrics since the last log step
  state.json                schema, step, dims; a folder without it is not a checkpoint
checkpoints/<step>.damaged/ one that a run could not go on from, until its step is saved again
"""

import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tql_offline.agents import Agent, make_agent
from tql_offline.config import Config
from tql_offline.documents import is_whole, require_plain
from tql_offline.errors import AdvisedError, InputError, shown
from tql_offline.files import (
    flush_closed,
    part_of,
    put_folder,
    read_json,
    remove,
    write_json,
    writing,
)
from tql_offline.own_code import refuse_brought
from tql_offline.runs import RunFolder
from tql_offline.training.metrics import MetricsWindow

SCHEMA = "tql-offline/checkpoint/1"
USE_ANOTHER = "use another checkpoint"

MAX_HEADER_BYTES = 2**23
"""Most bytes of a tensor file's header; each tensor takes about a hundred."""

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
"""What AdamW stores per parameter."""

MAX_REASON = 200
"""Most characters quoted from a library's error, which may repeat a long foreign name."""

_DTYPES = {
    **{torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}

BOUNDS = {"step": (0, 10**9), "observation_dim": (1, 10_000), "action_dim": (1, 10_000)}
"""Numbers of `state.json` beyond these are not ours; networks for them could exhaust memory."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The contents of `state.json`."""

    step: int
    observation_dim: int
    action_dim: int
    schema: str = SCHEMA


def save(
    folder: Path,
    agent: Agent,
    generator: torch.Generator,
    state: State,
    window: MetricsWindow,
) -> Path:
    """Write a checkpoint under `folder/<step>`; a reader sees all of it or nothing.

    Raises:
        InputError: it cannot be written, for lack of disk space for instance.
    """
    final = folder / str(state.step)
    aside = part_of(final)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with writing(final, f"checkpoint {state.step}"):
            aside.mkdir(parents=True)
            for name, network in agent.networks.items():
                save_network(network, aside / f"{name}.safetensors")
            _save_file(_optimizer_tensors(agent), aside / "optimizers.safetensors")
            _save_file({"generator": generator.get_state()}, aside / "random.safetensors")
            _save_file(_detached(window.tensors()), aside / "window.safetensors")
            write_json(aside / "state.json", asdict(state))
            put_folder(aside, final)
            shutil.rmtree(_damaged(final), ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint that cannot be read, so that it counts as none; returns its new path.

    Raises:
        InputError: it cannot be renamed.
    """
    aside = _damaged(checkpoint)
    with writing(aside):
        remove(aside)
        checkpoint.rename(aside)
    return aside


def _damaged(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.damaged")


def non_finite_parameter(agent: Agent) -> str:
    """The name of a parameter with a NaN or infinite number, empty if there is none."""
    named = [
        (f"{name}.{key}", parameter)
        for name, network in agent.networks.items()
        for key, parameter in network.named_parameters()
    ]
    if not named:
        return ""
    # One answer for all parameters, so that the device is waited for only once.
    finite = torch.stack([torch.isfinite(p).all() for _, p in named]).tolist()
    return next((key for (key, _), fine in zip(named, finite, strict=True) if not fine), "")


class UnusableError(AdvisedError):
    """A checkpoint that another one of the run may stand in for."""


class DamagedError(UnusableError):
    """A checkpoint's files are not what was once written, as after a copy that was cut short."""


class MisfitError(UnusableError):
    """A checkpoint's network is not the one of the run's settings, or not what was once written."""


def read_state(checkpoint: Path) -> State:
    """Read `state.json` of a checkpoint folder.

    Raises:
        DamagedError: it is no JSON object, or has bad numbers.
        InputError: it cannot be read, or is of another schema.
    """
    path = checkpoint / "state.json"
    try:
        document = read_json(path)
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise DamagedError(f"{path} holds no JSON object", USE_ANOTHER) from error
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has schema {shown(document.get('schema'))} where {SCHEMA!r} is needed; "
            "use the version of tql-offline that wrote it"
        )
    try:
        numbers = read_numbers(document, path)
    except InputError as error:
        fault = f"{path} is damaged ({str(error).partition('; ')[0]})"
        raise DamagedError(fault, USE_ANOTHER) from error
    return State(
        step=numbers["step"],
        observation_dim=numbers["observation_dim"],
        action_dim=numbers["action_dim"],
    )


def load_networks(checkpoint: Path, agent: Agent) -> None:
    """Fill an agent's networks from a checkpoint.

    Raises:
        InputError: a file is missing, damaged, or does not fit the agent.
    """
    for name, network in agent.networks.items():
        load_network(checkpoint / f"{name}.safetensors", network)


def load_network(path: Path, network: nn.Module, device: torch.device | None = None) -> None:
    """Fill a network from its file.

    Args:
        path: the file.
        network: network with the file's names and shapes.
        device: where to allocate it, once the file is known to fit; None if the network already has
            its memory.

    Raises:
        InputError: the file is missing, damaged, or does not fit the network.
    """
    try:
        _check_header(path, network.state_dict())  # before a byte of its tensors is read
        tensors = _load(path)
        if device is not None:
            network.to_empty(device=device)
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise MisfitError(
            f"{path} does not fit the run's config.toml ({_last_line(error)})",
            "restore both from the same run",
        ) from error
    if wrong := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise DamagedError(f"{path} has {wrong[0]!r} not finite", USE_ANOTHER)


def save_network(network: nn.Module, path: Path) -> None:
    """Write a network's file.

    Raises:
        OSError: it cannot be written.
    """
    _save_file(_detached(network.state_dict()), path)


def load_training_state(
    checkpoint: Path,
    agent: Agent,
    generator: torch.Generator,
    window: MetricsWindow,
) -> None:
    """Fill optimizers, generator and metrics, so that training goes on as if never stopped.

    Raises:
        InputError: a file is missing, damaged, or does not fit the agent.
    """
    tensors = _load(checkpoint / "optimizers.safetensors")
    try:
        for name, optimizer in agent.optimizers.items():
            _restore_optimizer(optimizer, name, tensors)
        generator.set_state(_load(checkpoint / "random.safetensors")["generator"])
        window.restore(_load(checkpoint / "window.safetensors"), generator.device)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{checkpoint} lacks part of the training state ({_last_line(error)})", USE_ANOTHER
        ) from error


def read_numbers(document: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Read a document's numbers named in `BOUNDS`, each within its bounds.

    Raises:
        InputError: one is missing or out of bounds; the message names `path`.
    """
    return {key: _bounded(document.get(key), key, path) for key in BOUNDS}


def _bounded(value: Any, key: str, path: Path) -> int:
    low, high = BOUNDS[key]
    if not is_whole(value, low, high):
        raise InputError(
            f"{key!r} in {path} is not a whole number of {low} to {high}; "
            "restore it from the run that wrote it"
        )
    return value


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:MAX_REASON]


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
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    if sorted(state) not in ([], list(range(len(parameters)))):
        raise ValueError(f"moments of {len(parameters)} parameters are needed for optimizer {name}")
    for place, moments in state.items():
        _check_moments(moments, parameters[place], f"{name}.{place}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _check_moments(moments: dict[str, Tensor], parameter: Tensor, name: str) -> None:
    """Check that an optimizer can continue with what is stored for one parameter.

    Raises:
        ValueError: it cannot, and would not notice before its next step.
    """
    if set(moments) != MOMENTS:
        raise ValueError(f"{name} has {', '.join(sorted(moments))} of {', '.join(sorted(MOMENTS))}")
    for key, tensor in moments.items():
        shape = () if key == "step" else tuple(parameter.shape)
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ValueError(f"{name}.{key} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name}.{key} is not finite")


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    # The library's files are readable by the owner only; an empty one gets the umask's mode.
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path)
        path.chmod(mode)
        flush_closed(path)  # older checkpoints may be deleted next
    except SafetensorError as error:
        # The library hides the system's refusal in an error of its own.
        raise OSError(_last_line(error)) from error


def _check_header(path: Path, like: Mapping[str, Tensor]) -> None:
    """Check that a file's tensors match those that they are to replace, without reading them.

    Raises:
        RuntimeError: one is missing, foreign, or of another type or shape.
    """
    with _damage_named(path), safe_open(path, framework="pt") as file:
        pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        have = {name: (p.get_dtype(), tuple(p.get_shape())) for name, p in pieces.items()}
    want = {name: (_DTYPES[like.dtype], tuple(like.shape)) for name, like in like.items()}
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise RuntimeError(f"{shown(name)} is {have.get(name)} instead of {want.get(name)}")


def _load(path: Path) -> dict[str, Tensor]:
    with _damage_named(path):
        tensors: dict[str, Tensor] = load_file(path)
    return tensors


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn any failure to read a tensor file into a one-sentence error."""
    try:
        require_plain(path)
        _check_header_length(path)
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise DamagedError(
            f"{path} is missing",
            f"restore it, {USE_ANOTHER}, or use the version of tql-offline that wrote this one",
        ) from error
    except (OSError, MemoryError) as error:  # of this moment, not of the file
        raise InputError(
            f"{path} cannot be read ({_last_line(error)}); see that it can, and try again"
        ) from error
    # What the library raises on hostile bytes is undocumented.
    except Exception as error:
        raise DamagedError(f"{path} is damaged ({_last_line(error)})", USE_ANOTHER) from error


def _check_header_length(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header claims {length} bytes")


def _without(folder: RunFolder) -> str:
    """The end of a sentence on a run without checkpoints."""
    if folder.is_finished():
        return " left, though it was finished; restore its folder checkpoints/, or train it again"
    return " yet; let it train to its first one"


def chosen_checkpoint(folder: RunFolder, step: int | None) -> Path:
    """The checkpoint of a step, or the last.

    Raises:
        InputError: there is none.
    """
    steps = folder.checkpoint_steps()
    if not steps:
        raise InputError(f"run {folder.path} has no checkpoint{_without(folder)}")
    if step is not None and step not in steps:
        listed = ", ".join(str(s) for s in steps)
        raise InputError(f"run {folder.path} has no checkpoint of step {step}; it has {listed}")
    return folder.checkpoints / str(steps[-1] if step is None else step)


def load_agent(
    folder: RunFolder, config: Config, step: int | None, device: torch.device
) -> tuple[State, Agent]:
    """Load the agent of a run's checkpoint, by default its last, to act with.

    Raises:
        InputError: there is none, it is damaged, or the method's code lies with the run.
    """
    chosen = chosen_checkpoint(folder, step)
    refuse_brought(config.objective, folder.path)
    state = read_state(chosen)
    agent = make_agent(config, state.observation_dim, state.action_dim, device)
    load_networks(chosen, agent)
    return state, agent
