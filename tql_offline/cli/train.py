"""`tql-offline train`."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tql_offline.cli import app
from tql_offline.cli.streams import outliving_output
from tql_offline.cli.tables import (
    TerminalReporter,
    print_evaluations,
    print_spread,
    progress_bar,
    say,
    warn,
)
from tql_offline.config import FLOW_POLICIES, OBJECTIVES, SIZES_TOLD, Config, is_own, resolve
from tql_offline.errors import InputError, listed, shown
from tql_offline.files import read_jsonl
from tql_offline.number_lists import parse_numbers
from tql_offline.own_code import refuse_brought
from tql_offline.presets import DEFAULT_DATASET, presets
from tql_offline.runs import RunFolder
from tql_offline.setting_effects import idle_of
from tql_offline.training.stopping import end_with_input

if TYPE_CHECKING:
    from tql_offline.datasets.load import Dataset


_SHOWN = 4
"""Most settings without effect that are named."""
_INTEGER = "<int>"
"""What `--help` shows of a number that `_whole` reads."""


def _whole(text: str) -> int:
    """A whole number, also as 1e6, as `--set` takes it."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        number = float(text)
        if number.is_integer():
            return int(number)
    raise typer.BadParameter(f"{shown(text)} is not a whole number, such as 100000 or 1e5")


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; flags override it.")
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help=f"Method ({', '.join(presets()['method'])}), environment family, or "
            "family+method. Default: the dataset's family."
        ),
    ] = "",
    dataset: Annotated[
        str | None,
        typer.Option(help=f"Name, .npz or HDF5 file, or folder. Default: {DEFAULT_DATASET}."),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(
            help="File to use for that name instead of the installed one; with --resume, where the "
            "data are now."
        ),
    ] = None,
    slices: Annotated[
        int | None, typer.Option(help="Number of a folder's npz slices to use, from the first.")
    ] = None,
    env: Annotated[
        str | None, typer.Option(help="Environment id to score policies in; not for OGBench data.")
    ] = None,
    allow_broken: Annotated[
        bool, typer.Option("--allow-broken", help="Train on data known to be broken.")
    ] = False,
    objective: Annotated[
        str | None, typer.Option(help=f"{', '.join(OBJECTIVES)}, or module:Class. Default: flow.")
    ] = None,
    critic: Annotated[
        str | None,
        typer.Option(help="transformer or mlp; perceiver for pac alone. Default: transformer."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help=f"{SIZES_TOLD} parameters. Default: small.")
    ] = None,
    entropy: Annotated[
        str | None, typer.Option(help="none, fixed, single or layerwise. Default: layerwise.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=_whole,
            metavar=_INTEGER,
            help="Updates. Default: 1,000,000 (8,000 on pointmaze). With --resume: more, in all.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(parser=_whole, metavar=_INTEGER, help="Transitions per update. Default: 256."),
    ] = None,
    n_step: Annotated[
        int | None, typer.Option(help="n of the n-step returns. Default: 1 (pointmaze 25).")
    ] = None,
    discount: Annotated[float | None, typer.Option(help="γ in (0, 1]. Default: 0.99.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Weight of staying near the behaviour flow.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same numbers. Default: 0.")] = None,
    seeds: Annotated[
        str, typer.Option(help="Several seeds at once, one run folder each: 0-7 or 0,3,5.")
    ] = "",
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. Default: auto.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="Evaluation protocol, or NAME:EPISODES@UPDATES. Default: the preset's."),
    ] = None,
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Skip scoring; `eval RUN --missing` does it later.")
    ] = False,
    tracker: Annotated[
        str | None, typer.Option(help="none, tensorboard or wandb. Default: none.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, e.g. optimizer.critic_lr=3e-4."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    name: Annotated[
        str, typer.Option(help="Run folder's name. Default: from dataset, size and seed.")
    ] = "",
    resume: Annotated[
        Path | None, typer.Option(help="Run folder to resume, with its own settings.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as TOML; train nothing.")
    ] = False,
) -> None:
    """Train a critic and policies on an offline dataset, and score them."""
    end_with_input()
    flags: dict[str, Any] = {
        "objective": objective,
        "steps": steps,
        "batch_size": batch_size,
        "n_step": n_step,
        "discount": discount,
        "seed": seed,
        "device": device,
        "tracker": tracker,
        "dataset": {
            "name": dataset,
            "path": path,
            "slices": slices,
            "env_id": env,
            "allow_broken": allow_broken or None,
        },
        "critic": {"kind": critic, "size": size},
        "entropy": {"mode": entropy},
        "flow": {"alpha": alpha},
        "evaluation": {"protocol": protocol, "enabled": False if no_eval else None},
    }
    for assignment in set_ or []:
        assign(flags, assignment)
    given = _given(flags)
    if resume is not None:
        others = _given(flags | {"steps": None, "dataset": flags["dataset"] | {"path": None}})
        if others or set_ or config or preset or name or print_config or seeds:
            raise InputError(
                "--resume takes a run's own settings; leave all other flags out, except --path for "
                "data that were moved, and --steps for more updates"
            )
        resume_and_show(resume, Path(path) if path else None, steps)
        return
    settings = resolve(given, file=config, preset=preset, flags_are="the flags")
    if config is not None:
        _refuse_brought(settings, given, config)
    _refuse_idle(settings, alpha=alpha, critic=critic, entropy=entropy)
    if idle := idle_of(settings, given):
        warn(
            [f"{settings.method} does not use {listed(idle, _SHOWN)}, so it has no effect"], "note"
        )
    if print_config:
        typer.echo(settings.to_toml(), nl=False)
        return
    if seeds and seed is not None:
        raise InputError("--seed and --seeds are both given; leave one out")
    train_and_show(settings, runs, name, parse_numbers(seeds, "--seeds"))


def _refuse_brought(settings: Config, given: Mapping[str, Any], file: Path) -> None:
    """Refuse code that may have come with a file of settings, unless a flag names it, too.

    Raises:
        InputError: names the code and the flag.
    """
    if "objective" not in given:
        refuse_brought(settings.objective, file, advice="name it by --objective, too")
    if "env_id" not in given.get("dataset", {}):
        refuse_brought(settings.dataset.env_id, file, advice="name it by --env, too")


def _refuse_idle(
    config: Config, *, alpha: float | None, critic: str | None, entropy: str | None
) -> None:
    """Refuse flags that would change nothing.

    Raises:
        InputError: names the flag, why, and what to do.
    """
    objective = config.objective
    if alpha is not None and objective not in FLOW_POLICIES and not is_own(objective):
        mend = f"give {_COEFFICIENTS[objective]}, or " if objective in _COEFFICIENTS else ""
        raise InputError(
            f"--alpha is of flow policies, which {objective!r} has none of; {mend}leave it out"
        )
    if critic and not config.has_critic:
        raise InputError(
            f"--critic {critic} is given, but {objective!r} has no critic; leave it out"
        )
    is_controlled = config.has_critic and config.critic.kind == "transformer"
    if entropy not in (None, "none") and not is_controlled:
        raise InputError(
            f"--entropy {entropy} is given, but there is no transformer whose entropy it would be; "
            "leave it out"
        )


_COEFFICIENTS = {
    "implicit": "--set implicit.inverse_temperature=β",
    "conservative": "--set conservative.alpha=α",
    "rebrac": "--set rebrac.policy_alpha=β1",
}


@outliving_output()
def train_and_show(
    config: Config, runs: Path, name: str, seeds: Sequence[int] = ()
) -> list[RunFolder]:
    """Train with a progress bar, then show the scores; without `seeds`, train the config's."""
    from tql_offline.agents import agent_class
    from tql_offline.training.new_run import check, check_writable, seed_names
    from tql_offline.training.run import run_seeds

    for each in seed_names(name, seeds or (config.seed,)):
        check(config, runs, each)
    # Either would end the run after its data are loaded.
    agent_class(config.objective)
    check_writable(runs)
    data = load_and_say(config)
    if data.env_id is None:
        say(
            "note: the run will be judged by the protocol that first scores it, in a later "
            f"`eval --env`: {config.evaluation.protocol!r} if none is given"
        )
    with TerminalReporter() as reporter:
        folders = run_seeds(config, seeds or (config.seed,), data, runs, name, reporter)
    lines = _show(folders, seeds if len(seeds) > 1 else ())
    last = [line for line in lines if line["policy"] == "learned" and line["step"] == config.steps]
    if len(last) > 1:
        print_spread(last)
    return folders


@outliving_output()
def resume_and_show(path: Path, moved_to: Path | None = None, steps: int | None = None) -> None:
    """Resume a stopped run, then show the scores."""
    from tql_offline.training.resume import resume

    with TerminalReporter() as reporter:
        folder = resume(path, _load_where_method_is, reporter, moved_to, steps)
    _show([folder])


def _show(folders: Sequence[RunFolder], seeds: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Print the scores of a run or of several seeds' in one table, and return them."""
    marks: Sequence[dict[str, Any]] = [{"seed": seed} for seed in seeds] or [{}]
    lines = [
        line | mark
        for folder, mark in zip(folders, marks, strict=True)
        for line in read_jsonl(folder.evaluations)
    ]
    print_evaluations(lines)
    for folder in folders:
        say(f"run folder: {folder.path}")
    return lines


def _load_where_method_is(config: Config) -> "Dataset":
    """Load a config's data unless its method cannot be imported; `resume` may import its code."""
    from tql_offline.agents import agent_class

    agent_class(config.objective)
    return load_and_say(config)


def load_and_say(config: Config) -> "Dataset":
    """Load a config's data, collecting the embedded ones where they are missing, and name them."""
    data = _load(config)
    say(
        f"{data.name}: {data.episodes.num_transitions:,} transitions in "
        f"{data.episodes.num_episodes:,} episodes, {data.source}, {data.path}"
    )
    for finding in data.found:
        say(str(finding))
    if data.env_id is None and (data.unscored or config.evaluation.enabled):
        nothing = "no environment is known for these data, so policies are not scored; give --env"
        say(data.unscored or nothing)
    return data


def _load(config: Config) -> "Dataset":
    """The config's data; the embedded dataset is collected on the spot where it is missing."""
    from tql_offline.datasets.collect import total_steps
    from tql_offline.datasets.embedded import EPISODES, is_installed, load_embedded
    from tql_offline.training.data import load_named

    wanted = config.dataset
    if wanted.name == DEFAULT_DATASET and not wanted.path and not is_installed(wanted.name):
        say(f"{wanted.name} is not here yet: collecting {EPISODES} episodes of it")
        with progress_bar("collecting", total_steps(wanted.name, EPISODES)) as progress:
            return load_embedded(progress.add)
    return load_named(wanted)


_AS_TOML = {"True": "true", "False": "false"}
"""Python's spelling of values."""


def assign(flags: dict[str, Any], assignment: str) -> None:
    """Put `table.key=value` into nested flags; the value is TOML, or a bare word."""
    import tomllib

    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted.strip():
        raise InputError(f"--set {assignment!r} is not of the form key=value; correct it")
    try:
        value = tomllib.loads(f"value = {_AS_TOML.get(text, text)}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, key = dotted.strip().split(".")
    for table in tables:
        flags = flags.setdefault(table, {})
        if not isinstance(flags, dict):
            raise InputError(
                f"--set {assignment!r} names a setting inside {table!r}, which has none"
            )
    if flags.get(key) not in (None, value):
        raise InputError(
            f"--set {assignment!r} and another flag give {dotted.strip()} two values; leave one out"
        )
    flags[key] = value


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, without empty tables."""
    given = {k: _given(v) if isinstance(v, dict) else v for k, v in flags.items()}
    return {k: v for k, v in given.items() if v is not None and v != {}}
