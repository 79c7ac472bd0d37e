"""Minari's datasets, read without Minari from folders in its own layout as canonical episodes.

    FOLDER/data/metadata.json        spaces, storage, the environment's specification
    FOLDER/data/main_data.hdf5       storage `hdf5`: minari_hdf5.py
    FOLDER/data/<episode>/*.arrow    storage `arrow`: minari_arrow.py

An episode of T steps has T + 1 observations, so its last transition is kept. `terminations` stop
the bootstrap (mask 0); `truncations` do not. Observations of Dict and Tuple spaces are concatenated
as by `gymnasium.spaces.flatten`, a Dict's in the order of its sorted keys.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.blocks import first_bad
from tql_offline.datasets.episodes import ACTION_BOUND, ACTION_TOLERANCE, Array, Episodes
from tql_offline.datasets.names import MINARI_PREFIX, minari_folder
from tql_offline.datasets.reading import Floats
from tql_offline.documents import is_whole, parse_json
from tql_offline.errors import InputError, shown
from tql_offline.files import read_json

STORAGES = ("hdf5", "arrow")
MAX_LEAVES = 64
MAX_WIDTH = 2**20
"""Most numbers that one observation may have."""
_METADATA = "metadata.json"
_MAX_NAME = 200
_EXACT = 2**53 - 1
"""Largest whole number that floats tell from its neighbours."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A space that contains no other spaces.

    Attributes:
        keys: path to it: keys of Dicts and positions in Tuples.
        kind: `Box`, `Discrete` or `MultiBinary`.
        shape: shape of what is stored per step.
        low: lower bounds of a Box, of shape `shape`.
        high: upper bounds of a Box, of shape `shape`.
        first: smallest value of a Discrete.
        count: number of values of a Discrete.
        is_bytes: whether it is a Box of uint8.
    """

    keys: tuple[str | int, ...]
    kind: str
    shape: tuple[int, ...]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    first: int = 0
    count: int = 0
    is_bytes: bool = False

    @property
    def width(self) -> int:
        """How many numbers a flattened step has; a Discrete is one-hot."""
        return self.count if self.kind == "Discrete" else math.prod(self.shape)

    @property
    def name(self) -> str:
        """Name to show to the user."""
        return ".".join(("observations", *map(str, self.keys)))

    @property
    def is_image(self) -> bool:
        """Whether it holds uint8 images `(height, width, channels)`."""
        return self.is_bytes and len(self.shape) == 3


@dataclass(frozen=True, kw_only=True)
class RawEpisode:
    """An episode of T steps as it is stored.

    Attributes:
        observations: one array `(T + 1, *shape)` per leaf of the observation space.
        actions: `(T, n_a)`.
        rewards: `(T,)`.
        terminations: `(T,)`.
    """

    observations: Sequence[Array]
    actions: Array
    rewards: Array
    terminations: Array


@dataclass(frozen=True, kw_only=True)
class MinariData:
    """The result of reading a dataset.

    Attributes:
        name: the dataset's own name, from the metadata.
        episodes: the data.
        files: the files that were read.
        notes: sentences on what was changed.
        action_bounds: lower and upper bounds of the stored actions, if they were scaled.
    """

    name: str
    episodes: Episodes
    files: Sequence[Path]
    notes: tuple[str, ...]
    action_bounds: tuple[list[float], list[float]] | None


def data_folder(folder: Path) -> Path:
    """The folder that holds a dataset's files: its `data` subfolder, or itself."""
    return folder / "data" if (folder / "data").is_dir() else folder


def is_minari(folder: Path) -> bool:
    """Whether a folder is a Minari dataset."""
    try:
        return (data_folder(folder) / _METADATA).is_file()
    except OSError:  # a name too long
        return False


def storage_of(metadata: Mapping[str, Any]) -> Any:
    """How a dataset's metadata say that it is stored; older ones, all in HDF5, do not."""
    return metadata.get("data_format", "hdf5")


def installed() -> list[str]:
    """Names of the datasets in Minari's own folder, sorted."""
    top, found = minari_folder(), []
    for folder, inner, _ in os.walk(top):
        for name in [*inner]:
            path = Path(folder, name)
            is_dataset = (path / "data" / _METADATA).is_file()
            if is_dataset or name.startswith("."):  # a dataset's episodes may be many folders
                inner.remove(name)
            if is_dataset and not name.startswith("."):
                found.append(path.relative_to(top).as_posix())
    return sorted(found)


def shapes_of(folder: Path) -> tuple[tuple[int, ...], int]:
    """Shape of one observation as it is read, and numbers per action.

    Raises:
        InputError: the metadata are damaged, or a space has a type that training does not support.
    """
    observations, actions = spaces_of(metadata_of(folder), folder)
    is_image = observations[0].is_image
    shape = observations[0].shape if is_image else (sum(leaf.width for leaf in observations),)
    return shape, actions.shape[0]


def folder_of(name: str) -> Path:
    """The folder of a dataset.

    Args:
        name: such as `mujoco/hopper/medium-v0`, with or without `minari:`, or a path to a folder.

    Raises:
        InputError: the name would lead outside Minari's folder.
    """
    name = name.removeprefix(MINARI_PREFIX)
    if name and is_minari(Path(name)):
        return Path(name)
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(f"{shown(name)} is not the name of a Minari dataset; see `minari list`")
    return minari_folder() / name


def environment_id(name: str) -> str:
    """The id from which `eval.environments.make` makes a dataset's own environment."""
    folder = folder_of(name)
    inside = minari_folder()
    where = folder.relative_to(inside) if folder.is_relative_to(inside) else folder.resolve()
    return f"{MINARI_PREFIX}{where}"


def metadata_of(folder: Path) -> dict[str, Any]:
    """Read the metadata in a folder.

    Raises:
        InputError: the metadata are missing or damaged.
    """
    return read_json(data_folder(folder) / _METADATA)


def spaces_of(metadata: Mapping[str, Any], folder: Path) -> tuple[list[Leaf], Leaf]:
    """The observation space's leaves in the order they are flattened, and the action space's leaf.

    Raises:
        InputError: a space has a type that training does not support.
    """
    observations = read_space(metadata.get("observation_space"), "observations", folder)
    actions = read_space(metadata.get("action_space"), "actions", folder)
    if len(actions) != 1 or actions[0].keys or actions[0].kind != "Box":
        what = actions[0].kind if len(actions) == 1 else "several"
        raise InputError(
            f"{folder} has actions that are {what}, not a Box of real numbers; choose a dataset of "
            "continuous actions"
        )
    if len(actions[0].shape) != 1:
        raise InputError(
            f"{folder} has actions of shape {actions[0].shape} where one row of numbers is needed; "
            "choose another dataset"
        )
    images = [leaf for leaf in observations if leaf.is_image]
    if images and len(observations) > 1:
        raise InputError(
            f"{folder} has images ({shown(images[0].name)}) among its observations, which "
            "cannot be laid beside numbers; choose a dataset of states"
        )
    return observations, actions[0]


def read_space(text: Any, what: str, folder: Path) -> list[Leaf]:
    """The leaves of a space as Minari writes it, those of a Dict in the order of its sorted keys.

    Raises:
        InputError: the text is damaged, or has a space that cannot be flattened.
    """
    try:
        document = parse_json(text.encode())
        leaves = list(_leaves(document, ()))
        if not 0 < len(leaves) <= MAX_LEAVES or sum(leaf.width for leaf in leaves) > MAX_WIDTH:
            raise ValueError("it has no numbers, or too many")
    except _UnflattenableError as error:
        raise InputError(
            f"{folder} has {what} with a space of type {error}, which cannot be laid in a row of "
            "numbers; choose another dataset"
        ) from error
    # Anything may be missing from a foreign document.
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"the metadata of {folder} do not describe the space of its {what}; get the dataset "
            "again"
        ) from error
    return leaves


class _UnflattenableError(Exception):
    """The type of a space is not supported."""


def _leaves(space: Any, keys: tuple[str | int, ...]) -> Iterable[Leaf]:
    kind = space["type"]
    if kind == "Dict":
        for key in sorted(space["subspaces"]):
            if not key or "/" in key or key in (".", "..") or not key.isprintable():
                raise ValueError("a key is no name")
            yield from _leaves(space["subspaces"][key], (*keys, key))
    elif kind == "Tuple":
        for index, inner in enumerate(space["subspaces"]):
            yield from _leaves(inner, (*keys, index))
    elif kind == "Box":
        yield _box(space, keys)
    elif kind == "Discrete":
        first, count = (_whole(space[key]) for key in ("start", "n"))
        if not 0 < count <= MAX_WIDTH:
            raise ValueError("it has no values, or too many")
        yield Leaf(keys=keys, kind=kind, shape=(), first=first, count=count)
    elif kind == "MultiBinary":
        sizes = space["n"] if isinstance(space["n"], list) else [space["n"]]
        shape = tuple(map(_whole, sizes))
        if min(shape) < 1:
            raise ValueError("it has no numbers")
        yield Leaf(keys=keys, kind=kind, shape=shape)
    else:
        raise _UnflattenableError(shown(kind))


def _whole(number: Any) -> int:
    if not is_whole(number, -_EXACT, _EXACT):
        raise TypeError("no whole number")
    return number


def _box(space: Mapping[str, Any], keys: tuple[str | int, ...]) -> Leaf:
    shape = tuple(map(_whole, space["shape"]))
    low, high = (np.asarray(space[key], np.float64) for key in ("low", "high"))
    if low.shape != shape or high.shape != shape or not low.size or not (low <= high).all():
        raise ValueError("its bounds are not of its shape")
    dtype = space["dtype"]
    return Leaf(keys=keys, kind="Box", shape=shape, low=low, high=high, is_bytes=dtype == "uint8")


def read_episodes(folder: Path) -> MinariData:
    """Read a Minari dataset from its folder.

    Raises:
        InputError: the dataset is damaged, stored in an unsupported way, or of unsupported spaces.
    """
    data, metadata = data_folder(folder), metadata_of(folder)
    observations, actions = spaces_of(metadata, folder)
    storage = storage_of(metadata)
    if storage == "hdf5":
        from tql_offline.datasets import minari_hdf5

        files, raw = minari_hdf5.files_of(folder), minari_hdf5.raw_episodes(data, observations)
    elif storage == "arrow":
        from tql_offline.datasets import minari_arrow

        raw = minari_arrow.raw_episodes(data, observations, actions.shape[0])
        files = minari_arrow.files_of(data)
    else:
        raise InputError(
            f"{folder} is stored as {shown(storage)} where one of {', '.join(STORAGES)} is needed; "
            "have Minari write it again with another data_format"
        )
    try:
        episodes = _joined(raw, observations, actions, folder)
    except MemoryError as error:
        raise InputError(
            f"the episodes of {folder} do not fit into memory; use a machine with more memory"
        ) from error
    promised, count = metadata.get("total_episodes"), episodes.num_episodes
    if isinstance(promised, int) and promised != count:
        raise InputError(
            f"{folder} has {count} episodes where its metadata say {promised}; get the dataset "
            "again"
        )
    notes, bounds = _scale(episodes.actions, actions, folder)
    own = metadata.get("dataset_id")
    is_name = isinstance(own, str) and own.isprintable() and 0 < len(own) <= _MAX_NAME
    return MinariData(
        name=str(own) if is_name else folder.name,
        episodes=episodes,
        files=files,
        notes=tuple(notes),
        action_bounds=bounds,
    )


def _joined(
    raw: Iterable[RawEpisode], leaves: Sequence[Leaf], actions: Leaf, folder: Path
) -> Episodes:
    """Join the episodes, converting each to float32 before the next is read."""
    parts: dict[str, list[Any]] = {
        "observations": [],
        "actions": [],
        "rewards": [],
        "masks": [],
    }
    for number, one in enumerate(raw):
        _check_steps(one, number, actions.shape[0], folder)
        parts["observations"].append(_flat(one.observations, leaves, number, folder))
        with np.errstate(over="ignore"):  # becomes infinite, which is reported later
            parts["actions"].append(one.actions.astype(np.float32))
            parts["rewards"].append(one.rewards.astype(np.float32))
        parts["masks"].append((one.terminations == 0).astype(np.float32))
    lengths = np.array([len(part) for part in parts["actions"]], np.int64)
    # Each column's parts are freed before the next column is joined.
    columns = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
    for name, counts in (("observations", lengths + 1), ("actions", lengths), ("rewards", lengths)):
        _check_finite(columns[name], name, counts, folder)
    return Episodes(**columns, lengths=lengths)


def _check_steps(one: RawEpisode, number: int, action_dim: int, folder: Path) -> None:
    steps = len(one.actions) if one.actions.ndim else 0
    wanted = {
        "actions": (one.actions, (steps, action_dim)),
        "rewards": (one.rewards, (steps,)),
        "terminations": (one.terminations, (steps,)),
    }
    for name, (column, shape) in wanted.items():
        if not steps or column.shape != shape or column.dtype.kind not in "biuf":
            raise InputError(
                f"episode {number} of {folder} has {name} of shape {column.shape} where {shape} is "
                "needed; leave that episode out"
            )


def _flat(
    stored: Sequence[Array], leaves: Sequence[Leaf], number: int, folder: Path
) -> NDArray[Any]:
    """An episode's observations concatenated, `(T + 1, n_s)`; images as they are."""
    parts = []
    for column, leaf in zip(stored, leaves, strict=True):
        if column.shape[1:] != leaf.shape or column.dtype.kind not in "biuf":
            raise InputError(
                f"episode {number} of {folder} has {shown(leaf.name)} of shape "
                f"{column.shape} where its space has {leaf.shape}; if they are images packed as "
                "JPEG, have Minari write them without jpeg_encoding"
            )
        if leaf.is_image and column.dtype == np.uint8:
            return column
        parts.append(_numbers(column, leaf, number, folder))
    return np.concatenate(parts, axis=1)


def _numbers(column: Array, leaf: Leaf, number: int, folder: Path) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):  # becomes infinite, reported later
        if leaf.kind != "Discrete":
            return column.reshape(len(column), -1).astype(np.float32)
        places = column.astype(np.int64) - leaf.first
    if places.min() < 0 or places.max() >= leaf.count:
        raise InputError(
            f"episode {number} of {folder} has {shown(leaf.name)} that are none of the "
            f"{leaf.count} values of its space; leave that episode out"
        )
    one_hot = np.zeros((len(column), leaf.count), np.float32)
    one_hot[np.arange(len(column)), places] = 1
    return one_hot


def _check_finite(column: Array, name: str, counts: NDArray[np.int64], folder: Path) -> None:
    numbers = cast(Floats, column)
    bad = None if column.dtype.kind != "f" else first_bad(numbers, lambda b: ~np.isfinite(b))
    if bad is not None:
        ends = np.cumsum(counts)
        episode = int(np.searchsorted(ends, bad[0], side="right"))
        raise InputError(
            f"episode {episode} of {folder} has {name} that are not finite at row "
            f"{bad[0] - int(ends[episode] - counts[episode])}; leave that episode out"
        )


def _scale(
    actions: Floats, space: Leaf, folder: Path
) -> tuple[list[str], tuple[list[float], list[float]] | None]:
    """Scale actions from the bounds of their space to [-1, 1] and clip to ±(1 - 1e-5), in place.

    Returns:
        Sentences on what was done, and the bounds unless they are -1 and 1 or infinite.
    """
    bounds, notes = bounds_of(space), []
    if bounds:
        low, high = map(np.asarray, bounds)
        with np.errstate(over="ignore"):
            actions -= ((low + high) / 2).astype(np.float32)
            actions /= ((high - low) / 2).astype(np.float32)
        notes.append(
            f"actions are scaled from [{low.min():g}, {high.max():g}] to [-1, 1], dim by dim, and "
            "so are the environment's"
        )
    outside = np.abs(actions) > 1 + ACTION_TOLERANCE
    count = int(outside.any(axis=1).sum())
    if count and not _is_bounded(space):
        raise InputError(
            f"{folder} has actions outside [-1, 1] and its action space has no bounds to scale "
            "them by; write it again with actions in [-1, 1]"
        )
    np.clip(actions, -ACTION_BOUND, ACTION_BOUND, out=actions)
    if count:
        notes.append(f"{count:,} actions outside the bounds of their space were clipped to them")
    return notes, bounds


def bounds_of(space: Leaf) -> tuple[list[float], list[float]] | None:
    """Lower and upper bounds of a Box, in rows; None if they are all -1 and 1, or infinite."""
    low, high = cast(NDArray[np.float64], space.low), cast(NDArray[np.float64], space.high)
    if not _is_bounded(space) or ((low == -1).all() and (high == 1).all()):
        return None
    return low.ravel().tolist(), high.ravel().tolist()


def _is_bounded(space: Leaf) -> bool:
    low, high = cast(NDArray[np.float64], space.low), cast(NDArray[np.float64], space.high)
    return bool(np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all())
