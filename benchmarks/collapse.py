"""Attention entropy of the critic without and with control, by size: the collapse as a picture.

    python benchmarks/collapse.py train --out collapse --sizes small medium --updates 4000 1500
    python benchmarks/collapse.py draw collapse --out docs/collapse.svg

`train` runs the flow objective with the dataset's preset and evaluates nothing; the relabelling of
rewards needs OGBench, unless `pack` has written them into the file. docs/collapse.md says how to
read the picture.
"""

import argparse
import json
import math
import re
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_offline.agents import Agent, make_agent
from tql_offline.agents.optimizers import set_learning_rate
from tql_offline.config import Config, resolve
from tql_offline.datasets.buffer import make_buffer
from tql_offline.datasets.columns import read_columns
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.episodes import Array, Episodes
from tql_offline.datasets.load import Dataset, load
from tql_offline.errors import InputError
from tql_offline.eval.attention_health import COLLAPSED, layer_means
from tql_offline.files import append_jsonl, part_of, read_jsonl, write_atomic, writing
from tql_offline.networks import SIZES
from tql_offline.training.device import pick_device
from tql_offline.training.metrics import MetricsWindow, check_finite
from tql_offline.training.provenance import device_name, git_commit

if TYPE_CHECKING:
    from tql_offline.eval.plots import Line, Panel

DATASET = "cube-double-play-singletask-task1-v0"
MODES = {"none": "without control", "layerwise": "with control"}
"""Entropy mode → what the picture and the table call it."""

TITLE = "attention entropy in nats"
RECORDED = ("entropy", "entropy_target", "temperature", "td_loss", "q_mean")
REPORTS = 10
"""Lines of progress printed per run."""

LIGHT = {
    "bg": "#ffffff", "fg": "#16191d", "muted": "#57606a", "line": "#dfe3e8",
    "c1": "#8f3400", "c2": "#e06f10", "c3": "#004b7a", "c4": "#2f8fd0",
}  # fmt: skip
DARK = {
    "bg": "#14171a", "fg": "#e8eaed", "muted": "#a3acb6", "line": "#333a42",
    "c1": "#ffbb88", "c2": "#e0701a", "c3": "#b3dcf8", "c4": "#3f9fe0",
}  # fmt: skip
"""Orange without control and blue with it, which the common colour blindnesses tell apart; of each
the stronger contrast for the first layer."""

FIRST_COLOUR = {"none": 1, "layerwise": 3}
GROUPS: tuple[tuple[str, Literal["solid", "dashed"]], ...] = (
    ("[VALUE]", "solid"),
    ("other tokens", "dashed"),
)
DASHES = {"solid": "none", "dashed": "4.4 1.9", "dotted": "1.2 2"}
PANEL, GAP, HEADING = (360.0, 208.8), 20.0, 40.0
"""Sizes in the picture: width and height of a panel, the space around one, its heading's height."""


# Training.


def load_data(name: str, path: Path | None) -> Dataset:
    """A dataset by name; a file that holds rewards is read as it is, without a simulator.

    Raises:
        InputError: as `load`, or the rewards need a simulator that is not installed.
    """
    if path is not None and "rewards" in read_columns(path):
        return load(str(path))
    try:
        return load(name, path)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the rewards of {name} need {error.name}, which is not installed; install it, or run "
            "`collapse.py pack` where it is and give the packed file by --path"
        ) from error


def settings(arguments: argparse.Namespace, size: str, mode: str) -> Config:
    """The dataset's preset under the flags.

    Raises:
        InputError: a flag is out of range.
    """
    optimizer = {"critic_lr": arguments.critic_lr, "warmup": arguments.warmup}
    optimizer["policy_weight_decay"] = 0.0  # as in the tables, from before policies decayed
    flags = {
        "objective": "flow",
        "seed": arguments.seed,
        "steps": arguments.schedule_steps,
        "batch_size": arguments.batch_size,
        "n_step": arguments.n_step,
        "device": arguments.device,
        "dataset": {"name": arguments.dataset, "path": str(arguments.path or "")},
        "critic": {"kind": "transformer", "size": size},
        "entropy": {"mode": mode},
        "optimizer": {name: value for name, value in optimizer.items() if value is not None},
    }
    given = {name: value for name, value in flags.items() if value is not None}
    return resolve(given, flags_are="the flags")


def asked(config: Config, updates: int) -> dict[str, Any]:
    """The facts of a run that its settings decide."""
    return {
        "dataset": Path(config.dataset.name).stem,
        "size": config.critic.size,
        "mode": config.entropy.mode,
        "updates": updates,
        "batch_size": config.batch_size,
        "critic_lr": config.optimizer.critic_lr,
        "policy_lr": config.optimizer.policy_lr,
        "warmup": config.optimizer.warmup,
        "schedule_steps": config.steps,
        "n_step": config.n_step,
        "discount": config.discount,
        "seed": config.seed,
    }


def found(agent: Agent, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """The facts of a run that data, code and machine decide."""
    return {
        "parameters": sum(p.numel() for p in agent.networks["critic"].parameters()),
        "tokens": agent.num_tokens,
        "dataset_sha256": dataset.sha256,
        "dataset_source": dataset.source,
        "rows": dataset.episodes.num_transitions,
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
    }


def is_finished(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether a run's file is there.

    Raises:
        InputError: it is, but of other settings.
    """
    if not path.exists():
        return False
    facts: dict[str, Any] = next(read_jsonl(path), {})
    for name, value in wanted.items():
        if facts.get(name) != value:
            raise InputError(
                f"{path} was trained with {name} {facts.get(name)} where {value} is asked for; "
                "delete it, or choose another --out"
            )
    return True


def train_run(config: Config, updates: int, every: int, dataset: Dataset, path: Path) -> None:
    """Train one critic and write its file: a line of facts, then one per recorded update.

    A recorded entropy is of the update's own batch at the weights before its step, so that the
    first line shows the initial ones.

    Raises:
        InputError: training diverged, or the file cannot be written.
    """
    device = pick_device(config.device)
    episodes = dataset.episodes
    dims = (episodes.observations.shape[1], episodes.actions.shape[1])
    agent = make_agent(config, *dims, device)
    if config.dataset.normalise:
        agent.normaliser.fit(episodes.observations)
    n_step, discount = config.n_step, config.discount
    buffer = make_buffer(episodes, n_step=n_step, discount=discount, device=device)
    generator = torch.Generator(device).manual_seed(config.seed)

    part = path.with_name(f"{path.name}.part")
    with writing(part):
        part.unlink(missing_ok=True)
    append_jsonl(part, asked(config, updates) | found(agent, dataset, device))
    started = time.perf_counter()
    for step in range(1, updates + 1):
        schedule = (step - 1, config.optimizer.warmup, config.steps)
        set_learning_rate(agent.optimizers, agent.learning_rates, *schedule)
        metrics = agent.update(buffer.sample(config.batch_size, generator), generator, step)
        if step in (1, updates) or step % every == 0:
            line = recorded(metrics, step)  # waits for the device
            append_jsonl(part, line | {"seconds": round(time.perf_counter() - started, 3)})
        if step % max(updates // REPORTS, 1) == 0:
            print(f"{path.stem}  {step:,} of {updates:,} updates", flush=True)
    with writing(path):
        part.replace(path)


def recorded(metrics: dict[str, Tensor], step: int) -> dict[str, Any]:
    """One update's numbers, rounded as in metrics.jsonl.

    Raises:
        InputError: one is not finite.
    """
    window = MetricsWindow()
    window.add({name: metrics[name] for name in RECORDED})
    line = {"step": step, **window.flush()}
    check_finite(line, step, "", "lower --critic-lr")
    return line


def planned(arguments: argparse.Namespace) -> list[tuple[Config, int, Path]]:
    """Settings, updates and file of every run that is not finished.

    Raises:
        InputError: the flags cannot be used, or a finished run has other settings.
    """
    sizes, updates = arguments.sizes, arguments.updates
    if len(updates) not in (1, len(sizes)):
        raise InputError(
            f"--updates has {len(updates)} numbers for {len(sizes)} sizes; "
            "give one per size, or one for all"
        )
    if min(*updates, arguments.every) < 1:
        raise InputError("--updates or --every is less than 1; give positive numbers")
    counts = updates if len(updates) > 1 else updates * len(sizes)
    plan = []
    for size, count in zip(sizes, counts, strict=True):
        for mode in arguments.modes:
            config = settings(arguments, size, mode)
            path = arguments.out / f"{Path(config.dataset.name).stem}-{size}-{mode}.jsonl"
            if is_finished(path, asked(config, count)):
                print(f"{path.stem} is finished already", flush=True)
            else:
                plan.append((config, count, path))
    return plan


def train(arguments: argparse.Namespace) -> None:
    """Train every size in every mode, but those that are finished.

    Raises:
        InputError: the flags or the data cannot be used, and nothing is trained; or training
            diverged.
    """
    pick_device(arguments.device)
    plan = planned(arguments)
    if not plan:
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dataset = load_data(arguments.dataset, arguments.path)
    with writing(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
    for config, count, path in plan:
        train_run(config, count, arguments.every, dataset, path)


# Packing: a dataset with its rewards, for machines without a simulator.


def pack(arguments: argparse.Namespace) -> None:
    """Write a dataset with its rewards as an own file (docs/data.md).

    Raises:
        InputError: the file cannot be read or written, or is none of the dataset's.
    """
    out: Path = arguments.out
    if out.suffix != ".npz":
        raise InputError(f"{out} is not named .npz, the format that is written; rename it")
    dataset = load_data(arguments.dataset, arguments.file)
    aside = part_of(out)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                np.savez_compressed(file, **own_columns(dataset.episodes))
            aside.replace(out)
        finally:
            aside.unlink(missing_ok=True)
    print(f"{arguments.file}  sha256 {dataset.sha256}")
    print(f"{out}  sha256 {file_sha256(out)}  {dataset.episodes.num_transitions} transitions")


def own_columns(episodes: Episodes) -> dict[str, Any]:
    """Episodes as the columns of an own file, `(N + E, ...)`; an episode's last row is padded."""
    last = episodes.last_transitions() + np.arange(1, episodes.num_episodes + 1)
    terminals = np.zeros(len(episodes.observations), dtype=bool)
    terminals[last] = True
    padded: dict[str, Any] = {"observations": episodes.observations, "terminals": terminals}
    columns: dict[str, Array] = {
        "actions": episodes.actions,
        "rewards": episodes.rewards,
        "masks": episodes.masks,
    }
    for name, column in columns.items():
        padded[name] = np.zeros((len(terminals), *column.shape[1:]), dtype=column.dtype)
        padded[name][~terminals] = column
    return padded


# Reading what was trained.


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run, finished or not.

    Attributes:
        facts: the file's first line.
        steps: `(T,)` recorded updates.
        entropy: `(T, N, 2)` nats, ([VALUE], others) per layer.
        targets: `(N, 2)` nats.
    """

    facts: dict[str, Any]
    steps: NDArray[np.float64]
    entropy: NDArray[np.float64]
    targets: NDArray[np.float64]

    @property
    def ceiling(self) -> float:
        """Entropy of even attention over all tokens, ln L."""
        return math.log(self.facts["tokens"])

    @property
    def layer_means(self) -> NDArray[np.float64]:
        """`(T, N)`: mean over all L queries, of which one is [VALUE]."""
        return layer_means(self.entropy, self.facts["tokens"])


Pair = dict[str, Record]
"""The runs of one dataset and size by mode."""


def read_record(path: Path) -> Record | None:
    """Read a run's file; None where it has no recorded update yet.

    Raises:
        InputError: it cannot be read, or is no file of `train`.
    """
    try:
        # What follows the last line break is being written.
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        facts, *lines = ([json.loads(line) for line in whole]) or [{}]
        return _record(facts, lines) if lines else None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is no record of `collapse.py train` ({type(error).__name__}: {error}); "
            "delete it and train again"
        ) from error


def _record(facts: dict[str, Any], lines: Sequence[dict[str, Any]]) -> Record:
    """The numbers of a file.

    Raises:
        ValueError: they do not belong together.
    """
    record = Record(
        facts=facts,
        steps=np.array([line["step"] for line in lines], dtype=np.float64),
        entropy=np.array([line["entropy"] for line in lines], dtype=np.float64),
        targets=np.array(lines[0]["entropy_target"], dtype=np.float64),
    )
    depth = len(record.targets)
    if not depth or record.entropy.shape != (len(lines), depth, 2):
        raise ValueError(f"entropies of shape {record.entropy.shape}")
    if facts["size"] not in SIZES or facts["mode"] not in MODES or record.ceiling <= 0:
        raise ValueError(f"size {facts['size']!r}, mode {facts['mode']!r}")
    if not (np.isfinite(record.entropy).all() and np.isfinite(record.targets).all()):
        raise ValueError("an entropy that is not finite")
    _ = (str(facts["dataset"]), int(facts["parameters"]), int(facts["updates"]))
    return record


def read_pairs(folder: Path) -> list[Pair]:
    """All runs of a folder by dataset and size, the smallest size first.

    Raises:
        InputError: it holds none, or a file in it is damaged.
    """
    pairs: dict[tuple[str, int], Pair] = {}
    # A finished run is read last and takes the place of an unfinished one.
    for pattern in ("*.jsonl.part", "*.jsonl"):
        for path in sorted(folder.glob(pattern)):
            if record := read_record(path):
                key = (str(record.facts["dataset"]), list(SIZES).index(record.facts["size"]))
                pairs.setdefault(key, {})[record.facts["mode"]] = record
    if not pairs:
        raise InputError(f"no run of `collapse.py train` lies in {folder}; give its --out")
    return [pairs[key] for key in sorted(pairs)]


# The table.


def table(pairs: Iterable[Pair]) -> str:
    """Markdown: where the lowest layer of every run ended, and what the runs were."""
    rows = [
        "| dataset | size | parameters | updates | lowest layer without control | change "
        "| lowest layer with control | change | farthest from target | first below 0.5 nats |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    kinds: dict[str, None] = {}
    for pair in pairs:
        record = next(iter(pair.values()))
        facts = record.facts
        cells = [facts["dataset"], facts["size"], f"{facts['parameters'] / 1e6:.1f}M"]
        cells += [_updates_cell(pair)]
        for mode in MODES:
            cells += _lowest_cells(pair.get(mode))
        cells += [_distance_cell(pair.get("layerwise")), _collapsed_cell(pair)]
        rows.append(f"| {' | '.join(cells)} |")
        kinds |= dict.fromkeys(_conditions(record.facts) for record in pair.values())
    return "\n".join([*rows, "", *kinds])


def _updates_cell(pair: Pair) -> str:
    """Updates done; of how many, for a run in progress."""
    done: dict[str, None] = {}
    for record in pair.values():
        last, asked_for = int(record.steps[-1]), int(record.facts["updates"])
        done[f"{last:,}" if last == asked_for else f"{last:,} of {asked_for:,}"] = None
    return ", ".join(done)


def _lowest_cells(record: Record | None) -> list[str]:
    """The lowest layer's mean entropy at the end, and its change from the first update."""
    if record is None:
        return ["–", "–"]
    means = record.layer_means
    layer = int(means[-1].argmin())
    end, change = means[-1, layer], means[-1, layer] - means[0, layer]
    return [f"{end:.2f} (layer {layer + 1})", f"{change:+.2f}"]


def _distance_cell(record: Record | None) -> str:
    """The largest distance of a layer's group from its target at the end."""
    if record is None:
        return "–"
    return f"{np.abs(record.entropy[-1] - record.targets).max():.2f}"


def _collapsed_cell(pair: Pair) -> str:
    """Which run had a layer below 0.5 nats at a recorded update, and when first."""
    fell = []
    for mode, record in pair.items():
        below = np.flatnonzero(record.layer_means.min(axis=1) < COLLAPSED)
        if len(below):
            fell.append(f"{MODES[mode]}, from update {int(record.steps[below[0]]):,}")
    return "; ".join(fell) or "no"


def _conditions(facts: dict[str, Any]) -> str:
    """What a run's numbers depend on, in one line."""
    names = (
        "dataset", "rows", "dataset_sha256", "batch_size", "critic_lr", "policy_lr", "warmup",
        "schedule_steps", "n_step", "seed", "torch", "device",
    )  # fmt: skip
    return "- " + ", ".join(f"{name} {facts.get(name)}" for name in names)


# The picture.


def longest(pair: Pair) -> Record:
    """The run that has come farthest."""
    return max(pair.values(), key=lambda record: float(record.steps[-1]))


def panel_of(pair: Pair) -> "Panel":
    """Entropy by layer and token group, without and with control, over updates."""
    from tql_offline.eval.plots import Line, Panel  # imports matplotlib: only drawing needs it

    record = longest(pair)
    ends, ceiling = (0.0, float(record.steps[-1])), record.ceiling
    # Drawn first, under the curves that reach them.
    lines = [
        Line(label="the most possible", x=ends, y=(ceiling, ceiling), colour=0),
        Line(label="collapsed", x=ends, y=(COLLAPSED, COLLAPSED), colour=0, style="dotted"),
        *_target_lines(record, ends),
    ]
    for mode, run in pair.items():
        for layer in range(len(run.targets)):
            for group, (name, style) in enumerate(GROUPS):
                lines.append(
                    Line(
                        label=f"{MODES[mode]}, layer {layer + 1}, {name}",
                        x=run.steps.tolist(),
                        y=run.entropy[:, layer, group].tolist(),
                        colour=_colour(mode, layer),
                        style=style,
                    )
                )
    return Panel(title=TITLE, lines=tuple(lines), y_limits=(0.0, top_of(record)))


def _target_lines(record: Record, ends: tuple[float, float]) -> "list[Line]":
    """A layer's targets as thin lines, equal ones once."""
    from tql_offline.eval.plots import Line

    return [
        Line(
            label=f"target of layer {layer + 1}",
            x=ends,
            y=(target, target),
            colour=_colour("layerwise", layer),
            style="dotted",
        )
        for layer, targets in enumerate(record.targets.tolist())
        for target in dict.fromkeys(targets)
    ]


def _colour(mode: str, layer: int) -> int:
    """Of two shades the first layer has the first, every later one the second."""
    return FIRST_COLOUR[mode] + min(layer, 1)


def top_of(record: Record) -> float:
    """Upper end of the vertical axis in nats, with room for the ceiling's name."""
    return 1.12 * record.ceiling


def picture(pairs: Sequence[Pair]) -> str:
    """All panels, two in a row, under one legend: a picture that follows light and dark.

    Colours are plain attributes, which every viewer knows; a style sheet turns them for viewers
    that prefer dark.
    """
    columns = min(2, len(pairs))
    width = columns * (PANEL[0] + GAP) + GAP
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg"})
    root.set("font-family", "system-ui, -apple-system, 'Segoe UI', sans-serif")
    ET.SubElement(root, "style").text = dark_rules()
    ET.SubElement(root, "rect", width="100%", height="100%", style="fill: var(--bg)")
    top = _add_legend(root, max(len(longest(pair).targets) for pair in pairs), width)
    for index, pair in enumerate(pairs):
        row, column = divmod(index, columns)
        x = GAP + column * (PANEL[0] + GAP)
        y = top + row * (HEADING + PANEL[1] + GAP)
        _add_panel(root, pair, f"p{index}", x, y)
    rows = math.ceil(len(pairs) / columns)
    height = top + rows * (HEADING + PANEL[1] + GAP)
    root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("width", f"{width:g}")
    root.set("height", f"{height:g}")
    _paint(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _add_legend(root: ET.Element, depth: int, width: float) -> float:
    """Draw samples with their names, in as many rows as they need; returns where panels start."""
    shades = range(min(depth, 2))
    entries = [
        (f"{name}, layer {layer + 1}", f"c{_colour(mode, layer)}", "solid")
        for mode, name in MODES.items()
        for layer in shades
    ]
    entries += [(name, "muted", style) for name, style in GROUPS]
    entries += [("target", f"c{_colour('layerwise', 0)}", "dotted")]
    x, y = GAP, GAP + 6
    for name, colour, style in entries:
        needed = 32 + 6.4 * len(name)
        if x + needed > width:
            x, y = GAP, y + 18
        sample = ET.SubElement(root, "path", d=f"M {x:g} {y - 4:g} h 24")
        sample.set("style", f"stroke: var(--{colour}); fill: none")
        sample.set("stroke-width", "1.8" if style == "solid" else "1.2")
        sample.set("stroke-dasharray", DASHES[style])
        _add_text(root, x + 29, y, name, size=11)
        x += needed + 14
    return y + GAP


def _add_panel(root: ET.Element, pair: Pair, key: str, x: float, y: float) -> None:
    """Heading, panel, and the names of its two levels."""
    from tql_offline.eval.plots import panel_svg, short_count

    record = longest(pair)
    facts = record.facts
    heading = f"{facts['size']}, {short_count(int(facts['parameters']))} parameters"
    _add_text(root, x, y + 14, heading, size=13, colour="fg", weight="600")
    _add_text(root, x, y + 31, f"{facts['dataset']}, nats", size=11)
    panel = ET.fromstring(panel_svg(panel_of(pair), key))
    place = {"x": x, "y": y + HEADING, "width": PANEL[0], "height": PANEL[1]}
    panel.attrib |= {name: f"{value:g}" for name, value in place.items()}
    root.append(panel)

    # The clip of the grid lines is the only mark of where the axes lie.
    clip = panel.find(".//clipPath/rect")
    assert clip is not None
    left, upper, height = (float(clip.get(name, "nan")) for name in ("x", "y", "height"))

    def level(value: float) -> float:
        return upper + height * (1 - value / top_of(record))

    # Nothing shines through a name: a grid line may lie behind the upper one.
    cover = {"x": left + 6, "y": level(record.ceiling) - 13, "width": 166.0, "height": 11.5}
    behind = ET.SubElement(panel, "rect", style="fill: var(--bg)")
    behind.attrib |= {name: f"{value:.2f}" for name, value in cover.items()}
    most = f"ln {facts['tokens']} = {record.ceiling:.2f} nats, the most possible"
    _add_text(panel, left + 8, level(record.ceiling) - 4, most, size=9.5)
    fallen = f"collapsed: below {COLLAPSED:g} nats"
    _add_text(panel, left + 8, level(COLLAPSED) + 12, fallen, size=9.5)


def _add_text(
    parent: ET.Element,
    x: float,
    y: float,
    words: str,
    *,
    size: float,
    colour: str = "muted",
    weight: str = "400",
) -> None:
    style = f"fill: var(--{colour})"
    element = ET.SubElement(parent, "text", x=f"{x:g}", y=f"{y:g}", style=style)
    element.attrib |= {"font-size": f"{size:g}px", "font-weight": weight}
    element.text = words


def _paint(root: ET.Element) -> None:
    """Turn the page's colour variables, which only browsers know, into attributes and classes."""
    for element in root.iter():
        style, classes = element.get("style", ""), element.get("class", "").split()
        for paint, name in re.findall(r"(stroke|fill): var\(--(\w+)\)", style):
            element.set(paint, LIGHT[name])
            classes.append(f"{paint}-{name}")
        style = re.sub(r"(stroke|fill): var\(--\w+\);? ?", "", style)
        element.attrib |= {"style": style, "class": " ".join(classes)}
        for name in ("style", "class"):
            if not element.get(name):
                del element.attrib[name]


def dark_rules() -> str:
    """The style sheet for viewers that prefer dark."""
    rules = "".join(
        f".{paint}-{name}{{{paint}:{colour}}}"
        for name, colour in DARK.items()
        for paint in ("stroke", "fill")
    )
    return f"@media (prefers-color-scheme: dark){{{rules}}}"


def draw(arguments: argparse.Namespace) -> None:
    """Write the picture and print the table.

    Raises:
        InputError: the folder holds no runs, or the picture cannot be written.
    """
    pairs = read_pairs(arguments.folder)
    write_atomic(arguments.out, picture(pairs))
    print(table(pairs))


# The command line.


def parser() -> argparse.ArgumentParser:
    """`train`, `draw` and `pack`."""
    top = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = top.add_subparsers(required=True)

    command = commands.add_parser("train", help="train without and with control")
    command.set_defaults(run=train)
    command.add_argument("--out", type=Path, required=True, help="folder of the runs")
    sizes = ["small", "medium", "large"]
    command.add_argument("--sizes", nargs="+", choices=list(SIZES), default=sizes)
    command.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    command.add_argument("--updates", nargs="+", type=int, default=[4000], help="one, or per size")
    command.add_argument("--every", type=int, default=25, help="updates between recorded ones")
    command.add_argument("--dataset", default=DATASET, help="name, which gives the preset too")
    command.add_argument("--path", type=Path, help="the dataset's file, packed or not")
    command.add_argument("--batch-size", type=int, default=256)
    command.add_argument("--schedule-steps", type=int, default=1_000_000, help="of the full run")
    command.add_argument("--critic-lr", type=float, help="instead of the preset's")
    command.add_argument("--warmup", type=int, help="updates, instead of the preset's")
    command.add_argument("--n-step", type=int, help="instead of the preset's")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="auto", help="auto, cpu or cuda")
    command.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")

    command = commands.add_parser("draw", help="one picture and one table of all runs")
    command.set_defaults(run=draw)
    command.add_argument("folder", type=Path, help="what train wrote, finished or not")
    command.add_argument("--out", type=Path, required=True, help="the SVG file")

    command = commands.add_parser("pack", help="a file with rewards, to train without a simulator")
    command.set_defaults(run=pack)
    command.add_argument("file", type=Path, help="the dataset's file")
    command.add_argument("out", type=Path, help="the .npz file to write")
    command.add_argument("--dataset", default=DATASET, help="name, which says the task")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; bad input is one sentence and exit code 2."""
    parsed = parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except InputError as error:
        print(f"collapse.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
