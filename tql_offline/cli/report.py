"""`tql-offline report`."""

from pathlib import Path
from typing import Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import progress_bar, say, warn
from tql_offline.errors import InputError
from tql_offline.runs import find_others, find_runs

MOST_ANSWERS = 10
"""Most of a report's answers that are printed."""


@app.command()
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of runs.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    merge: Annotated[
        list[Path] | None,
        typer.Option(help="Others' result.json files, or folders of them, for the leaderboard."),
    ] = None,
    published: Annotated[
        bool, typer.Option(help="Also show papers' scores on the same tasks.")
    ] = True,
    scores: Annotated[
        list[Path] | None,
        typer.Option(help="CSV files of scores from elsewhere (method,task,seed,score) to show."),
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="Method that others are compared with; default: each pair.")
    ] = "",
) -> None:
    """Write a report of runs: one HTML page that opens offline, Markdown, and the leaderboard."""
    from tql_offline.eval.report import write_report

    if not runs and not merge:
        raise InputError("nothing to report; name run folders, or others' results with --merge")
    folders = find_runs(runs) if runs else []
    merged, without_result = find_others(merge or [])
    with progress_bar("reporting runs", len(folders)) as progress:
        files = write_report(
            *(folders, out, progress.reach),
            merged=merged,
            without_result=without_result,
            published=published,
            scores=scores or (),
            baseline=baseline,
        )
    warn(files.warnings, "warning")
    for answer in files.answers[:MOST_ANSWERS]:
        say(answer)
    if len(files.answers) > MOST_ANSWERS:
        say(f"{len(files.answers) - MOST_ANSWERS} more answers are in the report")
    say("\n".join(map(str, (files.html, files.markdown, *files.boards))))
