"""What an agent's policies need to act: some of its networks and, for some policies, noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tql_offline.agents import META, Agent, make_agent, make_agent_of_shapes
from tql_offline.config import Config, is_own
from tql_offline.shapes import ShapesAtOnce
from tql_offline.training.checkpoint import load_network

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Acting:
    """An agent's policies, and what they need to act.

    Attributes:
        agent: the agent; only the networks in `networks` have their weights.
        noise_dims: noise values per action of every policy, `learned` first; 0 if the policy is
            deterministic.
        networks: networks that some policy runs, by name, ascending.
    """

    agent: Agent
    noise_dims: Mapping[str, int]
    networks: Mapping[str, nn.Module]


def load_acting(
    config: Config, observation_dim: int, action_dim: int, folder: Path, device: torch.device
) -> Acting:
    """Load the policies of a config, with weights from a folder that has a file per network.

    The other networks (critic's target, value, mostly the critic itself) never take memory.

    Raises:
        InputError: a file is missing, damaged, or does not fit the config.
    """
    runs, noisy = _needs(config, observation_dim, action_dim)
    agent = make_agent_of_shapes(config, observation_dim, action_dim)
    networks = {name: agent.networks[name] for name in sorted(runs)}
    for name, network in networks.items():
        load_network(folder / f"{name}.safetensors", network, device)
        network.eval().requires_grad_(False)
    noise_dims = {name: agent.noise_dim(name) if name in noisy else 0 for name in agent.policies}
    return Acting(agent=agent, noise_dims=noise_dims, networks=networks)


def _needs(config: Config, observation_dim: int, action_dim: int) -> tuple[set[str], set[str]]:
    """Names of the networks that some policy runs, and of the policies whose actions need noise.

    Each policy acts once, on shapes alone. A method of one's own may look at numbers, which shapes
    lack, and run a part of a network: all its networks are kept, and its policies act on the CPU.
    """
    dims = observation_dim, action_dim
    if not is_own(config.objective):
        with ShapesAtOnce():
            return _probe(make_agent_of_shapes(_short(config), *dims), META)
    agent = make_agent(config, *dims, CPU)
    _, noisy = _probe(agent, CPU)
    return set(agent.networks), noisy


def _short(config: Config) -> Config:
    """With one flow step and one sample, which reveal as much as many."""
    short = {
        "flow": config.flow.model_copy(update={"flow_steps": 1}),
        "implicit": config.implicit.model_copy(update={"samples": 1}),
    }
    return config.model_copy(update=short)


def _probe(agent: Agent, device: torch.device) -> tuple[set[str], set[str]]:
    runs: set[str] = set()
    for name, network in agent.networks.items():
        network.register_forward_pre_hook(_note(runs, name))
    observations = torch.zeros(1, len(agent.normaliser.mean), device=device)
    noisy = {name for name in agent.policies if _uses_noise(agent, name, observations)}
    return runs, noisy


def _note(names: set[str], name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any) -> None:
        names.add(name)

    return hook


def _uses_noise(agent: Agent, policy: str, observations: Tensor) -> bool:
    noise = torch.zeros(1, agent.noise_dim(policy), device=observations.device, requires_grad=True)
    actions = agent.act(policy, observations, noise)
    if not actions.requires_grad:  # one's own may act without gradients
        return not actions.is_meta and not torch.equal(
            actions, agent.act(policy, observations, torch.ones_like(noise))
        )
    (gradient,) = torch.autograd.grad(actions.sum(), noise, allow_unused=True)
    return gradient is not None
