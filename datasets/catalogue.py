"""The published datasets, their shapes, their files and the mirrors that hold them.

The data lies in `catalogue.toml` beside this file.
"""

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from tql_offline.datasets.names import parse_name
from tql_offline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """A host of dataset files.

    Attributes:
        url: address with `{file}` where the file's name goes.
        note: one line for the reader.
    """

    url: str
    note: str


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file of a dataset.

    Attributes:
        name: file name, the same on every mirror and on disk.
        bytes: length, or None where nobody has measured it.
        sha256: hexadecimal digest, or None where nobody has measured it.
    """

    name: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published dataset.

    Attributes:
        name: file name without its ending, `cube-double-play-v0`.
        family: the environment, `cube-double`.
        kind: how it was collected: navigate, stitch, explore, play or noisy.
        observation_dim: numbers per observation.
        action_dim: numbers per action.
        max_episode_steps: the environment's step limit in evaluation.
        files: training file, validation file.
    """

    name: str
    family: str
    kind: str
    observation_dim: int
    action_dim: int
    max_episode_steps: int
    files: tuple[PublishedFile, PublishedFile]


def entries() -> list[Entry]:
    """Every published dataset, in the catalogue's order."""
    return list(_entries().values())


def mirrors() -> list[Mirror]:
    """The mirrors in the order in which they are tried."""
    return [Mirror(**mirror) for mirror in _document()["mirrors"]]


def find(name: str) -> Entry:
    """The dataset that holds a name's transitions.

    Args:
        name: dataset name; a `singletask` one means the file that it relabels.

    Raises:
        InputError: no such dataset is published; the message names the nearest ones.

    >>> find("cube-double-play-singletask-task2-v0").name
    'cube-double-play-v0'
    """
    entry = _entries().get(_file(name))
    if entry is None:
        raise InputError(f"no dataset {name!r} is published; {_suggestion(name)}")
    return entry


def _file(name: str) -> str:
    try:
        return parse_name(name).file
    except InputError:
        # A name of the wrong form deserves the same suggestions as one that does not exist.
        return name


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(_file(name), _entries(), n=3, cutoff=0.6)
    if not near:
        return "see `tql-offline datasets list`"
    return f"did you mean {' or '.join(near)}?"


@cache
def _document() -> dict[str, Any]:
    text = resources.files("tql_offline.datasets").joinpath("catalogue.toml").read_text("utf-8")
    return tomllib.loads(text)


@cache
def _entries() -> dict[str, Entry]:
    listed = (
        _entry(kind=kind, **{key: value for key, value in family.items() if key != "kinds"})
        for family in _document()["families"]
        for kind in family["kinds"]
    )
    return {entry.name: entry for entry in listed}


def _entry(*, family: str, kind: str, **shape: int) -> Entry:
    name = f"{family}-{kind}-v0"
    files = (_published(f"{name}.npz"), _published(f"{name}-val.npz"))
    return Entry(name=name, family=family, kind=kind, files=files, **shape)


def _published(file: str) -> PublishedFile:
    return PublishedFile(name=file, **_document()["files"].get(file, {}))
