"""From a dataset's name or file to canonical episodes.

OGBench's file layout keeps every episode's last observation in a row of its own, whose action is
unused (columns of two episodes of 3 and 2 transitions):

    observations : [s0, s1, s2, s3, | s0, s1, s2]
    actions      : [a0, a1, a2,  -, | a0, a1,  -]
    terminals    : [ 0,  0,  0,  1, |  0,  0,  1]

`terminals` marks the end of an episode's rows, not of its task: whether to bootstrap is the
relabelled `masks`' matter. A user's own npz or HDF5 file has the same columns plus `rewards` and,
where the task can end, `masks`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.columns import (
    HDF5_SUFFIXES,
    Floats,
    file_sha256,
    read_columns,
    require_matrix,
    require_vector,
)
from tql_offline.datasets.episodes import Array, Episodes, drop_last_rows, lengths_from_terminals
from tql_offline.datasets.names import DatasetName, collected_folder, find_file, parse_name
from tql_offline.errors import InputError

ACTION_BOUND = 1 - 1e-5
"""Data actions are clipped to ±(1 - 1e-5), as FQL's code does."""

_STATE_COLUMNS = ("qpos", "qvel", "button_states")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Episodes with where they came from.

    Attributes:
        episodes: the data.
        name: the dataset's name, or the file's stem for a user's own.
        path: the file.
        sha256: of the file.
        source: `collected`, `downloaded` or `own file`.
        env_id: the Gymnasium environment its policies are scored in, or None.
    """

    episodes: Episodes
    name: str
    path: Path
    sha256: str
    source: str
    env_id: str | None

    def describe(self) -> dict[str, Any]:
        """What the provenance of a run says of its data."""
        return {
            "name": self.name,
            "path": str(self.path),
            "sha256": self.sha256,
            "source": self.source,
            "transitions": self.episodes.num_transitions,
            "episodes": self.episodes.num_episodes,
        }


def load(dataset: str, path: Path | None = None, env_id: str | None = None) -> Dataset:
    """Load a dataset by name, or a user's own file.

    Args:
        dataset: an OGBench name (`cube-double-play-singletask-task1-v0`) or a path to a file.
        path: the file to take for that name instead of the downloaded or collected one.
        env_id: the environment to score policies in, for a user's own file.

    Raises:
        InputError: unknown name, missing or unusable file, or data that do not fit the environment.
    """
    if Path(dataset).suffix in (".npz", *HDF5_SUFFIXES):
        return _load_own(Path(dataset), env_id)
    name = parse_name(dataset)
    if name.task is None:
        raise InputError(
            f"{dataset} has no rewards; name a task, such as "
            f"{name.file.rpartition('-')[0]}-singletask-task1-v0"
        )
    return _load_ogbench(name, path or find_file(name))


def _load_own(path: Path, env_id: str | None) -> Dataset:
    columns = read_columns(path)
    observations, actions, lengths = _core_columns(columns, path)
    rewards = require_vector(columns, "rewards", len(observations), path)
    masks = np.ones_like(rewards)
    if "masks" in columns:
        masks = require_vector(columns, "masks", len(observations), path)
    episodes = Episodes(
        observations=observations,
        actions=_clip(drop_last_rows(actions, lengths)),
        rewards=drop_last_rows(rewards, lengths),
        masks=drop_last_rows(masks, lengths),
        lengths=lengths,
    )
    return Dataset(
        episodes=episodes,
        name=path.stem,
        path=path,
        sha256=file_sha256(path),
        source="own file",
        env_id=env_id,
    )


def _load_ogbench(name: DatasetName, path: Path) -> Dataset:
    columns = read_columns(path)
    observations, actions, lengths = _core_columns(columns, path)
    states = {k: drop_last_rows(columns[k], lengths) for k in _STATE_COLUMNS if k in columns}
    rewards, masks = relabel(name, observations.shape[1], actions.shape[1], states, path)
    episodes = Episodes(
        observations=observations,
        actions=_clip(drop_last_rows(actions, lengths)),
        rewards=rewards,
        masks=masks,
        lengths=lengths,
    )
    return Dataset(
        episodes=episodes,
        name=name.name,
        path=path,
        sha256=file_sha256(path),
        source="collected" if path.parent == collected_folder() else "downloaded",
        env_id=name.env_id,
    )


def _core_columns(
    columns: dict[str, Array], path: Path
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Observations, actions and episode lengths of a file in OGBench's layout."""
    observations = require_matrix(columns, "observations", None, path)
    actions = require_matrix(columns, "actions", len(observations), path)
    terminals = require_vector(columns, "terminals", len(observations), path)
    try:
        lengths = lengths_from_terminals(terminals)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return observations, actions, lengths


def relabel(
    name: DatasetName, observation_dim: int, action_dim: int, states: dict[str, Array], path: Path
) -> tuple[Floats, Floats]:
    """Rewards and masks of a singletask dataset, by `ogbench.relabel_utils`.

    Locomotion: reward = success - 1. Manipulation: (sub-goals met) - (sub-goals). The mask is 0
    where the task is solved.

    Raises:
        InputError: the file's shapes are not the environment's, or its state columns are missing.
    """
    from ogbench.relabel_utils import relabel_dataset  # imports MuJoCo: seconds, so only on use

    from tql_offline.eval.environments import make, quiet, vector_dim

    environment = make(name.env_id, success_timing=None)
    try:
        with quiet():
            spaces = (environment.observation_space, environment.action_space)
        for what, have, space in zip(
            ("observation", "action"), (observation_dim, action_dim), spaces, strict=True
        ):
            want = vector_dim(name.env_id, what, space)
            if have != want:
                raise InputError(
                    f"{path} has {have} {what} dims where {name.env_id} has {want}; "
                    f"it is not {name.file}, so give the right file or name"
                )
        labels: dict[str, Any] = dict(states)
        with quiet():
            relabel_dataset(name.env_id, environment, labels)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{path} lacks the simulator states ('qpos'…) that the rewards of {name.env_id} need; "
            "collect or download it again"
        ) from error
    finally:
        environment.close()
    return labels["rewards"], labels["masks"]


def _clip(actions: Floats) -> Floats:
    clipped: Floats = np.clip(actions, -ACTION_BOUND, ACTION_BOUND)
    return clipped
