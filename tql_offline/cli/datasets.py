"""`tql-offline datasets list | info | check | convert`."""

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import distribution, print_table, say
from tql_offline.datasets.catalogue import (
    SUITES,
    Entry,
    entries,
    find_or_none,
    select,
    suite_of,
    title,
)
from tql_offline.datasets.names import (
    MINARI_PREFIX,
    collected_folder,
    commands_for,
    parse_name,
    suite_folder,
)
from tql_offline.errors import InputError, did_you_mean, shown

if TYPE_CHECKING:
    from tql_offline.datasets.load import Dataset

datasets = typer.Typer(no_args_is_help=True, help="List, show, check and convert datasets.")
app.add_typer(datasets, name="datasets")


@datasets.command("list")
def list_datasets(
    text: Annotated[str, typer.Argument(help="Show only names that contain this.")] = "",
    suite: Annotated[
        str | None,
        typer.Option(help="ogbench, ogbench-visual, d4rl, minari, or a bundle (ogbench-paper-25)."),
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Only those on this machine.")
    ] = False,
) -> None:
    """List datasets that can be downloaded or collected, and those on this machine."""
    shown = [
        (entry, place)
        for entry in (entries() if suite is None else select(suite))
        for place in [_place(entry)]
        if text in entry.name and (place or not installed)
    ]
    if suite in (None, "minari"):
        shown += [(entry, "installed") for entry in _unpublished() if text in entry.name]
    columns = ("dataset", "obs#", "act#", "steps#", "size#", "state")
    for name in SUITES:
        rows = [_row(entry, place) for entry, place in shown if entry.suite == name]
        if rows:
            print_table(f"{title(name)}: {len(rows)} datasets", columns, rows, whole=True)
    if not shown and installed:
        say("no such dataset on this machine" + _nearest(text, suite))
    elif not shown:
        near = _nearest(text, suite) or "; `tql-offline datasets list` has all names"
        raise InputError(f"no dataset's name has {text!r} in it{near}")


def _nearest(text: str, suite: str | None) -> str:
    """What a text that no name contains may have meant: a word of names, or a name."""
    names = [entry.name for entry in (entries() if suite is None else select(suite))]
    if any(text in name for name in names):
        return ""
    words = {word for name in names for word in re.split("[-/]", name) if len(word) > 2}
    near = did_you_mean(text, [*sorted(words), *names])
    return near and f"; {near}"


def _unpublished() -> list[Entry]:
    """Datasets in Minari's folder that the catalogue lacks, by the names that commands take."""
    from tql_offline.datasets.minari import folder_of, installed, shapes_of

    found = []
    for name in installed():
        if suite_of(name) == "minari":
            continue
        shape, action_dim = None, None
        with suppress(InputError):  # of discrete actions, or damaged: `info` says why
            shape, action_dim = shapes_of(folder_of(name))
        found.append(
            Entry(
                name=f"{MINARI_PREFIX}{name}",
                suite="minari",
                family="",
                kind="",
                observation_shape=shape,
                action_dim=action_dim,
            )
        )
    return found


def _row(entry: Entry, place: str) -> tuple[str, ...]:
    """Name, shapes, step limit, size of the files, and whether it is here or known to be wrong."""
    state = ", ".join(filter(None, (place, "broken" if entry.faults else "")))
    limit = "" if entry.max_episode_steps is None else str(entry.max_episode_steps)
    return entry.name, _observations(entry), _actions(entry), limit, _size(entry), state


_ActionBounds = Annotated[
    str,
    typer.Option(
        help="LOW,HIGH of your own file's actions, or LOW,…,HIGH,… by dim: training's "
        "dataset.action_bounds."
    ),
]


@datasets.command("info")
def show_info(
    name: Annotated[str, typer.Argument(help="Dataset name (OGBench: with a task) or file.")],
    action_bounds: _ActionBounds = "",
) -> None:
    """Show what is known about a dataset, and load it: size, returns, rewards, masks and hash."""
    entry = find_or_none(name)
    if entry is not None:
        print_table(entry.name, ("published", ""), _published_facts(entry))
        if not _place(entry):
            say(f"not on this machine: run {commands_for(entry.name)}")
            return
        if entry.suite.startswith("ogbench") and parse_name(name).task is None:
            task = f"{entry.family}-{entry.kind}-singletask-task1-v0"
            say(f"its returns are those of a task: `tql-offline datasets info {task}`")
            return
    from tql_offline.datasets.action_bounds import OutOfBoundsError  # imports readers: on use
    from tql_offline.datasets.load import load

    bounds = _bounds(action_bounds)
    try:
        data = load(name, allow_broken=True, action_bounds=bounds)
    except OutOfBoundsError as error:
        raise error.told(bounds, "--action-bounds LOW,HIGH") from error
    print_table(data.name, ("loaded", ""), _loaded_facts(data))


@datasets.command("check")
def check_data(
    data: Annotated[str, typer.Argument(help="File, or dataset name with a task.")],
    env: Annotated[
        str, typer.Option(help="Environment id whose dims your own file must match.")
    ] = "",
    action_bounds: _ActionBounds = "",
) -> None:
    """Check data for faults: exit code 0 if there are no warnings, 1 if any, 2 if unreadable.

    Each finding is one sentence with its episode and row (counted from 0). Notes, on what may be
    intended, do not affect the exit code.
    """
    from tql_offline.datasets.check_dataset import check_dataset  # imports every reader: on use

    found = check_dataset(data, env, _bounds(action_bounds))
    for finding in found:
        say(str(finding))
    warnings = sum(finding.level == "warning" for finding in found)
    notes = len(found) - warnings
    say(f"{warnings} warning{'s' * (warnings != 1)}, {notes} note{'s' * (notes != 1)}")
    if warnings:
        raise typer.Exit(1)


def _bounds(text: str) -> tuple[float, ...]:
    """Numbers of `LOW,HIGH`, also in brackets, as training takes them."""
    try:
        return tuple(float(part) for part in text.strip("[]").split(",") if text)
    except ValueError as error:
        raise InputError(
            f"--action-bounds {shown(text)} is not the least and the greatest action; give two "
            "numbers, such as -2,2, or all dims' least actions and then all dims' greatest"
        ) from error


@datasets.command("convert")
def convert_data(
    source: Annotated[str, typer.Argument(help=".npz, HDF5, Minari folder, or dataset name.")],
    target: Annotated[Path, typer.Argument(help=".npz, .hdf5, or a folder for Minari.")],
    to: Annotated[str, typer.Option(help="npz, hdf5 or minari. Default: from the target.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing target.")] = False,
    packed: Annotated[
        bool, typer.Option("--packed", help="Deflate npz and HDF5: smaller, slower to load.")
    ] = False,
    without_infos: Annotated[
        bool, typer.Option("--without-infos", help="Leave out a Minari dataset's infos.")
    ] = False,
) -> None:
    """Rewrite data in another format, without loss; digests go into TARGET.json."""
    from tql_offline.datasets.convert import convert, needed_setting, source_of

    manifest = convert(
        source_of(source), target, to, force=force, packed=packed, infos=not without_infos
    )
    say(f"{target}: {len(manifest['columns'])} columns, sha256 {manifest['target']['sha256']}")
    if sentence := needed_setting(manifest):
        say(sentence)


def _published_facts(entry: Entry) -> list[tuple[str, str]]:
    facts = [
        ("suite", entry.suite),
        ("observation", _observations(entry) or "unknown"),
        ("action", _actions(entry) or "unknown"),
        ("episode limit", f"{entry.max_episode_steps or 'unknown'}"),
        ("folder", str(suite_folder(entry.suite))),
    ]
    for file in entry.files:
        length = "unknown length" if file.bytes is None else f"{file.bytes:,} bytes"
        facts.append((file.name, f"{length}, sha256 {file.sha256 or 'unknown'}"))
    facts += [("broken", fault) for fault in entry.faults]
    return facts + [("note", note) for note in entry.notes]


def _loaded_facts(data: "Dataset") -> list[tuple[str, str]]:
    from tql_offline.datasets.summary import summarise

    episodes, summary = data.episodes, summarise(data.episodes)
    low, mean, high = summary.reward_range
    dims = " x ".join(map(str, episodes.observations.shape[1:]))
    return [
        ("file", str(data.path)),
        ("source", data.source),
        ("sha256", data.sha256),
        ("environment", data.env_id or "none"),
        ("transitions", f"{episodes.num_transitions:,}"),
        ("episodes", f"{episodes.num_episodes:,}"),
        ("episode length", distribution(summary.lengths)),
        ("observation dims", dims),
        ("action dims", str(episodes.actions.shape[1])),
        ("undiscounted return", distribution(summary.returns)),
        ("reward", f"{low:g} to {high:g}, mean {mean:.4g}, {summary.reward_values:,} values"),
        ("rewards that are 0", f"{100 * summary.zero_rewards:.4g} %"),
        ("transitions that end the task", f"{summary.ending_transitions:,}"),
        ("episodes with such a one", f"{summary.ending_episodes:,} of {episodes.num_episodes:,}"),
        *((finding.level, finding.sentence) for finding in (*data.found, *data.not_published())),
        *(("not scored", why) for why in (data.unscored,) if why),
    ]


def _observations(entry: Entry) -> str:
    return "x".join(map(str, entry.observation_shape or ()))


def _actions(entry: Entry) -> str:
    if entry.num_actions is not None:
        return f"1 of {entry.num_actions}"
    return "" if entry.action_dim is None else str(entry.action_dim)


def _size(entry: Entry) -> str:
    known = [file.bytes for file in entry.files if file.bytes is not None]
    if len(known) < len(entry.files):
        return "unknown"
    return f"{sum(known) / 1e6:,.1f} MB" if known else ""


def _place(entry: Entry) -> str:
    """Whether a dataset's data are here: `downloaded`, `collected` or nothing."""
    from tql_offline.datasets.minari import is_minari

    folder = suite_folder(entry.suite)
    if entry.suite == "minari":
        return "downloaded" if is_minari(folder / entry.name) else ""
    if (folder / entry.files[0].name).is_file():
        return "downloaded"
    is_collected = (collected_folder() / entry.files[0].name).is_file()
    return "collected" if is_collected else ""
