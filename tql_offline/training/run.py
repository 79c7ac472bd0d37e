"""A whole run: from loaded data and settings to result.json."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import torch

from tql_offline.config import Config
from tql_offline.datasets.load import Dataset
from tql_offline.eval import protocol as protocols
from tql_offline.files import discard_folder, read_jsonl, write_atomic, write_json
from tql_offline.runs import RunFolder, claimed
from tql_offline.training import checkpoint
from tql_offline.training.data import refuse_other_data
from tql_offline.training.evaluation import Evaluator, RunScorer, check_fit, open_evaluator
from tql_offline.training.loop import Training, train
from tql_offline.training.new_run import check, new_run_folder, seed_names
from tql_offline.training.notes import after_first_updates, opening_notes
from tql_offline.training.own_settings import watched
from tql_offline.training.reporters import Reporter, SeedReporter
from tql_offline.training.result import read_evaluations, write_result
from tql_offline.training.setup import Begun, dims_of, findings_of, record_of, set_up
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
    names = seed_names(name, seeds)
    for each, its_name in zip(configs, names, strict=True):
        check(each, runs, its_name)
    setups = [set_up(configs[0], dataset)]
    setups += [set_up(each, dataset, setups[0]) for each in configs[1:]]
    findings = findings_of(dataset)  # last, as it waits for the digest
    records = [record_of(setup, seeds, findings) for setup in setups]
    begun = []
    with ExitStack() as stack:
        for setup, record, its_name in zip(setups, records, names, strict=True):
            folder = new_run_folder(runs, setup.config, its_name)
            stack.enter_context(_claimed_new(folder))
            write_atomic(folder.config, setup.config.to_toml())
            write_json(folder.provenance, record)
            begun.append(Begun(setup=setup, folder=folder))
        train_begun(begun, findings, reporter)
    return [one.folder for one in begun]


@contextmanager
def _claimed_new(folder: RunFolder) -> Iterator[None]:
    """Claim a folder just made; it goes again if the run fails before it has anything to keep.

    A stop is no failure: what it interrupts can be resumed.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(folder))
            yield
        except Exception:
            with suppress(OSError):  # the error above all
                if folder.has_only_begun():
                    discard_folder(folder.path)
            raise


def train_begun(begun: Sequence[Begun], findings: Sequence[str], reporter: Reporter) -> None:
    """Train runs from where they are to their end, then write their results."""
    for sentence in (*findings, *opening_notes(begun)):
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
        trainings[0].updates = after_first_updates(first, reporter)  # seeds share their code
        train(trainings)


def _streams(count: int, device: torch.device) -> list[torch.cuda.Stream | None]:
    """A stream for each of several runs on a GPU, none for a single one."""
    if count == 1 or device.type != "cuda":
        return [None] * count
    torch.cuda.synchronize(device)  # wait for what the default stream has set up so far
    return [torch.cuda.Stream(device) for _ in range(count)]


def _training(
    begun: Begun,
    evaluator: Evaluator | None,
    reporter: Reporter,
    stream: torch.cuda.Stream | None,
    stack: ExitStack,
) -> Training:
    setup, folder = begun.setup, begun.folder
    config, agent = setup.config, setup.agent
    if evaluator is not None:
        check_fit(agent, evaluator.pool, folder)
    tracker = make_tracker(config.tracker, folder, config.model_dump(mode="json"), begun.step)
    stack.enter_context(closing(tracker))
    protocol = protocols.get(config.evaluation.protocol)
    steps = protocols.evaluation_steps(protocol, config.steps)
    scorer = RunScorer(config, agent, folder, reporter, evaluator)
    if evaluator is not None:
        for fault in scorer.catch_up(_before(begun, steps, reporter), begun.step):
            reporter.noted(f"note: a checkpoint is not scored, since {fault}")
    observation_dim, action_dim = dims_of(setup.dataset)
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


def _before(begun: Begun, steps: Sequence[int], reporter: Reporter) -> list[int]:
    """The steps so far at which scores are due, of which a checkpoint may make missing ones."""
    there = {begun.step, *begun.folder.checkpoint_steps()}
    so_far = [step for step in steps if step <= begun.step]
    scored = {line["step"] for line in read_evaluations(begun.folder)}
    if gone := [str(step) for step in so_far if step not in there | scored]:
        reporter.noted(
            f"note: there are no scores of step {', '.join(gone)}, which has no checkpoint"
        )
    return [step for step in so_far if step in there]
