"""Everything wrong with a dataset in any layout, as `datasets check` prints it."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tql_offline.datasets.catalogue import Entry, find_or_none
from tql_offline.datasets.checks import Finding, check, check_spaces
from tql_offline.datasets.columns import HDF5_SUFFIXES, is_flat, read_columns
from tql_offline.datasets.d4rl import COLUMNS, d4rl_file, episodes_of
from tql_offline.datasets.load import WITHOUT_MASKS, kind_of, load, own_episodes
from tql_offline.datasets.views import View, view_of, view_of_columns, view_of_flat
from tql_offline.errors import InputError

_OWN_COLUMNS = ("observations", "actions", "terminals", "rewards", "masks")


def check_dataset(data: str, env_id: str = "") -> list[Finding]:
    """All findings about a dataset.

    Args:
        data: its name, file or folder.
        env_id: the environment whose dims it should have; empty to compare none.

    Raises:
        InputError: it cannot be read in any layout.
    """
    kind = kind_of(data)
    if is_flat(Path(data)) or kind == "d4rl":
        return _flat_findings(data, find_or_none(data), env_id)
    if Path(data).suffix in (".npz", *HDF5_SUFFIXES):
        return _own_findings(data, env_id)
    if kind == "minari":
        return _findings(view_of(load(data).episodes), data, env_id)
    episodes = load(data, env_id=env_id or None).episodes  # `load` compares dims
    return check(view_of(episodes), jumps=not _teleports(data), goes_on=True)


def _own_findings(data: str, env_id: str) -> list[Finding]:
    """Findings about a file in the layout of docs/data.md."""
    path = Path(data)
    columns = read_columns(path, only=_OWN_COLUMNS)
    found = _findings(view_of_columns(columns, data), data, env_id)
    found += [] if "masks" in columns else [Finding("warning", "masks", WITHOUT_MASKS)]
    return [*_refused(lambda: own_episodes(columns, path)), *found]


def _flat_findings(data: str, entry: Entry | None, env_id: str) -> list[Finding]:
    """Findings about a file in D4RL's layout, or one of D4RL's datasets."""
    path = Path(data) if entry is None else d4rl_file(entry)
    columns = read_columns(path, only=COLUMNS, flat=True)
    found = _findings(view_of_flat(columns, str(path)), data, env_id)
    if entry is None:
        return [*_refused(lambda: episodes_of(columns, path)), *found]
    return [Finding("warning", "broken", f"{data}: {fault}") for fault in entry.faults] + found


def _findings(view: View, data: str, env_id: str) -> list[Finding]:
    dims = check_spaces(view, env_id) if env_id else []
    return dims + check(view, jumps=not _teleports(data))


def _refused(load_columns: Callable[[], object]) -> Iterator[Finding]:
    """The finding that training refuses the columns, if it does; this uses the columns up."""
    try:
        load_columns()
    except InputError as error:
        yield Finding("warning", "refused", f"training refuses it: {error}")


def _teleports(data: str) -> bool:
    return "teleport" in Path(data).name
