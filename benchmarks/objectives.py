"""The study of objectives, critics and sizes: from the runs of a sweep to docs/objectives.md.

    tql-offline sweep benchmarks/objectives.toml --runs runs/objectives --processes 2
    python benchmarks/objectives.py gather runs/objectives   # → benchmarks/results/objectives.jsonl
    python benchmarks/objectives.py table                    # → docs/objectives.md

Success of the learned policy at the last update, per seed. The interval is the leaderboard's of a
mean over seeds, widened to the Wilson interval of the initial states that all seeds share.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tql_offline.errors import InputError
from tql_offline.eval.statistics import estimate_mean, wilson_interval
from tql_offline.files import read_json, read_jsonl, write_atomic
from tql_offline.runs import RunFolder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "objectives.jsonl"
PAGE = ROOT / "docs" / "objectives.md"
BEGIN, END = "<!-- tables: written by benchmarks/objectives.py -->", "<!-- end of tables -->"
KEPT = (
    "run", "method", "objective", "critic", "entropy", "size", "parameters", "dataset",
    "dataset_sha256", "task", "seed", "updates", "evaluations",
)  # fmt: skip
COLUMNS = (
    "method", "critic", "size", "parameters", "success, % (95 %)", "per seed", "best of each seed",
    "updates/s",
)  # fmt: skip
SIZE_ORDER = ("tiny", "small", "medium", "large", "xl", "xxl")

Line = dict[str, Any]


def gather(runs: Path) -> Iterator[Line]:
    """One line per finished run, by name: what the tables need, and what repeats it."""
    for path in sorted(runs.glob("*/result.json")):
        result = read_json(path)
        timing = list(read_jsonl(RunFolder(path.parent).timing))
        config = RunFolder(path.parent).config.read_text(encoding="utf-8")
        yield {
            **{key: result[key] for key in KEPT},
            "protocol": f"{result['protocol']['name']}/{result['protocol']['version']}",
            "versions": result["provenance"]["versions"],
            "updates_per_second": round(
                float(np.median([t["updates_per_second"] for t in timing])), 1
            ),
            "config": config,
        }


def last(line: Line, policy: str = "learned") -> Line | None:
    """A policy's evaluation at the last update."""
    at_end = (e for e in line["evaluations"] if e["policy"] == policy)
    return next((e for e in at_end if e["step"] == line["updates"]), None)


def interval(rates: list[float], episodes: int) -> tuple[float, float]:
    """95 % interval of a mean success rate over seeds, of the same `episodes` episodes in each.

    At least Wilson's of these: that every seed fails from 50 states tells little of other states.
    """
    low, high = wilson_interval(float(np.mean(rates)) * episodes, episodes)
    if len(rates) > 1:
        over_seeds = estimate_mean([100 * np.array(rates)], is_rate=True)
        low, high = min(low, over_seeds.low / 100), max(high, over_seeds.high / 100)
    return low, high


def check_alike(lines: list[Line]) -> None:
    """See that the runs of a row differ in nothing but their seeds.

    Raises:
        InputError: they were scored otherwise, on other data or in other versions, a seed is there
            twice, or a run has no score; the message names the run.
    """
    for line in lines:
        for key in ("dataset_sha256", "protocol", "versions"):
            if line[key] != lines[0][key]:
                raise InputError(f"runs {lines[0]['run']} and {line['run']} differ in {key}")
        if last(line) is None:
            raise InputError(f"run {line['run']} has no score at its last update; train it again")
    if len({line["seed"] for line in lines}) < len(lines):
        raise InputError(f"two runs like {lines[0]['run']} have one seed; keep one of them")


def row(lines: list[Line]) -> str:
    """Markdown row of one method with one critic, over its seeds."""
    check_alike(lines)
    evaluations = [e for e in map(last, lines) if e]
    rates = [e["success_rate"] for e in evaluations]
    low, high = interval(rates, evaluations[0]["episodes"])
    best = [
        max(e["success_rate"] for e in li["evaluations"] if e["policy"] == "learned")
        for li in lines
    ]
    first = lines[0]
    cells = (
        first["method"],
        first["critic"],
        first["size"],
        f"{first['parameters']:,}",
        f"**{100 * np.mean(rates):.0f}** ({100 * low:.0f} to {100 * high:.0f})",
        ", ".join(f"{100 * rate:.0f}" for rate in rates),
        ", ".join(f"{100 * rate:.0f}" for rate in best),
        _rate([line["updates_per_second"] for line in lines]),
    )
    return f"| {' | '.join(cells)} |"


def _rate(rates: list[float | None]) -> str:
    """Their median; a dash of runs that had not the cores to themselves."""
    known = [rate for rate in rates if rate is not None]
    return f"{np.median(known):.0f}" if known else "—"


def behaviour(lines: Iterable[Line]) -> str:
    """A sentence on the flow clones that the runs trained beside their policies."""
    clones = [e for e in (last(line, "behaviour") for line in lines) if e]
    if not clones:
        return ""
    rates = [100 * e["success_rate"] for e in clones]
    return (
        f"The behaviour flows that {len(clones)} of these runs trained beside their "
        f"policies succeed in {np.mean(rates):.1f} % of their episodes "
        f"(a run at least {min(rates):.0f}, at most {max(rates):.0f})."
    )


def tables(lines: list[Line]) -> Iterator[str]:
    """The Markdown of all tasks."""
    lines = sorted(lines, key=_order)
    for task, of_task in groupby(lines, key=lambda line: (line["task"], line["updates"])):
        found = list(of_task)
        yield f"### {task[0]}, {task[1]:,} updates\n"
        yield f"| {' | '.join(COLUMNS)} |"
        yield "|---" * len(COLUMNS) + "|"
        for _, of_row in groupby(found, key=lambda line: _order(line)[:-1]):
            yield row(list(of_row))
        yield f"\n{behaviour(found)}\n"


def _order(line: Line) -> tuple[Any, ...]:
    size = SIZE_ORDER.index(line["size"]) if line["size"] else -1
    method = (line["objective"], line["method"].removesuffix("-transformer"))
    return (line["task"], line["updates"], *method, line["critic"], size, line["seed"])


def filled(page: str, made: Iterable[str]) -> str:
    """The page with other tables between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n" + "\n".join(made) + f"\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("gather").add_argument("runs", type=Path)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "gather":
        lines = list(gather(arguments.runs))
        if not lines:
            raise InputError(f"no finished run lies in {arguments.runs}; give the sweep's --runs")
        RESULTS.parent.mkdir(exist_ok=True)
        write_atomic(RESULTS, "".join(json.dumps(line) + "\n" for line in lines))
    else:
        page = PAGE.read_text(encoding="utf-8")
        write_atomic(PAGE, filled(page, tables(list(read_jsonl(RESULTS)))))


if __name__ == "__main__":
    main()
