"""Lossless conversion between OGBench's npz, HDF5 with the same columns, and Minari.

Every column, under any name, keeps its numbers, type and order; the groups of D4RL's files
(`infos`, `metadata`) are left out. A Minari dataset is a folder:

    TARGET/data/metadata.json       spaces; `tql_offline_columns`: names of the columns, in order
    TARGET/data/main_data.hdf5      a group per episode
        observations                T + 1 rows
        actions, rewards            T rows; the last, unused one is attribute `last_<column>`
        terminations, truncations   at the last step, from the masks
        infos/<column>              every other column, T + 1 rows
    TARGET.json                     digests of the source, the target and each column; for actions
                                    of a Minari dataset with other bounds than ±1, the bounds

A target is written aside, read back, compared with the source and renamed into place.
"""

import hashlib
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np

from tql_offline.datasets.action_bounds import BOUNDS_SETTING, as_setting
from tql_offline.datasets.catalogue import find_or_none
from tql_offline.datasets.columns import HDF5_SUFFIXES, is_flat, read_columns
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.episodes import Array
from tql_offline.datasets.hdf5_writing import created_hdf5
from tql_offline.datasets.load import find_data, kind_of
from tql_offline.datasets.minari import bounds_of, is_minari, metadata_of, read_space
from tql_offline.datasets.minari_hdf5 import COLUMNS_KEY, MAIN, OWN_ROWS, files_of, read_minari
from tql_offline.datasets.names import find_file, parse_name
from tql_offline.datasets.slices import slices_sha256
from tql_offline.datasets.views import view_of_columns
from tql_offline.errors import InputError, import_extra, shown
from tql_offline.files import flush, put_folder, read_json, remove, write_json, writing

FORMATS = ("npz", "hdf5", "minari")
SCHEMA = "tql-offline-conversion/1"
_LAST_BYTES = 2**16
_PART = ".part."
_OF_MINARI = re.compile(r"data(/metadata\.json|/(main|additional)_data\w*\.hdf5)?")
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
    """Write a dataset in another format.

    Args:
        source: an `.npz` or HDF5 file, or a Minari folder.
        target: the file or folder to write.
        to: `npz`, `hdf5` or `minari`; empty goes by the target's suffix, none meaning Minari.
        force: replace an existing target.
        packed: deflate npz and HDF5, which makes them smaller and slower to load.
        infos: keep the infos of a Minari dataset as columns.

    Returns:
        The manifest, which is also written beside the target.

    Raises:
        InputError: the source cannot be read or not be represented in the target's format, or the
            target exists or cannot be written. Nothing is changed then.
    """
    to = _format(target, to)
    if source.resolve() == target.resolve():
        raise InputError(f"{source} would be converted onto itself; name another target")
    _check_target(target, force=force)
    if _is_of_slices(source):
        raise InputError(
            f"{source} is a folder of npz slices, which is not converted as a whole; convert each "
            "of its files, or train on the folder as it is"
        )
    if to == "minari" and source.is_file() and is_flat(source):
        raise InputError(
            f"{source} has a row a step, as D4RL's files, which is not written as Minari's layout; "
            "convert it to .npz or .hdf5, or train on it as it is"
        )
    columns = read_any(source, infos=infos)
    with writing(target), _aside(target) as aside:
        _remove_left(aside, target)
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
            **({"action_bounds": bounds} if (bounds := _known_bounds(source)) else {}),
        }
        if target.is_dir():
            put_folder(aside, target)
        else:
            aside.replace(target)
    write_json(_manifest_of(target), manifest)
    return manifest


def _check_target(target: Path, *, force: bool) -> None:
    """Check that a target may be written, and that nothing else is lost by it.

    Raises:
        InputError: it, or a file in its manifest's place, exists and is not to be replaced, or is
            no dataset or manifest.
    """
    manifest = _manifest_of(target)
    found = [path for path in (target, manifest) if path.exists() or path.is_symlink()]
    if found and not force:
        raise InputError(f"{found[0]} exists already; give --force to replace it")
    inside = [*target.iterdir(), *(target / "data").glob("*")] if target.is_dir() else []
    if foreign := sorted(p for p in inside if not _OF_MINARI.fullmatch(str(p.relative_to(target)))):
        raise InputError(
            f"{foreign[0]} is of no Minari dataset, and --force would remove it; move it away or "
            "name another target"
        )
    if target.is_dir() and any(target.iterdir()) and not is_minari(target):
        raise InputError(f"{target} is a folder, but no Minari dataset; name another target")
    if manifest in found and not _is_manifest(manifest):
        raise InputError(
            f"{manifest} is no manifest of an earlier conversion, whose place it has; move it away "
            "or name another target"
        )


def _manifest_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _is_manifest(path: Path) -> bool:
    try:
        return read_json(path).get("schema") == SCHEMA
    except InputError:
        return False


def source_of(name: str) -> Path:
    """The file or folder that a published name, a name of Minari's or a path means.

    Raises:
        InputError: the dataset of that name is not here.
    """
    kind = kind_of(name)
    if kind == "ogbench" and find_or_none(name):
        return find_file(parse_name(name))
    return find_data(name, allow_broken=True) if kind in ("minari", "d4rl") else Path(name)


def needed_setting(manifest: Mapping[str, Any]) -> str:
    """A sentence on what training on a target needs for its actions, or nothing if it needs none.

    Args:
        manifest: what `convert` returned.
    """
    if "action_bounds" not in manifest:
        return ""
    low, high = manifest["action_bounds"]
    setting = BOUNDS_SETTING.format(**as_setting(low, high))
    return f"actions keep their numbers: train with {setting}"


def _known_bounds(source: Path) -> tuple[list[float], list[float]] | None:
    """The bounds of a Minari dataset's actions by which `load` would scale them."""
    if not source.is_dir() or COLUMNS_KEY in (metadata := metadata_of(source)):
        return None
    try:
        (space,) = read_space(metadata.get("action_space"), "actions", source)
    except InputError:  # bounds that nobody can read are no reason to keep the numbers back
        return None
    return bounds_of(space)


def read_any(source: Path, *, infos: bool = True) -> Mapping[str, Array]:
    """All columns of a file or a Minari folder as they were stored, in their own layout.

    Raises:
        InputError: it cannot be read.
    """
    if source.is_dir():
        return read_minari(source, infos=infos)
    return read_columns(source, flat=is_flat(source))


def _is_of_slices(source: Path) -> bool:
    return source.is_dir() and not is_minari(source) and any(source.glob("*.npz"))


def _format(target: Path, to: str) -> str:
    by_suffix = {".npz": "npz"} | dict.fromkeys(HDF5_SUFFIXES, "hdf5")
    want = by_suffix.get(target.suffix, "minari")
    if want == "minari" and not to and target.suffix:
        raise InputError(
            f"{target} ends in {target.suffix}; name a .npz file, a .hdf5 file, or say --to minari "
            "for a folder of that name"
        )
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
    """A temporary name beside the target, with the same suffix, removed at the end."""
    # Absolute, because Minari joins the path to paths that it derives from it.
    aside = target.absolute().with_name(f".{os.getpid()}{_PART}{target.name}")
    try:
        yield aside
    finally:
        remove(aside)


def _remove_left(aside: Path, target: Path) -> None:
    """Remove what killed conversions to a target left beside it."""
    for path in aside.parent.glob(f".*{_PART}*"):
        process, _, name = path.name[1:].partition(_PART)
        if process.isdecimal() and name == target.name and not _is_alive(int(process)):
            remove(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's; on Windows, any
        return True
    return True


def _digest(column: Array) -> str:
    """SHA-256 of a column's type, shape and numbers."""
    digest = hashlib.sha256(f"{column.dtype.str} {column.shape} ".encode())
    digest.update(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    """SHA-256 of a file or, for a Minari folder, of what `sha256sum` prints for its two files."""
    if path.is_file():
        return file_sha256(path)
    return slices_sha256(files_of(path))


def _write_npz(columns: Mapping[str, Array], path: Path, packed: bool) -> None:
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    # Not by `np.savez`, which takes no column named `file`; same columns give the same bytes.
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            for name, column in columns.items():
                member = zipfile.ZipInfo(f"{name}.npy", _LONG_AGO)
                member.compress_type = method
                with archive.open(member, "w", force_zip64=True) as part:
                    np.lib.format.write_array(part, column, allow_pickle=False)
        flush(file)


def _write_hdf5(columns: Mapping[str, Array], path: Path, packed: bool) -> None:
    for name, column in columns.items():
        if column.dtype.kind not in "biufc" or "/" in name:
            raise InputError(
                f"column {shown(name)} of {column.dtype} has no place in an HDF5 file; leave it out"
            )
    with created_hdf5(path) as (file, check):
        for name, column in columns.items():
            packing = {"compression": "gzip", "shuffle": True} if packed and column.size > 1 else {}
            file.create_dataset(name, data=column, **packing)
            check()


def _write_minari(columns: Mapping[str, Array], path: Path, _packed: bool) -> None:
    minari = import_extra("minari", "minari", "Minari")
    new = minari.dataset.minari_storage.MinariStorage.new
    counts = view_of_columns(columns, "the source").observation_counts
    _check_for_minari(columns, int(counts.sum()))
    path.mkdir(parents=True)
    spaces = (_space(columns["observations"]), _space(columns["actions"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # From 0.5.4 on, Minari makes JPEG of images unless told not to.
        told = "jpeg_encoding" in signature(new).parameters
        plain = {"jpeg_encoding": False} if told else {}
        storage = new(path / "data", *spaces, **plain)
        target_id = path.name.split(".part.")[-1]
        storage.update_metadata(
            {
                "dataset_id": target_id if "-v" in target_id else f"{target_id}-v0",
                "minari_version": minari.__version__,
                "total_episodes": len(counts),
                "total_steps": int(counts.sum()) - len(counts),
                COLUMNS_KEY: list(columns),
            }
        )
        _write_episodes(columns, np.cumsum(counts).tolist(), path / "data" / MAIN)
        storage.update_metadata({"dataset_size": storage.get_size()})


def _write_episodes(columns: Mapping[str, Array], bounds: Sequence[int], path: Path) -> None:
    """Write a group per episode as Minari does, whose own writer a full disk ends with a crash."""
    with created_hdf5(path) as (file, check):
        for number, (start, stop) in enumerate(zip([0, *bounds[:-1]], bounds, strict=True)):
            episode = {name: column[start:stop] for name, column in columns.items()}
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": stop - start - 1})
            group.attrs.update(
                {f"last_{name}": episode[name][-1] for name in OWN_ROWS if name in episode}
            )
            group.create_group("infos")
            for name, column in _episode(episode).items():
                # Chunks, which may grow, let Minari add to an episode.
                growing = (None, *column.shape[1:])
                group.create_dataset(name, data=column, chunks=True, maxshape=growing)
                check()


def _check_for_minari(columns: Mapping[str, Array], rows: int) -> None:
    for name, column in columns.items():
        plain = column.dtype.kind in "biuf" and column.dtype.isnative and "/" not in name
        if not plain or column.ndim == 0 or len(column) != rows:
            raise InputError(
                f"column {shown(name)}, {column.dtype} of shape {column.shape}, has no place in "
                f"Minari's episodes, which need numbers in each of the {rows} rows; leave it out"
            )
        if name in OWN_ROWS and column[:1].nbytes > _LAST_BYTES // 2:
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


def _episode(columns: Mapping[str, Array]) -> dict[str, Array]:
    """The datasets that Minari has of one episode."""
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
        **{
            f"infos/{name}": column
            for name, column in columns.items()
            if name not in ("observations", *OWN_ROWS)
        },
    }
