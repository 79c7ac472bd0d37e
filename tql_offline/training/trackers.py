"""Metrics in TensorBoard or Weights & Biases, besides metrics.jsonl; both are optional packages."""

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from tql_offline.documents import MAX_CONFIG_BYTES, read_bounded
from tql_offline.errors import InputError, first_line, import_extra
from tql_offline.files import write_atomic
from tql_offline.runs import RunFolder


class Tracker:
    """Where named numbers go besides the run folder: nowhere."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoardTracker(Tracker):
    """Event files in the run folder's `tensorboard/`; a resumed run's replace what it repeats."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        module = _require("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandbTracker(Tracker):
    """A Weights & Biases run with the run folder's name and settings, one however often resumed."""

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any]) -> None:
        module = _require("wandb", "wandb")
        try:
            self._run = module.init(
                project="tql-offline",
                name=folder.path.name,
                dir=str(folder.path),
                config=dict(settings),
                id=_wandb_id(folder),
                resume="allow",
                allow_val_change=True,  # a resumed run may be given more updates
                reinit="create_new",  # or it would be the run of another seed in this process
            )
        except Exception as error:  # no login, no network: its errors have no common class
            raise InputError(
                f"tracker 'wandb' cannot begin ({first_line(error)}); log in by `wandb login`, or "
                "set WANDB_MODE=offline"
            ) from error

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


def _wandb_id(folder: RunFolder) -> str:
    """The run's id there, kept in its folder, by which it goes on after a stop."""
    kept = read_bounded(folder.wandb_id, MAX_CONFIG_BYTES) if folder.wandb_id.exists() else b""
    if re.fullmatch(rb"[0-9a-f]{16}", kept):
        return kept.decode()
    made = secrets.token_hex(8)
    write_atomic(folder.wandb_id, made)
    return made


def make_tracker(
    name: str, folder: RunFolder, settings: Mapping[str, Any], step: int = 0
) -> Tracker:
    """Make the tracker that the config names.

    Args:
        name: the config's `tracker`.
        folder: the run folder.
        settings: the run's settings.
        step: the update that a resumed run goes on from.

    Raises:
        InputError: its package is not installed.
    """
    if name == "tensorboard":
        return TensorBoardTracker(folder, step)
    if name == "wandb":
        return WandbTracker(folder, settings)
    return Tracker()


def check_tracker(name: str) -> None:
    """Fail before a run folder exists if a tracker's package is missing.

    Raises:
        InputError: names the package and the command.
    """
    if name != "none":
        _require({"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[name], name)


def flatten(line: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a metrics line by name; lists by their indices.

    >>> flatten({"loss": 1.0, "entropy": [[0.5, 0.6]]})
    {'loss': 1.0, 'entropy/0/0': 0.5, 'entropy/0/1': 0.6}
    """
    return dict(_walk(line, ""))


def _walk(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, (int, float)):
        yield name, float(value)
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in items:
        yield from _walk(inner, f"{name}/{key}" if name else str(key))


def _require(module: str, extra: str) -> Any:
    return import_extra(module, extra, f"tracker {extra!r}")
