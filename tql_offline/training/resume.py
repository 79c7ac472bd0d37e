"""Resuming a stopped run from its last checkpoint, or a finished one for more updates.

Why it ends in the same bits, and where that is done:

- A step ends in this order: log, save, score (`loop._train`), so that a checkpoint exists before
  its scores and scores are only ever of saved weights.
- A checkpoint holds networks, optimizers, the generator of samples and noise, and the metrics since
  the last log step (checkpoint.py, metrics.py). Learning rates follow from the step.
- What was written after it is taken back: lines of metrics, timing, warnings and evaluations of
  later steps (`files.rewind_jsonl`), and temporary files.
- Scores that are due and missing are made from their own checkpoints first, by the same episodes
  and noise, which come from seeds (`RunScorer.catch_up`, eval/noise.py).
- The data must have the recorded digest (data.py), the kind of device and what may change a policy
  of the settings must be the same, and the watch rules see the logged lines again
  (`run._training`).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tql_offline.config import Config, validate
from tql_offline.datasets.load import Dataset
from tql_offline.errors import InputError
from tql_offline.files import remove_parts, rewind_jsonl, write_atomic, write_json
from tql_offline.own_code import refuse_brought
from tql_offline.runs import RunFolder, claimed
from tql_offline.training import checkpoint
from tql_offline.training.compile import check_execution
from tql_offline.training.data import data_of
from tql_offline.training.device import pick_device
from tql_offline.training.own_settings import watched
from tql_offline.training.provenance import on_cpu, own_code, resumed_code
from tql_offline.training.reporters import Reporter
from tql_offline.training.result import open_run, read_evaluations, read_provenance
from tql_offline.training.run import train_begun
from tql_offline.training.setup import Begun, Setup, method_facts, set_up


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
        InputError: the run is finished, being trained, or damaged, its dataset or settings that
            may change a policy have changed, code that it names lies with it, or `steps` are no
            more than it has.
    """
    folder, config = open_run(path)
    for named in (config.objective, config.dataset.env_id):
        refuse_brought(named, path)
    with claimed(folder):
        longer = _with_more(folder, config, steps)
        _refuse_finished(folder, has_more=longer.steps > config.steps)
        device = pick_device(config.device)
        check_execution(config, device)
        provenance = read_provenance(folder)
        _refuse_another_kind(provenance, device, path)
        dataset = data_of(folder, config, load_dataset, moved_to)
        setup = set_up(watched(longer), dataset)
        for place in (folder.path, folder.checkpoints):
            remove_parts(place)
        step = _load_newest(folder, setup, reporter)
        if longer.steps > config.steps:
            _extend(folder, config, longer, step)
        for file in (folder.metrics, folder.timing, folder.warnings, folder.evaluations):
            rewind_jsonl(file, step)
        folder.ended.unlink(missing_ok=True)
        findings = [*_other_threads(provenance)] if step else []
        findings += _record_code(folder, provenance, setup, step)
        train_begun([Begun(setup=setup, folder=folder, step=step)], findings, reporter)
    return folder


def _refuse_finished(folder: RunFolder, *, has_more: bool) -> None:
    if folder.is_finished() and not has_more:
        raise InputError(
            f"run {folder.path} is finished; there is nothing to resume, unless --steps gives it "
            "more updates, at the last learning rate of its schedule"
        )
    # From nothing, the scores of a run that once ended would be lost.
    if folder.result.exists() and not folder.checkpoint_steps():
        lack = "is there" if folder.is_finished() else "cannot be read"
        raise InputError(
            f"{folder.result} {lack}, and the run has no checkpoint to go on from; copy the whole "
            "run again"
        )


def _refuse_another_kind(provenance: dict[str, Any], device: torch.device, path: Path) -> None:
    was_cpu, is_cpu = on_cpu(provenance), device.type == "cpu"
    if was_cpu is not None and was_cpu != is_cpu:
        before, now = ("CPU" if cpu else "GPU" for cpu in (was_cpu, is_cpu))
        raise InputError(
            f"run {path} was trained on a {before}, whose random numbers a {now} does not draw; "
            f"resume it on a {before}, or train it anew"
        )


def _with_more(folder: RunFolder, config: Config, steps: int | None) -> Config:
    """Settings of more updates, whose learning rates go on from where their schedule ended.

    The same command may come again, from a queue that restarts jobs: as many are no more.
    """
    if steps is None or (steps == config.steps and not folder.is_finished()):
        return config
    if steps <= config.steps:
        raise InputError(
            f"run {folder.path} is one of {config.steps:,} updates, and {steps:,} are no more; "
            "give more --steps, or none to resume it as it is"
        )
    optimizer = {**config.optimizer.model_dump(), "schedule_steps": config.schedule_steps}
    settings = {**config.model_dump(), "steps": steps, "optimizer": optimizer}
    return validate(settings, source="--steps")


def _extend(folder: RunFolder, before: Config, config: Config, step: int) -> None:
    """Give a run more updates on disk.

    The result goes first: without it, a run of the old number of updates is one to resume.

    Raises:
        InputError: it was finished, and would lose updates and scores that it had.
    """
    if folder.is_finished() and step < before.steps:
        raise InputError(
            f"run {folder.path} has no sound checkpoint of its last update, {before.steps:,}, to "
            "go on from; restore it from a copy, or train anew with more --steps"
        )
    if folder.result.exists():
        folder.result.rename(folder.path / f"result-of-{before.steps}.json")
    write_atomic(folder.config, config.to_toml())


def _load_newest(folder: RunFolder, setup: Setup, reporter: Reporter) -> int:
    """Load the newest checkpoint that can be used; returns its step, 0 if there is none at all.

    Newer ones are set aside: they would count as the newest when old ones are deleted.

    Raises:
        InputError: all are damaged or do not fit the run, or one cannot be read at the moment.
    """
    damaged: list[tuple[Path, str]] = []
    misfits: list[checkpoint.MisfitError] = []
    for step in reversed(folder.checkpoint_steps()):
        saved = folder.checkpoints / str(step)
        try:
            checkpoint.read_state(saved)
            checkpoint.load_networks(saved, setup.agent)
            checkpoint.load_training_state(saved, setup.agent, setup.generator, setup.window)
        except checkpoint.UnusableError as error:
            damaged.append((saved, error.fault))
            misfits += [error] if isinstance(error, checkpoint.MisfitError) else []
            continue
        for path, fault in damaged:
            reporter.noted(
                f"note: the run goes on from {saved}, because {fault}; the newer "
                f"checkpoint is kept as {checkpoint.set_aside(path)}"
            )
        return step
    if misfits and len(misfits) == len(damaged):  # the settings may have been changed
        raise misfits[0]
    if damaged:
        raise InputError(
            f"run {folder.path} has no checkpoint that can be read ({damaged[0][1]}); "
            "restore one from a copy, or train the run anew"
        )
    reporter.noted(f"note: run {folder.path} has no checkpoint yet, so it begins again")
    return 0


def _other_threads(provenance: Mapping[str, Any]) -> Iterator[str]:
    before, now = provenance.get("threads"), torch.get_num_threads()
    if on_cpu(provenance) and before != now:
        yield (
            f"note: the run began with {before} threads and resumes with {now}, so its last bits "
            "may differ from those of an uninterrupted run; OMP_NUM_THREADS sets their number"
        )


def _record_code(
    folder: RunFolder, provenance: Mapping[str, Any], setup: Setup, step: int
) -> Iterator[str]:
    """Record code of one's own that has changed since the run began; yields a note of it.

    What starts again from nothing is a run of the code as it is now.
    """
    before, now = provenance.get("own_method"), own_code(setup.agent)
    if now is None or now == before:
        return
    if not step:
        write_json(folder.provenance, {**provenance, **method_facts(setup), "own_method": now})
        return
    if not isinstance(before, dict):  # of a version that recorded no code
        return
    is_scored = any(line["step"] == step for line in read_evaluations(folder))
    record = resumed_code(before, now, step, is_scored=is_scored)
    if record != before:
        write_json(folder.provenance, {**provenance, "own_method": record})
    if "resumed_with" in record:
        yield (
            f"note: the code of {setup.config.objective} ({now['file'] or 'typed in'}) has changed "
            "since the run began, so it ends as neither version would; train it anew to compare it"
        )
