"""`tql-offline demo`."""

from pathlib import Path
from typing import Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.report import report
from tql_offline.cli.train import train_and_show
from tql_offline.config import resolve


@app.command()
def demo(
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
) -> None:
    """Collect data, train the tiny critic, score it beside behaviour cloning, and write a report.

    Needs no GPU and no network.
    """
    config = resolve({"critic": {"size": "tiny"}})
    (folder,) = train_and_show(config, runs, "")
    report([folder.path], out)
