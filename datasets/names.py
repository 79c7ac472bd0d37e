"""Dataset names and the places where their files lie."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tql_offline.errors import InputError, shown

MINARI_PREFIX = "minari:"
"""Before a name or a folder: a dataset of Minari's, or the environment that it names."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*-v\d+")
_SINGLETASK = re.compile(
    r"(?P<head>.+)-(?P<kind>[a-z]+)-singletask(-task(?P<task>[1-5]))?-(?P<version>v\d+)"
)
_DEFAULT_TASKS = {
    **dict.fromkeys(("pointmaze", "antmaze", "humanoidmaze"), 1),
    **dict.fromkeys(("cube", "scene", "puzzle-4x5", "puzzle-4x6"), 2),
    **dict.fromkeys(("antsoccer", "puzzle-3x3", "puzzle-4x4"), 4),
}
"""The task of a name without one, by how the name begins, as in OGBench's environments."""


@dataclass(frozen=True)
class DatasetName:
    """The parts of an OGBench dataset name.

    `cube-double-play-singletask-task2-v0` is file `cube-double-play-v0` relabelled with the rewards
    of environment `cube-double-singletask-task2-v0`; a name without `singletask` has no rewards.
    """

    name: str
    file: str
    env_id: str
    task: int | None


def parse_name(name: str) -> DatasetName:
    """Parse an OGBench dataset name.

    Raises:
        InputError: it is not of the form `family-kind[-singletask[-taskN]]-vM`, N from 1 to 5.

    >>> parse_name("cube-double-play-singletask-task2-v0").env_id
    'cube-double-singletask-task2-v0'
    >>> parse_name("cube-double-play-singletask-task2-v0").file
    'cube-double-play-v0'
    """
    if not _NAME.fullmatch(name) or name.count("-") < 2:
        raise InputError(
            f"{shown(name)} is not a dataset name such as cube-double-play-singletask-task1-v0; "
            "see `tql-offline datasets list`, and put 'minari:' before one of Minari's"
        )
    match = _SINGLETASK.fullmatch(name)
    if match is None:
        if "-singletask" in name:
            raise InputError(
                f"{shown(name)} names no task of a dataset; tasks are task1 to task5, "
                "as in cube-double-play-singletask-task1-v0"
            )
        head, _kind, version = name.rsplit("-", 2)
        return DatasetName(name, name, f"{head}-{version}", None)
    head, kind, version = match["head"], match["kind"], match["version"]
    task = f"-task{match['task']}" if match["task"] else ""
    return DatasetName(
        name=name,
        file=f"{head}-{kind}-{version}",
        env_id=f"{head}-singletask{task}-{version}",
        task=int(match["task"]) if match["task"] else 0,
    )


def with_task(name: str) -> str:
    """The name of an OGBench dataset or environment with its task; any other name as it is.

    >>> with_task("cube-double-play-singletask-v0"), with_task("cube-double-singletask-v0")
    ('cube-double-play-singletask-task2-v0', 'cube-double-singletask-task2-v0')
    """
    head, alias, version = name.partition("-singletask-v")
    family = f"{head.removeprefix('visual-')}-"
    task = next((t for f, t in _DEFAULT_TASKS.items() if family.startswith(f"{f}-")), None)
    return f"{head}-singletask-task{task}-v{version}" if alias and task else name


def collected_folder() -> Path:
    """Where `collect` writes: `$TQL_OFFLINE_DATA`, by default `~/.tql-offline/data`.

    It is not OGBench's folder, so that OGBench never takes a small collected file for the official
    one of the same name.
    """
    return Path(os.environ.get("TQL_OFFLINE_DATA", "~/.tql-offline/data")).expanduser()


def downloaded_folder() -> Path:
    """Where `download` writes: OGBench's own folder, `~/.ogbench/data` (or `$OGBENCH_DATA`)."""
    return Path(os.environ.get("OGBENCH_DATA", "~/.ogbench/data")).expanduser()


def d4rl_folder() -> Path:
    """Where D4RL keeps its files: `~/.d4rl/datasets` (or `$D4RL_DATASET_DIR`)."""
    return Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()


def minari_folder() -> Path:
    """Where Minari keeps its datasets: `~/.minari/datasets` (or `$MINARI_DATASETS_PATH`)."""
    return Path(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")).expanduser()


def suite_folder(suite: str) -> Path:
    """Where a suite's own package keeps its files, and where `download` writes them."""
    return {"d4rl": d4rl_folder, "minari": minari_folder}.get(suite, downloaded_folder)()


def find_file(name: DatasetName) -> Path:
    """The file that holds a dataset: the downloaded one if there is one, or the collected one.

    Raises:
        InputError: neither exists; the message names both places and the commands that get the
            file, or the nearest published names if none has this name.
    """
    places = [downloaded_folder(), collected_folder()]
    for folder in places:
        path = folder / f"{name.file}.npz"
        if path.is_file():
            return path
    raise InputError(
        f"dataset {name.file} is neither in {places[0]} nor in {places[1]}; "
        f"run {commands_for(name.file)}"
    )


def commands_for(file: str) -> str:
    """The commands that get a dataset's file.

    Raises:
        InputError: no such dataset is published; the message names the nearest ones.
    """
    # Imported here, because both modules import this one.
    from tql_offline.datasets.catalogue import find
    from tql_offline.datasets.collect import collectable

    commands = [f"`tql-offline download {find(file).name}`"]
    if file in collectable():
        commands.append(f"`tql-offline collect {file}`")
    return " or ".join(commands)
