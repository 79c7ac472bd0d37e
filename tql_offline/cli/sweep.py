"""`tql-offline sweep`."""

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tql_offline.cli import app
from tql_offline.cli.streams import outliving_output
from tql_offline.cli.tables import (
    Counter,
    percent_with_interval,
    print_table,
    progress_bar,
    say,
    warn,
)
from tql_offline.cli.train import assign
from tql_offline.errors import listed, numbered, quoted
from tql_offline.number_lists import parse_numbers
from tql_offline.setting_effects import copies

_MAX_NAMED = 6
"""Most runs that a note names."""

if TYPE_CHECKING:
    from tql_offline.training.suite import PlannedRun, Suite
    from tql_offline.training.sweep import Ended, State


@app.command()
def sweep(
    suite: Annotated[
        Path,
        typer.Argument(help="TOML grid of runs (docs/sweep.md), or built-in scaling or ablation."),
    ],
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at a time; they share the cores. Default: 1, or one for each of --gpus.",
        ),
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="GPUs to spread the runs over, one for each run: 0-3 or 0,2.")
    ] = "",
    list_: Annotated[
        bool, typer.Option("--list", help="Print the runs and their states; train nothing.")
    ] = False,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="Count what the unfinished runs will cost; train nothing."),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only runs whose names match, e.g. '*-xl-s0'; repeatable."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting that overrides the suite's, e.g. steps=100."),
    ] = None,
) -> None:
    """Train all runs of a grid; rerunning the command resumes a stopped sweep."""
    from tql_offline.datasets.collect import official_size
    from tql_offline.training import suite as suites
    from tql_offline.training.device import gpu_names
    from tql_offline.training.new_run import check_place, check_writable
    from tql_offline.training.sweep import DONE, state_of

    check_place(runs)
    numbers = parse_numbers(gpus, "--gpus")
    processes = processes or len(numbers) or 1
    over: dict[str, Any] = {}
    for assignment in set_ or []:
        assign(over, assignment)
    read = suites.read_suite(suites.find_suite(suite))
    planned = suites.expand(read, over, processes)
    if only:
        planned, collect = suites.select(planned, only, read)
        read = replace(read, collect=collect)
    states = [(run, state_of(run, runs)) for run in planned]
    if list_:
        _list(states, runs)
    if cost:
        _print_costs([run for run, state in states if state not in DONE])
    if list_ or cost:
        return
    names = gpu_names(numbers)
    _say_copies(planned)
    suites.check_collected(read)
    unfinished = [run for run, state in states if state not in DONE]
    for run in unfinished:
        suites.check_data(run, read)
    suites.check_environments(unfinished, read)
    for name in read.collect:
        official_size(name)  # refuses what cannot be collected before anything is written
    finished = sum(state == "finished" for _, state in states)
    say(f"{finished} of {len(planned)} runs are finished")
    _say_ended([run.name for run, state in states if state == "ended"], runs)
    _say_extended([run.name for run, state in states if state == "extended"], runs)
    if unfinished:
        check_writable(runs)
    failed = _train(read, unfinished, runs, processes, names)
    for sentence in failed:
        say(sentence)
    if failed:
        raise typer.Exit(1)


def _list(states: "list[tuple[PlannedRun, State]]", runs: Path) -> None:
    from tql_offline.training.sweep import DONE, is_taken

    for run, state in states:
        shown = "in training" if state not in DONE and is_taken(run, runs) else state
        say(f"{shown:11}  {run.name}")
    if any(state == "damaged" for _, state in states):
        say(
            "note: the result.json of damaged runs cannot be read; the same command without --list "
            "writes it again from the last checkpoint"
        )
    _say_extended([run.name for run, state in states if state == "extended"], runs)


def _say_ended(names: Sequence[str], runs: Path) -> None:
    """Say which runs are left as they are though they have no score."""
    if names:
        from tql_offline.eval.ended import WITHOUT_SCORE

        say(
            f"note: {numbered(len(names), 'run', 'runs')} {WITHOUT_SCORE}, not trained again: "
            f"{listed(names, _MAX_NAMED)}; `tql-offline train --resume {quoted(runs / names[0])}` "
            "would go on from its last checkpoint"
        )


def _say_extended(names: Sequence[str], runs: Path) -> None:
    """Say which runs have lost their result for as long as they are given more updates."""
    if names:
        say(
            f"note: {numbered(len(names), 'run is', 'runs are')} being given more updates, and on "
            f"no leaderboard until `tql-offline train --resume {quoted(runs / names[0])}` ends: "
            f"{listed(names, _MAX_NAMED)}"
        )


def _print_costs(unfinished: "list[PlannedRun]") -> None:
    """Print runs, updates and operations by method and size, and what the sum means."""
    from tql_offline.training.sweep_cost import costs

    with progress_bar("counting", len(unfinished)) as progress:
        found = costs(unfinished, progress.add)
    print_table(
        f"What {len(unfinished):,} unfinished runs cost",
        ("method", "size", "runs#", "updates#", "FLOPs of updates#"),
        (
            (
                c.method,
                c.size,
                f"{c.runs:,}",
                f"{c.updates:,}",
                f"{c.flops:.3g}" if c.flops else "—",
            )
            for c in found
        ),
    )
    flops, uncounted = sum(c.flops for c in found), sum(c.uncounted for c in found)
    if uncounted:
        say(
            f"{uncounted:,} runs are left out of the FLOPs, as their data cannot be loaded and are "
            "in no catalogue, or are images, or their method cannot be counted"
        )
    if not flops:
        return
    say(
        f"in all {flops:.3g} FLOPs of matrix products, scoring aside: at 1e14 a second "
        f"{flops / 1e14 / 86400:.3g} days; `tql-offline bench --size SIZE` measures how many a "
        "second this device comes to, which for small critics are far fewer than its peak"
    )


@outliving_output()
def _train(
    suite: "Suite", pending: "list[PlannedRun]", runs: Path, processes: int, gpus: Sequence[str]
) -> list[str]:
    """Train what is not finished; returns a sentence for each run that failed."""
    from tql_offline.training.sweep import GOES_ON, train_runs

    if pending:
        _collect(suite)
        _say_unscored(pending)
    with progress_bar("runs", len(pending)) as progress:
        reporter = _Reporter(progress)
        try:
            left = train_runs(pending, runs, processes=processes, reporter=reporter, gpus=gpus)
        except KeyboardInterrupt as stop:
            stop.add_note(GOES_ON)
            raise
        except SystemExit:  # by a signal
            say(f"stopped; {GOES_ON}")
            raise
    if left:
        say(f"left to other processes: {len(left)}; --list shows how far they are")
    return reporter.failed


class _Reporter:
    """Prints a line per run, and keeps a sentence for each that failed."""

    def __init__(self, progress: Counter) -> None:
        self.progress = progress
        self.failed: list[str] = []

    def begun(self, run: "PlannedRun", how: str) -> None:
        """Say how a run begins that is not new."""
        if how:
            say(f"{run.name}: {how}")

    def passed(self, run: "PlannedRun", why: str) -> None:
        """Say that the run is left to others."""
        say(f"{run.name}: passed over, {why}")
        self.progress.add(1)

    def refused(self, run: "PlannedRun", why: str) -> None:
        """Say that the run failed before it began."""
        self.failed.append(f"{run.name} failed: {why}")
        say(f"{run.name}: failed")
        self.progress.add(1)

    def ended(self, end: "Ended") -> None:
        """Print the run's score."""
        if not end.succeeded:
            self.failed.append(_failure(end))
        say(_outcome(end))
        self.progress.add(1)


def _say_unscored(pending: "list[PlannedRun]") -> None:
    """Say before anything is trained that nothing will be scored."""
    from tql_offline.training.suite import has_no_environment

    names = [run.name for run in pending if has_no_environment(run)]
    if names:
        say(
            f"note: {len(names)} of {len(pending)} runs (first {names[0]}) use your own data "
            "without dataset.env_id, so they are not scored"
        )


def _say_copies(planned: "list[PlannedRun]") -> None:
    """Say before anything is trained which runs would be the same."""
    pairs = copies((run.name, run.config) for run in planned)
    said = (
        f"run {second} will train the same as {first}: they differ in no setting that training uses"
        for first, second in pairs
    )
    warn(list(said), "note")


def _collect(suite: "Suite") -> None:
    """Collect the suite's datasets that are not installed."""
    from tql_offline.datasets.collect import collect, total_steps
    from tql_offline.datasets.embedded import is_installed
    from tql_offline.datasets.names import collected_folder

    missing = {name: count for name, count in suite.collect.items() if not is_installed(name)}
    for name, episodes in missing.items():
        with progress_bar(f"collecting {name}", total_steps(name, episodes)) as progress:
            done = collect(name, out=collected_folder(), episodes=episodes, progress=progress.add)
        say(f"{done.train}: {done.rows:,} rows, sha256 {done.train_sha256}")


def _outcome(end: "Ended") -> str:
    """A run's line: `cube-flow-s0: success 98 % (90-100), 12.3 min`."""
    minutes = f"{end.seconds / 60:.1f} min"
    if not end.succeeded:
        return f"{end.run.name}: failed, {minutes}"
    return f"{end.run.name}: {_score(end)}, {minutes}"


def _score(end: "Ended") -> str:
    from tql_offline.eval import protocol as protocols
    from tql_offline.training.sweep import last_evaluation

    last = last_evaluation(end.folder)
    if last is None:
        return "not scored"
    protocol = protocols.get(end.run.config.evaluation.protocol)
    counted = protocols.evaluations_counted(protocol.counted)
    of_several = f" in the last of the {counted} evaluations that count" if counted > 1 else ""
    if protocol.score != "success":
        normalised = f"score {last['score']:.4g}, " if protocol.score == "normalised" else ""
        return f"{normalised}return {last['return_mean']:.1f}{of_several}"
    wins = round(last["success_rate"] * last["episodes"])
    return f"success {percent_with_interval(wins, last['episodes'])}{of_several}"


def _failure(end: "Ended") -> str:
    said = end.said or "it printed nothing"
    if end.code < 0 and not said.startswith("tql-offline: "):
        said = f"it was ended by {signal.Signals(-end.code).name}"
    return f"{end.run.name} failed with exit code {end.code}: {said} (all of it in {end.log})"
