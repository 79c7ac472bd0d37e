"""Episodes in OGBench's layout, and the rewards of its tasks.

A file keeps every episode's last observation in a row of its own, whose action is unused (columns
of two episodes of 3 and 2 transitions):

    observations : [s0, s1, s2, s3, | s0, s1, s2]
    actions      : [a0, a1, a2,  -, | a0, a1,  -]
    terminals    : [ 0,  0,  0,  1, |  0,  0,  1]

`terminals` marks the end of an episode's rows, not of its task: the relabelled `masks` say whether
to bootstrap.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.episodes import (
    ACTION_BOUND,
    Array,
    Episodes,
    NoLastEndError,
    NoTransitionError,
    drop_last_rows,
    lengths_from_terminals,
)
from tql_offline.datasets.names import DatasetName, collected_folder, commands_for
from tql_offline.datasets.reading import Floats
from tql_offline.datasets.required import require_marks, require_matrix, require_states
from tql_offline.datasets.views import as_steps
from tql_offline.errors import InputError
from tql_offline.files import read_json

if TYPE_CHECKING:
    import gymnasium

FLOATS = ("observations", "actions")
_STATE_COLUMNS = ("qpos", "button_states")
COLUMNS = (*FLOATS, "terminals", *_STATE_COLUMNS)


def episodes_of(columns: Mapping[str, Array], name: DatasetName, path: Path) -> Episodes:
    """The episodes of a published dataset's columns, whose memory they take over.

    Raises:
        InputError: the columns are not those of the named dataset.
    """
    observations, actions, lengths = core_columns(columns, path)
    states = {
        column: drop_last_rows(require_states(columns, column, len(observations), path), lengths)
        for column in _STATE_COLUMNS
        if column in columns
    }
    observation_dim = None if is_images(observations) else observations.shape[1]
    rewards, masks = relabel(name, observation_dim, actions.shape[1], states, path)
    return Episodes(
        observations=observations,
        actions=clip(drop_last_rows(actions, lengths)),
        rewards=rewards,
        masks=masks,
        lengths=lengths,
    )


def core_columns(
    columns: Mapping[str, Array], path: Path
) -> tuple[Array, Floats, NDArray[np.int64]]:
    """Observations, actions and episode lengths of a file in OGBench's layout."""
    observations: Array
    if "observations" in columns and is_images(columns["observations"]):
        observations = columns["observations"]
    else:
        observations = require_matrix(columns, "observations", None, path)
    actions = require_matrix(columns, "actions", len(observations), path)
    terminals = require_marks(columns, "terminals", len(observations), path)
    try:
        lengths = lengths_from_terminals(terminals)
    except NoTransitionError as error:
        named = NoTransitionError(f"{path}: {error.fault}", error.advice)
        raise as_steps(named, columns, terminals != 0) from error
    except NoLastEndError as error:
        raise NoLastEndError(f"{path}: {error.fault}", error.advice) from error
    return observations, actions, lengths


def is_images(observations: Array) -> bool:
    """Whether observations are uint8 images `(rows, height, width, channels)`."""
    is_bytes = observations.dtype == np.uint8 and observations.ndim == 4
    return is_bytes and 0 not in observations.shape


def clip(actions: Floats) -> Floats:
    """Clip actions in place, without a second copy of the column."""
    clipped: Floats = np.clip(actions, -ACTION_BOUND, ACTION_BOUND, out=actions)
    return clipped


def relabel(
    name: DatasetName,
    observation_dim: int | None,
    action_dim: int,
    states: dict[str, Array],
    path: Path,
) -> tuple[Floats, Floats]:
    """Rewards and masks of a singletask dataset, computed by `ogbench.relabel_utils`.

    Locomotion: reward = success - 1. Manipulation: (sub-goals met) - (sub-goals). The mask is 0
    where the task is solved. Both come from the simulator's states, so for a dataset of images
    (`observation_dim` None) the environment without images gives the same.

    Raises:
        InputError: the file's shapes do not match the environment's, or its state columns are
            missing or do not match.
    """
    from ogbench.relabel_utils import relabel_dataset  # imports MuJoCo, which takes seconds

    from tql_offline.eval.environments import make, quiet, vector_dim

    if observation_dim is None:
        if not name.env_id.startswith("visual-"):
            raise InputError(
                f"{path} has images where {name.env_id} has numbers; it is not {name.file}, so "
                "give the right file or name"
            )
        name = replace(name, env_id=name.env_id.removeprefix("visual-"))
    environment = make(name.env_id, success_timing=None)
    try:
        with quiet():
            spaces = (environment.observation_space, environment.action_space)
        for what, have, space in zip(
            ("observation", "action"), (observation_dim, action_dim), spaces, strict=True
        ):
            if have is None:
                continue
            want = vector_dim(name.env_id, what, space)
            if have != want:
                raise InputError(
                    f"{path} has {have} {what} dims where {name.env_id} has {want}; "
                    f"it is not {name.file}, so give the right file or name"
                )
        labels: dict[str, Any] = dict(states)
        with quiet():
            _check_states(name, environment, states, path)
            relabel_dataset(name.env_id, environment, labels)
    finally:
        environment.close()
    return labels["rewards"], labels["masks"]


def _check_states(
    name: DatasetName,
    environment: "gymnasium.Env[Any, Any]",
    states: dict[str, Array],
    path: Path,
) -> None:
    """Refuse states of another simulator: their columns would be read as other quantities."""
    environment.reset()  # manipulation environments have no model until reset
    simulator: Any = environment.unwrapped
    widths = {"qpos": simulator.model.nq}
    if hasattr(simulator, "_num_buttons"):
        widths["button_states"] = simulator._num_buttons
    for column, width in widths.items():
        if column not in states:
            raise InputError(
                f"{path} lacks the simulator states {column!r} that the rewards of {name.env_id} "
                f"need; {mend_of(name)}"
            )
        if states[column].shape[1:] != (width,):
            raise InputError(
                f"column {column!r} of {path} has rows of shape {states[column].shape[1:]} where "
                f"{name.env_id} has ({width},); it is not {name.file}, so give the right file or "
                "name"
            )


def source_of(path: Path, sha256: str) -> str:
    """Tell whether a file that was found by its name was collected or downloaded."""
    if path.parent == collected_folder() or _is_collected(path, sha256):
        return "collected"
    return "downloaded"


def _is_collected(path: Path, sha256: str) -> bool:
    """Whether a collection's manifest lies beside the file and has its digest."""
    try:
        recorded = read_json(path.with_suffix(".json")).get("sha256")
    except InputError:
        return False
    return isinstance(recorded, dict) and recorded.get(path.name) == sha256


def mend_of(name: DatasetName) -> str:
    """How to replace a dataset's damaged file."""
    try:
        return f"delete it and run {commands_for(name.file)}"
    except InputError:
        return "get the file again from where it came"
