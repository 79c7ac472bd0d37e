"""Scoring a run's policies, at once or during training; rescoring.py does so afterwards."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_offline.agents import Agent, make_agent, numpy_policy
from tql_offline.config import Config
from tql_offline.cores import usable_cores
from tql_offline.errors import InputError
from tql_offline.eval import protocol as protocols
from tql_offline.eval import video as videos
from tql_offline.eval.drawing import Drawing
from tql_offline.eval.protocol import Protocol
from tql_offline.eval.references import Reference
from tql_offline.eval.rollout import evaluate
from tql_offline.eval.workers import EnvironmentPool
from tql_offline.files import append_jsonl
from tql_offline.runs import RunFolder
from tql_offline.training import checkpoint
from tql_offline.training.environment import scale_of_scores
from tql_offline.training.reporters import Reporter
from tql_offline.training.result import read_evaluations


@contextmanager
def open_evaluator(
    config: Config, env_id: str | None, device: torch.device, *, overlaps: bool = False
) -> Iterator["Evaluator | None"]:
    """Run environment processes, in which policies are scored, for the length of a block.

    Args:
        config: gives protocol, success timing and number of processes.
        env_id: id of the environment; if None, yields None, and nothing is scored.
        device: where policies are computed.
        overlaps: whether to score in a thread of its own.
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


class Evaluator:
    """Scores policies in one pool of environment processes, one after the other."""

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
        # One for all evaluations, with another priority: new streams come from a pool of 32, so the
        # next one might be one that a seed trains on.
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
        """Score an agent's policies as they are; return each one's line of evaluations.jsonl."""
        lines = []
        for policy in policies:
            title = f"scoring {policy} policy"
            reporter.started(title, self.protocol.episodes_played)
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
        """Write videos of episodes in the lines that `score` returned.

        Raises:
            InputError: an episode came out differently (the others are written), the environment
                failed, or a file cannot be written.
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
        """Start `score` in the thread, on its own stream."""
        assert self.thread is not None
        return self.thread.submit(self._score_apart, *arguments)

    def _score_apart(self, *arguments: Any) -> None:
        with torch.cuda.stream(self.stream):  # None on a CPU, where it has no effect
            self.score(*arguments)

    def close(self) -> None:
        """End the thread, abandoning what it is doing."""
        if self.thread is not None:
            self._cancelled.set()
            self.thread.shutdown(cancel_futures=True)


class RunScorer:
    """Scores one run: at once, or a copy of the policies while training goes on."""

    def __init__(
        self,
        config: Config,
        agent: Agent,
        folder: RunFolder,
        reporter: Reporter,
        evaluator: Evaluator | None,
    ) -> None:
        self.config, self.agent, self.folder, self.reporter = config, agent, folder, reporter
        self.evaluator = evaluator
        self._copy: Agent | None = None
        self._pending: Future[None] | None = None
        self._begun = -1

    @property
    def is_scoring(self) -> bool:
        """Whether there is something to score by."""
        return self.evaluator is not None

    def score(self, step: int) -> None:
        """Score the policies due at a step, with the current weights."""
        self._score(self.agent, step, due(self.config, self.agent, step))

    def catch_up(self, steps: Iterable[int], now: int) -> list[str]:
        """Score what a stopped run left unscored at some steps, each from its own checkpoint.

        Args:
            steps: steps to look at, ascending.
            now: the agent's current step.

        Returns:
            What is wrong with each checkpoint that cannot be used.
        """
        faults = []
        for step in steps:
            if self.evaluator and (missing := unscored(self.folder, self.config, self.agent, step)):
                try:
                    agent = self.agent if step == now else self._as_of(step)
                except checkpoint.UnusableError as error:
                    faults.append(error.fault)
                    continue
                self._score(agent, step, missing)
        return faults

    def are_unwritten(self, step: int) -> bool:
        """Whether scores of a step were begun but are not written yet, or never will be."""
        if self._pending is None or self._begun != step:
            return False
        return not self._pending.done() or self._pending.exception() is not None

    def wait(self) -> None:
        """Wait until all scores that were begun are written.

        Raises:
            InputError: a score could not be made.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _score(self, agent: Agent, step: int, policies: tuple[str, ...]) -> None:
        if self.evaluator is None:
            return
        if self.evaluator.thread is None:
            self.evaluator.score(agent, self.folder, step, policies, self.reporter)
            return
        self.wait()
        copy = self._copy_of(agent)
        self._begun = step
        self._pending = self.evaluator.begin(copy, self.folder, step, policies, self.reporter)

    def _as_of(self, step: int) -> Agent:
        """The copy, with the networks of a checkpoint."""
        self.wait()
        copy = self._copy_of(self.agent)
        checkpoint.load_networks(self.folder.checkpoints / str(step), copy)
        return copy

    def _copy_of(self, agent: Agent) -> Agent:
        """The copy, with an agent's current weights."""
        if self._copy is None:
            dims = agent.normaliser.mean.shape[0], agent.action_dim
            self._copy = make_agent(self.config, *dims, agent.normaliser.mean.device)
        if self._copy is not agent:
            for name, network in agent.networks.items():
                self._copy.networks[name].load_state_dict(network.state_dict())
        if agent.normaliser.mean.device.type == "cuda":
            # Another stream reads the copy, which must be complete before that begins.
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


def check_act(agent: Agent, observations: NDArray[Any], device: torch.device) -> None:
    """Check that each policy of one's own method gives an action per observation, the same twice.

    They are asked for a few, with random numbers that no run draws.

    Args:
        agent: the method.
        observations: `(N, n_s)` raw ones, of which the first are taken.
        device: where the agent is.

    Raises:
        InputError: names the class, what `act` gives and what it should.
    """
    # Not as many as an action has dims, so that rows and dims are told apart.
    few = observations[: agent.action_dim + 1]
    some = torch.tensor(few, dtype=torch.float32, device=device)
    generator = torch.Generator(device).manual_seed(0)
    name = type(agent).__name__
    devices = [device] if device.type == "cuda" else []
    for policy in agent.policies:
        with torch.no_grad(), torch.random.fork_rng(devices):
            shape = (len(some), agent.noise_dim(policy))
            noise = torch.randn(shape, generator=generator, device=device)
            actions, again = (_asked(agent, policy, some, noise) for _ in range(2))
        if not torch.isfinite(actions).all():
            raise InputError(
                f"{name}.act gives actions that are not finite (NaN or infinite) before any "
                f"update, by policy {policy!r}; give numbers in [-1, 1]"
            )
        if not torch.allclose(actions, again, rtol=1e-3, atol=1e-3):
            raise InputError(
                f"{name}.act gives other actions when asked again with the same observations and "
                f"noise, by policy {policy!r}, so no score could be repeated; take all that is "
                "random from `noise`, whose width is `noise_dim`, and switch dropout off"
            )


def _asked(agent: Agent, policy: str, observations: Tensor, noise: Tensor) -> Tensor:
    """Actions of a policy, checked to be a tensor of a row each."""
    want = (len(observations), agent.action_dim)
    actions: Any = agent.act(policy, observations.clone(), noise.clone())
    if isinstance(actions, Tensor) and actions.shape == want:
        return actions
    is_tensor = isinstance(actions, Tensor)
    gives = (
        f"actions of shape {tuple(actions.shape)}" if is_tensor else f"a {type(actions).__name__}"
    )
    raise InputError(
        f"{type(agent).__name__}.act gives {gives} for {len(observations)} observations and policy "
        f"{policy!r}, where a tensor of shape {want} is needed; return one row of "
        f"{agent.action_dim} numbers per observation"
    )


def check_fit(agent: Agent, pool: EnvironmentPool, folder: RunFolder) -> None:
    """Check that a run's networks fit the observations of its environment.

    Raises:
        InputError: they do not.
    """
    have, want = len(agent.normaliser.mean), pool.description["observation_dim"]
    if have != want:
        raise InputError(
            f"the networks of run {folder.path} take {have} observation dims where environment "
            f"{pool.description['env_id']} gives {want}; restore the environment of its provenance"
        )
