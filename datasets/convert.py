"""Convert data between OGBench's npz, HDF5 with the same columns, and Minari, without loss.

Every column keeps its numbers, type and order, whatever it is called. A Minari dataset is a folder:

    TARGET/data/metadata.json       spaces; `tql_offline_columns`: names of the columns, in order
    TARGET/data/main_data.hdf5      a group per episode
        observations                T + 1 rows
        actions, rewards            T rows; the last, unused one is attribute `last_<column>`
        terminations, truncations   at the last step, from the masks
        infos/<column>              every other column, T + 1 rows
    TARGET.json                     digests of the source, the target and each column

A target is written aside, read again and compared with the source, and renamed into place.
"""

import hashlib
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from tql_offline.datasets import columns as reader
from tql_offline.datasets.checks import view_of_columns
from tql_offline.datasets.columns import HDF5_SUFFIXES, file_sha256, read_columns
from tql_offline.datasets.episodes import Array
from tql_offline.datasets.slices import slices_sha256
from tql_offline.errors import InputError, shown
from tql_offline.runs import read_json, write_json, writing

FORMATS = ("npz", "hdf5", "minari")
SCHEMA = "tql-offline-conversion/1"
_MAIN = "main_data.hdf5"
_COLUMNS = "tql_offline_columns"
_OWN_ROWS = ("actions", "rewards")
"""Columns of a Minari episode that have no row for the last observation."""
_LAST_BYTES = 2**16
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


def convert(
    source: Path,
    target: Path,
    to: str = "",
    *,
    force: bool = False,
    packed: bool = False,
    infos: bool = True,
) -> dict[str, Any]:
    """Write a dataset again in another format.

    Args:
        source: `.npz`, HDF5, or a folder of Minari's.
        target: what to write.
        to: `npz`, `hdf5` or `minari`; empty goes by the target's suffix, a folder being Minari's.
        force: replace a target that exists.
        packed: npz and HDF5 by deflate: smaller, and slower to load.
        infos: of a Minari dataset of others keep the infos as columns.

    Returns:
        The manifest, which is also written beside the target.

    Raises:
        InputError: the source cannot be read or not be kept in the target's format, or the target
            exists or cannot be written. Nothing is changed then.
    """
    to = _format(target, to)
    if source.resolve() == target.resolve():
        raise InputError(f"{source} would be converted onto itself; name another target")
    if not force and target.exists():
        raise InputError(f"{target} exists already; give --force to replace it")
    columns = read_any(source, infos=infos)
    with writing(target), _aside(target) as aside:
        target.parent.mkdir(parents=True, exist_ok=True)
        {"npz": _write_npz, "hdf5": _write_hdf5, "minari": _write_minari}[to](
            columns, aside, packed
        )
        digests = {name: _digest(column) for name, column in columns.items()}
        again = read_any(aside)
        if {name: _digest(column) for name, column in again.items()} != digests:
            raise InputError(f"{source} is not kept whole as {to}; convert it to another format")
        manifest = {
            "schema": SCHEMA,
            "source": {"name": source.name, "sha256": _sha256(source)},
            "target": {"name": target.name, "format": to, "sha256": _sha256(aside)},
            "columns": {
                name: {"dtype": str(column.dtype), "shape": column.shape, "sha256": digests[name]}
                for name, column in columns.items()
            },
        }
        _put(aside, target)
    write_json(target.with_name(f"{target.name}.json"), manifest)
    return manifest


def read_any(source: Path, *, infos: bool = True) -> Mapping[str, Array]:
    """All columns of a file or a Minari folder, in OGBench's layout and as they were stored.

    Raises:
        InputError: it cannot be read.
    """
    return read_minari(source, infos=infos) if source.is_dir() else read_columns(source)


def _format(target: Path, to: str) -> str:
    by_suffix = {".npz": "npz", "": "minari"} | dict.fromkeys(HDF5_SUFFIXES, "hdf5")
    want = by_suffix.get(target.suffix, "minari")
    if to and to not in FORMATS:
        raise InputError(f"--to {shown(to)} is none of {', '.join(FORMATS)}; choose one of them")
    if to and to != want:
        raise InputError(
            f"{target} names {want} and --to {to}; name a .npz file, a .hdf5 file, or a folder for "
            "Minari"
        )
    return want


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A name beside the target, of the same suffix; what lies there is removed in the end."""
    aside = target.with_name(f".{os.getpid()}.part.{target.name}")
    try:
        yield aside
    finally:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put(aside: Path, target: Path) -> None:
    """Rename into place; a folder in the way goes when the new one is there."""
    if not target.is_dir():
        aside.replace(target)
        return
    old = target.with_name(f".{os.getpid()}.old.{target.name}")
    target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        old.rename(target)
        raise
    _remove(old)


def _digest(column: Array) -> str:
    """SHA-256 of type, shape and numbers."""
    digest = hashlib.sha256(f"{column.dtype.str} {column.shape} ".encode())
    digest.update(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    """Of a file; of a Minari folder, of what `sha256sum` prints of its two files."""
    if path.is_file():
        return file_sha256(path)
    data = _data_folder(path)
    return slices_sha256([data / _MAIN, data / "metadata.json"])


def _write_npz(columns: Mapping[str, Array], path: Path, packed: bool) -> None:
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    # Not by `np.savez`, to which a column could not be called `file`; same columns, same bytes.
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            for name, column in columns.items():
                member = zipfile.ZipInfo(f"{name}.npy", _LONG_AGO)
                member.compress_type = method
                with archive.open(member, "w", force_zip64=True) as part:
                    np.lib.format.write_array(part, column, allow_pickle=False)
        _flush(file)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_hdf5(columns: Mapping[str, Array], path: Path, packed: bool) -> None:
    for name, column in columns.items():
        if column.dtype.kind not in "biufc" or "/" in name:
            raise InputError(
                f"column {shown(name)} of {column.dtype} has no place in an HDF5 file; leave it out"
            )
    with h5py.File(path, "w", track_order=True) as file:
        for name, column in columns.items():
            packing = {"compression": "gzip", "shuffle": True} if packed and column.size > 1 else {}
            file.create_dataset(name, data=column, **packing)
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _write_minari(columns: Mapping[str, Array], path: Path, _packed: bool) -> None:
    try:
        from minari import __version__ as version
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise InputError(
            "Minari is not installed; run pip install 'tql-offline[minari]'"
        ) from error
    counts = view_of_columns(columns, "the source").observation_counts
    _check_for_minari(columns, int(counts.sum()))
    path.mkdir(parents=True)
    spaces = (_space(columns["observations"]), _space(columns["actions"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = MinariStorage.new(path / "data", *spaces, jpeg_encoding=False)
        target_id = path.name.split(".part.")[-1]
        storage.update_metadata(
            {
                "dataset_id": target_id if "-v" in target_id else f"{target_id}-v0",
                "minari_version": version,
                _COLUMNS: list(columns),
            }
        )
        bounds = np.cumsum(counts).tolist()
        episodes = [
            {name: column[start:stop] for name, column in columns.items()}
            for start, stop in zip([0, *bounds[:-1]], bounds, strict=True)
        ]
        storage.update_episodes(EpisodeBuffer(**_episode(episode)) for episode in episodes)
        storage.update_episode_metadata(
            {f"last_{name}": episode[name][-1] for name in _OWN_ROWS if name in episode}
            for episode in episodes
        )


def _check_for_minari(columns: Mapping[str, Array], rows: int) -> None:
    for name, column in columns.items():
        plain = column.dtype.kind in "biuf" and column.dtype.isnative and "/" not in name
        if not plain or column.ndim == 0 or len(column) != rows:
            raise InputError(
                f"column {shown(name)}, {column.dtype} of shape {column.shape}, has no place in "
                f"Minari's episodes, which need numbers in each of the {rows} rows; leave it out"
            )
        if name in _OWN_ROWS and column[:1].nbytes > _LAST_BYTES // 2:
            raise InputError(f"column {shown(name)} has rows too wide for Minari; leave it out")


def _space(column: Array) -> Any:
    import gymnasium

    low, high = (-np.inf, np.inf)
    if column.dtype.kind in "iu":
        low, high = np.iinfo(cast(Any, column.dtype)).min, np.iinfo(cast(Any, column.dtype)).max
    elif column.dtype.kind == "b":
        low, high = 0, 1
    dtype = cast(Any, np.int8 if column.dtype.kind == "b" else column.dtype)
    return gymnasium.spaces.Box(low, high, column.shape[1:], dtype)


def _episode(columns: Mapping[str, Array]) -> dict[str, Any]:
    """What Minari stores of one episode."""
    steps = len(columns["observations"]) - 1
    ended = "masks" in columns and not np.any(columns["masks"][steps - 1])
    last = np.zeros(steps, bool)
    last[-1] = True
    return {
        "observations": columns["observations"],
        "actions": columns["actions"][:steps],
        "rewards": columns["rewards"][:steps] if "rewards" in columns else np.zeros(steps),
        "terminations": last & ended,
        "truncations": last & (not ended),
        "infos": {
            name: column
            for name, column in columns.items()
            if name not in ("observations", *_OWN_ROWS)
        },
    }


# Reading Minari's folders.


def _data_folder(folder: Path) -> Path:
    return folder / "data" if (folder / "data").is_dir() else folder


def read_minari(folder: Path, *, infos: bool = True) -> dict[str, Array]:
    """The columns of a Minari dataset in HDF5 storage, in OGBench's layout.

    Of one that `convert` wrote they are the source's. Of others: observations, actions, rewards,
    `masks` 0 at terminations, `terminals`, and each info as a column of its name (`a.b` of nested
    ones). What stands in an episode's last row for action and reward is 0, for the mask 1.

    Args:
        folder: the dataset's, or its `data` folder.
        infos: whether infos are kept.

    Raises:
        InputError: the folder is none of Minari's, of Arrow storage, of spaces that are no Box, or
            damaged; or an info is no number per row.
    """
    data = _data_folder(folder)
    metadata = read_json(data / "metadata.json")
    if metadata.get("data_format") != "hdf5":
        raise InputError(
            f"{folder} is stored as {shown(metadata.get('data_format'))}; only Minari's hdf5 "
            "storage can be converted"
        )
    for key in ("observation_space", "action_space"):
        kind = _space_type(metadata.get(key))
        if kind != "Box":
            raise InputError(
                f"{folder} has an {key} of type {shown(kind)} where a Box is needed; flatten it "
                "with Minari first"
            )
    path = data / _MAIN
    if not reader._is_there(path):
        raise InputError(f"{path} does not exist; check the path")
    named = reader._damage_named(path, "Minari file", "get the dataset again")
    with named, h5py.File(path, "r") as file:
        groups = _episode_groups(path, file)
        items = [_items(path, group, infos) for group in groups]
        _check_items(path, items)
        order = metadata.get(_COLUMNS)
        if order is None:
            return _joined(path, map(_foreign_episode, items))
        return _own(path, items, groups, order)


def _space_type(text: Any) -> Any:
    try:
        return json.loads(text)["type"]
    except (TypeError, ValueError, KeyError, RecursionError):
        return None


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
    """An episode's datasets; those of infos are called `infos/...`."""
    found: dict[str, h5py.Dataset] = {}
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        found[name] = _item(path, group, name)
    if infos and "infos" in group:
        waiting = [("infos", _plain_group(path, group, "infos"))]
        while waiting:
            prefix, inner = waiting.pop()
            for name in inner:
                if len(found) > reader.MAX_COLUMNS:
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
            "leave infos out with --without-infos, or store pictures without JPEG"
        )
    return reader._hdf5_item(path, cast(h5py.File, group), name)


def _check_items(path: Path, items: list[dict[str, h5py.Dataset]]) -> None:
    reader._check_size(path, sum(reader._claimed(item) for one in items for item in one.values()))
    for number, one in enumerate(items):
        if one.keys() != items[0].keys():
            odd = sorted(one.keys() ^ items[0].keys())[0]
            raise InputError(
                f"episode {number} of {path} has not the same arrays as episode 0 ({shown(odd)}); "
                "leave infos out with --without-infos"
            )
        steps = one["actions"].shape[0] if one["actions"].shape else 0
        for name, item in one.items():
            reader._check_layout(path, item, name)
            longer = name == "observations" or name.startswith("infos/")
            if not steps or not item.shape or item.shape[0] != steps + longer:
                raise InputError(
                    f"episode {number} of {path} has {shown(name)} of shape {item.shape} where "
                    f"{steps + longer} rows are needed; leave that episode, or infos, out"
                )


def _read(item: h5py.Dataset) -> Array:
    return reader._hdf5_column(item, "", reader._Wanted(None, ()))[0]


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
        for name in _OWN_ROWS:
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
