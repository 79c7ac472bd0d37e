"""A whole run: from loaded data and settings to result.json."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tql_offline.agents import Agent, make_agent, make_agent_of_shapes
from tql_offline.config import Config, is_own, validate
from tql_offline.datasets.buffer import Buffer, make_buffer
from tql_offline.datasets.checks import quick_check
from tql_offline.datasets.load import Dataset
from tql_offline.errors import InputError
from tql_offline.eval import protocol as protocols
from tql_offline.eval.references import other_limit
from tql_offline.files import (
    read_jsonl,
    remove,
    remove_parts,
    rewind_jsonl,
    write_atomic,
    write_json,
)
from tql_offline.networks import cpu_kernels
from tql_offline.own_code import refuse_brought
from tql_offline.runs import RunFolder, claimed
from tql_offline.training import checkpoint
from tql_offline.training.arithmetic import flops_of, flops_per_update, why_uncounted
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
from tql_offline.training.evaluation import (
    Evaluator,
    RunScorer,
    check_act,
    check_fit,
    open_evaluator,
)
from tql_offline.training.loop import Training, train
from tql_offline.training.metrics import MetricsWindow
from tql_offline.training.new_run import NO_ENCODER, check, new_run_folder
from tql_offline.training.own_settings import unread_notes, watched
from tql_offline.training.provenance import collect_provenance, on_cpu, own_code, resumed_code
from tql_offline.training.reporters import Reporter, SeedReporter
from tql_offline.training.result import (
    open_run,
    read_evaluations,
    read_provenance,
    write_result,
)
from tql_offline.training.rewards import RewardMap, floor_notes, large_notes, reward_map
from tql_offline.training.trackers import make_tracker
from tql_offline.training.watch import make_watch


def run(
    config: Config, dataset: Dataset, runs: str | Path, name: str, reporter: Reporter
) -> RunFolder:
    """Train, evaluate and write the result of one run.

    Args:
        config: full settings.
        dataset: loaded data (so that bad data fail before anything is written).
        runs: folder of runs.
        name: name of the run folder; derived if empty.
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
    """Train several seeds on one device, on one copy of the data, each in its own run folder.

    Their updates take turns; on a GPU, each seed has its own stream. On a CPU, a seed's numbers
    are, bit for bit, those of the same run alone.

    Args:
        config: full settings except the seed.
        seeds: one or more.
        dataset: loaded data.
        runs: folder of runs.
        name: name of the run folder or, for several seeds, its part before `-s<seed>`; derived if
            empty.
        reporter: where progress goes.

    Raises:
        InputError: the settings do not fit the data, or training diverged (if one seed's did: after
            the others have finished).
    """
    refuse_other_data(config, dataset)
    config = watched(config)
    runs = Path(runs)  # callers from Python may pass a string
    configs = [config.model_copy(update={"seed": seed}) for seed in seeds]
    names = [f"{name}-s{seed}" if name and len(seeds) > 1 else name for seed in seeds]
    for each, its_name in zip(configs, names, strict=True):
        check(each, runs, its_name)
    setups = [_set_up(configs[0], dataset)]
    findings = findings_of(dataset)
    setups += [_set_up(each, dataset, setups[0]) for each in configs[1:]]
    records = [_provenance(setup, seeds, findings) for setup in setups]
    begun = []
    with ExitStack() as stack:
        for setup, record, its_name in zip(setups, records, names, strict=True):
            folder = new_run_folder(runs, setup.config, its_name)
            stack.enter_context(_claimed_new(folder))
            write_atomic(folder.config, setup.config.to_toml())
            write_json(folder.provenance, record)
            begun.append(_Begun(setup=setup, folder=folder))
        _train(begun, findings, reporter)
    return [one.folder for one in begun]


@contextmanager
def _claimed_new(folder: RunFolder) -> Iterator[None]:
    """Claim a folder just made; it goes again if the run fails before it has anything to keep.

    A stop is no failure: what it interrupts can be resumed.
    """
    try:
        with claimed(folder):
            yield
    except Exception:
        with suppress(OSError):  # the error above all
            if folder.has_only_begun():
                remove(folder.path)
        raise


def resume(
    path: Path,
    load_dataset: Callable[[Config], Dataset],
    reporter: Reporter,
    moved_to: Path | None = None,
    steps: int | None = None,
) -> RunFolder:
    """Resume a stopped run from its last checkpoint; it ends as if it had never stopped.

    With more `steps` a finished run goes on, too, at the last rate of its schedule: it ends as a
    run of as many steps whose `optimizer.schedule_steps` are the steps it had.

    Where that checkpoint is damaged, the last one that is not takes its place.

    On a CPU with the same number of threads, metrics, evaluations and weights are bit-identical.

    Args:
        path: the run folder.
        load_dataset: loads the data of the run's config.
        reporter: where progress goes.
        moved_to: where the data's file is now, if it was moved.
        steps: updates in all, if it is to have more.

    Raises:
        InputError: the run is finished, being trained, or damaged, its dataset has changed, code
            that it names lies with it, or `steps` are no more than it has.
    """
    folder, config = open_run(path)
    for named in (config.objective, config.dataset.env_id):
        refuse_brought(named, path)
    with claimed(folder):
        if steps is None:
            _refuse_finished(folder)
        else:
            _refuse_fewer(folder, config, steps)
        device = pick_device(config.device)
        check_execution(config, device)
        provenance = read_provenance(folder)
        _refuse_another_kind(provenance, device, path)
        dataset = data_of(folder, config, load_dataset, moved_to)
        longer = _with_more(config, steps) if steps is not None else config
        setup = _set_up(watched(longer), dataset)
        for place in (folder.path, folder.checkpoints):
            remove_parts(place)
        step = _load_newest(folder, setup, reporter)
        if longer is not config:
            _extend(folder, config, longer)
        for file in (folder.metrics, folder.timing, folder.warnings, folder.evaluations):
            rewind_jsonl(file, step)
        findings = [*_other_threads(provenance)] if step else []
        findings += _record_code(folder, provenance, setup, step)
        _train([_Begun(setup=setup, folder=folder, step=step)], findings, reporter)
    return folder


def _load_newest(folder: RunFolder, setup: "_Setup", reporter: Reporter) -> int:
    """Load the newest checkpoint that can be read; returns its step, 0 if there is none at all.

    Newer ones are set aside: they would count as the newest when old ones are deleted.

    Raises:
        InputError: all are damaged, or one cannot be read at the moment or does not fit the run.
    """
    damaged: list[tuple[Path, str]] = []
    for step in reversed(folder.checkpoint_steps()):
        saved = folder.checkpoints / str(step)
        try:
            checkpoint.read_state(saved)
            checkpoint.load_networks(saved, setup.agent)
            checkpoint.load_training_state(saved, setup.agent, setup.generator, setup.window)
        except checkpoint.DamagedError as error:
            damaged.append((saved, error.fault))
            continue
        for path, fault in damaged:
            reporter.noted(
                f"note: the run goes on from {saved}, because {fault}; the newer "
                f"checkpoint is kept as {checkpoint.set_aside(path)}"
            )
        return step
    if damaged:
        raise InputError(
            f"run {folder.path} has no checkpoint that can be read ({damaged[0][1]}); "
            "restore one from a copy, or train the run anew"
        )
    return 0


def _refuse_fewer(folder: RunFolder, config: Config, steps: int) -> None:
    if steps <= config.steps:
        raise InputError(
            f"run {folder.path} is one of {config.steps:,} updates, and {steps:,} are no more; "
            "give more --steps, or none to resume it as it is"
        )
    if folder.is_finished() and config.steps not in folder.checkpoint_steps():
        raise InputError(
            f"run {folder.path} has no checkpoint of its last update, {config.steps:,}, to go on "
            "from; restore it from a copy, or train anew with more --steps"
        )


def _with_more(config: Config, steps: int) -> Config:
    """Settings of more updates, whose learning rates go on from where their schedule ended."""
    optimizer = {**config.optimizer.model_dump(), "schedule_steps": config.schedule_steps}
    settings = {**config.model_dump(), "steps": steps, "optimizer": optimizer}
    return validate(settings, source="--steps")


def _extend(folder: RunFolder, before: Config, config: Config) -> None:
    """Give a run more updates on disk.

    The result goes first: without it, a run of the old number of updates is one to resume.
    """
    if folder.result.exists():
        folder.result.rename(folder.path / f"result-of-{before.steps}.json")
    write_atomic(folder.config, config.to_toml())


def _refuse_finished(folder: RunFolder) -> None:
    if folder.is_finished():
        raise InputError(
            f"run {folder.path} is finished; there is nothing to resume, unless --steps gives it "
            "more updates, at the last learning rate of its schedule"
        )
    # From nothing, the scores of a run that once ended would be lost.
    if folder.result.exists() and not folder.checkpoint_steps():
        raise InputError(
            f"{folder.result} cannot be read, and the run has no checkpoint to write it anew from; "
            "copy the whole run again"
        )


def _other_threads(provenance: Mapping[str, Any]) -> Iterator[str]:
    before, now = provenance.get("threads"), torch.get_num_threads()
    if on_cpu(provenance) and before != now:
        yield (
            f"note: the run began with {before} threads and resumes with {now}, so its last bits "
            "may differ from those of an uninterrupted run; OMP_NUM_THREADS sets their number"
        )


def _record_code(
    folder: RunFolder, provenance: Mapping[str, Any], setup: "_Setup", step: int
) -> Iterator[str]:
    """Record code of one's own that has changed since the run began; yields a note of it.

    What starts again from nothing is a run of the code as it is now.
    """
    before, now = provenance.get("own_method"), own_code(setup.agent)
    if now is None or now == before:
        return
    if not step:
        write_json(folder.provenance, {**provenance, **_method_facts(setup), "own_method": now})
        return
    if not isinstance(before, dict):  # of a version that recorded no code
        return
    is_scored = any(line["step"] == step for line in read_evaluations(folder))
    record = resumed_code(before, now, step, is_scored=is_scored)
    if record != before:
        write_json(folder.provenance, {**provenance, "own_method": record})
    if "resumed_with" in record:
        yield (
            f"note: the code of {setup.config.objective} ({now['file']}) has changed since the run "
            "began, so it ends as neither version would; train it anew to compare it"
        )


def _refuse_another_kind(provenance: dict[str, Any], device: torch.device, path: Path) -> None:
    was_cpu, is_cpu = on_cpu(provenance), device.type == "cpu"
    if was_cpu is not None and was_cpu != is_cpu:
        before, now = ("CPU" if cpu else "GPU" for cpu in (was_cpu, is_cpu))
        raise InputError(
            f"run {path} was trained on a {before}, whose random numbers a {now} does not draw; "
            f"resume it on a {before}, or train it anew"
        )


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What a run trains with, in its initial state until a checkpoint is loaded."""

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


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A run with its folder and the step that it starts from."""

    setup: _Setup
    folder: RunFolder
    step: int = 0


def _set_up(config: Config, dataset: Dataset, like: _Setup | None = None) -> _Setup:
    """Set up a run in memory; `like`, if given, is a run with another seed whose data it shares."""
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
        if is_own(config.objective):
            check_act(agent, dataset.episodes.observations, device)
        buffer = make_buffer(
            dataset.episodes,
            n_step=config.n_step,
            discount=config.discount,
            device=device,
            after_cut=config.conservative.after_cut,
            on_host=config.execution.data == "host",
        )
    else:
        buffer = like.buffer
    generator, window = torch.Generator(device).manual_seed(config.seed), MetricsWindow()
    updates, execution = prepare(config, agent, buffer, generator, window)
    return _Setup(
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


def _provenance(setup: _Setup, seeds: Sequence[int], findings: Sequence[str]) -> dict[str, Any]:
    dataset = replace(setup.dataset, notes=(*setup.dataset.notes, *_other_limit(setup)))
    facts = collect_provenance(setup.device, dataset.describe(), setup.environment)
    return {
        **facts,
        **_method_facts(setup),
        "execution": asdict(setup.execution),
        **({"own_method": code} if (code := own_code(setup.agent)) else {}),
        "seeds_at_once": list(seeds),
        "rewards": asdict(setup.rewards),
        "data_findings": list(findings),
    }


def _method_facts(setup: _Setup) -> dict[str, Any]:
    flops = flops_per_update(setup.config, *_dims(setup.dataset))
    return {**_critic_facts(setup.agent), "flops_per_update": flops}


def _refuse_images(dataset: Dataset) -> None:
    shape = dataset.episodes.observations.shape[1:]
    if len(shape) != 1:
        raise InputError(
            f"{dataset.path} holds images of {'x'.join(map(str, shape))}, {NO_ENCODER}"
        )


def findings_of(dataset: Dataset) -> tuple[str, ...]:
    """What a quick check of the data finds; OGBench's episodes go on after the task's end."""
    is_own = dataset.is_own
    jumps = "teleport" not in dataset.name
    return tuple(map(str, quick_check(dataset.episodes, jumps=jumps, goes_on=not is_own)))


def _other_limit(setup: _Setup) -> Iterator[str]:
    protocol = protocols.get(setup.config.evaluation.protocol)
    return other_limit(protocol, setup.config.dataset.name, setup.environment)


def _unscored(begun: _Begun) -> Iterator[str]:
    """A note, if scoring is left for later, with the command that does it."""
    if begun.setup.dataset.env_id is not None and not begun.setup.config.evaluation.enabled:
        yield (
            "note: policies are not scored while training; "
            f"`tql-offline eval {begun.folder.path} --missing` scores them later"
        )


def _after_first_updates(setup: _Setup, reporter: Reporter) -> Updates:
    """A run's updates, which with the first ones tell what only they show of one's own method.

    Before, a fault of its own would come behind a note on what follows from the fault.
    """
    updates, left = setup.updates, setup.agent.policy_delay

    def tell(step: int, most: int) -> int:
        nonlocal left
        count = updates(step, most)
        if left > 0:
            left -= count
            for sentence in (*_uncounted(setup), *_unread(setup)) if left <= 0 else ():
                reporter.noted(sentence)
        return count

    return tell if is_own(setup.config.objective) else updates


def _uncounted(setup: _Setup) -> Iterator[str]:
    """A note, if the operations of an update are not known though it can be done."""
    if why := why_uncounted(setup.config, *_dims(setup.dataset)):
        yield (
            f"note: the operations of an update of {setup.config.objective} are not counted, since "
            f"it cannot be done without numbers ({why}); if it looks at them (as `.item()` or `if` "
            "do), it needs execution.updates_per_launch 0 on a GPU"
        )


def _unread(setup: _Setup) -> Iterator[str]:
    """A note for each setting of one's own that the first updates have not read."""
    notes = list(unread_notes(setup.config, setup.agent.policy_delay))
    if not notes or setup.execution.mode.startswith("eager"):
        yield from notes
        return
    # Compiled losses read unseen; the same code without numbers does not.
    with suppress(Exception):  # nothing is certain then
        agent = make_agent_of_shapes(setup.config, *_dims(setup.dataset))
        flops_of(agent, setup.config.batch_size)
        yield from unread_notes(setup.config, setup.agent.policy_delay)


def _slower(setup: _Setup) -> Iterator[str]:
    """A note on why a CPU's updates take longer than they could, if they do."""
    wanted = wants_c_kernels(setup.device, setup.execution.mode, setup.execution.precision)
    if wanted and (lack := cpu_kernels.why_not()):
        yield f"note: updates take a fifth longer than with C kernels, because {lack}"


def _dims(dataset: Dataset) -> tuple[int, int]:
    return dataset.episodes.observations.shape[1], dataset.episodes.actions.shape[1]


def _train(begun: Sequence[_Begun], findings: Sequence[str], reporter: Reporter) -> None:
    """Train runs from where they are to their end, then write their results."""
    for sentence in (*findings, *_notes(begun)):
        reporter.noted(sentence)
    first, several = begun[0].setup, len(begun) > 1
    setting = first.config.evaluation.overlap
    overlaps = setting == "on" or (setting == "auto" and first.device.type == "cuda")
    env_id = first.dataset.env_id if first.config.evaluation.enabled else None
    with (
        ExitStack() as stack,
        open_evaluator(first.config, env_id, first.device, overlaps=overlaps) as evaluator,
    ):
        trainings = []
        for one, stream in zip(begun, _streams(len(begun), first.device), strict=True):
            own = SeedReporter(reporter, one.setup.config.seed) if several else reporter
            trainings.append(_training(one, evaluator, own, stream, stack))
        trainings[0].updates = _after_first_updates(first, reporter)  # seeds share their code
        train(trainings)


def _notes(begun: Sequence[_Begun]) -> Iterator[str]:
    """Notes on the runs of one or several seeds, before they train."""
    first = begun[0].setup
    yield from first.rewards.notes()
    yield from large_notes(first.dataset.episodes)
    yield from floor_notes(first.config, first.dataset.episodes)
    yield from _unscored(begun[0])
    yield from endless(first.environment)
    yield from _slower(first)
    for sentence in _other_limit(first):
        yield f"note: {sentence}"
    for one in begun:
        if one.setup.execution.reason:
            yield f"running eagerly: {one.setup.execution.reason}"


def _streams(count: int, device: torch.device) -> list[torch.cuda.Stream | None]:
    """A stream for each of several runs on a GPU, none for a single one."""
    if count == 1 or device.type != "cuda":
        return [None] * count
    torch.cuda.synchronize(device)  # wait for what the default stream has set up so far
    return [torch.cuda.Stream(device) for _ in range(count)]


def _training(
    begun: _Begun,
    evaluator: Evaluator | None,
    reporter: Reporter,
    stream: torch.cuda.Stream | None,
    stack: ExitStack,
) -> Training:
    setup, folder = begun.setup, begun.folder
    config, agent = setup.config, setup.agent
    if evaluator is not None:
        check_fit(agent, evaluator.pool, folder)
    tracker = make_tracker(config.tracker, folder, config.model_dump(mode="json"))
    stack.enter_context(closing(tracker))
    protocol = protocols.get(config.evaluation.protocol)
    steps = protocols.evaluation_steps(protocol, config.steps)
    scorer = RunScorer(config, agent, folder, reporter, evaluator)
    scorer.catch_up(_before(begun, steps, reporter), begun.step)
    observation_dim, action_dim = _dims(setup.dataset)
    watch = make_watch(config, setup.dataset.episodes, agent.num_tokens)
    watch.catch_up(read_jsonl(folder.metrics))
    return Training(
        config=config,
        folder=folder,
        agent=agent,
        updates=setup.updates,
        generator=setup.generator,
        state=checkpoint.State(
            step=begun.step, observation_dim=observation_dim, action_dim=action_dim
        ),
        scorer=scorer,
        evaluation_steps=frozenset(steps),
        reporter=reporter,
        finished=lambda: write_result(folder),
        watch=watch,
        tracker=tracker,
        window=setup.window,
        stream=stream,
    )


def _before(begun: _Begun, steps: Sequence[int], reporter: Reporter) -> list[int]:
    """The steps so far at which scores are due, of which a checkpoint may make missing ones."""
    there = {begun.step, *begun.folder.checkpoint_steps()}
    so_far = [step for step in steps if step <= begun.step]
    scored = {line["step"] for line in read_evaluations(begun.folder)}
    if gone := [str(step) for step in so_far if step not in there | scored]:
        reporter.noted(
            f"note: there are no scores of step {', '.join(gone)}, which has no checkpoint"
        )
    return [step for step in so_far if step in there]


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
