"""Download of Minari's datasets, done by Minari itself from its remote to its folder."""

from pathlib import Path

from tql_offline.datasets.catalogue import Entry
from tql_offline.datasets.minari import is_minari
from tql_offline.datasets.mirrors import OFFLINE_VARIABLE, local_only
from tql_offline.datasets.names import minari_folder
from tql_offline.errors import InputError, import_extra, one_line


def download_minari(entry: Entry, *, force: bool = False, offline: bool = False) -> Path:
    """Have Minari download one of its datasets.

    Args:
        entry: a dataset of the suite `minari`.
        force: fetch it again if it exists.
        offline: fetch nothing, as with `$TQL_OFFLINE_LOCAL_ONLY`.

    Returns:
        The dataset's folder.

    Raises:
        InputError: Minari is not installed, the dataset is not here and nothing may be fetched, or
            Minari cannot fetch it; the message gives its reason.
    """
    folder = minari_folder() / entry.name
    if is_minari(folder) and not force:
        return folder
    if offline or local_only():
        raise InputError(
            f"{folder} is not there, and only local files may be used (--offline or "
            f"${OFFLINE_VARIABLE}); go online, or bring the folder by other means and save it there"
        )
    try:
        minari = import_extra("minari", "minari", "the package minari")  # slow to import
        minari.download_dataset(entry.name, force_download=force)
    except InputError:
        raise
    # Minari, its remotes and their clients have no common error.
    except Exception as error:
        raise InputError(
            f"Minari cannot fetch {entry.name} ({one_line(error)}); see `minari list remote` for "
            f"what there is, or bring the dataset's folder by other means and save it as {folder}"
        ) from error
    return folder
