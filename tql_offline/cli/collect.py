"""`tql-offline collect`."""

from pathlib import Path
from typing import Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import progress_bar, say
from tql_offline.datasets.names import collected_folder, parse_name


@app.command()
def collect(
    name: Annotated[str, typer.Argument(help="OGBench dataset, e.g. cube-double-play-v0.")],
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Training episodes. Default: OGBench's number.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Transitions per episode. Default: OGBench's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Worker processes. Default: one per core.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder. Default: $TQL_OFFLINE_DATA or ~/.tql-offline/data.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Re-create an OGBench dataset with its own environments and scripted behaviour policies.

    Rerunning the same command resumes a stopped collection where it left off.
    """
    from tql_offline.datasets.collect import collect as run_collection
    from tql_offline.datasets.collect import total_steps

    file = parse_name(name).file
    with progress_bar(f"collecting {file}", total_steps(file, episodes, steps)) as progress:
        done = run_collection(
            file,
            out=out or collected_folder(),
            episodes=episodes,
            steps=steps,
            seed=seed,
            processes=processes,
            progress=progress.add,
            force=force,
        )
    say(f"{done.train}: {done.rows:,} rows, sha256 {done.train_sha256}")
