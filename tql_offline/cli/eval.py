"""`tql-offline eval`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import TerminalReporter, print_evaluations, say
from tql_offline.cli.train import load_and_say
from tql_offline.errors import InputError, shown
from tql_offline.files import read_jsonl
from tql_offline.runs import RunFolder


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    checkpoint: Annotated[
        int | None, typer.Option(help="Step of the checkpoint. Default: the last.")
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Score all planned evaluations that are missing.")
    ] = False,
    protocol: Annotated[
        str,
        typer.Option(
            help="A protocol from docs/evaluation.md, or NAME:EPISODES. Default: the run's."
        ),
    ] = "",
    policy: Annotated[
        list[str] | None, typer.Option(help="learned or behaviour. Default: both.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    env: Annotated[str, typer.Option(help="Environment id, for a run trained without one.")] = "",
    video: Annotated[
        bool, typer.Option("--video", help="Also film the best, median and worst episode.")
    ] = False,
    ope: Annotated[
        str,
        typer.Option(help="fqe: estimate the return from data alone, without an environment."),
    ] = "",
    ope_updates: Annotated[
        int | None,
        typer.Option(
            min=1, help="Updates of the FQE fit. Default: 50,000, or more where γ is near 1."
        ),
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="With --ope: where the data's file is now, if moved.")
    ] = None,
) -> None:
    """Score the policies of a run's checkpoint and add the scores to the run."""
    if ope:
        _refuse_beside_ope(ope, missing=missing, protocol=protocol, env=env, video=video)
        _estimate(run, checkpoint, tuple(policy or ()), device, ope_updates, path)
        return
    for flag, value in (("--ope-updates", ope_updates), ("--path", path)):
        if value is not None:
            raise InputError(f"{flag} is of --ope, which is not given; leave it out")
    from tql_offline.training.rescoring import evaluate_run

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


def _refuse_beside_ope(ope: str, **flags: bool | str) -> None:
    if ope != "fqe":
        raise InputError(f"--ope {shown(ope)} is not known; give fqe")
    if given := [f"--{name}" for name, value in flags.items() if value]:
        raise InputError(f"{', '.join(given)} is of episodes, of which --ope plays none; leave out")


def _estimate(
    run: Path,
    step: int | None,
    policies: tuple[str, ...],
    device: str,
    updates: int | None,
    moved_to: Path | None,
) -> None:
    """Fit and show what policies are worth from data alone."""
    from tql_offline.training.fqe import Fit, evaluate_offline

    fit = None if updates is None else Fit(updates=updates)
    with TerminalReporter() as reporter:
        lines = evaluate_offline(
            run,
            step=step,
            policies=policies,
            fit=fit,
            device=device,
            load_dataset=load_and_say,
            reporter=reporter,
            moved_to=moved_to,
        )
    for line in lines:
        say(
            f"{line['policy']} at step {line['step']}: {line['value']:.4g} "
            f"({line['low']:.4g} to {line['high']:.4g}), discounted by {line['discount']:g}, from "
            f"the first observations of {line['starts']:,} episodes of the data"
        )
        for sentence in _doubts(line):
            say(f"note: {sentence}")
    say("note: from data alone, policies can at best be ranked; these are not scores")


def _doubts(line: Mapping[str, Any]) -> Iterator[str]:
    """Why an estimate is not to be relied on, a sentence each."""
    updates = line["fit"]["updates"]
    if not line["within"]:
        least, most = line["bounds"]
        # Networks that begin out of bounds may not have had the updates to come within them.
        why, left = (
            ("the fit diverged, for ", "left") if line["lasted"] else ("", "did not keep to")
        )
        yield (
            f"{why}the data's rewards allow values from {least:.4g} to {most:.4g} alone, which "
            f"networks {left}; this is no estimate"
        )
    if not line["lasted"]:
        yield (
            f"{updates:,} updates are too few to tell, where a value takes {line['needed']:,}; "
            "raise --ope-updates"
        )
    # A fit that diverged needs other data or settings, not more updates.
    elif line["within"] and not line["settled"]:
        yield f"it was still changing after {updates:,} updates; raise --ope-updates"
