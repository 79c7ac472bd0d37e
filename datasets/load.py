"""Loading of a dataset, given by name or file, as canonical episodes.

A name is OGBench's, D4RL's or Minari's, read by `ogbench`, `d4rl` and `minari`. A user's own npz or
HDF5 file has OGBench's layout and columns, plus `rewards` and, where the task can end, `masks`; or
D4RL's; or it is a Minari folder that `convert` wrote.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.action_bounds import (
    OutOfBoundsError,
    bounds_by_dim,
    checked_bounds,
    scale_actions,
)
from tql_offline.datasets.blocks import first_bad
from tql_offline.datasets.catalogue import Entry, find, find_or_none, require_sound, suite_of
from tql_offline.datasets.checks_of_ends import last_rows_look_like_steps
from tql_offline.datasets.columns import HDF5_SUFFIXES, is_flat, read_columns
from tql_offline.datasets.d4rl import FLOATS as D4RL_FLOATS
from tql_offline.datasets.d4rl import d4rl_file, environment_of, episodes_of
from tql_offline.datasets.digests import in_background, sha256_in_background
from tql_offline.datasets.episodes import (
    ACTION_TOLERANCE,
    Array,
    Episodes,
    drop_last_rows,
)
from tql_offline.datasets.findings import Finding, noted
from tql_offline.datasets.minari import (
    environment_id,
    folder_of,
    is_minari,
    metadata_of,
    read_episodes,
)
from tql_offline.datasets.minari_hdf5 import COLUMNS_KEY, files_of, read_minari
from tql_offline.datasets.names import MINARI_PREFIX, DatasetName, find_file, parse_name
from tql_offline.datasets.ogbench import COLUMNS as OGBENCH_COLUMNS
from tql_offline.datasets.ogbench import FLOATS as OGBENCH_FLOATS
from tql_offline.datasets.ogbench import clip, core_columns, mend_of, source_of
from tql_offline.datasets.ogbench import episodes_of as ogbench_episodes
from tql_offline.datasets.reading import COLUMNS, Floats, is_there
from tql_offline.datasets.required import require_masks, require_vector
from tql_offline.datasets.slices import read_slices, slice_paths, slices_sha256
from tql_offline.datasets.verify import not_published
from tql_offline.datasets.views import AS_STEPS
from tql_offline.errors import InputError, shown

Kind = Literal["minari", "own", "d4rl", "ogbench"]

_OWN_FLOATS = (*OGBENCH_FLOATS, "rewards", "masks")
TAKEN_FOR_OGBENCH = (
    "without a column 'masks' the rows are taken for OGBench's: one that 'terminals' marks holds "
    "no more than an episode's last observation, and no transition ends the task"
)
WITHOUT_MASKS = f"{TAKEN_FOR_OGBENCH}; {AS_STEPS}"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Episodes and their origin.

    Attributes:
        episodes: the data.
        name: the dataset's name, or the file's stem for a user's own.
        path: the file.
        digest: the SHA-256 of the file in hex, which may still be being computed.
        source: `collected`, `downloaded`, `given file` (for a named dataset), `given folder`
            (Minari's, by its path), `own file` or `arrays`.
        env_id: the Gymnasium environment that policies are scored in, or None.
        found: what reading left out or changed, and what is wrong with these data.
        unscored: why there is no environment, unless simply none was given.
        action_bounds: lower and upper bounds of the file's actions, if scaled to [-1, 1].
        published: the dataset that the file should be, if it was found by that one's name.
    """

    episodes: Episodes
    name: str
    path: Path
    digest: "Future[str]"
    source: str
    env_id: str | None
    found: tuple[Finding, ...] = ()
    unscored: str = ""
    action_bounds: tuple[list[float], list[float]] | None = None
    published: Entry | None = None

    @property
    def is_own(self) -> bool:
        """Whether the data are a user's own file or arrays, not a published dataset."""
        return self.source in ("own file", "arrays")

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences of `found`."""
        return tuple(finding.sentence for finding in self.found)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file in hex; waits until it is known."""
        return self.digest.result()

    def not_published(self) -> list[Finding]:
        """The finding that the file is not the published one; waits for the digest."""
        entry = self.published
        return [] if entry is None else not_published(self.path, entry, self.sha256)

    def describe(self) -> dict[str, Any]:
        """Describe the data for the provenance of a run."""
        return {
            "name": self.name,
            # Absolute, since a run may be resumed from a different folder.
            "path": str(self.path.absolute() if self.path.exists() else self.path),
            "sha256": self.sha256,
            "source": self.source,
            "transitions": self.episodes.num_transitions,
            "episodes": self.episodes.num_episodes,
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"unscored": self.unscored} if self.unscored else {}),
            **({"action_bounds": self.action_bounds} if self.action_bounds else {}),
        }


def load(
    dataset: str,
    path: Path | None = None,
    env_id: str | None = None,
    slices: int = 0,
    *,
    allow_broken: bool = False,
    action_bounds: Sequence[float] = (),
) -> Dataset:
    """Load a dataset by name, or a user's own file or folder of slices.

    Args:
        dataset: a dataset name from OGBench (`cube-double-play-singletask-task1-v0`), D4RL
            (`hopper-medium-v2`) or Minari (`mujoco/hopper/medium-v0`, or any other prefixed with
            `minari:`), or a path to a file, a folder of npz slices or a Minari folder.
        path: the file or folder to read for that name instead of the downloaded or collected one.
        env_id: the environment to score policies in, for data other than OGBench's.
        slices: how many of a folder's slices to take, from the first on; 0 takes all.
        allow_broken: accept a dataset that is known to be wrong, with a note that says how.
        action_bounds: least and greatest action of a user's own file, mapped to -1 and 1; or all
            dims' least ones and then all dims' greatest.

    Raises:
        InputError: unknown name, missing or unusable file, data that do not fit the environment, or
            an argument that does not apply to this dataset.
    """
    action_bounds = checked_bounds(action_bounds)
    kind = _sound_kind(dataset, path, allow_broken)
    if kind == "own":
        return _load_own(Path(dataset), env_id, slices, action_bounds)
    if kind == "minari":
        return _load_minari(dataset, path, env_id, slices, action_bounds)
    refuse_bounds(dataset, action_bounds)
    if kind == "d4rl":
        return _load_d4rl(find(dataset), path, env_id, slices)
    name = parse_name(dataset)
    if env_id is not None:
        raise InputError(
            f"environment {env_id!r} is given for {dataset}, whose own environment is "
            f"{name.env_id}; leave --env out, which is for files of your own"
        )
    return _load_ogbench(name, path, slices)


def refuse_bounds(dataset: str, bounds: Sequence[float]) -> None:
    """Refuse action bounds for a dataset that has its own.

    Raises:
        InputError: `bounds` is not empty.
    """
    if bounds:
        raise InputError(
            f"action bounds are given for {dataset}, whose own are known; leave them out, which "
            "are for files of your own"
        )


def find_data(dataset: str, path: Path | None = None, *, allow_broken: bool = False) -> Path:
    """Find the data that `load` would read, without reading them.

    Args:
        dataset: as for `load`.
        path: as for `load`.
        allow_broken: as for `load`.

    Raises:
        InputError: the data are missing (the message names the command that fetches them), or
            `load` would refuse the arguments.
    """
    kind = _sound_kind(dataset, path, allow_broken)
    if kind == "minari":
        return _minari_folder(dataset, path)
    if path is not None or kind == "own":
        file = path or Path(dataset)
        if not (_is_folder(file) or is_there(file)):
            raise InputError(f"data file {file} is not there; check the path")
        return file
    return d4rl_file(find(dataset)) if kind == "d4rl" else find_file(parse_name(dataset))


def kind_of(dataset: str) -> Kind:
    """Tell which kind of data a name or path means; an unknown name counts as OGBench's.

    >>> kind_of("mine.npz"), kind_of("hopper-medium-v2"), kind_of("minari:mine/own-v0")
    ('own', 'd4rl', 'minari')
    """
    if dataset.startswith(MINARI_PREFIX) or is_minari(Path(dataset)):
        return "minari"
    if _is_own(Path(dataset)):
        return "own"
    kinds: dict[str, Kind] = {"d4rl": "d4rl", "minari": "minari"}
    return kinds.get(suite_of(dataset), "ogbench")


def _sound_kind(dataset: str, path: Path | None, allow_broken: bool) -> Kind:
    """The kind of data that can be loaded.

    Raises:
        InputError: the name is unknown, or of a dataset without rewards or known to be wrong; or
            two files are given.
    """
    kind = kind_of(dataset)
    if kind == "own" and path is not None:
        raise InputError(
            f"two data files are given, {dataset} and {path}; leave one out, or give a "
            "dataset's name with the path of its file"
        )
    if kind == "d4rl":
        require_sound(find(dataset), allow_broken)
    if kind == "ogbench" and (name := parse_name(dataset)).task is None:
        raise InputError(f"{dataset} has no rewards; name a task, such as {_first_task(name)}")
    return kind


def _is_own(path: Path) -> bool:
    """Whether a path is meant, not a dataset's name; other kinds of file are reported later."""
    is_file = path.suffix in (".npz", *HDF5_SUFFIXES) or (bool(path.suffix) and is_there(path))
    return is_file or _is_folder(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long
        return False


def _read(
    path: Path, slices: int, mend: str | None, only: Sequence[str], floats: Sequence[str]
) -> tuple[Mapping[str, Array], "Future[str]"]:
    """The columns of a file or of a folder's slices, and the digest being computed."""
    mends = () if mend is None else (mend,)
    if _is_folder(path):
        paths = slice_paths(path, slices)
        columns = read_slices(paths, *mends, only=only, floats=floats)
        return columns, in_background(lambda: slices_sha256(paths))
    _refuse_slices(path, slices)
    columns = read_columns(path, *mends, only=only, floats=floats)
    return columns, sha256_in_background(path)


def _refuse_slices(path: Path, slices: int) -> None:
    if slices:
        raise InputError(f"{path} is one file, of which --slices takes no part; leave it out")


def _first_task(name: DatasetName) -> str:
    """The first task of a published dataset.

    Raises:
        InputError: the dataset is not a published one; the message names the nearest ones.
    """
    head, _, version = find(name.file).name.rpartition("-")
    return f"{head}-singletask-task1-{version}"


def _load_ogbench(name: DatasetName, given: Path | None, slices: int) -> Dataset:
    path = given or find_file(name)
    columns, digest = _read(path, slices, mend_of(name), OGBENCH_COLUMNS, OGBENCH_FLOATS)
    episodes = ogbench_episodes(columns, name, path)
    source = "given file" if given else source_of(path, digest.result())
    return Dataset(
        episodes=episodes,
        name=name.name,
        path=path,
        digest=digest,
        source=source,
        env_id=name.env_id,
        published=find_or_none(name.file) if source == "downloaded" else None,
    )


def _load_d4rl(entry: Entry, given: Path | None, env_id: str | None, slices: int) -> Dataset:
    path = given or d4rl_file(entry)
    columns, digest = _read_flat(path, slices)
    limit = entry.max_episode_steps
    episodes, found = episodes_of(columns, path, max_episode_steps=limit, clips=True)
    faults = [Finding("warning", "broken", fault) for fault in entry.faults]
    _require_dims(entry, episodes, path)
    own, said = environment_of(entry)
    return Dataset(
        episodes=episodes,
        name=entry.name,
        path=path,
        digest=digest,
        source="given file" if given else "downloaded",
        env_id=env_id or own,
        found=(*faults, *found, *([] if env_id or own is None else [noted(said)])),
        unscored="" if env_id or own else said,
        published=None if given else entry,
    )


def _require_dims(entry: Entry, episodes: Episodes, path: Path) -> None:
    for what, column, want in (
        ("observation", episodes.observations, entry.observation_dim),
        ("action", episodes.actions, entry.action_dim),
    ):
        if want is not None and column.shape[1] != want:
            raise InputError(
                f"{path} has {column.shape[1]} {what} dims where {entry.name} has {want}; "
                "give the right file or name"
            )


def _read_flat(path: Path, slices: int) -> tuple[Mapping[str, Array], "Future[str]"]:
    """The columns of a file in D4RL's layout, and the digest being computed."""
    _refuse_slices(path, slices)
    columns = read_columns(path, only=COLUMNS, floats=D4RL_FLOATS, flat=True)
    return columns, sha256_in_background(path)


def _load_minari(
    name: str, given: Path | None, env_id: str | None, slices: int, bounds: Sequence[float]
) -> Dataset:
    is_converted = _is_converted(given or folder_of(name))
    if not is_converted:
        refuse_bounds(name, bounds)
    if slices:
        raise InputError(f"{given or name} is not a folder of slices; leave --slices out")
    folder = _minari_folder(name, given)
    if is_converted:
        digest = in_background(lambda: slices_sha256(files_of(folder)))
        columns = read_minari(folder)
        if bounds:  # integers are scaled, too, as those of files are
            columns["actions"] = columns["actions"].astype(np.float32)
        return own_dataset(columns, folder, digest, env_id, bounds, flat=False)
    from tql_offline.eval.recover import recoverable  # imports Gymnasium, so only when needed

    made = read_episodes(folder)
    own, notes = environment_id(str(given or name)), list(made.notes)
    by_path = folder == Path(name.removeprefix(MINARI_PREFIX))
    unscored = ""
    if env_id is None:
        unscored, said = recoverable(own.removeprefix(MINARI_PREFIX))
        notes += said
    return Dataset(
        episodes=made.episodes,
        name=made.name,
        path=folder,
        digest=in_background(lambda: slices_sha256(made.files)),
        source=_source_of_minari(made.name, given=given is not None, by_path=by_path),
        env_id=env_id or (None if unscored else own),
        found=tuple(map(noted, notes)),
        unscored=unscored,
        action_bounds=made.action_bounds,
    )


def _is_converted(folder: Path) -> bool:
    """Whether `convert` wrote a folder, which then holds a file's columns, of unknown bounds."""
    return is_minari(folder) and COLUMNS_KEY in metadata_of(folder)


def _minari_folder(name: str, given: Path | None) -> Path:
    folder = given or folder_of(name)
    if not is_minari(folder):
        own = name.removeprefix(MINARI_PREFIX)
        command = "tql-offline" if find_or_none(own) else "minari"
        raise InputError(
            f"Minari dataset {shown(own)} is not here: {folder} has no data/metadata.json; run "
            f"`{command} download {shown(own)[1:-1]}`"
        )
    return folder


def _source_of_minari(name: str, *, given: bool, by_path: bool) -> str:
    """Where a Minari dataset comes from; what is not published was made on this machine."""
    if given or by_path:
        return "given file" if given else "given folder"
    return "downloaded" if find_or_none(name) else "Minari's folder"


def _load_own(path: Path, env_id: str | None, slices: int, bounds: Sequence[float]) -> Dataset:
    flat = is_flat(path)
    if flat:
        columns, digest = _read_flat(path, slices)
    else:
        columns, digest = _read(path, slices, None, (*_OWN_FLOATS, "terminals"), _OWN_FLOATS)
    return own_dataset(columns, path, digest, env_id, bounds, flat=flat)


def own_dataset(
    columns: Mapping[str, Array],
    path: Path,
    digest: "Future[str]",
    env_id: str | None,
    bounds: Sequence[float],
    *,
    flat: bool,
) -> Dataset:
    """Make a `Dataset` from a user's own columns, whose memory it takes over.

    Args:
        columns: columns in one of the layouts of docs/data.md.
        path: their file.
        digest: the file's digest.
        env_id: the environment to score policies in.
        bounds: bounds of the actions, or empty; see `checked_bounds`.
        flat: whether the layout is D4RL's.

    Raises:
        InputError: the columns cannot be used for training.
    """
    scale_actions(columns, bounds)
    try:
        episodes, found = (episodes_of if flat else own_episodes)(columns, path)
    except OutOfBoundsError as error:
        raise error.told(bounds) from error
    return Dataset(
        episodes=episodes,
        name=path.stem,
        path=path,
        digest=digest,
        source="own file",
        env_id=env_id,
        found=tuple(found),
        action_bounds=bounds_by_dim(episodes.actions.shape[1], bounds),
    )


def own_episodes(columns: Mapping[str, Array], path: Path) -> tuple[Episodes, list[Finding]]:
    """The episodes of columns in the layout of docs/data.md, whose memory they take over.

    Returns:
        The episodes, and what they may lack.

    Raises:
        InputError: the columns cannot be used for training; the message names column and row.
    """
    observations, actions, lengths = core_columns(columns, path)
    rewards = require_vector(columns, "rewards", len(observations), path)
    if "masks" not in columns:
        lasts = np.cumsum(lengths + 1) - 1
        pairs = [(column[lasts], column[lasts - 1]) for column in (actions, rewards)]
        masks, found = np.ones_like(rewards), [without_masks(lengths, *pairs)]
    else:
        masks = require_vector(columns, "masks", len(observations), path)
        found = _ends_in_last_rows(masks, lengths)
    actions = drop_last_rows(actions, lengths)
    masks = drop_last_rows(masks, lengths)
    _check_actions(actions, lengths, path)
    require_masks(masks, path, lambda transition: _row(transition, lengths))
    episodes = Episodes(
        observations=observations,
        actions=clip(actions),
        rewards=drop_last_rows(rewards, lengths),
        masks=masks,
        lengths=lengths,
    )
    return episodes, found


def without_masks(lengths: NDArray[np.int64], *pairs: tuple[Array, Array]) -> Finding:
    """That no transition ends the task: a warning where each row seems to be a step.

    Args:
        lengths: as for `last_rows_look_like_steps`, as are the pairs.
        pairs: actions and rewards of last rows and of those before; if not both, it is a note.
    """
    if len(pairs) < 2 or not last_rows_look_like_steps(lengths, *pairs):
        return Finding("note", "masks", WITHOUT_MASKS)
    return Finding(
        "warning",
        "masks",
        f"{WITHOUT_MASKS}; the marked rows have actions and rewards of their own, and episodes "
        f"have {lengths.min()} to {lengths.max()} transitions, which speaks for that; if the rows "
        "are OGBench's nevertheless, add 'masks' of 1",
    )


def _ends_in_last_rows(masks: Floats, lengths: NDArray[np.int64]) -> list[Finding]:
    """A warning if every mask of 0 is in an episode's last row, which is not a transition."""
    lost = int((masks[np.cumsum(lengths + 1) - 1] == 0).sum())
    if not lost or int((masks == 0).sum()) > lost:
        return []
    told = (
        f"'masks' is 0 in the last rows of {lost:,} episodes and nowhere else, but a last row "
        "holds the last observation and no transition, so the task's ends are lost; write the 0 at "
        "each last transition, a row earlier"
    )
    return [Finding("warning", "last-row", told)]


def _check_actions(actions: Floats, lengths: NDArray[np.int64], path: Path) -> None:
    bad = first_bad(actions, lambda block: np.abs(block) > 1 + ACTION_TOLERANCE)
    if bad is not None:
        row = _row(bad[0], lengths)
        raise OutOfBoundsError(f"column 'actions' of {path}", float(actions[bad]), row, bad[1])


def _row(transition: int, lengths: NDArray[np.int64]) -> int:
    """The file's row of a transition: each earlier episode has one extra row."""
    return transition + int(np.searchsorted(np.cumsum(lengths), transition, side="right"))
