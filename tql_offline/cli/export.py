"""`tql-offline export`."""

from pathlib import Path
from typing import Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import say


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished or stopped run.")],
    out: Annotated[
        Path | None, typer.Option(help="Model folder to write. Default: models/RUN.")
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option(help="Step of the checkpoint. Default: the last.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export in that folder.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option(help="Also write policy.onnx and compare its actions.")
    ] = True,
    push_to_hub: Annotated[
        str, typer.Option(metavar="USER/NAME", help="Then upload it to the Hugging Face Hub.")
    ] = "",
    private: Annotated[
        bool, typer.Option("--private", help="Make the Hub repository private.")
    ] = False,
) -> None:
    """Write a run's policies to one shareable folder: weights, settings, model card and ONNX."""
    from tql_offline.sharing.export import default_folder, export_run
    from tql_offline.sharing.hub import check_hub, push

    if push_to_hub:
        check_hub(push_to_hub)
    done = export_run(run, out or default_folder(run), step=checkpoint, force=force, onnx=onnx)
    step, updates = done.facts["step"], done.facts["updates"]
    say(f"update {step:,} of {updates:,}" + ("" if done.facts["finished"] else ", unfinished"))
    if (found := done.comparison) is not None:
        say(
            f"policy.onnx: actions within {found.difference:.1e} of the original's "
            f"({found.rows} observations, {found.ties} ties left out)"
            if found.rows
            else "policy.onnx: not compared with the original; install onnxruntime for that"
        )
    say(f"written: {done.folder}")
    if push_to_hub:
        say(f"pushed: {push(done.folder, push_to_hub, private=private)}")
