"""Scoring a run's policies after it was trained, from any of its checkpoints."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tql_offline.agents import Agent
from tql_offline.config import Config
from tql_offline.errors import InputError, listed, numbered, quoted, shown
from tql_offline.eval import protocol as protocols
from tql_offline.eval.drawing import Drawing
from tql_offline.eval.protocol import counted_steps, evaluations_counted
from tql_offline.eval.references import other_limit
from tql_offline.files import read_json, require_writable, write_json
from tql_offline.own_code import refuse_brought
from tql_offline.runs import RunFolder, claimed, claimed_for_scoring
from tql_offline.training import checkpoint
from tql_offline.training.compile import set_matrix_precision
from tql_offline.training.device import pick_device
from tql_offline.training.environment import endless, fitting_environment
from tql_offline.training.evaluation import Evaluator, RunScorer, check_fit, open_evaluator
from tql_offline.training.reporters import Reporter
from tql_offline.training.result import (
    action_bounds,
    is_complete,
    open_run,
    own_protocol,
    read_evaluations,
    read_provenance,
    write_result,
)

_MAX_REASON = 500
"""Most characters quoted from what a run's record says about its data."""


def evaluate_run(
    path: Path,
    *,
    step: int | None = None,
    missing: bool = False,
    protocol: str = "",
    policies: tuple[str, ...] = (),
    device: str = "auto",
    reporter: Reporter,
    env_id: str = "",
    video: bool = False,
) -> RunFolder:
    """Score policies of a run's checkpoints and add the lines to its evaluations.jsonl.

    Args:
        path: the run folder.
        step: step of the checkpoint; None takes the last.
        missing: score everything instead that the protocol plans and that has no score yet.
        protocol: its name; empty takes the run's own (`own_protocol`).
        policies: their names; empty takes all.
        device: `auto`, `cpu` or `cuda`.
        reporter: where progress goes.
        env_id: id of the environment, if a finished run was trained without one; it is then
            recorded.
        video: also write videos of each policy's best, median and worst episode (eval/video.py).

    Raises:
        BusyError: another process scores the run.
        InputError: there is no such checkpoint, policy or environment, the run folder is damaged,
            or the videos cannot be made; in that case the scores are written unless nothing can
            draw here.
    """
    if missing and (step is not None or policies or video):
        raise InputError(
            "--missing scores the policies and checkpoints that lack scores; leave --checkpoint, "
            "--policy and --video out"
        )
    folder, config = open_run(path)
    require_writable(folder.path)
    # Before its scores are read: those of another process, still to come, would be made twice.
    with claimed_for_scoring(folder):
        scored = _planned(folder, config, protocol)
        env_id = _environment_of(folder, env_id)
        torch_device = pick_device(device)
        if torch_device.type == "cuda":  # as its scores while training were made
            set_matrix_precision(config.execution.precision)
        if missing:
            state, agent = _newest_sound(folder, config, torch_device)
        else:
            state, agent = checkpoint.load_agent(folder, config, step, torch_device)
        check_policies(agent, policies, path)
        _record_environment(folder, scored, state, env_id, is_named=bool(protocol))
        timing = scored.evaluation.success_timing or None
        with open_evaluator(scored, env_id, torch_device) as evaluator:
            assert evaluator is not None
            check_fit(agent, evaluator.pool, folder)
            own = own_protocol(config, read_provenance(folder))  # may just have become this one
            for sentence in _notes(own, config, path, evaluator):
                reporter.noted(sentence)
            # Before scoring, so that where no videos can be made, the user learns so at once.
            with Drawing(env_id, success_timing=timing) if video else nullcontext() as drawing:
                lines, faults = [], []
                if missing:
                    faults = _score_missing(scored, agent, folder, reporter, evaluator, state.step)
                else:
                    lines = evaluator.score(
                        agent, folder, state.step, policies or agent.policies, reporter
                    )
                # A result of an unfinished run would claim that it is finished.
                if is_complete(folder, config):
                    write_result(folder)
                if drawing is not None:
                    evaluator.film(agent, folder, lines, drawing, reporter)
    if faults:
        raise InputError(
            f"{numbered(len(faults), 'checkpoint', 'checkpoints')} of run {folder.path} cannot be "
            f"scored ({faults[0]}), the others are; restore what is damaged from a copy"
        )
    return folder


def _planned(folder: RunFolder, config: Config, protocol: str) -> Config:
    """The run's settings with the protocol to score it by: its own if none is named.

    Raises:
        InputError: there is no such protocol, or scores could not be added to the run's.
    """
    own = own_protocol(config, read_provenance(folder))
    chosen = {"protocol": protocols.get(protocol or own).name}
    # Read before an episode is played: if scores cannot be added, playing is a waste of time.
    lines = read_evaluations(folder)
    if is_complete(folder, config):  # else no result is written
        _refuse_lost_lines(folder, lines, own)
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=chosen)})


def _newest_sound(
    folder: RunFolder, config: Config, device: torch.device
) -> tuple[checkpoint.State, Agent]:
    """The agent of the newest checkpoint that can be used.

    Raises:
        InputError: there is none.
    """
    first: InputError | None = None
    for step in reversed(folder.checkpoint_steps()):
        try:
            return checkpoint.load_agent(folder, config, step, device)
        except checkpoint.UnusableError as error:
            first = first or error
    if first:
        raise first
    return checkpoint.load_agent(folder, config, None, device)  # says that there is none


def _refuse_lost_lines(folder: RunFolder, lines: list[dict[str, Any]], protocol: str) -> None:
    """Refuse to score a run whose result has scores that evaluations.jsonl lacks.

    The result is written again from that file, without them.

    Raises:
        InputError: there are such scores.
    """
    try:
        rows = read_json(folder.result).get("evaluations")
    except InputError:  # missing or damaged: it is written anew
        return
    kept = [(e["policy"], e["step"]) for e in lines if e["protocol"]["name"] == protocol]
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    # Compared as they are: a stranger's may hold anything.
    lost = [row.get("step") for row in found if (row.get("policy"), row.get("step")) not in kept]
    if steps := sorted({step for step in lost if type(step) is int}):
        raise InputError(
            f"{folder.result} has scores of update {listed([*map(str, steps)], 3)} that "
            f"{folder.evaluations} lacks, and scoring would drop them; restore that file, or "
            "remove result.json to score the run anew"
        )


def _score_missing(
    scored: Config,
    agent: Agent,
    folder: RunFolder,
    reporter: Reporter,
    evaluator: Evaluator,
    now: int,
) -> list[str]:
    """Score what the protocol plans and has no score yet, each from its own checkpoint.

    Returns:
        What is wrong with each checkpoint that cannot be used.
    """
    before = len(read_evaluations(folder))
    scorer = RunScorer(scored, agent, folder, reporter, evaluator)
    faults = scorer.catch_up(_with_checkpoint(scored, folder, reporter), now)
    if not faults and len(read_evaluations(folder)) == before:
        reporter.noted(
            f"note: run {folder.path} already has every score for which there is a checkpoint"
        )
    return faults


def _with_checkpoint(scored: Config, folder: RunFolder, reporter: Reporter) -> list[int]:
    """The steps with a checkpoint at which the protocol plans scores."""
    planned = protocols.evaluation_steps(protocols.get(scored.evaluation.protocol), scored.steps)
    there = set(folder.checkpoint_steps())
    if gone := [str(step) for step in planned if step not in there]:
        reporter.noted(
            f"note: the protocol also plans scores of step {', '.join(gone)}, for which there is "
            "no checkpoint"
        )
    return [step for step in planned if step in there]


def _environment_of(folder: RunFolder, wanted: str) -> str:
    """The environment to score a run in: the given one, or its record's.

    Raises:
        InputError: there is none, or the code of its record's lies with the run.
    """
    provenance = read_provenance(folder)
    env_id = wanted or (provenance.get("environment") or {}).get("env_id")
    if not env_id:
        raise InputError(
            f"run {folder.path} has no environment to score policies in{_why(provenance)}"
        )
    if not wanted:
        refuse_brought(env_id, folder.path, advice="name the environment by --env, too")
    return str(env_id)


def _record_environment(
    folder: RunFolder, scored: Config, state: checkpoint.State, env_id: str, *, is_named: bool
) -> None:
    """Record the environment that a run is scored in, if it is not recorded yet.

    `is_named` tells whether the user named the protocol.

    Only a finished run that was trained without one can be given one, and it can be changed as long
    as nothing was scored in it. The protocol of the first scores becomes the run's own.
    """
    provenance = read_provenance(folder)
    has = provenance.get("environment") or {}
    if has and (not has.get("given_later") or read_evaluations(folder)):
        if env_id == has["env_id"]:
            return
        raise InputError(
            f"run {folder.path} is scored in {has['env_id']!r}, and scores in {shown(env_id)} are "
            "of another task; leave --env out"
        )
    if not is_complete(folder, scored):
        raise InputError(
            f"run {folder.path} is not finished, and --env is for finished runs; go on with it by "
            f"`tql-offline train --resume {quoted(folder.path)}`"
        )
    dims = state.observation_dim, state.action_dim
    bounds = action_bounds(provenance["dataset"], state.action_dim, folder.provenance)
    given = fitting_environment(env_id, scored, *dims, whose=f"run {folder.path}", bounds=bounds)
    if not is_named:
        _refuse_too_short(folder, scored)
    with claimed(folder):
        if read_provenance(folder) != provenance:
            raise InputError(f"run {folder.path} was given an environment meanwhile; try again")
        later = {"given_later": True, "protocol": scored.evaluation.protocol}
        write_json(folder.provenance, provenance | {"environment": given | later})


def _refuse_too_short(folder: RunFolder, config: Config) -> None:
    """Refuse a protocol that nobody chose and whose scores a run of this length has too few of."""
    protocol = protocols.get(config.evaluation.protocol)
    most, wanted = len(counted_steps(protocol, config.steps)), evaluations_counted(protocol.counted)
    if most < wanted:
        raise InputError(
            f"protocol {protocol.name!r}, the default, counts the last {wanted} evaluations, and a "
            f"run of {config.steps:,} updates has {most}, so {folder.path} would be on no "
            "leaderboard; choose one by --protocol, such as quick or quick-return"
        )


def _notes(own: str, config: Config, path: Path, evaluator: Evaluator) -> Iterator[str]:
    """Notes about scores before they are made."""
    protocol = evaluator.protocol.name
    if protocol != own:
        yield (
            f"note: run {path} is judged by its own protocol, {own!r}: scores by {protocol!r} are "
            "in its report but on no leaderboard"
        )
    for sentence in other_limit(
        evaluator.protocol, config.dataset.name, evaluator.pool.description
    ):
        yield f"note: {sentence}"
    yield from endless(evaluator.pool.description)


def _why(provenance: dict[str, Any]) -> str:
    """What is missing, in the words of the code that read the data."""
    dataset = provenance.get("dataset")
    unscored = dataset.get("unscored") if isinstance(dataset, dict) else None
    if isinstance(unscored, str) and unscored.isprintable():
        return f": {unscored[:_MAX_REASON]}"
    return "; give --env"


def check_policies(agent: Agent, policies: Iterable[str], path: Path) -> None:
    """Check that a run has policies of the given names.

    Raises:
        InputError: it lacks one.
    """
    if unknown := set(policies) - set(agent.policies):
        raise InputError(
            f"there is no policy {unknown.pop()!r} in {path}; choose of {', '.join(agent.policies)}"
        )
