"""`tql-offline report`."""

from pathlib import Path
from typing import Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import progress_bar, say
from tql_offline.runs import find_runs


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
) -> None:
    """Write a report of runs: one HTML page that opens offline, and Markdown."""
    from tql_offline.eval.report import write_report

    folders = find_runs(runs)
    with progress_bar("reporting runs", len(folders)) as progress:
        files = write_report(folders, out, progress.reach)
    say(f"{files.html}\n{files.markdown}")
