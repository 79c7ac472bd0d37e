"""`tql-offline datasets list | info`."""

from typing import Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import print_table
from tql_offline.datasets.catalogue import entries
from tql_offline.datasets.names import DatasetName, collected_folder, downloaded_folder, parse_name

datasets = typer.Typer(no_args_is_help=True, help="What data there are.")
app.add_typer(datasets, name="datasets")


@datasets.command("list")
def list_datasets(
    text: Annotated[str, typer.Argument(help="Show names that contain this.")] = "",
    installed: Annotated[
        bool, typer.Option("--installed", help="Only those on this machine.")
    ] = False,
) -> None:
    """List the datasets that can be downloaded or collected, and which are here."""
    rows = []
    for entry in entries():
        place = _place(parse_name(entry.name))
        if text in entry.name and (place or not installed):
            dims = f"{entry.observation_dim}", f"{entry.action_dim}", f"{entry.max_episode_steps}"
            rows.append((entry.name, *dims, place))
    columns = ("dataset", "observation#", "action#", "episode limit#", "here")
    print_table(f"{len(rows)} datasets", columns, rows)


@datasets.command("info")
def show_info(
    name: Annotated[str, typer.Argument(help="Dataset name with its task, or a file.")],
) -> None:
    """Load a dataset and show its size, returns, rewards, masks and hash."""
    import numpy as np

    from tql_offline.datasets.load import load

    data = load(name)
    episodes = data.episodes
    returns = np.add.reduceat(episodes.rewards, np.cumsum(episodes.lengths) - episodes.lengths)
    facts = {
        "file": str(data.path),
        "source": data.source,
        "sha256": data.sha256,
        "environment": data.env_id or "none",
        "transitions": f"{episodes.num_transitions:,}",
        "episodes": f"{episodes.num_episodes:,}",
        "episode length": _range(episodes.lengths),
        "observation dims": str(episodes.observations.shape[1]),
        "action dims": str(episodes.actions.shape[1]),
        "undiscounted return": _range(returns),
        "reward": _range(episodes.rewards),
        "transitions that end the task": f"{int((episodes.masks == 0).sum()):,}",
    }
    print_table(data.name, ("property", "value"), facts.items())


def _range(values: object) -> str:
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    return f"{numbers.min():g} to {numbers.max():g}, mean {numbers.mean():.4g}"


def _place(name: DatasetName) -> str:
    for folder, word in ((downloaded_folder(), "downloaded"), (collected_folder(), "collected")):
        if (folder / f"{name.file}.npz").is_file():
            return word
    return ""
