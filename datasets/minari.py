"""Minari's datasets on this machine: folders of its own layout."""

from typing import Any

from tql_offline.datasets.names import minari_folder
from tql_offline.errors import InputError, shown
from tql_offline.runs import read_json


def read_metadata(name: str) -> dict[str, Any]:
    """What Minari's metadata say of a dataset that is on this machine.

    Args:
        name: such as `mujoco/hopper/medium-v0`.

    Raises:
        InputError: the name leads out of Minari's folder, or the metadata are missing or damaged.
    """
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(f"{shown(name)} is not the name of a Minari dataset; see `minari list`")
    return read_json(minari_folder() / name / "data" / "metadata.json")
