"""Minari's HDF5 storage: `main_data.hdf5`, a group per episode."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from tql_offline.datasets.episodes import Array
from tql_offline.datasets.hdf5 import (
    check_layout,
    claimed_bytes,
    hdf5_columns,
    hdf5_item,
    opened_hdf5,
)
from tql_offline.datasets.minari import Leaf, RawEpisode, data_folder, metadata_of, storage_of
from tql_offline.datasets.reading import (
    MAX_COLUMNS,
    Wanted,
    check_size,
    damage_named,
    is_there,
    machine_bytes,
)
from tql_offline.documents import parse_json
from tql_offline.errors import InputError, shown

MAIN = "main_data.hdf5"
COLUMNS_KEY = "tql_offline_columns"
"""Metadata key, in a folder that `convert` wrote, of its columns in order."""
OWN_ROWS = ("actions", "rewards")
"""Columns of an episode that have no row for the last observation."""


def read_minari(folder: Path, *, infos: bool = True) -> dict[str, Array]:
    """The columns of a Minari dataset in HDF5 storage, in OGBench's layout.

    If `convert` wrote it, they are the source's. Otherwise they are observations, actions, rewards,
    `masks` 0 at terminations, `terminals`, and each info as a column of its name (`a.b` if nested).
    In an episode's last row, action and reward are then 0 and the mask is 1.

    Args:
        folder: the dataset's folder, or its `data` folder.
        infos: whether infos are kept.

    Raises:
        InputError: the folder is not one of Minari's, is in Arrow storage, has a space that is not
            a Box, or is damaged; or an info is not an array with the right number of rows.
    """
    data, metadata = data_folder(folder), metadata_of(folder)
    storage = storage_of(metadata)
    if storage != "hdf5":
        raise InputError(
            f"{folder} is stored as {shown(storage)}; only Minari's hdf5 storage can be converted"
        )
    for key in ("observation_space", "action_space"):
        kind = _space_type(metadata.get(key))
        if kind != "Box":
            raise InputError(
                f"{folder} has an {key} of type {shown(kind)} where a Box is needed; flatten it "
                "with Minari first"
            )
    with _opened(data) as (path, file):
        groups = _episode_groups(path, file)
        items = [_items(path, group, infos) for group in groups]
        _check_items(path, items)
        order = metadata.get(COLUMNS_KEY)
        if order is None:
            return _joined(path, map(_foreign_episode, items))
        return _own(path, items, groups, order)


def files_of(folder: Path) -> list[Path]:
    """The files of a dataset in this storage."""
    data = data_folder(folder)
    return [data / MAIN, data / "metadata.json"]


@contextmanager
def _opened(data: Path) -> Iterator[tuple[Path, h5py.File]]:
    """Open the file in a dataset's `data` folder; any fault in it becomes one sentence."""
    path = data / MAIN
    if not is_there(path):
        raise InputError(f"{path} does not exist; check the path")
    named = damage_named(path, "Minari file", "get the dataset again")
    with named, opened_hdf5(path) as file:
        yield path, file


def _space_type(text: Any) -> Any:
    try:
        return parse_json(text.encode())["type"]
    except (AttributeError, TypeError, ValueError, KeyError):
        return None


def raw_episodes(data: Path, leaves: Sequence[Leaf]) -> Iterator[RawEpisode]:
    """The episodes of a dataset, one after the other.

    Args:
        data: the dataset's `data` folder.
        leaves: leaves of the observation space.

    Raises:
        InputError: the file is missing or damaged, or an episode lacks its last observation.
    """
    with _opened(data) as (path, file):
        if not len(file):
            raise InputError(f"{path} holds no episode; get the dataset again")
        claimed, most = 0, machine_bytes()
        for number in range(len(file)):
            # An open dataset may take far more memory than its rows, so only one episode's are.
            items = _raw_items(path, _plain_group(path, file, f"episode_{number}"), leaves)
            claimed += sum(map(claimed_bytes, items))
            check_size(path, claimed)
            if 2 * claimed > most:
                raise MemoryError
            _check_counts(path, number, items)
            yield _raw(items)


_STEPS = ("actions", "rewards", "terminations")


def _raw_items(path: Path, group: h5py.Group, leaves: Sequence[Leaf]) -> list[h5py.Dataset]:
    """An episode's datasets: one for each leaf, then those of `_STEPS`."""
    found = []
    for leaf in leaves:
        inner, name = group, "observations"
        for key in leaf.keys:
            inner = _plain_group(path, inner, name)
            name = f"_index_{key}" if isinstance(key, int) else key
        found.append(_item(path, inner, name))
    return [*found, *(_item(path, group, name) for name in _STEPS)]


def _check_counts(path: Path, number: int, items: Sequence[h5py.Dataset]) -> None:
    actions = items[-3]
    steps = actions.shape[0] if actions.shape else 0
    for place, item in enumerate(items):
        check_layout(path, item, str(item.name))
        is_step = place >= len(items) - len(_STEPS)
        rows = steps if is_step else steps + 1
        if not steps or not item.shape or item.shape[0] != rows:
            raise InputError(
                f"episode {number} of {path} has {shown(item.name)} of shape {item.shape} where "
                f"{rows} rows are needed, as its {steps} actions have one observation more; leave "
                "that episode out"
            )


def _raw(items: Sequence[h5py.Dataset]) -> RawEpisode:
    *observations, actions, rewards, terminations = map(_read, items)
    return RawEpisode(
        observations=observations, actions=actions, rewards=rewards, terminations=terminations
    )


def _plain_group(path: Path, parent: h5py.Group, name: str) -> h5py.Group:
    link = parent.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink) or not isinstance(parent[name], h5py.Group):
        raise InputError(f"{path} has no group {shown(name)} of its own; get the dataset again")
    return cast(h5py.Group, parent[name])


def _episode_groups(path: Path, file: h5py.File) -> list[h5py.Group]:
    count = len(file)
    if count == 0:
        raise InputError(f"{path} holds no episode; get the dataset again")
    return [_plain_group(path, file, f"episode_{number}") for number in range(count)]


def _items(path: Path, group: h5py.Group, infos: bool) -> dict[str, h5py.Dataset]:
    """An episode's datasets; those of infos are named `infos/...`."""
    found: dict[str, h5py.Dataset] = {}
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        found[name] = _item(path, group, name)
    if infos and "infos" in group:
        waiting = [("infos", _plain_group(path, group, "infos"))]
        while waiting:
            prefix, inner = waiting.pop()
            for name in inner:
                if len(found) > MAX_COLUMNS:
                    raise InputError(f"{path} holds too many infos; leave them out")
                called = f"infos/{name}" if prefix == "infos" else f"{prefix}.{name}"
                link = inner.get(name, getlink=True)
                if isinstance(link, h5py.HardLink) and isinstance(inner[name], h5py.Group):
                    if called.count(".") > 8:
                        raise InputError(f"{path} has infos nested too deep; leave them out")
                    waiting.append((called, _plain_group(path, inner, name)))
                else:
                    found[called] = _item(path, inner, name)
    return found


def _item(path: Path, group: h5py.Group, name: str) -> h5py.Dataset:
    if name not in group or not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise InputError(
            f"{path} has no {shown(name)} of its own in {shown(group.name)}; get the dataset again"
        )
    made = group[name]
    if isinstance(made, h5py.Dataset) and made.dtype.kind not in "biuf":
        raise InputError(
            f"{path} holds {shown(name)} in {shown(group.name)}, which is not an array of numbers; "
            "leave infos out with --without-infos, or store images without JPEG"
        )
    return hdf5_item(path, cast(h5py.File, group), name)


def _check_items(path: Path, items: list[dict[str, h5py.Dataset]]) -> None:
    check_size(path, sum(claimed_bytes(item) for one in items for item in one.values()))
    for number, one in enumerate(items):
        if one.keys() != items[0].keys():
            odd = sorted(one.keys() ^ items[0].keys())[0]
            raise InputError(
                f"episode {number} of {path} has not the same arrays as episode 0 ({shown(odd)}); "
                "leave infos out with --without-infos"
            )
        steps = one["actions"].shape[0] if one["actions"].shape else 0
        for name, item in one.items():
            check_layout(path, item, name)
            longer = name == "observations" or name.startswith("infos/")
            if not steps or not item.shape or item.shape[0] != steps + longer:
                raise InputError(
                    f"episode {number} of {path} has {shown(name)} of shape {item.shape} where "
                    f"{steps + longer} rows are needed; leave that episode, or infos, out"
                )


def _read(item: h5py.Dataset) -> Array:
    return hdf5_columns({"": item}, Wanted(None, ()))[""]


def _with_last(column: Array, last: Any) -> Array:
    row = np.empty_like(column[:1])
    row[0] = last
    return np.concatenate([column, row])


def _foreign_episode(items: dict[str, h5py.Dataset]) -> dict[str, Array]:
    observations, terminations = _read(items["observations"]), _read(items["terminations"])
    terminals = np.zeros(len(observations), bool)
    terminals[-1] = True
    columns = {
        "observations": observations,
        "actions": _with_last(_read(items["actions"]), 0),
        "terminals": terminals,
        "rewards": _with_last(_read(items["rewards"]), 0),
        "masks": _with_last((terminations == 0).astype(np.float32), 1),
    }
    for name, item in items.items():
        info = name.removeprefix("infos/")
        if name != info:
            columns[info if info not in columns else f"info_{info}"] = _read(item)
    return columns


def _own(
    path: Path, items: list[dict[str, h5py.Dataset]], groups: list[h5py.Group], order: Any
) -> dict[str, Array]:
    """The columns that `convert` wrote, in their order."""
    names = [str(name) for name in order] if isinstance(order, list) else []
    have = {name.removeprefix("infos/") for name in items[0]} - {"terminations", "truncations"}
    missing = {"rewards"} - set(names)
    if len(set(names)) != len(names) or set(names) != have - missing:
        raise InputError(f"{path} has not the columns that its metadata name; convert it again")

    def episode(one: dict[str, h5py.Dataset], group: h5py.Group) -> dict[str, Array]:
        columns = {name.removeprefix("infos/"): item for name, item in one.items()}
        read = {name: _read(columns[name]) for name in names}
        for name in OWN_ROWS:
            if name in read:
                read[name] = _with_last(read[name], _last(path, group, f"last_{name}", read[name]))
        return read

    return _joined(path, (episode(*both) for both in zip(items, groups, strict=True)))


def _last(path: Path, group: h5py.Group, name: str, column: Array) -> Array:
    if name in group.attrs:
        stored = group.attrs.get_id(name)
        if stored.shape == column.shape[1:] and stored.dtype == column.dtype:
            return np.asarray(group.attrs[name])
    raise InputError(f"{path} has no {name} in {shown(group.name)}; convert it again")


def _joined(path: Path, episodes: Iterator[dict[str, Array]]) -> dict[str, Array]:
    parts = list(episodes)
    joined = {}
    for name, first in parts[0].items():
        for number, part in enumerate(parts):
            if part[name].dtype != first.dtype or part[name].shape[1:] != first.shape[1:]:
                raise InputError(
                    f"episode {number} of {path} has {shown(name)} of another type or width than "
                    "episode 0; leave it out"
                )
        joined[name] = np.concatenate([part[name] for part in parts])
    return joined
