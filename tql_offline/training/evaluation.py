"""Scoring a run's policies: while it trains, and afterwards from any of its checkpoints."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tql_offline.agents import Agent, make_agent, numpy_policy
from tql_offline.config import Config
from tql_offline.cores import usable_cores
from tql_offline.errors import InputError
from tql_offline.eval import protocol as protocols
from tql_offline.eval.rollout import evaluate
from tql_offline.eval.workers import EnvironmentPool
from tql_offline.runs import RunFolder, append_jsonl
from tql_offline.training import checkpoint
from tql_offline.training.device import pick_device
from tql_offline.training.loop import Reporter
from tql_offline.training.result import (
    is_complete,
    open_run,
    read_evaluations,
    read_provenance,
    write_result,
)

Score = Callable[[int, tuple[str, ...]], None]


@contextmanager
def scorer(
    config: Config,
    env_id: str | None,
    agent: Agent,
    device: torch.device,
    folder: RunFolder,
    reporter: Reporter,
) -> Iterator[Score]:
    """A function `score(step, policies)` over one pool of environment processes.

    During training the learned policy is scored at every evaluation, the others at the last one.
    Without an environment nothing is scored.
    """
    if env_id is None:
        yield lambda _step, _policies: None
        return
    protocol = protocols.get(config.evaluation.protocol)
    timing = config.evaluation.success_timing or None
    with EnvironmentPool(
        env_id,
        slots=protocol.slots,
        processes=config.evaluation.processes or usable_cores(),
        success_timing=timing,
    ) as pool:
        _check_fit(agent, pool, folder)

        def score(step: int, policies: tuple[str, ...]) -> None:
            for policy in policies or due(config, agent, step):
                reporter.started(f"scoring {policy} policy", protocol.episodes)
                line = evaluate(
                    numpy_policy(agent, policy, device),
                    pool,
                    protocol,
                    step=step,
                    policy_name=policy,
                    noise_dim=agent.noise_dim(policy),
                    progress=reporter.advanced,
                )
                append_jsonl(folder.evaluations, line)
                reporter.evaluated(line)

        yield score


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


def _check_fit(agent: Agent, pool: EnvironmentPool, folder: RunFolder) -> None:
    have, want = len(agent.normaliser.mean), pool.description["observation_dim"]
    if have != want:
        raise InputError(
            f"the networks of run {folder.path} take {have} observation dims where environment "
            f"{pool.description['env_id']} gives {want}; restore the environment of its provenance"
        )


def evaluate_run(
    path: Path,
    *,
    step: int | None,
    protocol: str,
    policies: tuple[str, ...],
    device: str,
    reporter: Reporter,
) -> RunFolder:
    """Score the policies of a run's checkpoint and add the lines to its evaluations.jsonl.

    Args:
        path: the run folder.
        step: of the checkpoint; None takes the last.
        protocol: name; empty takes the run's own.
        policies: names; empty takes all.
        device: `auto`, `cpu` or `cuda`.
        reporter: where progress goes.

    Raises:
        InputError: no such checkpoint, policy or environment, or the run folder is damaged.
    """
    folder, config = open_run(path)
    env_id = (read_provenance(folder).get("environment") or {}).get("env_id")
    if env_id is None:
        raise InputError(f"run {path} has no environment to score policies in; train it with --env")
    evaluation = config.evaluation.model_copy(
        update={"protocol": protocols.get(protocol or config.evaluation.protocol).name}
    )
    # Read before an episode is played: what these cannot be added to is not worth playing for.
    read_evaluations(folder)
    chosen = _checkpoint(folder, step)
    state = checkpoint.read_state(chosen)
    torch_device = pick_device(device)
    agent = make_agent(config, state.observation_dim, state.action_dim, torch_device)
    checkpoint.load_networks(chosen, agent)
    unknown = set(policies) - set(agent.policies)
    if unknown:
        raise InputError(
            f"there is no policy {unknown.pop()!r} in {path}; choose of {', '.join(agent.policies)}"
        )
    scored = config.model_copy(update={"evaluation": evaluation})
    with scorer(scored, env_id, agent, torch_device, folder, reporter) as score:
        score(state.step, policies or agent.policies)
    # Of an unfinished run a result would say that it is finished.
    if is_complete(folder, config):
        write_result(folder)
    return folder


def _checkpoint(folder: RunFolder, step: int | None) -> Path:
    steps = folder.checkpoint_steps()
    if not steps:
        raise InputError(f"run {folder.path} has no checkpoint yet; let it train to its first one")
    if step is not None and step not in steps:
        listed = ", ".join(str(s) for s in steps)
        raise InputError(f"run {folder.path} has no checkpoint of step {step}; it has {listed}")
    return folder.checkpoints / str(steps[-1] if step is None else step)
