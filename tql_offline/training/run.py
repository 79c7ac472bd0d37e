"""A whole run: from loaded data and settings to result.json."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from tql_offline.agents import Agent, make_agent
from tql_offline.config import Config
from tql_offline.datasets.buffer import Buffer, make_buffer
from tql_offline.datasets.catalogue import suite_of
from tql_offline.datasets.checks import quick_check
from tql_offline.datasets.load import Dataset
from tql_offline.errors import InputError, shown
from tql_offline.eval import protocol as protocols
from tql_offline.eval.references import other_limit
from tql_offline.files import read_jsonl, remove_parts, rewind_jsonl, write_atomic, write_json
from tql_offline.networks import cpu_kernels
from tql_offline.runs import RunFolder, claimed
from tql_offline.training import checkpoint
from tql_offline.training.arithmetic import flops_per_update
from tql_offline.training.compile import (
    Execution,
    Updates,
    check_execution,
    prepare,
    wants_c_kernels,
)
from tql_offline.training.data import data_of, refuse_other_data
from tql_offline.training.device import pick_device
from tql_offline.training.environment import endless, fitting_environment
from tql_offline.training.evaluation import Evaluator, RunScores, check_fit, evaluator
from tql_offline.training.loop import Reporter, SeedReporter, Training, train
from tql_offline.training.metrics import MetricsWindow
from tql_offline.training.provenance import collect_provenance, on_cpu
from tql_offline.training.result import open_run, read_provenance, write_result
from tql_offline.training.rewards import RewardMap, reward_map
from tql_offline.training.trackers import check_tracker, make_tracker
from tql_offline.training.watch import make_watch

MAX_RUN_NAMES = 10_000
MAX_NAME_BYTES = 240
"""Of a run's name: file systems allow 255 with what is appended."""
_NO_ENCODER = (
    "for which there is no encoder here; train on data whose observations are numbers, such as "
    "OGBench's without 'visual-'"
)


def check(config: Config, runs: Path, name: str) -> None:
    """What can be refused before any data are collected or loaded.

    Raises:
        InputError: no such device, tracker or protocol, images to train on, or the run's name is
            taken or no name.
    """
    check_execution(config, pick_device(config.device))
    check_tracker(config.tracker)
    protocols.get(config.evaluation.protocol)
    if suite_of(config.dataset.name) == "ogbench-visual":
        raise InputError(f"{config.dataset.name} holds images, {_NO_ENCODER}")
    if name and not _is_folder_name(name):
        raise InputError(
            f"run name {shown(name)} must be one plain folder name; choose another --name"
        )
    if name and (runs / name).exists():
        raise InputError(f"run folder {runs / name} exists already; choose another --name")


def _is_folder_name(name: str) -> bool:
    plain = Path(name).name == name and not name.startswith(".") and name.isprintable()
    return plain and len(name.encode()) <= MAX_NAME_BYTES


def new_run_folder(runs: Path, config: Config, name: str) -> RunFolder:
    """Create the run's folder: a given name once, a derived one with the next free number.

    Raises:
        InputError: a run of the given name exists, or the name would leave `runs`.
    """
    if name:
        check(config, runs, name)
        if not _claim(runs / name):  # taken by another process since the check
            raise InputError(f"run folder {runs / name} exists already; choose another --name")
        return RunFolder(runs / name)
    stem = run_stem(config)
    for number in range(1, MAX_RUN_NAMES):
        path = runs / (stem if number == 1 else f"{stem}-{number}")
        if _claim(path):
            return RunFolder(path)
    raise InputError(f"{runs} holds {MAX_RUN_NAMES} runs named {stem}; give a --name")


def run_stem(config: Config) -> str:
    """Dataset, objective, size and seed, and whatever else is not TQL's own choice."""
    critic, entropy = config.critic, config.entropy.mode
    parts = [Path(config.dataset.name).stem, config.objective]
    if not config.has_critic:
        return "-".join([*parts, f"s{config.seed}"])
    parts += [critic.kind] if critic.kind != "transformer" else []
    parts += [entropy] if critic.kind == "transformer" and entropy != "layerwise" else []
    return "-".join([*parts, critic.size, f"s{config.seed}"])


def _claim(path: Path) -> bool:
    """Make a folder that no other process has made; False if it exists."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise InputError(
            f"run folder {path} cannot be created ({error.strerror}); choose another --runs"
        ) from error
    return True


def run(
    config: Config, dataset: Dataset, runs: str | Path, name: str, reporter: Reporter
) -> RunFolder:
    """Train, evaluate and write the result of one run.

    Args:
        config: full settings.
        dataset: loaded data (so that bad data fail before anything is written).
        runs: folder of runs.
        name: of the run folder; empty derives one.
        reporter: where progress goes.

    Raises:
        InputError: the settings do not fit the data, or training diverged.
    """
    return run_seeds(config, (config.seed,), dataset, runs, name, reporter)[0]


def run_seeds(
    config: Config,
    seeds: Sequence[int],
    dataset: Dataset,
    runs: str | Path,
    name: str,
    reporter: Reporter,
) -> list[RunFolder]:
    """Train several seeds on one device, over one copy of the data: a run folder each.

    Their updates take turns, on a GPU each seed's on a stream of its own. A seed's numbers are on
    a CPU, bit for bit, those of its run alone.

    Args:
        config: full settings but for the seed.
        seeds: one or more.
        dataset: loaded data.
        runs: folder of runs.
        name: of the run folder; of several seeds' folders the part before `-s<seed>`; empty derives
            one.
        reporter: where progress goes.

    Raises:
        InputError: the settings do not fit the data, or training diverged (of one seed: after the
            others have finished).
    """
    refuse_other_data(config, dataset)
    runs = Path(runs)  # by whoever calls this from Python
    configs = [config.model_copy(update={"seed": seed}) for seed in seeds]
    names = [f"{name}-s{seed}" if name and len(seeds) > 1 else name for seed in seeds]
    for each, its_name in zip(configs, names, strict=True):
        check(each, runs, its_name)
    made = [_make(configs[0], dataset)]
    made[0].findings = _findings(dataset)
    made += [_make(each, dataset, made[0]) for each in configs[1:]]
    with ExitStack() as stack:
        for one, its_name in zip(made, names, strict=True):
            folder = new_run_folder(runs, one.config, its_name)
            stack.enter_context(claimed(folder))
            write_atomic(folder.config, one.config.to_toml())
            one.findings = made[0].findings
            write_json(folder.provenance, _provenance(one, seeds))
            one.folder = folder
        _train(made, reporter)
    return [one.folder for one in made]


def resume(path: Path, load_dataset: Callable[[Config], Dataset], reporter: Reporter) -> RunFolder:
    """Go on with a run that was stopped, from its last checkpoint, to what it would have become.

    On a CPU with the same number of threads metrics, evaluations and weights are the same bits.

    Args:
        path: its folder.
        load_dataset: loads the data of its config.
        reporter: where progress goes.

    Raises:
        InputError: it is finished, being trained, or damaged, or the dataset has changed.
    """
    folder, config = open_run(path)
    with claimed(folder):
        if folder.result.is_file():
            raise InputError(
                f"run {path} is finished, and so is the schedule of its learning rates; there is "
                "nothing to resume, so train anew with more --steps"
            )
        device = pick_device(config.device)
        check_execution(config, device)
        provenance = read_provenance(folder)
        _refuse_another_kind(provenance, device, path)
        dataset = data_of(folder, config, load_dataset)
        made = _make(config, dataset)
        for place in (folder.path, folder.checkpoints):
            remove_parts(place)
        made.folder, made.step = folder, max(folder.checkpoint_steps(), default=0)
        if made.step:
            saved = folder.checkpoints / str(made.step)
            checkpoint.load_networks(saved, made.agent)
            checkpoint.load_training_state(saved, made.agent, made.generator, made.window)
        for file in (folder.metrics, folder.timing, folder.warnings, folder.evaluations):
            rewind_jsonl(file, made.step)
        _train([made], reporter)
    return folder


def _refuse_another_kind(provenance: dict[str, Any], device: torch.device, path: Path) -> None:
    was_cpu, is_cpu = on_cpu(provenance), device.type == "cpu"
    if was_cpu is not None and was_cpu != is_cpu:
        before, now = ("CPU" if cpu else "GPU" for cpu in (was_cpu, is_cpu))
        raise InputError(
            f"run {path} was trained on a {before}, whose random numbers a {now} does not draw; "
            f"resume it on a {before}, or train it anew"
        )


@dataclass(kw_only=True)
class _Made:
    """What a run trains with, as at its first update until a checkpoint is loaded."""

    config: Config
    dataset: Dataset
    rewards: RewardMap
    device: torch.device
    environment: dict[str, Any] | None
    agent: Agent
    buffer: Buffer
    generator: torch.Generator
    window: MetricsWindow
    updates: Updates
    execution: Execution
    findings: tuple[str, ...] = ()
    folder: RunFolder = field(default_factory=lambda: RunFolder(Path()))
    step: int = 0


def _make(config: Config, dataset: Dataset, like: _Made | None = None) -> _Made:
    """Make a run in memory, over the data of one that differs in its seed, if that is given."""
    _refuse_images(dataset)
    rewards = reward_map(config.dataset, dataset) if like is None else like.rewards
    dataset = rewards.of(dataset) if like is None else like.dataset
    device = pick_device(config.device)
    environment = _environment(config, dataset)
    agent = make_agent(config, *_dims(dataset), device)
    if config.dataset.normalise:
        agent.normaliser.fit(dataset.episodes.observations)
    agent.fit_rewards(dataset.episodes.rewards)
    if like is None:
        n_step, discount = config.n_step, config.discount
        buffer = make_buffer(dataset.episodes, n_step=n_step, discount=discount, device=device)
    else:
        buffer = like.buffer
    generator, window = torch.Generator(device).manual_seed(config.seed), MetricsWindow()
    updates, execution = prepare(config, agent, buffer, generator, window)
    return _Made(
        config=config,
        dataset=dataset,
        rewards=rewards,
        device=device,
        environment=environment,
        agent=agent,
        buffer=buffer,
        generator=generator,
        window=window,
        updates=updates,
        execution=execution,
    )


def _provenance(made: _Made, seeds: Sequence[int]) -> dict[str, Any]:
    dataset = replace(made.dataset, notes=(*made.dataset.notes, *_other_limit(made)))
    facts = collect_provenance(made.device, dataset.describe(), made.environment)
    return {
        **facts,
        **_critic_facts(made.agent),
        "flops_per_update": flops_per_update(made.config, *_dims(made.dataset)),
        "execution": asdict(made.execution),
        "seeds_at_once": list(seeds),
        "rewards": asdict(made.rewards),
        "data_findings": list(made.findings),
    }


def _refuse_images(dataset: Dataset) -> None:
    shape = dataset.episodes.observations.shape[1:]
    if len(shape) != 1:
        raise InputError(
            f"{dataset.path} holds images of {'x'.join(map(str, shape))}, {_NO_ENCODER}"
        )


def _findings(dataset: Dataset) -> tuple[str, ...]:
    """What a quick look at the data finds; OGBench's episodes go on after the task's end."""
    is_own = dataset.is_own
    jumps = "teleport" not in dataset.name
    return tuple(map(str, quick_check(dataset.episodes, jumps=jumps, goes_on=not is_own)))


def _other_limit(made: _Made) -> Iterator[str]:
    protocol = protocols.get(made.config.evaluation.protocol)
    return other_limit(protocol, made.config.dataset.name, made.environment)


def _unscored(made: _Made) -> Iterator[str]:
    """That scores were asked to be left for later, and how to make them."""
    if made.dataset.env_id is not None and not made.config.evaluation.enabled:
        yield (
            "note: policies are not scored while training; "
            f"`tql-offline eval {made.folder.path} --missing` scores them later"
        )


def _slower(made: _Made) -> Iterator[str]:
    """Why a CPU's updates take longer than they might."""
    wanted = wants_c_kernels(made.device, made.execution.mode, made.execution.precision)
    if wanted and (lack := cpu_kernels.why_not()):
        yield f"note: an update takes a fifth longer than with kernels in C, because {lack}"


def _dims(dataset: Dataset) -> tuple[int, int]:
    return dataset.episodes.observations.shape[1], dataset.episodes.actions.shape[1]


def _train(made: Sequence[_Made], reporter: Reporter) -> None:
    """Train runs from where they are to their end, then write their results."""
    first = made[0]
    setting = first.config.evaluation.overlap
    overlaps = setting == "on" or (setting == "auto" and first.device.type == "cuda")
    env_id = first.dataset.env_id if first.config.evaluation.enabled else None
    limit = (f"note: {sentence}" for sentence in _other_limit(first))
    notes = (
        first.rewards.told(),
        _unscored(first),
        endless(first.environment),
        _slower(first),
        limit,
    )
    for sentence in (*first.findings, *chain(*notes)):
        reporter.noted(sentence)
    for one in made:
        if one.execution.reason:
            reporter.noted(f"running eagerly: {one.execution.reason}")
    with (
        ExitStack() as stack,
        evaluator(first.config, env_id, first.device, overlaps=overlaps) as by,
    ):
        streams = _streams(len(made), first.device)
        several = len(made) > 1
        trainings = [
            replace(
                _training(
                    one, by, SeedReporter(reporter, one.config.seed) if several else reporter, stack
                ),
                stream=stream,
            )
            for one, stream in zip(made, streams, strict=True)
        ]
        train(trainings)


def _streams(count: int, device: torch.device) -> list[torch.cuda.Stream | None]:
    """A stream for each of several runs on a GPU, none for a single one."""
    if count == 1 or device.type != "cuda":
        return [None] * count
    torch.cuda.synchronize(device)  # what was made so far, on the default stream
    return [torch.cuda.Stream(device) for _ in range(count)]


def _training(made: _Made, by: Evaluator | None, reporter: Reporter, stack: ExitStack) -> Training:
    config, folder, agent = made.config, made.folder, made.agent
    if by is not None:
        check_fit(agent, by.pool, folder)
    tracker = make_tracker(config.tracker, folder, config.model_dump(mode="json"))
    stack.enter_context(closing(tracker))
    protocol = protocols.get(config.evaluation.protocol)
    steps = protocols.evaluation_steps(protocol, config.steps)
    scores = RunScores(config, agent, folder, reporter, by)
    scores.catch_up((step for step in steps if step <= made.step), made.step)
    observation_dim, action_dim = _dims(made.dataset)
    watch = make_watch(config, made.dataset.episodes, agent.num_tokens)
    watch.catch_up(read_jsonl(folder.metrics))
    return Training(
        config=config,
        folder=folder,
        agent=agent,
        updates=made.updates,
        generator=made.generator,
        state=checkpoint.State(
            step=made.step, observation_dim=observation_dim, action_dim=action_dim
        ),
        scores=scores,
        evaluation_steps=frozenset(steps),
        reporter=reporter,
        finished=lambda: write_result(folder),
        watch=watch,
        tracker=tracker,
        window=made.window,
    )


def _environment(config: Config, dataset: Dataset) -> dict[str, Any] | None:
    if dataset.env_id is None:
        return None
    return fitting_environment(
        dataset.env_id,
        config,
        *_dims(dataset),
        whose=str(dataset.path),
        bounds=dataset.action_bounds,
    )


def _critic_facts(agent: Agent) -> dict[str, Any]:
    critic = agent.networks.get("critic")  # behaviour cloning has none
    parameters = critic.parameters() if critic else ()
    value: Any = agent.networks.get("value")
    return {
        "tokens": agent.num_tokens,
        **({"value_tokens": value.num_tokens} if value else {}),
        "critic_parameters": sum(p.numel() for p in parameters),
    }
