"""Our own updates as contenders: whole training steps, run as the training loop runs them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tql_offline.agents import META, Agent, make_agent
from tql_offline.agents.actor_critic import ActorCritic
from tql_offline.agents.conservative_q import ConservativeQ
from tql_offline.agents.controlled_critic import make_control, make_target
from tql_offline.agents.implicit_q import ImplicitQ
from tql_offline.bench.workload import Contender, Transitions, Unavailable, Workload
from tql_offline.config import Config, resolve
from tql_offline.datasets.buffer import Buffer, make_buffer
from tql_offline.datasets.episodes import Episodes
from tql_offline.errors import InputError
from tql_offline.networks import MLPCritic, TransformerCritic, cpu_kernels, kernels
from tql_offline.training.arithmetic import flops_of
from tql_offline.training.compile import WARM_UP, Execution, Updates, check_execution, prepare
from tql_offline.training.metrics import MetricsWindow

DATASET = "cube-double-play-singletask-task1-v0"
"""The dataset whose preset gives coefficients and entropy targets."""


@dataclass(frozen=True)
class Way:
    """A way to run our updates.

    Attributes:
        execution: settings of the config's `execution` table.
        plain: whether to go without the exact savings and the hand-written passes.
        c_kernels: whether to use the kernels in C, on a CPU.
        seeds: networks trained at once.
    """

    execution: dict[str, Any] = field(default_factory=dict)
    plain: bool = False
    c_kernels: bool = True
    seeds: int = 1


WAYS: dict[str, Way] = {
    "ours": Way(),
    "plain path": Way(plain=True),
    "without C": Way(c_kernels=False),
    "eager": Way({"compile": "off", "updates_per_launch": 0}),
    "compiled": Way({"compile": "on", "updates_per_launch": 0}),
    "tf32": Way({"precision": "tf32"}),
    "bfloat16": Way({"precision": "bfloat16"}),
    **{f"{n} seeds": Way(seeds=n) for n in (2, 4, 8)},
    **{f"{n} seeds tf32": Way({"precision": "tf32"}, seeds=n) for n in (2, 4, 8)},
    **{f"{n} seeds bfloat16": Way({"precision": "bfloat16"}, seeds=n) for n in (2, 4, 8)},
}
"""Ways by name; `ours` is what `tql-offline train` does by default."""


def make_ours(name: str, workload: Workload, data: Transitions) -> Contender:
    """Make one of our ways by name.

    Raises:
        Unavailable: it is not for this device, or the update has no plain path.
    """
    way = WAYS[name]
    if way.plain and workload.hidden:
        raise Unavailable("an MLP critic has no other path")
    config = config_of(workload, way)
    try:
        check_execution(config, torch.device(workload.device))
    except InputError as error:
        raise Unavailable(str(error)) from error
    flops = counted_flops(workload, plain=way.plain)
    trainers = [Trainer(workload, config, data, way, index) for index in range(way.seeds)]

    def step() -> int:
        return sum(trainer.step() for trainer in trainers)

    execution = trainers[0].execution
    bfloat16 = execution.precision == "bfloat16"
    return Contender(
        version=f"torch {torch.__version__}",
        step=step,
        synchronise=waiting(workload.device),
        dtype=torch.bfloat16 if bfloat16 else torch.float32,
        tf32=execution.precision == "tf32",
        flops=flops,
        warm_up=way.seeds * (WARM_UP + 2 * config.execution.updates_per_launch),
        note=noted(execution),
    )


def noted(execution: Execution) -> str:
    """How the updates were run, and why not otherwise."""
    words = [execution.mode, execution.precision, "C kernels" if execution.c_kernels else ""]
    if execution.compile_seconds:
        words.append(f"compiled in {execution.compile_seconds:.0f} s")
    return ", ".join(filter(None, [*words, execution.reason]))


class Trainer:
    """One network's updates in a row, on its own stream where there are streams."""

    def __init__(
        self, workload: Workload, config: Config, data: Transitions, way: Way, index: int
    ) -> None:
        device = torch.device(workload.device)
        generator = torch.Generator(device).manual_seed(workload.seed + index)
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.way = way
        self.most = max(1, config.execution.updates_per_launch)
        self.number = 1
        with torch.cuda.stream(self.stream), _path(self.way):
            agent = agent_of(workload, config, way.plain)
            buffer = buffer_of(workload, data)
            made = prepare(config, agent, buffer, generator, MetricsWindow())
        self.updates: Updates = made[0]
        self.execution = made[1]

    def step(self) -> int:
        """Start a launch of updates."""
        with torch.cuda.stream(self.stream), _path(self.way):
            done = self.updates(self.number, self.most)
        self.number += done
        return done


def counted_flops(workload: Workload, plain: bool) -> int:
    """Operations of one update, counted as a run's `result.json` counts them.

    They are the same for every way of a path, even if one recomputes something or computes it in
    another form, so that no way is credited for extra work. With `plain` they are the plain path's
    own.
    """
    config = config_of(workload, Way())
    with META:
        agent = agent_of(replace(workload, device="meta"), config, plain)
    return flops_of(agent, workload.batch_size)


# The parts of a training step.


def config_of(workload: Workload, way: Way) -> Config:
    """The settings of a workload: the paper's, or IQL's and CQL's with MLPs of given widths."""
    settings: dict[str, Any] = {
        "objective": workload.objective,
        "dataset": {"name": DATASET},
        "seed": workload.seed,
        "batch_size": workload.batch_size,
        "execution": way.execution,
    }
    if not workload.hidden:
        return resolve(settings | {"critic": {"size": workload.size}})
    mlp = {"critic": {"kind": "mlp"}, "entropy": {"mode": "none"}}
    return resolve(settings | mlp | {"flow": {"hidden": list(workload.hidden)}})


def agent_of(workload: Workload, config: Config, plain: bool = False) -> Agent:
    """Our agent; with `hidden` its MLP critics have the workload's widths, not a size's."""
    torch.manual_seed(workload.seed)
    device = torch.device(workload.device)
    dims = (workload.observation_dim, workload.action_dim)
    agent = make_agent(config, *dims, device)
    if plain:
        take_plain_path(agent)
    if workload.hidden and isinstance(agent, ImplicitQ):
        value = MLPCritic(workload.observation_dim, 0, workload.hidden, ensemble=1)
        agent.value = value.to(device)
        _set_critic(agent, workload, {"policy": agent.gaussian}, {"value": agent.value})
    elif workload.hidden and isinstance(agent, ConservativeQ):
        policies = {"policy": agent.policy, "temperature": agent.temperature}
        _set_critic(agent, workload, policies, {})
    return agent


def take_plain_path(agent: Agent) -> None:
    """Make every transformer critic of an agent carry every token through every block."""
    for network in agent.networks.values():
        if isinstance(network, TransformerCritic):
            cast(Any, network).forward = partial(_plain_forward, network)


def _plain_forward(
    critic: TransformerCritic, observations: Tensor, actions: Tensor, return_entropy: bool = False
) -> Any:
    q, entropy = critic.forward_plain(observations, actions, return_entropy)
    return (q, entropy) if return_entropy else q


def _path(way: Way) -> AbstractContextManager[None]:
    if way.plain:
        return pytorch_operations()
    return nullcontext() if way.c_kernels else kernels.turned_off(cpu_kernels)


def pytorch_operations() -> AbstractContextManager[None]:
    """Turn off the hand-written passes and, with them, the kernels in C."""
    return kernels.turned_off(kernels)


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


def waiting(device: str) -> Callable[[], None]:
    """Return a function that waits for all of PyTorch's work on a device; on a CPU none is left."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None
