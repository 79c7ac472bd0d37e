"""`tql-offline inspect`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import TerminalReporter, print_table, say
from tql_offline.cli.train import load_and_say
from tql_offline.number_lists import parse_numbers

if TYPE_CHECKING:
    from tql_offline.eval.inspections import Inspection


@app.command("inspect")
def inspect_(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    step: Annotated[
        int | None, typer.Option(help="Step of the checkpoint. Default: the last.")
    ] = None,
    states: Annotated[
        str,
        typer.Option(
            help="Transitions to inspect, e.g. 0,500,999 or 0-9. Default: the first, middle and "
            "last of some episodes."
        ),
    ] = "",
    episodes: Annotated[int, typer.Option(help="Number of those episodes.")] = 3,
    seed: Annotated[int, typer.Option(help="Seeds their choice and the policy's noise.")] = 0,
    dims: Annotated[
        str,
        typer.Option(help="Action dims the Q landscape varies, e.g. 0,1. Default: the first two."),
    ] = "",
    held: Annotated[
        str, typer.Option(help="Whose action the other dims are held at: data or policy.")
    ] = "data",
    grid: Annotated[int, typer.Option(help="Landscape points per dim.")] = 25,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. Default: inspect in the run folder.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    path: Annotated[
        Path | None, typer.Option(help="Where the data's file is now, if it was moved.")
    ] = None,
) -> None:
    """Show what a run's critic attends to, whether attention has collapsed, and Q over actions."""
    from tql_offline.training.inspection import Choice, inspect_run

    choice = Choice(
        states=parse_numbers(states, "--states"),
        episodes=episodes,
        seed=seed,
        dims=parse_numbers(dims, "--dims"),
        held=held,
        grid=grid,
    )
    with TerminalReporter() as reporter:
        folder, found = inspect_run(
            run,
            step=step,
            choice=choice,
            out=out,
            device=device,
            load_dataset=load_and_say,
            reporter=reporter,
            moved_to=path,
        )
    show(found)
    say(f"written: {folder}")


def show(found: "Inspection") -> None:
    """Print entropies and what controls them, the alarm, and Q at the inspected states."""
    from tql_offline.eval.attention_health import alarm_sentence

    if found.tokens:
        columns = entropy_columns(found)
        print_table(
            f"Attention at update {found.step:,}, mean over {found.sampled} transitions and all "
            f"heads (ln {found.tokens} = {math.log(found.tokens):.2f})",
            tuple(columns),
            zip(*columns.values(), strict=True),
        )
        where = f"at update {found.step:,}"
        alarm = alarm_sentence(found.entropy.tolist(), found.tokens, where)
        say(alarm or "No layer's attention has collapsed.")
    else:
        say("Attention is recorded of transformers alone, so only Q landscapes are shown.")
    print_table(
        "Q over the landscapes: mean of the ensemble, and its largest spread",
        ("transition#", "episode#", "step#", "lowest#", "highest#", "spread#"),
        (
            (
                *(f"{n:,}" for n in (state.transition, state.episode, state.episode_step)),
                *(f"{value:.4g}" for value in (q.mean.min(), q.mean.max(), q.spread.max())),
            )
            for state in found.states
            for q in [state.landscape]
        ),
    )


def entropy_columns(found: "Inspection") -> dict[str, list[str]]:
    """Cells of every layer and token group by heading, without targets where the run has none."""
    from tql_offline.eval.attention_health import has_targets, has_temperatures

    entropy, target = found.entropy.ravel(), found.target.ravel()
    columns = {
        "layer#": [f"{i // 2 + 1}" for i in range(len(entropy))],
        "queries": ["[VALUE]", "all others"] * len(found.entropy),
        "entropy, nats#": [f"{nats:.3f}" for nats in entropy],
    }
    if has_targets(found.mode):
        columns["target, nats#"] = [f"{nats:.3f}" for nats in target]
        columns["difference#"] = [f"{nats:+.3f}" for nats in entropy - target]
    if has_temperatures(found.mode):
        columns["temperature#"] = [f"{value:.3g}" for value in found.temperature.ravel()]
    return columns
