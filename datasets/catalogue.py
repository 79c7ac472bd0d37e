"""The published datasets, their shapes, files, known faults and mirrors.

The data are beside this file: `catalogue.toml` (OGBench, and the bundles that papers report),
`catalogue_d4rl.toml` and `catalogue_minari.toml`. Each dataset belongs to one suite:

    suite            files                                  named after
    ogbench          <dataset>.npz, <dataset>-val.npz       the dataset
    ogbench-visual   the same, with images                  the dataset
    d4rl             one HDF5 file                          the last part of its address
    minari           none here: Minari fetches its own      -
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from tql_offline.datasets.names import parse_name
from tql_offline.errors import InputError, did_you_mean

SUITES = ("ogbench", "ogbench-visual", "d4rl", "minari")
_DOCUMENTS = ("catalogue.toml", "catalogue_d4rl.toml", "catalogue_minari.toml")


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file of a dataset.

    Attributes:
        name: file name, the same on every mirror and on disk.
        folder: the folder it lies in on the official host, or "".
        bytes: length, or None if nobody has measured it.
        sha256: hexadecimal digest, or None if nobody has measured it.
    """

    name: str
    folder: str = ""
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published dataset.

    Attributes:
        name: such as `cube-double-play-v0`, `halfcheetah-medium-v2` or `D4RL/pen/human-v2`; for
            OGBench it is the name of the training file without its suffix.
        suite: one of `SUITES`.
        family: the environment, such as `cube-double`.
        kind: how it was collected, such as `play`.
        observation_shape: shape of one observation; None if only the dataset itself says it.
        action_dim: numbers per action; None if actions are discrete or only the dataset says it.
        num_actions: number of actions if they are discrete.
        max_episode_steps: the environment's step limit in evaluation, or None.
        files: training file and, in OGBench, validation file; none in Minari.
        faults: reasons not to use it, one clause each.
        notes: what its user should know, one clause each.
    """

    name: str
    suite: str
    family: str
    kind: str
    observation_shape: tuple[int, ...] | None = None
    action_dim: int | None = None
    num_actions: int | None = None
    max_episode_steps: int | None = None
    files: tuple[PublishedFile, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def observation_dim(self) -> int | None:
        """Numbers per observation, if it is a vector of known length."""
        shape = self.observation_shape
        return shape[0] if shape is not None and len(shape) == 1 else None


def entries(suite: str | None = None) -> list[Entry]:
    """Every published dataset, or those of a suite, in the catalogue's order."""
    return [entry for entry in _entries().values() if suite in (None, entry.suite)]


def title(suite: str) -> str:
    """A suite's name as shown to the user."""
    words: str = _documents()[suite]["title"]
    return words


def bundles() -> dict[str, str]:
    """Names of the groups of datasets that papers report together, each with a one-line title."""
    return {name: bundle["title"] for name, bundle in _documents()["bundles"].items()}


def select(name: str) -> list[Entry]:
    """The datasets of a suite or a bundle.

    Raises:
        InputError: there is neither with this name; the message lists the existing ones.

    >>> [entry.name for entry in select("ogbench-paper-25")][:2]
    ['cube-double-play-v0', 'cube-triple-play-v0']
    """
    if name in SUITES:
        return entries(name)
    if name in bundles():
        return [find(dataset) for dataset in _documents()["bundles"][name]["datasets"]]
    raise InputError(f"no suite {name!r} is known; there are {', '.join([*SUITES, *bundles()])}")


def mirrors(suite: str = "ogbench") -> list[str]:
    """Addresses of a suite's mirrors in the order in which they are tried; Minari has its own.

    They have `{file}` where the file's name goes and, on hosts that keep a suite in several
    folders, `{folder}`.
    """
    return [*_shared(_documents()[suite]).get("mirrors", ())]


def find(name: str) -> Entry:
    """The dataset that holds a name's transitions.

    Args:
        name: dataset name; a `singletask` one means the file that it relabels.

    Raises:
        InputError: no such dataset is published; the message names the nearest ones.

    >>> find("cube-double-play-singletask-task2-v0").name
    'cube-double-play-v0'
    >>> find("hopper-medium-v2").files[0].name
    'hopper_medium-v2.hdf5'
    """
    entry = _entries().get(_file(name))
    if entry is None:
        raise InputError(f"no dataset {name!r} is published; {_suggestion(name)}")
    return entry


def find_or_none(name: str) -> Entry | None:
    """Like `find`, but None for a file's path or an unpublished name."""
    try:
        return find(name)
    except InputError:
        return None


def suite_of(name: str) -> str:
    """The suite of a dataset's name, or `own` if it belongs to none.

    >>> suite_of("hopper-medium-v2"), suite_of("mine.npz")
    ('d4rl', 'own')
    """
    entry = _entries().get(_file(name))
    return "own" if entry is None else entry.suite


def require_sound(entry: Entry, allow_broken: bool = False) -> None:
    """Refuse a dataset that is known to be wrong, unless it is wanted as it is.

    Raises:
        InputError: it is wrong; the message says how, and names a later sound version if any.
    """
    if not entry.faults or allow_broken:
        return
    later = _later(entry)
    instead = f"use {later}, or " if later else ""
    raise InputError(
        f"dataset {entry.name} is broken: {'; '.join(entry.faults)}; "
        f"{instead}give --allow-broken to have it as it is"
    )


def _later(entry: Entry) -> str | None:
    """The latest later version of a dataset that has no known fault."""
    head, _, version = entry.name.rpartition("-v")
    names = (f"{head}-v{number}" for number in range(9, int(version), -1))
    known = _entries()
    return next((name for name in names if name in known and not known[name].faults), None)


def _file(name: str) -> str:
    try:
        return parse_name(name).file
    except InputError:
        # A malformed name gets the same suggestions as one that does not exist.
        return name


def _suggestion(name: str) -> str:
    return did_you_mean(_file(name), _entries()) or "see `tql-offline datasets list`"


@cache
def _documents() -> dict[str, Any]:
    """The sections of all documents: one per suite, and the bundles."""
    folder = resources.files("tql_offline.datasets")
    sections: dict[str, Any] = {}
    for document in _DOCUMENTS:
        sections |= tomllib.loads(folder.joinpath(document).read_text("utf-8"))
    return sections


def _shared(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section with mirrors, files and notes: its own, or that of the suite it is like."""
    shared: Mapping[str, Any] = _documents()[section["like"]] if "like" in section else section
    return shared


@cache
def _entries() -> dict[str, Entry]:
    read = {"d4rl": _d4rl_family, "minari": _minari_family}
    listed = (
        entry
        for suite in SUITES
        for family in _documents()[suite]["families"]
        for entry in read.get(suite, _ogbench_family)(suite, family)
    )
    return {entry.name: entry for entry in listed}


def _ogbench_family(suite: str, row: Mapping[str, Any]) -> Iterable[Entry]:
    known = _shared(_documents()[suite]).get("files", {})
    for kind in row["kinds"]:
        name = f"{row['family']}-{kind}-v0"
        files = (f"{name}.npz", f"{name}-val.npz")
        published = tuple(PublishedFile(name=file, **known.get(file, {})) for file in files)
        yield _entry(suite, row, name=name, kind=kind, files=published)


def _d4rl_family(suite: str, row: Mapping[str, Any]) -> Iterable[Entry]:
    for dataset in row["datasets"]:
        folder, _, file = dataset["file"].rpartition("/")
        sizes = {key: dataset[key] for key in ("bytes", "sha256") if key in dataset}
        both = {key: [*row.get(key, ()), *dataset.get(key, ())] for key in ("faults", "notes")}
        yield _entry(
            suite,
            {**row, **both},
            name=dataset["name"],
            kind=dataset["name"].removeprefix(f"{row['family']}-").rpartition("-v")[0],
            files=(PublishedFile(name=file, folder=folder, **sizes),),
        )


def _minari_family(suite: str, row: Mapping[str, Any]) -> Iterable[Entry]:
    for kind in row["kinds"]:
        yield _entry(suite, row, name=f"{row['family']}/{kind}-{row['version']}", kind=kind)


def _entry(suite: str, row: Mapping[str, Any], **own: Any) -> Entry:
    """An entry with the facts that its family's row gives for all its datasets."""
    shape = row.get("observation_shape")
    return Entry(
        suite=suite,
        family=row["family"],
        observation_shape=None if shape is None else tuple(shape),
        action_dim=row.get("action_dim"),
        num_actions=row.get("num_actions"),
        max_episode_steps=row.get("max_episode_steps"),
        faults=_clauses(suite, "faults", row),
        notes=_clauses(suite, "notes", row),
        **own,
    )


def _clauses(suite: str, key: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    texts = _shared(_documents()[suite]).get(key, {})
    return tuple(texts[name] for name in row.get(key, ()))
