"""Scoring a run's policies: while it trains, and afterwards from any of its checkpoints."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tql_offline.agents import Agent, make_agent, numpy_policy
from tql_offline.config import Config
from tql_offline.errors import InputError
from tql_offline.eval import protocol as protocols
from tql_offline.eval.rollout import evaluate
from tql_offline.eval.workers import EnvironmentPool
from tql_offline.runs import RunFolder, append_jsonl, read_json
from tql_offline.training import checkpoint
from tql_offline.training.device import pick_device
from tql_offline.training.loop import Reporter
from tql_offline.training.result import open_run, write_result

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
        processes=config.evaluation.processes or os.cpu_count() or 1,
        success_timing=timing,
    ) as pool:

        def score(step: int, policies: tuple[str, ...]) -> None:
            final = step == config.steps
            for policy in policies or (agent.policies if final else agent.policies[:1]):
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
        InputError: no such checkpoint, policy or environment.
    """
    folder, config = open_run(path)
    env_id = (read_json(folder.provenance).get("environment") or {}).get("env_id")
    if env_id is None:
        raise InputError(f"run {path} has no environment to score policies in; train it with --env")
    evaluation = config.evaluation.model_copy(
        update={"protocol": protocols.get(protocol or config.evaluation.protocol).name}
    )
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
