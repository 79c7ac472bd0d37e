"""`tql-offline select`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tql_offline.cli import app
from tql_offline.cli.tables import print_table, progress_bar, say, warn
from tql_offline.errors import InputError
from tql_offline.files import write_json
from tql_offline.runs import find_runs

if TYPE_CHECKING:
    from tql_offline.eval.selection import Pool, SelectionCurve

MAX_PULLS, MAX_REPEATS = 10_000, 100_000
MAX_PLAYED = 2 * 10**7
"""Most pulls of all choices together, which are held in memory at once."""
_COARSE = 10
"""Range of scores above which one decimal tells them apart."""
_FACTS = ("task", "setting", "method", "size", "unit", "runs")
SCHEMA = "tql-offline/selection/1"


@app.command()
def select(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
    arms: Annotated[int, typer.Option(min=2, help="Policies to choose among.")] = 8,
    pulls: Annotated[
        int, typer.Option(min=1, max=MAX_PULLS, help="Episodes allowed per choice.")
    ] = 200,
    repeats: Annotated[
        int, typer.Option(min=1, max=MAX_REPEATS, help="Choices to average over.")
    ] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for the full curves.")] = None,
) -> None:
    """Show what choosing among a method's runs by online episodes yields (unifloral's protocol)."""
    from tql_offline.eval.ended import ended_notes, ended_of_pools
    from tql_offline.eval.run_records import read_run
    from tql_offline.eval.selection import pools, selection_curve

    if pulls * repeats > MAX_PLAYED:
        raise InputError(
            f"--pulls {pulls} of --repeats {repeats} are more than {MAX_PLAYED:,}; lower one"
        )
    folders = find_runs(runs)
    with progress_bar("reading runs", len(folders)) as progress:
        read = []
        for folder in folders:
            read.append(read_run(folder, timed=False))
            progress.add(1)
    found, left_out = pools(read)
    warn(left_out, "left out")
    if not found:
        raise InputError(
            "no method has two usable runs of one task and size to choose among; train more of "
            "them, with other settings or seeds, or where they were left out for want of scores or "
            "episodes play more by `tql-offline eval RUN --missing` or `--protocol NAME:200`"
        )
    curves = []
    for number, pool in enumerate(found):
        generator = np.random.default_rng((seed, number))
        curve = selection_curve(pool, generator, arms=arms, pulls=pulls, repeats=repeats)
        curves.append((pool, curve))
    for table in dict.fromkeys(map(_table, found)):
        _print(*table, [(pool, curve) for pool, curve in curves if _table(pool) == table])
    for note in ended_notes(ended_of_pools(read, found)):
        say(note)
    if few := sorted({len(pool.runs) for pool in found if len(pool.runs) < arms}):
        say(
            f"all {' or '.join(map(str, few))} of a pool's runs are the arms where it has fewer "
            f"than --arms {arms}"
        )
    if any(pool.alike for pool in found):
        say("no interval where all runs of a pool score the same: nothing tells what others would")
    if any(np.isnan(curve.low).all() and not pool.alike for pool, curve in curves):
        say(
            "no interval where a pool has fewer than two runs an arm: choices are then nearly all "
            "among the same; --arms N draws fewer"
        )
    if out is not None:
        write_json(out, _document(curves, arms, pulls, repeats, seed))


def _table(pool: "Pool") -> tuple[str, str, str]:
    """What the columns of one table have in common."""
    return pool.task, pool.unit, pool.setting


def _print(
    task: str, unit: str, setting: str, curves: "Sequence[tuple[Pool, SelectionCurve]]"
) -> None:
    from tql_offline.eval.report_tables import digits_of
    from tql_offline.eval.selection import shown_pulls

    names = [f"{pool.method} {pool.size}".strip() for pool, _ in curves]
    low, high = curves[0][0].bounds
    digits = digits_of(high - low > _COARSE)
    played = [f"{len(p.runs)} runs × {_range([*map(len, p.episodes)])}" for p, _ in curves]
    rows = [
        ["runs × episodes", *played],
        ["0", *(f"{curve.blind:.{digits}f}" for _, curve in curves)],
    ]
    for pull in shown_pulls(len(curves[0][1].mean)):
        rows.append([str(pull), *(_cell(curve, pull - 1, digits) for _, curve in curves)])
    rows.append(["all", *(f"{curve.by_all:.{digits}f}" for _, curve in curves)])
    title = f"{task}: {unit} after so many episodes ({setting})"
    print_table(title, ["episodes#", *(f"{name}#" for name in names)], rows)


def _range(counts: "Sequence[int]") -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _cell(curve: "SelectionCurve", pull: int, digits: int) -> str:
    numbers = curve.mean[pull], curve.low[pull], curve.high[pull]
    mean, low, high = (f"{number:.{digits}f}" for number in numbers)
    return mean if np.isnan(curve.low[pull]) else f"{mean} ({low} to {high})"


def _document(
    curves: "Sequence[tuple[Pool, SelectionCurve]]", arms: int, pulls: int, repeats: int, seed: int
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        **{"arms": arms, "pulls": pulls, "repeats": repeats, "seed": seed},
        "curves": [
            {
                **{key: getattr(pool, key) for key in _FACTS},
                "episodes": [len(row) for row in pool.episodes],
                **{key: _plain(value) for key, value in asdict(curve).items()},
            }
            for pool, curve in curves
        ],
    }


def _plain(value: Any) -> Any:
    """A number, or a list of them; None for NaN."""
    if isinstance(value, np.ndarray):
        return [_plain(float(number)) for number in value]
    return None if np.isnan(value) else value
