"""Everything wrong with a dataset in any layout, as `datasets check` prints it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tql_offline.datasets.action_bounds import (
    BOUNDS_SETTING,
    OutOfBoundsError,
    as_setting,
    bounds_by_dim,
    checked_bounds,
    scale_actions,
)
from tql_offline.datasets.catalogue import Entry, find_or_none, suite_of
from tql_offline.datasets.checks import check, check_spaces, quick_check
from tql_offline.datasets.columns import HDF5_SUFFIXES, is_flat, read_columns
from tql_offline.datasets.d4rl import d4rl_file, episodes_of
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.episodes import Array, Episodes
from tql_offline.datasets.findings import Finding, warnings_first
from tql_offline.datasets.load import (
    Dataset,
    kind_of,
    load,
    own_episodes,
    refuse_bounds,
    without_masks,
)
from tql_offline.datasets.reading import COLUMNS
from tql_offline.datasets.verify import not_published
from tql_offline.datasets.views import View, view_of, view_of_columns, view_of_flat
from tql_offline.errors import AdvisedError, InputError

_OPTION = f"--action-bounds {{low}},{{high}} (in training: {BOUNDS_SETTING})"
"""How `datasets check` and training are told bounds."""
_OWN_COLUMNS = ("observations", "actions", "terminals", "rewards", "masks")
_REFUSED = "refused"
"""The kind of finding that training refuses the data."""


def check_dataset(
    data: str, env_id: str = "", action_bounds: Sequence[float] = ()
) -> list[Finding]:
    """All findings about a dataset.

    Args:
        data: its name, file or folder.
        env_id: the environment whose dims it should have; empty to compare none.
        action_bounds: bounds of the actions in a user's own file, as for `load`.

    Raises:
        InputError: it cannot be read in any layout, or it is no user's own and bounds are given.
    """
    bounds = checked_bounds(action_bounds)
    try:
        return _all_findings(data, env_id, bounds)
    except OutOfBoundsError as error:
        raise _advised(error, env_id, bounds) from error


def quick_findings(loaded: Dataset) -> list[Finding]:
    """What a check of some rows of loaded data finds, and whether their file is the published one.

    Waits for the digest of the file.
    """
    found = quick_check(
        loaded.episodes, jumps=not _teleports(loaded.name), goes_on=_goes_on(loaded)
    )
    return [*loaded.not_published(), *found]


def _all_findings(data: str, env_id: str, bounds: Sequence[float]) -> list[Finding]:
    kind = kind_of(data)
    if is_flat(Path(data)) or kind == "d4rl":
        return _flat_findings(data, find_or_none(data), env_id, bounds)
    if Path(data).suffix in (".npz", *HDF5_SUFFIXES):
        return _own_findings(data, env_id, bounds)
    if kind == "minari":
        loaded = load(data, action_bounds=bounds)
        return _findings(view_of(loaded.episodes), data, env_id, loaded.action_bounds)
    # `load` compares dims, and takes no other environment than the data's own.
    loaded = load(data, env_id=env_id or None, action_bounds=bounds)
    found = check(view_of(loaded.episodes), jumps=not _teleports(data), goes_on=_goes_on(loaded))
    return [*loaded.not_published(), *found]


def _own_findings(data: str, env_id: str, bounds: Sequence[float]) -> list[Finding]:
    """Findings about a file in the layout of docs/data.md."""
    path = Path(data)
    columns = read_columns(path, only=_OWN_COLUMNS, floats=_scaled_columns(bounds))
    scale_actions(columns, bounds)
    view = view_of_columns(columns, data)
    found = _findings(view, data, env_id, bounds_by_dim(_action_dim(view), bounds))
    if "masks" not in columns:
        found.append(without_masks(view.lengths, *_last_rows(view)))
    refused = [
        f for f in _read(lambda: own_episodes(columns, path), env_id, bounds) if f.kind == _REFUSED
    ]
    return [*refused, *warnings_first(found)]  # what else reading finds is found in the view, too


def _last_rows(view: View) -> Iterator[tuple[Array, Array]]:
    """Actions and rewards of last rows, and of the rows before, as far as they are read."""
    for last, each in ((view.last_actions, view.actions), (view.last_rewards, view.rewards)):
        if last is not None and each is not None:
            yield last, each[view.lasts]


def _flat_findings(
    data: str, entry: Entry | None, env_id: str, bounds: Sequence[float]
) -> list[Finding]:
    """Findings about a file in D4RL's layout, or one of D4RL's datasets."""
    if entry is not None:
        refuse_bounds(data, bounds)
    path = Path(data) if entry is None else d4rl_file(entry)
    columns = read_columns(path, only=COLUMNS, floats=_scaled_columns(bounds), flat=True)
    scale_actions(columns, bounds)
    limit = None if entry is None else entry.max_episode_steps
    view = view_of_flat(columns, str(path), limit)
    found = _findings(view, data, env_id, bounds_by_dim(_action_dim(view), bounds))
    if entry is None:
        return warnings_first([*_read(lambda: episodes_of(columns, path), env_id, bounds), *found])
    faults = [Finding("warning", "broken", f"{data}: {fault}") for fault in entry.faults]
    read = _read(
        lambda: episodes_of(columns, path, max_episode_steps=limit, clips=True), env_id, bounds
    )
    faults += not_published(path, entry, file_sha256(path))
    return warnings_first([*faults, *read, *found])


def _findings(
    view: View, data: str, env_id: str, scaled_from: Sequence[Sequence[float]] | None
) -> list[Finding]:
    spaces: list[Finding] = []
    if env_id:
        # Bounds of other dims are not comparable.
        spaces = check_spaces(view, env_id) or [*_other_bounds(view, data, env_id, scaled_from)]
    return spaces + check(view, jumps=not _teleports(data))


def _other_bounds(
    view: View, data: str, env_id: str, scaled_from: Sequence[Sequence[float]] | None
) -> Iterator[Finding]:
    """The finding that training refuses the environment for its action bounds, if it does."""
    from tql_offline.eval.bounds import check_bounds  # imports MuJoCo: only when needed

    try:
        check_bounds(env_id, _action_dim(view), scaled_from, data, f"give {_OPTION}")
    except InputError as error:
        yield Finding("warning", "bounds", str(error))


def _action_dim(view: View) -> int:
    return view.actions.shape[1] if view.actions.ndim > 1 else 1


def _scaled_columns(bounds: Sequence[float]) -> tuple[str, ...]:
    """Columns to read as floats: actions to be scaled may be stored as integers."""
    return ("actions",) if bounds else ()


def _read(
    read: Callable[[], tuple[Episodes, list[Finding]]], env_id: str, bounds: Sequence[float]
) -> list[Finding]:
    """What reading for training finds, or that it refuses the columns, which this uses up."""
    try:
        return read()[1]
    except InputError as error:
        said = _advised(error, env_id, bounds) if isinstance(error, OutOfBoundsError) else error
        return [Finding("warning", _REFUSED, f"training refuses it: {said}")]


def _advised(error: OutOfBoundsError, env_id: str, bounds: Sequence[float]) -> AdvisedError:
    """What training says, with the option of `datasets check` beside training's setting."""
    if not env_id:
        return error.told(bounds, _OPTION.format(low="LOW", high="HIGH"))
    from tql_offline.eval.bounds import RESCALED  # imports MuJoCo: only when needed
    from tql_offline.eval.environments import action_space

    space = action_space(env_id)
    low, high = space.low.tolist(), space.high.tolist()
    given = bounds_by_dim(len(low), bounds) if len(bounds) in (2, 2 * len(low)) else None
    if given and np.allclose(given, (low, high)):
        return AdvisedError(error.told(bounds).fault, "clip that action, or leave out its episode")
    if setting := as_setting(low, high):
        return error.told(bounds, _OPTION.format(**setting))
    fault = error.told(bounds).fault
    return AdvisedError(f"{fault}, and {env_id!r} has no finite bounds", RESCALED)


def _goes_on(loaded: Dataset) -> bool:
    """Whether episodes go on after the task's end, as OGBench's do."""
    return not loaded.is_own and suite_of(loaded.name).startswith("ogbench")


def _teleports(data: str) -> bool:
    return "teleport" in Path(data).name
