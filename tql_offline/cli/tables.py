"""Everything drawn on the terminal; the only module that imports rich."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import typer
from numpy.typing import ArrayLike
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from tql_offline.cli import printable
from tql_offline.eval.protocol import scores_success
from tql_offline.eval.statistics import mean_std, wilson_interval

_BLOCKS = " ▁▂▃▄▅▆▇█"
_BINS = 24
MOST_WARNINGS = 10
PLAIN_SECONDS = 15.0
"""Seconds between progress lines where the output is a log, not a terminal."""

console = Console(stderr=False, highlight=False)


def say(text: str) -> None:
    """Print one line."""
    console.print(escape(text), soft_wrap=True)


def warn(sentences: Sequence[str], kind: str) -> None:
    """Print what was left out to standard error, at most `MOST_WARNINGS`, and how many more."""
    for sentence in sentences[:MOST_WARNINGS]:
        typer.echo(f"{kind}: {printable(sentence)}", err=True)
    if len(sentences) > MOST_WARNINGS:
        typer.echo(f"and {len(sentences) - MOST_WARNINGS} more", err=True)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, whole: bool = False
) -> None:
    """Print a table; a column whose name ends in `#` holds numbers and is right-aligned.

    `whole` keeps the first column on one line, so that it can be copied.
    """
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(columns):
        justify: Literal["right", "left"] = "right" if column.endswith("#") else "left"
        kept = whole and number == 0
        table.add_column(column.rstrip("#"), justify=justify, overflow="fold", no_wrap=kept)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def distribution(values: ArrayLike) -> str:
    """`-1000 ▁▁▂ █ 0, mean -412.3, median -398`: the range, with a histogram, and the centre.

    If the output is not a terminal, or one without blocks, the counts are given as numbers.
    """
    numbers = np.asarray(values, dtype=np.float64)
    low, high = numbers.min(), numbers.max()
    if low == high:
        return f"{low:g} throughout"
    drawn = console.is_terminal and console.encoding.startswith("utf")
    counts = np.histogram(numbers, bins=_BINS if drawn else _BINS // 2)[0].tolist()
    shape = f"{low:g} {sparkline(counts)} {high:g}" if drawn else f"{low:g} to {high:g}"
    centre = f"mean {numbers.mean():.4g}, median {np.median(numbers):.4g}"
    return f"{shape}, {centre}" + ("" if drawn else f"; in {len(counts)} bins: {_joined(counts)}")


def _joined(counts: Sequence[int]) -> str:
    return " ".join(map(str, counts))


def sparkline(counts: Sequence[int]) -> str:
    """Counts as blocks of eight heights; any count above 0 is at least the lowest block.

    >>> sparkline([0, 1, 500, 1000])
    ' ▁▄█'
    """
    highest = max(*counts, 1)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[min(-(-count * steps // highest), steps)] for count in counts)


def percent_with_interval(successes: int, episodes: int) -> str:
    """`98 % (90-100)`: success rate with its Wilson 95 % interval."""
    low, high = wilson_interval(successes, episodes)
    return f"{100 * successes / episodes:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def print_evaluations(lines: Iterable[dict[str, Any]]) -> None:
    """Print evaluations.jsonl lines as a table: successes, where the protocol scores them.

    Lines of several seeds have their `seed`, which is then a column.
    """
    lines = list(lines)
    if not lines:
        return
    by_success = all(scores_success(line["protocol"]) for line in lines)
    seeds = ("seed#",) if all("seed" in line for line in lines) else ()
    played = {(line["protocol"]["name"], len(line["episodes"])) for line in lines}
    protocols = ("protocol",) if len(played) > 1 else ()
    rows = [
        (
            *(str(line["seed"]) for _ in seeds),
            *(f"{line['protocol']['name']}" for _ in protocols),
            str(line["policy"]),
            f"{line['step']:,}",
            *(_successes(line) if by_success else (f"{line['score']:.4g}",)),
            f"{line['return_mean']:.1f}",
            f"{sum(e['length'] for e in line['episodes']) / len(line['episodes']):.0f}",
        )
        for line in lines
    ]
    score = ("successes#", "success (95 % Wilson)#") if by_success else ("score#",)
    print_table(
        "Scores", (*seeds, *protocols, "policy", "updates#", *score, "return#", "steps#"), rows
    )


def _successes(line: Mapping[str, Any]) -> tuple[str, str]:
    wins, episodes = sum(bool(e["success"]) for e in line["episodes"]), len(line["episodes"])
    return f"{wins}/{episodes}", percent_with_interval(wins, episodes)


def _seed(line: Mapping[str, Any]) -> str:
    """Whose line it is, where several seeds train at once."""
    return f"seed {line['seed']}, " if "seed" in line else ""


def metrics_line(line: dict[str, Any], updates_per_second: float) -> str:
    """The main numbers of one metrics line: speed, losses, Q, entropy by layer and group.

    Entropies stand beside their targets unless all temperatures are still 1: then none is learned.
    Behaviour cloning has no critic, and a delayed policy does not have a loss in every update.
    """
    named = {"critic": "critic_loss", "policy": "policy_loss", "Q": "q_mean"}
    parts = [f"update {line['step']:,}", f"{updates_per_second:.1f}/s"]
    parts += [f"{name} {line[key]:.3g}" for name, key in named.items() if key in line]
    pairs = zip(line.get("entropy", ()), line.get("entropy_target", ()), strict=True)
    is_steered = any(value != 1 for layer in line.get("temperature", ()) for value in layer)
    for layer, (entropy, target) in enumerate(pairs, start=1):
        goals = [f"→{t:.2f}" if is_steered else "" for t in target]
        groups = (f"{h:.2f}{goal}" for h, goal in zip(entropy, goals, strict=True))
        parts.append(f"H{layer} {' '.join(groups)}")
    return "  ".join(parts)


def print_spread(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print the mean and spread of the seeds' last scores, as papers do."""
    mean, sd = mean_std([line["score"] for line in lines])
    unit = "success in percent" if scores_success(lines[0]["protocol"]) else "score"
    say(
        f"over {len(lines)} seeds, learned policy at the last update: {mean:.4g} ± {sd:.2g} {unit} "
        "(mean ± standard deviation); `tql-offline report` gives the interval"
    )


class TerminalReporter:
    """Draws a run: progress bars on a terminal, a line now and then in a log."""

    def __init__(self) -> None:
        self._bars = _progress(MofNCompleteColumn())
        self._note = Text()
        self._live: Live | None = None
        self._tasks: dict[str, TaskID] = {}
        self._steps: dict[str, int] = {}
        self._spoke = time.monotonic()

    def __enter__(self) -> "TerminalReporter":
        if console.is_terminal:
            self._live = Live(Group(self._bars, self._note), console=console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, title: str, steps: int) -> None:
        """A stage of `steps` units begins."""
        self._steps[title] = steps
        if title in self._tasks:
            self._bars.reset(self._tasks[title], total=steps)
        else:
            self._tasks[title] = self._bars.add_task(title, total=steps)

    def advanced(self, step: int, title: str = "training") -> None:
        """The stage with this title has reached `step`."""
        self._bars.update(self._tasks[title], completed=step)
        # In a log, metrics lines say more where there are any.
        if self._live is None and self._is_time(2 * PLAIN_SECONDS):
            say(f"{title}: {step:,} of {self._steps[title]:,}")

    def logged(self, line: dict[str, Any], updates_per_second: float) -> None:
        """A line of metrics was written."""
        text = _seed(line) + metrics_line(line, updates_per_second)
        if self._live is not None:
            self._note.plain = text.replace("  H1 ", "\nH1 ", 1)
        elif self._is_time(PLAIN_SECONDS):
            say(text)

    def evaluated(self, line: dict[str, Any]) -> None:
        """A policy was scored."""
        outcome = f"scores {line['score']:.4g}"
        if scores_success(line["protocol"]):
            outcome = f"succeeds in {_successes(line)[1]}"
        say(f"{_seed(line)}update {line['step']:,}: {line['policy']} policy {outcome}")

    def noted(self, sentence: str) -> None:
        """Print a sentence."""
        say(sentence)

    def _is_time(self, seconds: float) -> bool:
        """Whether a log may have another line: whether the last one is `seconds` old."""
        due = time.monotonic() - self._spoke >= seconds
        if due:
            self._spoke = time.monotonic()
        return due


class _PlainProgress:
    """Progress as lines in a log, at most one every `PLAIN_SECONDS`."""

    def __init__(self, title: str, steps: int) -> None:
        self._title, self._steps, self._spoke = title, steps, time.monotonic()

    def advance(self, step: int, note: str = "") -> None:
        if time.monotonic() - self._spoke >= PLAIN_SECONDS:
            self._spoke = time.monotonic()
            say(note or f"{self._title}: {step:,} of {self._steps:,}")


class Counter:
    """Counts units done and shows them."""

    def __init__(self, show: Callable[[int], None]) -> None:
        self._done, self._show = 0, show

    def add(self, units: int) -> None:
        """Count `units` more as done."""
        self.reach(self._done + units)

    def reach(self, units: int) -> None:
        """Set the number of units done in all."""
        self._done = units
        self._show(units)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Counter]:
    """A bar over `total` units on a terminal, if there are any; a line now and then in a log."""
    if not console.is_terminal or not total:
        plain = _PlainProgress(title, total)
        yield Counter(plain.advance)
        return
    with _progress(MofNCompleteColumn()) as bar:
        task = bar.add_task(title, total=total)
        yield Counter(lambda done: bar.update(task, completed=done))


@contextmanager
def download_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars of files being downloaded; yields a function of (file, bytes received, bytes in all)."""
    if not console.is_terminal:
        plain = _PlainProgress("download", 0)
        yield lambda file, received, length: plain.advance(
            0, f"{file}: {received / 2**20:.0f} of {length / 2**20:.0f} MiB"
        )
        return
    tasks: dict[str, TaskID] = {}
    with _progress(DownloadColumn(), TransferSpeedColumn()) as bar:

        def show(file: str, received: int, length: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=length)
            bar.update(tasks[file], completed=received, total=length)

        yield show


def _progress(*columns: Any) -> Progress:
    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*shown, console=console, transient=False, refresh_per_second=4)
