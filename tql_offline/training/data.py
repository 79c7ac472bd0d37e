"""The data of a run: those its settings name and, on resuming, those it was trained on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tql_offline.config import Config, DataConfig
from tql_offline.datasets.action_bounds import as_setting, bounds_by_dim
from tql_offline.datasets.catalogue import suite_of
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.load import Dataset, load
from tql_offline.datasets.minari import is_minari
from tql_offline.datasets.names import MINARI_PREFIX, with_task
from tql_offline.errors import InputError, shown
from tql_offline.runs import RunFolder
from tql_offline.training.result import read_provenance


def load_named(wanted: DataConfig) -> Dataset:
    """Load the data that settings name.

    Raises:
        InputError: as for `load`.
    """
    return load(
        wanted.name,
        Path(wanted.path) if wanted.path else None,
        wanted.env_id or None,
        wanted.slices,
        allow_broken=wanted.allow_broken,
        action_bounds=wanted.action_bounds,
    )


def refuse_other_data(config: Config, dataset: Dataset) -> None:
    """Refuse data whose name is not the config's, which names them in every result.

    Settings may depend on the config's dataset, too, through its family's preset.

    Raises:
        InputError: the names differ, or a user's own data were scaled by other bounds.
    """
    wanted = config.dataset.name
    called = {wanted, with_task(wanted), Path(wanted).stem}
    # A Minari dataset has its own name, whatever the folder it was requested by is called.
    is_asked = wanted.startswith(MINARI_PREFIX) or suite_of(wanted) == "minari"
    bears_its_own = is_asked and is_minari(dataset.path)
    if dataset.name not in called and dataset.path != Path(wanted) and not bears_its_own:
        raise InputError(
            f"the settings are of dataset {shown(wanted)} and the data of {dataset.name} "
            f"({dataset.path}); let both have one dataset.name"
        )
    asked = bounds_by_dim(dataset.episodes.actions.shape[1], config.dataset.action_bounds)
    if dataset.is_own and not _are_same(dataset.action_bounds, asked):
        raise InputError(
            f"the settings' dataset.action_bounds are {_told(asked)} and the actions of "
            f"{dataset.name} were scaled by {_told(dataset.action_bounds)}; load them by the "
            "settings' bounds"
        )


def _told(bounds: tuple[list[float], list[float]] | None) -> str:
    return " to ".join(as_setting(*bounds).values()) if bounds else "none"


def _are_same(
    one: tuple[list[float], list[float]] | None, other: tuple[list[float], list[float]] | None
) -> bool:
    """Whether bounds are the same in float32, as a `Box` has them."""
    if one is None or other is None:
        return one is other
    return np.array_equal(np.array(one, np.float32), np.array(other, np.float32))


def data_of(
    folder: RunFolder,
    config: Config,
    load_dataset: Callable[[Config], Dataset],
    moved_to: Path | None = None,
) -> Dataset:
    """Load the data that a run was trained on.

    Args:
        folder: the run folder.
        config: its settings.
        load_dataset: loads the data of a config.
        moved_to: where their file or folder is now; None looks where it was.

    Raises:
        InputError: they are missing, have changed, or are scaled differently.
    """
    recorded = read_provenance(folder)["dataset"]
    where = _recorded_path(config, recorded) if moved_to is None else str(moved_to)
    named = config if where is None else _with_path(config, where)
    _refuse_lost_file(folder, named, recorded, is_told=moved_to is not None)
    try:
        dataset = load_dataset(named)
    except InputError as error:
        if recorded.get("source") != "arrays":
            _refuse_other_file(folder, named, recorded, error)
            raise
        raise InputError(
            f"run {folder.path} was trained on arrays from Python, which no command has; call "
            "`tql_offline.training.resume.resume` (`inspection.inspect_run`, "
            "`fqe.evaluate_offline`) with a load_dataset that makes them (docs/python.md)"
        ) from error
    if dataset.sha256 != recorded["sha256"]:
        raise _other_bytes(folder, dataset.path, dataset.sha256, recorded)
    have = None if dataset.action_bounds is None else [*dataset.action_bounds]
    if dataset.is_own and have != recorded.get("action_bounds"):
        raise InputError(
            f"the actions of {dataset.path} are scaled otherwise than those that run {folder.path} "
            "was trained on; restore its config.toml and provenance.json"
        )
    return dataset


def _refuse_other_file(
    folder: RunFolder, config: Config, recorded: Mapping[str, Any], fault: InputError
) -> None:
    """Raise an error if a file that could not be used is not the one that a run was trained on.

    Mending what is wrong with it would not make it that file.
    """
    path = Path(config.dataset.path or config.dataset.name)
    try:
        digest = file_sha256(path) if path.is_file() else recorded["sha256"]
    except OSError:  # which the fault is about
        return
    if digest != recorded["sha256"]:
        raise _other_bytes(folder, path, digest, recorded) from fault


def _other_bytes(
    folder: RunFolder, path: Path, digest: str, recorded: Mapping[str, Any]
) -> InputError:
    return InputError(
        f"{path} has sha256 {digest} where run {folder.path} was trained on "
        f"{recorded['sha256']}; restore that file"
    )


def _refuse_lost_file(
    folder: RunFolder, config: Config, recorded: Mapping[str, Any], *, is_told: bool
) -> None:
    """Raise an error that says where a run's own data file was, if it is gone.

    If the user told its new place (`is_told`), that is what is wrong.
    """
    given = _given_path(config, recorded)
    if given is None or given.exists():
        return
    if is_told:
        raise InputError(
            f"{given}, given by --path as the data of run {folder.path}, is not there; check the "
            "path"
        )
    where = recorded.get("path")
    was = f", {shown(where)}," if isinstance(where, str) else ""
    elsewhere = (
        "" if given.is_absolute() else f", or run this in a folder where {given} is the file"
    )
    raise InputError(
        f"the data file of run {folder.path}{was} is not there any more; move it back, name its "
        f"new place by --path{elsewhere} (its SHA-256 is compared)"
    )


def _recorded_path(config: Config, recorded: Mapping[str, Any]) -> str | None:
    """The path of a run's own data file in its record, if it is still there and not in its config.

    A config has paths as they were given, which may be relative to where the run was started. If
    the recorded file is gone, they are taken relative to the current folder.
    """
    given, path = _given_path(config, recorded), recorded.get("path")
    if not isinstance(path, str) or "\0" in path or not Path(path).exists():
        return None
    if given is None or given.is_absolute() or given.name != Path(path).name:
        return None
    return path


def _given_path(config: Config, recorded: Mapping[str, Any]) -> Path | None:
    """The path by which a run was given its data; None if they were found by their name."""
    dataset = config.dataset
    if not dataset.path and recorded.get("source") not in ("own file", "given folder"):
        return None
    return Path(dataset.path or dataset.name.removeprefix(MINARI_PREFIX))


def _with_path(config: Config, path: str) -> Config:
    """A run's settings with its data at a path, which replaces a name that is a path itself."""
    dataset = config.dataset
    is_named = dataset.name.startswith(MINARI_PREFIX) or suite_of(dataset.name) != "own"
    is_name = not is_named and not dataset.path
    found = {"name" if is_name else "path": path}
    return config.model_copy(update={"dataset": dataset.model_copy(update=found)})
