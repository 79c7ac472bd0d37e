"""The embedded dataset, collected locally if it is missing, without a network."""

from collections.abc import Callable

from tql_offline.datasets.collect import collect
from tql_offline.datasets.load import Dataset, load
from tql_offline.datasets.names import collected_folder, downloaded_folder, parse_name
from tql_offline.presets import DEFAULT_DATASET

EPISODES = 100
"""Number of episodes, of 1,000 steps each: collected in seconds, and enough to learn the task."""


def is_installed(name: str) -> bool:
    """Whether a dataset's file lies in one of the two data folders."""
    file = f"{parse_name(name).file}.npz"
    return any((folder / file).is_file() for folder in (downloaded_folder(), collected_folder()))


def load_embedded(progress: Callable[[int], None] = lambda _: None) -> Dataset:
    """Load the embedded dataset, collecting it first if it is missing.

    Args:
        progress: called with the number of transitions collected since the last call.

    Raises:
        InputError: it cannot be collected, or the existing file is damaged.
    """
    if not is_installed(DEFAULT_DATASET):
        collect(DEFAULT_DATASET, out=collected_folder(), episodes=EPISODES, progress=progress)
    return load(DEFAULT_DATASET)
