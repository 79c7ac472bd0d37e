"""`tql-offline download`."""

from pathlib import Path
from typing import Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import download_bars, say
from tql_offline.datasets.names import downloaded_folder


@app.command()
def download(
    names: Annotated[list[str], typer.Argument(help="OGBench datasets, with or without a task.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where to. Default: OGBench's own, ~/.ogbench/data.")
    ] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(help="Address or folder to take files from, instead of the known mirrors."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that fails its check.")] = (
        False
    ),
) -> None:
    """Download datasets; a download that was stopped goes on where it left off."""
    from tql_offline.datasets.catalogue import find
    from tql_offline.datasets.download import download as fetch

    found = list(dict.fromkeys(find(name).name for name in names))
    with download_bars() as progress:
        files = [
            file
            for name in found
            for file in fetch(
                name,
                folder=folder or downloaded_folder(),
                mirrors=mirror,
                progress=progress,
                force=force,
            )
        ]
    for file in files:
        state = f"from {file.url}" if file.url else "already there"
        say(f"{file.path}: {file.bytes:,} bytes, sha256 {file.sha256}, {state}")
