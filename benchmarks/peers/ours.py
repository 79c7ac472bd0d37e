"""Our own updates as contenders: whole training steps, as the training loop makes them."""

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch

from benchmarks.peers.workload import Peer, Transitions, Workload
from tql_offline.agents import Agent, make_agent
from tql_offline.agents.actor_critic import ActorCritic
from tql_offline.agents.conservative_q import ConservativeQ
from tql_offline.agents.critic import make_control, make_target
from tql_offline.agents.implicit_q import ImplicitQ
from tql_offline.agents.optimizers import set_learning_rate
from tql_offline.config import Config, resolve
from tql_offline.datasets.buffer import Buffer, make_buffer
from tql_offline.datasets.episodes import Episodes
from tql_offline.networks import MLPCritic

DATASET = "cube-double-play-singletask-task1-v0"
"""Whose preset gives coefficients and entropy targets."""


def config_of(workload: Workload) -> Config:
    """The settings of a workload: the paper's, or IQL's and CQL's with MLPs of given widths."""
    settings: dict[str, Any] = {
        "objective": workload.method,
        "dataset": {"name": DATASET},
        "seed": workload.seed,
        "batch_size": workload.batch_size,
    }
    if workload.method == "flow":
        return resolve(settings | {"critic": {"size": workload.size}})
    mlp = {"critic": {"kind": "mlp"}, "entropy": {"mode": "none"}}
    return resolve(settings | mlp | {"flow": {"hidden": list(workload.hidden)}})


def agent_of(workload: Workload) -> Agent:
    """Our agent; MLP critics have the workload's widths, not those of a named size."""
    torch.manual_seed(workload.seed)
    device = torch.device(workload.device)
    dims = (workload.observation_dim, workload.action_dim)
    agent = make_agent(config_of(workload), *dims, device)
    if isinstance(agent, ImplicitQ):
        value = MLPCritic(workload.observation_dim, 0, workload.hidden, ensemble=1)
        agent.value = value.to(device)
        _set_critic(agent, workload, {"policy": agent.gaussian}, {"value": agent.value})
    elif isinstance(agent, ConservativeQ):
        policies = {"policy": agent.policy, "temperature": agent.temperature}
        _set_critic(agent, workload, policies, {})
    return agent


def _set_critic(
    agent: ActorCritic,
    workload: Workload,
    policies: dict[str, torch.nn.Module],
    critic_side: dict[str, torch.nn.Module],
) -> None:
    """Give an agent an MLP critic of the workload's widths in place of the one it has."""
    critic, target = (
        MLPCritic(workload.observation_dim, workload.action_dim, workload.hidden).to(agent.device)
        for _ in range(2)
    )
    agent.critic, agent.target_critic = critic, make_target(critic, target)
    agent.control = make_control(agent.config, critic).to(agent.device)
    agent.targets = [(agent.target_critic, agent.critic)]
    agent.networks |= {"critic": critic, "target_critic": target, "control": agent.control}
    agent.make_optimizers(policies, critic_side)


def buffer_of(workload: Workload, data: Transitions) -> Buffer:
    """The transitions in our buffer, which keeps every episode's last observation."""
    length, dim = data.episode_length, workload.observation_dim
    states = data.observations.reshape(-1, length, dim)
    last = data.next_observations.reshape(-1, length, dim)[:, -1:]
    episodes = Episodes(
        observations=np.concatenate([states, last], axis=1).reshape(-1, dim),
        actions=data.actions,
        rewards=data.rewards,
        masks=np.ones_like(data.rewards),
        lengths=np.full(len(states), length),
    )
    device = torch.device(workload.device)
    return make_buffer(episodes, n_step=1, discount=float(data.discounts[0]), device=device)


def eager(workload: Workload, data: Transitions) -> Peer:
    """What `tql-offline train` runs: set the rates, sample, `agent.update`."""
    agent, buffer = agent_of(workload), buffer_of(workload, data)
    config, numbers = config_of(workload), count(1)
    generator = torch.Generator(workload.device).manual_seed(workload.seed)
    schedule = (config.optimizer.warmup, config.steps)

    def step() -> None:
        number = next(numbers)
        set_learning_rate(agent.optimizers, agent.learning_rates, number - 1, *schedule)
        batch = buffer.sample(workload.batch_size, generator)
        agent.update(batch, generator, number)

    return Peer(
        name="ours (eager)",
        method=workload.method,
        version=f"torch {torch.__version__}",
        step=step,
        synchronise=waiting(workload.device),
    )


def waiting(device: str) -> Callable[[], None]:
    """Wait for all of PyTorch's work on a device; on a CPU it is done when a call returns."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


OURS: dict[str, Callable[[Workload, Transitions], Peer]] = {"eager": eager}
"""Our own contenders by name; another way to run the same update is one line here."""
