"""Collection of an OGBench dataset from scratch, with OGBench's own environments and oracles.

    out/
      .<name>.parts/           while it runs: settings.json and one file per shard of a few episodes
      <name>.npz               training episodes, in OGBench's layout: its own loader reads them
      <name>-val.npz           validation episodes
      <name>.json              manifest: settings, versions, sizes and sha256 of both files

Every episode has a seed of its own, derived from the run's seed and the episode's number, so the
files are byte-identical for any number of processes and interruptions. Each part and file is
written aside and renamed; `<name>.npz` comes last, so once it exists, all files do.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tql_offline.cores import usable_cores
from tql_offline.datasets.behaviours import (
    Behaviour,
    Columns,
    EpisodeRunner,
    episode_runner,
    manipulation_behaviours,
    maze_behaviours,
)
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.names import parse_name
from tql_offline.errors import InputError, shown
from tql_offline.files import flush, read_json, write_json, written_aside
from tql_offline.locks import locked

SPLITS = ("train", "val")
ROWS_PER_SHARD = 5000
"""Rows that an interruption can cost: about ten seconds of a manipulation environment."""
MIN_SHARDS = 64
"""Small collections are cut finer than `ROWS_PER_SHARD`, so that they also keep many cores busy."""

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A finished collection.

    Attributes:
        train: the training episodes.
        val: the validation episodes.
        manifest: the file that says what was collected, and with what.
        rows: number of observations in `train`; each episode has one more than its transitions.
        train_sha256: checksum of `train`.
    """

    train: Path
    val: Path
    manifest: Path
    rows: int
    train_sha256: str


@dataclass(frozen=True, kw_only=True)
class _Order:
    """Everything that determines a collection; equal orders give equal bytes."""

    dataset: str
    seed: int
    episodes: int
    validation_episodes: int
    steps: int
    behaviour: Behaviour

    @property
    def rows(self) -> int:
        """Rows per episode: one per transition and one for the last observation."""
        return self.steps + 1

    def count(self, split: int) -> int:
        """Number of episodes in a split."""
        return (self.episodes, self.validation_episodes)[split]


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """Consecutive episodes of one split, collected by one process into one part."""

    split: int
    first: int
    episodes: int

    @property
    def file(self) -> str:
        return f"{SPLITS[self.split]}-{self.first:06d}.npz"


@dataclass(frozen=True)
class _Places:
    """Where a collection's files lie."""

    out: Path
    name: str

    @property
    def manifest(self) -> Path:
        return self.out / f"{self.name}.json"

    @property
    def parts(self) -> Path:
        return self.out / f".{self.name}.parts"

    @property
    def lock(self) -> Path:
        return self.out / f".{self.name}.lock"

    @property
    def settings(self) -> Path:
        return self.parts / "settings.json"

    def split(self, split: int) -> Path:
        """The finished file of a split; OGBench's loader finds the second by the first's name."""
        return self.out / (f"{self.name}.npz", f"{self.name}-val.npz")[split]


def collectable() -> list[str]:
    """Names of the datasets that can be collected."""
    return sorted(_behaviours())


def official_size(name: str) -> tuple[int, int]:
    """Number of training episodes in OGBench's own dataset, and of transitions in each.

    Raises:
        InputError: the dataset cannot be collected.

    >>> official_size("cube-double-play-v0")
    (1000, 1000)
    """
    name, _ = _collectable_behaviour(name)
    if "-stitch-" in name:
        return 5000, 200
    if name.startswith("pointmaze-giant"):
        return 500, 2000
    if name.startswith(("cube-triple", "puzzle-4x5")):
        return 3000, 1000
    if name.startswith(("cube-quadruple", "puzzle-4x6")):
        return 5000, 1000
    return 1000, 1000


def collect(
    name: str,
    *,
    out: Path,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    processes: int | None = None,
    progress: Progress = lambda _: None,
    force: bool = False,
) -> Collected:
    """Collect a dataset, or resume where an interrupted call with the same settings stopped.

    Args:
        name: an OGBench dataset name; a `singletask` name stands for the file it relabels.
        out: folder for the files.
        episodes: number of training episodes, by default OGBench's; a tenth more (at least one)
            are collected for validation.
        steps: transitions per episode, by default OGBench's number.
        seed: seed that determines the episodes.
        processes: worker processes, by default one per core; 1 works in this process.
        progress: called with the number of transitions done since the last call.
        force: overwrite existing files, and drop parts collected with other settings.

    Raises:
        InputError: the dataset cannot be collected, a number is out of range, other files are in
            the way, or a worker process died.
    """
    order = _order(name, episodes, steps, seed)
    workers = usable_cores() if processes is None else processes
    workers = _number("processes", workers, 1)
    places = _Places(out, order.dataset)
    found = None if force else _finished(places, order)
    if found is not None and not places.parts.exists():
        return found
    with _alone(places):
        # Another process may have finished it while this one waited.
        found = None if force else _finished(places, order)
        if found is None:
            _open_parts(places, order, force)
            _collect_parts(places, order, workers, progress)
            found = _publish(places, order)
        shutil.rmtree(places.parts, ignore_errors=True)
    return found


# The order.


@lru_cache(maxsize=1)
def _behaviours() -> dict[str, Behaviour]:
    return maze_behaviours() | manipulation_behaviours()


def _collectable_behaviour(name: str) -> tuple[str, Behaviour]:
    file = parse_name(name).file
    behaviour = _behaviours().get(file)
    if behaviour is None:
        raise InputError(
            f"dataset {name!r} cannot be collected (it needs OGBench's trained experts, or is "
            f"unknown); download it, or collect one of {', '.join(collectable())}"
        )
    return file, behaviour


def _number(what: str, value: int, lowest: int) -> int:
    if not lowest <= value < 2**32:
        raise InputError(f"{what} is {value}; give a whole number from {lowest} to {2**32 - 1}")
    return value


def _order(name: str, episodes: int | None, steps: int | None, seed: int) -> _Order:
    dataset, behaviour = _collectable_behaviour(name)
    official_episodes, official_steps = official_size(dataset)
    episodes = _number("episodes", official_episodes if episodes is None else episodes, 1)
    return _Order(
        dataset=dataset,
        seed=_number("seed", seed, 0),
        episodes=episodes,
        validation_episodes=_validation_episodes(episodes),
        steps=_number("steps", official_steps if steps is None else steps, 1),
        behaviour=behaviour,
    )


def _validation_episodes(episodes: int) -> int:
    """A tenth of `episodes`, at least one: OGBench's loader cannot read a file without rows."""
    return max(1, episodes // 10)


def total_steps(name: str, episodes: int | None = None, steps: int | None = None) -> int:
    """Number of transitions in a collection, validation included; for a progress bar.

    Args:
        name: the dataset's name.
        episodes: number of training episodes; None takes OGBench's.
        steps: transitions per episode; None takes OGBench's number.
    """
    official_episodes, official_steps = official_size(parse_name(name).file)
    count = episodes or official_episodes
    return (count + _validation_episodes(count)) * (steps or official_steps)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("ogbench", "mujoco", "gymnasium", "numpy")}


def _settings(order: _Order) -> dict[str, Any]:
    """The order as it is read back from JSON."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(order)))
    return settings


def _differences(have: Any, want: dict[str, Any]) -> str:
    """Name the settings in which `have` differs from `want`; empty if there are none."""
    if not isinstance(have, dict):
        return "unknown settings"
    return ", ".join(
        f"{key} {shown(have.get(key))} instead of {shown(value)}"
        for key, value in want.items()
        if have.get(key) != value
    )


# What is already there.


def _finished(places: _Places, order: _Order) -> Collected | None:
    """The collection, if its files exist and are the ones its manifest describes.

    Raises:
        InputError: files from other settings or of unknown origin are in the way.
    """
    train, val = places.split(0), places.split(1)
    if not train.exists():
        if val.exists() and not places.parts.exists():
            raise InputError(f"{val} is in the way; move it, or collect with --force to replace it")
        return None
    if not places.manifest.is_file():
        raise InputError(
            f"{train} is in the way and was not collected (it has no {places.manifest.name} beside "
            "it); move it, or collect with --force to replace it"
        )
    manifest = read_json(places.manifest)
    different = _differences(manifest.get("settings"), _settings(order))
    if different:
        raise InputError(
            f"{train} was collected with {different}; collect into another folder, or with --force "
            "to replace it"
        )
    sizes = {path.name: path.stat().st_size for path in (train, val) if path.exists()}
    sha256 = manifest.get("sha256")
    if (
        manifest.get("bytes") != sizes
        or not isinstance(sha256, dict)
        or set(sha256) != set(sizes)
        or not all(isinstance(digest, str) for digest in sha256.values())
    ):
        raise InputError(
            f"{train} and {val.name} are not the files that {places.manifest.name} describes; "
            "collect with --force to replace them"
        )
    return _collected(places, order, sha256)


def _collected(places: _Places, order: _Order, sha256: dict[str, str]) -> Collected:
    train, val = places.split(0), places.split(1)
    return Collected(
        train=train,
        val=val,
        manifest=places.manifest,
        rows=order.episodes * order.rows,
        train_sha256=sha256[train.name],
    )


@contextmanager
def _alone(places: _Places) -> Iterator[None]:
    """Keep other processes from collecting the same dataset: they wait, and find it finished.

    Raises:
        InputError: the folder cannot be written, or its file system has no locks.
    """
    busy = f"another process is collecting {places.split(0)}; wait until it has finished"
    try:
        with locked(places.lock, busy, waits=True, removed=True):
            yield
    except OSError as error:
        raise InputError(
            f"{error.filename or places.out} cannot be written ({error.strerror}); make room or "
            "choose another folder, and collect again to go on"
        ) from error


def _open_parts(places: _Places, order: _Order, force: bool) -> None:
    """Make the folder of parts ready for this order: new, or as an interrupted call left it.

    Raises:
        InputError: the folder holds parts of another order, and `force` is off.
    """
    want = {**_settings(order), "versions": _versions()}
    different = "nothing known"
    if places.settings.is_file():
        different = _differences(read_json(places.settings), want)
        if different and not force:
            raise InputError(
                f"{places.parts} holds an interrupted collection with {different}; finish it with "
                "its own settings, or collect with --force to drop it"
            )
    if different:
        places.parts.mkdir(parents=True, exist_ok=True)
        for part in places.parts.glob("*.npz"):
            part.unlink()
        write_json(places.settings, want)


# Shards.


def _shards(order: _Order) -> list[_Shard]:
    """Cut an order into shards, in the order of their rows in the files."""
    total = order.episodes + order.validation_episodes
    size = max(1, min(ROWS_PER_SHARD // order.rows, total // MIN_SHARDS))
    return [
        _Shard(split=split, first=first, episodes=min(size, order.count(split) - first))
        for split in range(len(SPLITS))
        for first in range(0, order.count(split), size)
    ]


def _collect_parts(places: _Places, order: _Order, processes: int, progress: Progress) -> None:
    """Collect every shard whose part does not exist yet."""
    shards = _shards(order)
    missing = [shard for shard in shards if not (places.parts / shard.file).is_file()]
    for shard in shards:
        if shard not in missing:
            progress(shard.episodes * order.steps)
    processes = min(processes, len(missing))
    if processes > 1:
        _collect_in_processes(places.parts, order, missing, processes, progress)
    elif missing:
        _collect_here(places.parts, order, missing, progress)


def _collect_here(parts: Path, order: _Order, shards: list[_Shard], progress: Progress) -> None:
    runner = episode_runner(order.behaviour, rows=order.rows)
    for shard in shards:
        _write_part(runner, parts, order, shard)
        progress(shard.episodes * order.steps)


def _collect_in_processes(
    parts: Path, order: _Order, shards: list[_Shard], processes: int, progress: Progress
) -> None:
    """Share shards out among worker processes; an exception here stops them at once."""
    others = set(multiprocessing.active_children())
    # Forking would copy the locks of the caller's threads, and its GPU context if it has one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
        try:
            futures = {pool.submit(_work, parts, order, shard): shard for shard in shards}
            for future in as_completed(futures):
                future.result()
                progress(futures[future].episodes * order.steps)
        except BrokenProcessPool as error:
            raise InputError(
                f"a worker process died while collecting {order.dataset} (out of memory?); collect "
                "again with fewer --processes to go on from where it stopped"
            ) from error
        except BaseException:
            # Parts are renamed into place, so a worker can be stopped at any time.
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent does, for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@lru_cache(maxsize=1)
def _worker_runner(behaviour: Behaviour, rows: int) -> EpisodeRunner:
    """The runner, with its environment, that a worker reuses for all its shards."""
    return episode_runner(behaviour, rows=rows)


def _work(parts: Path, order: _Order, shard: _Shard) -> None:
    _write_part(_worker_runner(order.behaviour, order.rows), parts, order, shard)


def _write_part(runner: EpisodeRunner, parts: Path, order: _Order, shard: _Shard) -> None:
    """Collect one shard and rename its part into place."""
    numbers = range(shard.first, shard.first + shard.episodes)
    episodes = [runner((order.seed, shard.split, number)) for number in numbers]
    columns = {
        name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]
    }
    with written_aside(parts / shard.file) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]
        flush(file)


# The finished files.


def _publish(places: _Places, order: _Order) -> Collected:
    """Merge the parts, write the manifest and put the files in place, the training file last."""
    merged = [places.parts / f"merged-{split}" for split in SPLITS]
    for split, target in enumerate(merged):
        parts = [places.parts / shard.file for shard in _shards(order) if shard.split == split]
        _merge(parts, target, rows=order.count(split) * order.rows)
    names = [places.split(split).name for split in range(len(SPLITS))]
    sha256 = dict(zip(names, map(file_sha256, merged), strict=True))
    write_json(places.manifest, _manifest(order, sha256, dict(zip(names, merged, strict=True))))
    for split in reversed(range(len(SPLITS))):
        merged[split].replace(places.split(split))
    return _collected(places, order, sha256)


def _manifest(order: _Order, sha256: dict[str, str], files: dict[str, Path]) -> dict[str, Any]:
    return {
        "dataset": order.dataset,
        "seed": order.seed,
        "episodes": order.episodes,
        "steps": order.steps,
        "validation_episodes": order.validation_episodes,
        "sha256": sha256,
        "bytes": {name: path.stat().st_size for name, path in files.items()},
        "versions": _versions(),
        "settings": _settings(order),
    }


def _merge(parts: list[Path], target: Path, *, rows: int) -> None:
    """Write the parts' columns, one after another, as one compressed npz of `rows` rows.

    One part is in memory at a time: the largest official datasets hold several gigabytes.
    """
    first = _read_part(parts[0])
    with target.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, column in first.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(column.dtype),
                        "fortran_order": False,
                        "shape": (rows, *column.shape[1:]),
                    }
                    np.lib.format.write_array_header_1_0(member, header)
                    for part in parts:
                        member.write(_read_part(part, only=name)[name].tobytes())
        flush(file)


def _read_part(path: Path, only: str | None = None) -> Columns:
    """Read a part, or one column of it.

    Raises:
        InputError: the part is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
            return {name: part[name] for name in ([only] if only else part.files)}
    # What zipfile, its decompressors and NumPy raise on damaged bytes is undocumented.
    except Exception as error:
        raise InputError(
            f"part {path} is damaged; delete it and collect again with the same settings"
        ) from error
