"""Scoring a run's policies: while it trains, and afterwards from any of its checkpoints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch

from tql_offline.agents import Agent, make_agent, numpy_policy
from tql_offline.config import Config, DataConfig
from tql_offline.cores import usable_cores
from tql_offline.errors import InputError, shown
from tql_offline.eval import protocol as protocols
from tql_offline.eval import video as videos
from tql_offline.eval.drawing import Drawing
from tql_offline.eval.environments import (
    MINARI_PREFIX,
    action_bounds,
    describe,
    reports_success,
)
from tql_offline.eval.protocol import Protocol
from tql_offline.eval.references import Reference, other_limit, reference_for
from tql_offline.eval.rollout import evaluate
from tql_offline.eval.workers import EnvironmentPool
from tql_offline.runs import RunFolder, append_jsonl, claimed, write_json
from tql_offline.training import checkpoint
from tql_offline.training.device import pick_device
from tql_offline.training.loop import Reporter
from tql_offline.training.result import action_bounds as recorded_bounds
from tql_offline.training.result import (
    is_complete,
    open_run,
    read_evaluations,
    read_provenance,
    write_result,
)

_MAX_DIMS = 8
"""Of an environment's bounds that a message lists."""
_MAX_REASON = 500
"""Characters of what a run's record says of its data."""


@contextmanager
def evaluator(
    config: Config, env_id: str | None, device: torch.device, *, overlaps: bool = False
) -> Iterator["Evaluator | None"]:
    """Environment processes for the length of a block, by which policies are scored.

    Args:
        config: names protocol, success timing and number of processes.
        env_id: of the environment; None gives None, and nothing is scored.
        device: where policies are computed.
        overlaps: score in a thread beside the caller's.
    """
    if env_id is None:
        yield None
        return
    protocol = protocols.get(config.evaluation.protocol)
    reference = scale_of_scores(protocol, config.dataset)
    with EnvironmentPool(
        env_id,
        slots=protocol.slots,
        processes=config.evaluation.processes or usable_cores(),
        success_timing=config.evaluation.success_timing or None,
    ) as pool:
        this = Evaluator(pool, protocol, device, overlaps, reference)
        try:
            yield this
        finally:
            this.close()


def scale_of_scores(protocol: Protocol, data: DataConfig) -> Reference | None:
    """The reference scores of a run's data, where its protocol normalises by some.

    Raises:
        InputError: there are none, or the protocol is not one for the policies of a run.
    """
    if protocol.goals:
        raise InputError(
            f"protocol {protocol.name!r} scores policies that are given a goal, which those of a "
            "run are not; use it from Python (docs/evaluation.md), or choose ogbench-singletask"
        )
    return reference_for(protocol, data.name, data.path)


def fitting_environment(
    env_id: str,
    config: Config,
    observation_dim: int,
    action_dim: int,
    *,
    whose: str,
    bounds: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """What a run's record says of an environment that its policies can be scored in.

    Args:
        env_id: of the environment.
        config: names protocol and success timing.
        observation_dim: of the policies.
        action_dim: of the policies.
        whose: dims these are, for the message.
        bounds: least and greatest actions that the data were scaled from; None where they are ±1.

    Raises:
        InputError: its dims or the bounds of its actions are others, or it does not report what the
            protocol scores.
    """
    described = describe(env_id, config.evaluation.success_timing or None)
    for what, have, want in (
        ("observation", observation_dim, described["observation_dim"]),
        ("action", action_dim, described["action_dim"]),
    ):
        if have != want:
            raise InputError(
                f"{whose} has {have} {what} dims where {env_id} has {want}; "
                "give the environment the data came from"
            )
    protocol = protocols.get(config.evaluation.protocol)
    scale_of_scores(protocol, config.dataset)
    _check_bounds(env_id, action_dim, bounds, whose)
    if protocol.score == "success" and not reports_success(env_id):
        raise InputError(
            f"environment {env_id!r} reports no success, which protocol {protocol.name!r} "
            "scores; give --protocol quick-return, which scores the return"
        )
    return described


def _check_bounds(env_id: str, action_dim: int, bounds: Sequence[Any] | None, whose: str) -> None:
    """See that an environment's actions are those of the data, whatever both are scaled to."""
    if env_id.startswith(MINARI_PREFIX):  # recovered and compared with its own data
        return
    low, high = action_bounds(env_id)
    want_low, want_high = bounds or ([-1.0] * action_dim, [1.0] * action_dim)
    if not (np.allclose(low, want_low) and np.allclose(high, want_high)):
        are_one = len({*low}) == len({*high}) == 1 and np.isfinite([low[0], high[0]]).all()
        setting = f"--set dataset.action_bounds=[{low[0]:g},{high[0]:g}]"
        in_its_unit = f"if the data are in its unit, train with {setting}, else " if are_one else ""
        raise InputError(
            f"environment {env_id!r} takes actions from {_listed(low)} to {_listed(high)} where "
            f"those of {whose} are from {_listed(want_low)} to {_listed(want_high)}; {in_its_unit}"
            "scale the data and register it with gymnasium.wrappers.RescaleAction"
        )


def _listed(bounds: Sequence[float]) -> str:
    """One number where all dims have the same."""
    return ", ".join(f"{bound:g}" for bound in dict.fromkeys(bounds[:_MAX_DIMS]))


def endless(environment: Mapping[str, Any] | None) -> Iterator[str]:
    """A note of what scoring may wait for in vain."""
    if environment is not None and environment["max_episode_steps"] is None:
        yield (
            f"note: environment {environment['env_id']!r} names no step limit, so that an episode "
            "that does not end by itself is played for ever; register it with max_episode_steps"
        )


class Evaluator:
    """Scores policies over one pool of environment processes, one after the other."""

    def __init__(
        self,
        pool: EnvironmentPool,
        protocol: Protocol,
        device: torch.device,
        overlaps: bool,
        reference: Reference | None = None,
    ) -> None:
        self.pool, self.protocol, self.device = pool, protocol, device
        self.reference = reference
        self.thread = ThreadPoolExecutor(1, "evaluation") if overlaps else None
        # One for all evaluations, of another priority: new ones come from a pool of 32, where the
        # next might be one that a seed trains on.
        on_gpu = overlaps and device.type == "cuda"
        self.stream = torch.cuda.Stream(device, priority=-1) if on_gpu else None
        self._cancelled = Event()

    def score(
        self,
        agent: Agent,
        folder: RunFolder,
        step: int,
        policies: tuple[str, ...],
        reporter: Reporter,
    ) -> list[dict[str, Any]]:
        """Score an agent's policies as they are; return the line of evaluations.jsonl of each."""
        lines = []
        for policy in policies:
            title = f"scoring {policy} policy"
            reporter.started(title, self.protocol.episodes)
            line = evaluate(
                numpy_policy(agent, policy, self.device),
                self.pool,
                self.protocol,
                step=step,
                policy_name=policy,
                noise_dim=agent.noise_dim(policy),
                reference=self.reference,
                progress=partial(reporter.advanced, title=title),
                cancelled=self._cancelled.is_set,
            )
            append_jsonl(folder.evaluations, line)
            reporter.evaluated(line)
            lines.append(line)
        return lines

    def film(
        self,
        agent: Agent,
        folder: RunFolder,
        lines: list[dict[str, Any]],
        drawing: Drawing,
        reporter: Reporter,
    ) -> None:
        """Write videos of episodes of what `score` returned.

        Raises:
            InputError: an episode came out differently, the others being written; or the
                environment failed, or a file cannot be written.
        """
        differences = []
        for line in lines:
            title = f"filming {line['policy']} policy"
            chosen = set(videos.chosen(line["episodes"]).values())
            reporter.started(title, sum(line["episodes"][k]["length"] + 1 for k in chosen))
            player = videos.Player(
                policy=numpy_policy(agent, line["policy"], self.device),
                drawing=drawing,
                description=self.pool.description,
                slots=self.pool.slots,
                noise_dim=agent.noise_dim(line["policy"]),
            )
            advanced = partial(reporter.advanced, title=title)
            differences += videos.film(player, line, folder.videos, progress=advanced)
            for path in videos.videos_of(line, folder.videos):
                reporter.noted(f"video: {path}")
        if differences:
            raise InputError(
                f"played again, {'; '.join(differences)}: of this no video was written; see that "
                f"environment {drawing.env_id!r} depends on its seed and actions alone"
            )

    def begin(self, *arguments: Any) -> "Future[None]":
        """`score` in the thread, on a stream of its own."""
        assert self.thread is not None
        return self.thread.submit(self._score_apart, *arguments)

    def _score_apart(self, *arguments: Any) -> None:
        with torch.cuda.stream(self.stream):  # None on a CPU, where it is no context
            self.score(*arguments)

    def close(self) -> None:
        """End the thread, leaving what it is at."""
        if self.thread is not None:
            self._cancelled.set()
            self.thread.shutdown(cancel_futures=True)


class RunScores:
    """Scores of one run: at once, or of a copy of the policies while training goes on."""

    def __init__(
        self,
        config: Config,
        agent: Agent,
        folder: RunFolder,
        reporter: Reporter,
        by: Evaluator | None,
    ) -> None:
        self.config, self.agent, self.folder, self.reporter = config, agent, folder, reporter
        self.by = by
        protocol = protocols.get(config.evaluation.protocol)
        planned = protocols.evaluation_steps(protocol, config.steps)
        self._left = frozenset(() if config.evaluation.enabled else planned)
        self._copy: Agent | None = None
        self._pending: Future[None] | None = None
        self._begun = -1

    def score(self, step: int) -> None:
        """Score the policies due at a step, by the weights of this moment."""
        self._score(self.agent, step, due(self.config, self.agent, step))

    def catch_up(self, steps: Iterable[int], now: int) -> None:
        """Score what a stopped run left unscored at some steps, each by its own checkpoint.

        Args:
            steps: to look at, ascending.
            now: the step at which the agent itself is.
        """
        for step in steps:
            if self.by and (missing := unscored(self.folder, self.config, self.agent, step)):
                self._score(self.agent if step == now else self._as_of(step), step, missing)

    def are_unwritten(self, step: int) -> bool:
        """Whether scores of a step are left for later, or were begun and are not written yet."""
        if step in self._left:
            return True
        if self._pending is None or self._begun != step:
            return False
        return not self._pending.done() or self._pending.exception() is not None

    def wait(self) -> None:
        """Return when all that was begun is written.

        Raises:
            InputError: a score could not be made.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _score(self, agent: Agent, step: int, policies: tuple[str, ...]) -> None:
        if self.by is None:
            return
        if self.by.thread is None:
            self.by.score(agent, self.folder, step, policies, self.reporter)
            return
        self.wait()
        copy = self._copy_of(agent)
        self._begun = step
        self._pending = self.by.begin(copy, self.folder, step, policies, self.reporter)

    def _as_of(self, step: int) -> Agent:
        """The networks of a checkpoint, in the copy."""
        self.wait()
        copy = self._copy_of(self.agent)
        checkpoint.load_networks(self.folder.checkpoints / str(step), copy)
        return copy

    def _copy_of(self, agent: Agent) -> Agent:
        """The copy, with an agent's weights of this moment."""
        if self._copy is None:
            dims = agent.normaliser.mean.shape[0], agent.action_dim
            self._copy = make_agent(self.config, *dims, agent.normaliser.mean.device)
        if self._copy is not agent:
            for name, network in agent.networks.items():
                self._copy.networks[name].load_state_dict(network.state_dict())
        if agent.normaliser.mean.device.type == "cuda":
            # Another stream reads the copy: it must be whole before that begins.
            torch.cuda.current_stream().synchronize()
        return self._copy


def due(config: Config, agent: Agent, step: int) -> tuple[str, ...]:
    """The policies that an evaluation during training scores."""
    return agent.policies if step == config.steps else agent.policies[:1]


def unscored(folder: RunFolder, config: Config, agent: Agent, step: int) -> tuple[str, ...]:
    """The policies due at a step whose scores a stopped run has not written."""
    scored = {
        line["policy"]
        for line in read_evaluations(folder)
        if line["step"] == step and line["protocol"]["name"] == config.evaluation.protocol
    }
    return tuple(policy for policy in due(config, agent, step) if policy not in scored)


def check_fit(agent: Agent, pool: EnvironmentPool, folder: RunFolder) -> None:
    """See that a run's networks take what its environment gives.

    Raises:
        InputError: they do not.
    """
    have, want = len(agent.normaliser.mean), pool.description["observation_dim"]
    if have != want:
        raise InputError(
            f"the networks of run {folder.path} take {have} observation dims where environment "
            f"{pool.description['env_id']} gives {want}; restore the environment of its provenance"
        )


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
        step: of the checkpoint; None takes the last.
        missing: score instead all that the protocol plans and that is not there yet.
        protocol: name; empty takes the run's own.
        policies: names; empty takes all.
        device: `auto`, `cpu` or `cuda`.
        reporter: where progress goes.
        env_id: of the environment, where a finished run was trained without one; its record then
            has it.
        video: also write videos of each policy's best, median and worst episode (eval/video.py).

    Raises:
        InputError: no such checkpoint, policy or environment, the run folder is damaged, or the
            videos cannot be made; the scores are then written unless nothing can draw here.
    """
    if missing and (step is not None or policies or video):
        raise InputError(
            "--missing scores the policies and checkpoints that lack scores; leave --checkpoint, "
            "--policy and --video out"
        )
    folder, config = open_run(path)
    evaluation = config.evaluation.model_copy(
        update={"protocol": protocols.get(protocol or config.evaluation.protocol).name}
    )
    scored = config.model_copy(update={"evaluation": evaluation})
    # Read before an episode is played: what these cannot be added to is not worth playing for.
    read_evaluations(folder)
    env_id = _environment_of(folder, env_id)
    chosen = chosen_checkpoint(folder, step)
    state, torch_device = checkpoint.read_state(chosen), pick_device(device)
    agent = make_agent(config, state.observation_dim, state.action_dim, torch_device)
    checkpoint.load_networks(chosen, agent)
    check_policies(agent, policies, path)
    _record_environment(folder, scored, state, env_id)
    timing = evaluation.success_timing or None
    with evaluator(scored, env_id, torch_device) as by:
        assert by is not None
        check_fit(agent, by.pool, folder)
        for sentence in _notes(config, path, by):
            reporter.noted(sentence)
        # Before the scores: whoever cannot be shown videos is told so at once.
        with Drawing(env_id, success_timing=timing) if video else nullcontext() as drawing:
            lines = []
            if missing:
                _score_missing(scored, agent, folder, reporter, by, state.step)
            else:
                lines = by.score(agent, folder, state.step, policies or agent.policies, reporter)
            # Of an unfinished run a result would say that it is finished.
            if is_complete(folder, config):
                write_result(folder)
            if drawing is not None:
                by.film(agent, folder, lines, drawing, reporter)
    return folder


def _score_missing(
    scored: Config,
    agent: Agent,
    folder: RunFolder,
    reporter: Reporter,
    by: Evaluator,
    now: int,
) -> None:
    """Score what the protocol plans and is not there, each by its own checkpoint."""
    before = len(read_evaluations(folder))
    scores = RunScores(scored, agent, folder, reporter, by)
    scores.catch_up(_with_checkpoint(scored, folder, reporter), now)
    if len(read_evaluations(folder)) == before:
        reporter.noted(f"note: run {folder.path} has every score that a checkpoint is there for")


def _with_checkpoint(scored: Config, folder: RunFolder, reporter: Reporter) -> list[int]:
    """The steps at which the protocol plans scores, of those that have a checkpoint."""
    planned = protocols.evaluation_steps(protocols.get(scored.evaluation.protocol), scored.steps)
    there = set(folder.checkpoint_steps())
    if gone := [str(step) for step in planned if step not in there]:
        reporter.noted(
            f"note: the protocol plans scores of step {', '.join(gone)}, too, of which there is no "
            "checkpoint"
        )
    return [step for step in planned if step in there]


def _environment_of(folder: RunFolder, wanted: str) -> str:
    """The environment to score a run in: the one that is given, or its record's.

    Raises:
        InputError: there is none.
    """
    provenance = read_provenance(folder)
    env_id = wanted or (provenance.get("environment") or {}).get("env_id")
    if not env_id:
        raise InputError(
            f"run {folder.path} has no environment to score policies in{_why(provenance)}"
        )
    return str(env_id)


def _record_environment(
    folder: RunFolder, scored: Config, state: checkpoint.State, env_id: str
) -> None:
    """Write the environment that a run is scored in into its record, if it is not there yet.

    Only a finished run that was trained without one can be given one, and another as long as
    nothing was scored in it.
    """
    provenance = read_provenance(folder)
    has = provenance.get("environment") or {}
    if has and env_id == has["env_id"]:
        return
    if has and (not has.get("given_later") or read_evaluations(folder)):
        raise InputError(
            f"run {folder.path} is scored in {has['env_id']!r}, and scores in {shown(env_id)} are "
            "of another task; leave --env out"
        )
    if not is_complete(folder, scored):
        raise InputError(
            f"run {folder.path} is not finished, and --env is for finished runs; go on with it by "
            f"`tql-offline train --resume {folder.path}`"
        )
    dims = state.observation_dim, state.action_dim
    bounds = recorded_bounds(provenance["dataset"], state.action_dim, folder.provenance)
    given = fitting_environment(env_id, scored, *dims, whose=f"run {folder.path}", bounds=bounds)
    with claimed(folder):
        if read_provenance(folder) != provenance:
            raise InputError(f"run {folder.path} was given an environment meanwhile; try again")
        write_json(folder.provenance, provenance | {"environment": given | {"given_later": True}})


def _notes(config: Config, path: Path, by: Evaluator) -> Iterator[str]:
    """What is to be known of scores before they are made."""
    protocol, own = by.protocol.name, config.evaluation.protocol
    if protocol != own:
        yield (
            f"note: run {path} is judged by its own protocol, {own!r}: scores by {protocol!r} are "
            "in its report, but in no leaderboard"
        )
    for sentence in other_limit(by.protocol, config.dataset.name, by.pool.description):
        yield f"note: {sentence}"
    yield from endless(by.pool.description)


def _why(provenance: dict[str, Any]) -> str:
    """What is missing, in the words of whoever read the data."""
    dataset = provenance.get("dataset")
    unscored = dataset.get("unscored") if isinstance(dataset, dict) else None
    if isinstance(unscored, str) and unscored.isprintable():
        return f": {unscored[:_MAX_REASON]}"
    return "; give --env"


def check_policies(agent: Agent, policies: Iterable[str], path: Path) -> None:
    """See that a run has policies of given names.

    Raises:
        InputError: it lacks one.
    """
    if unknown := set(policies) - set(agent.policies):
        raise InputError(
            f"there is no policy {unknown.pop()!r} in {path}; choose of {', '.join(agent.policies)}"
        )


def chosen_checkpoint(folder: RunFolder, step: int | None) -> Path:
    """The checkpoint of a step, or the last.

    Raises:
        InputError: there is none.
    """
    steps = folder.checkpoint_steps()
    if not steps:
        raise InputError(f"run {folder.path} has no checkpoint yet; let it train to its first one")
    if step is not None and step not in steps:
        listed = ", ".join(str(s) for s in steps)
        raise InputError(f"run {folder.path} has no checkpoint of step {step}; it has {listed}")
    return folder.checkpoints / str(steps[-1] if step is None else step)
