"""Metrics in TensorBoard or Weights & Biases, besides metrics.jsonl; both are optional packages."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from tql_offline.errors import InputError
from tql_offline.runs import RunFolder


class Tracker(Protocol):
    """Records named numbers at steps."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class NoTracker:
    """Records nothing."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Ignore."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoardTracker:
    """Event files in the run folder's `tensorboard/`."""

    def __init__(self, folder: RunFolder) -> None:
        module = _require("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(str(folder.path / "tensorboard"))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run with the run folder's name and settings."""

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any]) -> None:
        module = _require("wandb", "wandb")
        self._run = module.init(
            project="tql-offline",
            name=folder.path.name,
            dir=str(folder.path),
            config=dict(settings),
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


def make_tracker(name: str, folder: RunFolder, settings: Mapping[str, Any]) -> Tracker:
    """Make the tracker that the config names.

    Raises:
        InputError: its package is not installed.
    """
    if name == "tensorboard":
        return TensorBoardTracker(folder)
    if name == "wandb":
        return WandbTracker(folder, settings)
    return NoTracker()


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
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"tracker {extra!r} is not installed; run `pip install 'tql-offline[{extra}]'`"
        ) from error
