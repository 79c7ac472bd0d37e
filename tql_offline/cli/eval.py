"""`tql-offline eval`."""

from pathlib import Path
from typing import Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import TerminalReporter, print_evaluations
from tql_offline.errors import InputError
from tql_offline.runs import RunFolder, read_jsonl


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    checkpoint: Annotated[
        int | None, typer.Option(help="Step of the checkpoint. Default: the last.")
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Score all that the protocol plans and is not there.")
    ] = False,
    protocol: Annotated[
        str, typer.Option(help="A protocol of docs/evaluation.md. Default: the run's own.")
    ] = "",
    policy: Annotated[
        list[str] | None, typer.Option(help="learned or behaviour. Default: both.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    env: Annotated[
        str, typer.Option(help="Environment id, of a run that was trained without one.")
    ] = "",
    video: Annotated[
        bool, typer.Option("--video", help="Also film the best, median and worst episode.")
    ] = False,
) -> None:
    """Score the policies of a run's checkpoint and add the scores to the run."""
    if missing and (checkpoint is not None or policy or video):
        raise InputError(
            "--missing scores the policies and checkpoints that lack scores; leave --checkpoint, "
            "--policy and --video out"
        )
    from tql_offline.training.evaluation import evaluate_run

    before = sum(1 for _ in read_jsonl(RunFolder(run).evaluations))
    with TerminalReporter() as reporter:
        folder = evaluate_run(
            run,
            step=checkpoint,
            missing=missing,
            protocol=protocol,
            policies=tuple(policy or ()),
            device=device,
            reporter=reporter,
            env_id=env,
            video=video,
        )
    print_evaluations(list(read_jsonl(folder.evaluations))[before:])
