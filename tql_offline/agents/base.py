"""The interface of agents to the training loop, the checkpoints and the evaluator."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import import_module
from numbers import Real
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from tql_offline.agents.optimizers import make_adamw
from tql_offline.batch import Batch
from tql_offline.config import OBJECTIVES, Config
from tql_offline.errors import InputError, did_you_mean, listed
from tql_offline.networks import Normaliser
from tql_offline.shapes import ShapesAtOnce

META = torch.device("meta")
Metrics = dict[str, Tensor]
NumpyPolicy = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]


class Agent(ABC):
    """A method: its networks, its optimizers, one update and its policies.

    Attributes:
        networks: networks by name; each is one file of a checkpoint.
        parameter_groups: what each optimizer steps, by name, as AdamW takes it; parameters of
            `networks`.
        learning_rates: the rate after warm-up, by optimizer.
        policies: names accepted by `act`, `learned` first.
        losses: names of the loss methods `(batch, noise) → (loss, metrics)`, in the order of an
            update; training/compile.py replaces them with compiled ones.
        policy_delay: updates per step of the policies.
        normaliser: applied to every observation, in updates and in `act`; one of `networks`.
        action_dim: the number of action dims, n_a.
        num_tokens: the critic's number of tokens L, for ln L; 0 without attention.
        sized: name of the network that has the size `critic.size`, if there is one.
    """

    networks: Mapping[str, nn.Module]
    parameter_groups: Mapping[str, list[dict[str, Any]]]
    learning_rates: Mapping[str, float]
    policies: tuple[str, ...] = ("learned",)
    losses: tuple[str, ...] = ("critic_loss", "policy_loss")
    policy_delay = 1
    normaliser: Normaliser
    action_dim: int
    num_tokens: int
    sized: str = "critic"

    @cached_property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One for each of `parameter_groups`, made at first use: PyTorch's first takes seconds.

        What only acts, or looks at the critic, needs none.
        """
        return {
            name: make_adamw(groups, self.learning_rates[name])
            for name, groups in self.parameter_groups.items()
        }

    def fit_rewards(self, rewards: NDArray[np.floating[Any]]) -> None:  # noqa: B027
        """Learn what the method needs from the data's rewards `(N,)`, before training: nothing."""

    @abstractmethod
    def draw_noise(self, actions: Float[Tensor, "batch action"], generator: torch.Generator) -> Any:
        """Draw every random number of one update; the losses take it as an argument."""

    @abstractmethod
    def update(self, batch: Batch, generator: torch.Generator, step: int) -> Metrics:
        """Take gradient step `step` (from 1); the metrics returned stay on the device."""

    def loss_of(self, name: str, batch: Batch, noise: Any) -> tuple[Tensor, Metrics]:
        """What one of `losses` returns.

        Raises:
            InputError: it is no loss with metrics, as a method of one's own may return.
        """
        result: Any = getattr(self, name)(batch, noise)
        if fault := _fault_of(result):
            raise InputError(f"{type(self).__name__}.{name} returns {fault}")
        found: tuple[Tensor, Metrics] = result
        return found

    @abstractmethod
    def act(
        self,
        policy: str,
        observations: Float[Tensor, "batch state"],
        noise: Float[Tensor, "batch noise"],
    ) -> Float[Tensor, "batch action"]:
        """Actions in [-1, 1] of a named policy at raw observations, for given noise z ~ N(0, I)."""

    def noise_dim(self, policy: str) -> int:
        """How many noise values per row `act` takes for a policy: one action's by default."""
        del policy
        return self.action_dim


def make_agent(
    config: Config, observation_dim: int, action_dim: int, device: torch.device
) -> Agent:
    """The agent of a config's objective, with initial weights drawn from the config's seed.

    Raises:
        InputError: the objective is of one's own, and cannot be imported or is no agent.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return agent_class(config.objective)(config, observation_dim, action_dim, device)


def agent_class(objective: str) -> Callable[..., Agent]:
    """The class of an objective, or of `module:Class`, which is imported.

    Raises:
        InputError: there is no such module or class, or it is no agent.
    """
    named, _, name = OBJECTIVES.get(objective, objective).rpartition(":")
    try:
        module = import_module(named)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"objective {objective!r} cannot be imported ({error}); install its module, or, where "
            "it lies in the working directory, set PYTHONPATH=. before the command"
        ) from error
    if not hasattr(module, name):
        raise InputError(f"module {named!r} has no class {name!r}; {_other_classes(module, name)}")
    found: Callable[..., Agent] = getattr(module, name)
    if objective not in OBJECTIVES and not (isinstance(found, type) and issubclass(found, Agent)):
        raise InputError(
            f"objective {objective!r} is no subclass of tql_offline.agents.Agent; make it one"
        )
    return found


def _other_classes(module: ModuleType, name: str) -> str:
    """The agents that a module defines instead of one, those of similar names if there are any."""
    own = (v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__)
    agents = [v.__name__ for v in own if isinstance(v, type) and issubclass(v, Agent)]
    others = f"choose one of its agents: {listed(agents, 8)}" if agents else "write one there"
    return did_you_mean(name, agents) or others


_BY_LAYER = ("entropy", "value_entropy")
"""Metrics that warnings and reports read by layer."""


def _fault_of(result: Any) -> str:
    """What keeps a result from being a loss with metrics, and the mend; empty if nothing does."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        what = f"a {type(result).__name__}"
        return f"{what} where a loss and a dict of metrics are needed; return both"
    loss, metrics = result
    if not isinstance(loss, Tensor) or loss.shape:
        what = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:40]
        return f"a loss {what} where a tensor of one number is needed; take its mean"
    if torch.is_grad_enabled() and not loss.requires_grad:
        return "a loss without gradient; compute it from the networks, and do not detach it"
    for name, value in metrics.items():
        if not isinstance(name, str):
            return f"a metric named {name!r}; name metrics by text"
        if not isinstance(value, Tensor | Real):
            return f"a metric {name!r} that is a {type(value).__name__}; give a number or a tensor"
        if name == "step":
            return "a metric named 'step', as lines name the update; give it another name"
        if name in _BY_LAYER and (not isinstance(value, Tensor) or value.shape[1:] != (2,)):
            return (
                f"a metric {name!r} that is not two numbers a layer, as those of a critic's "
                "attention are; give it another name"
            )
    return ""


def on_device(metrics: Mapping[str, Tensor | float], device: torch.device) -> Metrics:
    """Metrics without their history; a plain number becomes one on the device."""
    return {
        name: _summable(value.detach())
        if isinstance(value, Tensor)
        else torch.full((), float(value), device=device)
        for name, value in metrics.items()
    }


def _summable(value: Tensor) -> Tensor:
    """A metric in a type in which many can be added: bfloat16, counts and truths are rounded."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def make_agent_of_shapes(config: Config, observation_dim: int, action_dim: int) -> Agent:
    """The same agent without storage: on `meta`, where operations only yield shapes."""
    with META, ShapesAtOnce():
        return make_agent(config, observation_dim, action_dim, META)


def numpy_policy(agent: Agent, policy: str, device: torch.device) -> NumpyPolicy:
    """A policy as the evaluator calls it: `(observations, noise) → actions`, all arrays.

    Actions are float32, and not clipped: whoever calls it looks first whether they are finite.

    Raises:
        InputError: the agent has no such policy.
    """
    if policy not in agent.policies:
        raise InputError(f"there is no policy {policy!r}; choose of {', '.join(agent.policies)}")

    def act(observations: NDArray[Any], noise: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            tensors = (
                torch.as_tensor(array, dtype=torch.float32, device=device)
                for array in (observations, noise)
            )
            actions: NDArray[np.float32] = agent.act(policy, *tensors).float().cpu().numpy()
        return actions

    return act
