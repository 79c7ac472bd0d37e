"""The interface of agents to the training loop, the checkpoints and the evaluator."""

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from tql_offline.batch import Batch
from tql_offline.config import OBJECTIVES, Config
from tql_offline.networks import Normaliser

META = torch.device("meta")
Metrics = dict[str, Tensor]
NumpyPolicy = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]


class Agent(Protocol):
    """A method: its networks, its optimizers, one update and its policies."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks by name; each is one file of a checkpoint."""
        ...

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Optimizers by name, over the parameters of `networks`."""
        ...

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """The rate after warm-up, by optimizer."""
        ...

    @property
    def policies(self) -> tuple[str, ...]:
        """Names accepted by `act`, `learned` first."""
        ...

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the loss methods `(batch, noise) → (loss, metrics)`, in the order of an update.

        training/compile.py replaces them with compiled ones.
        """
        ...

    @property
    def policy_delay(self) -> int:
        """Updates per step of the policies."""
        ...

    @property
    def normaliser(self) -> Normaliser:
        """Applied to every observation, in updates and in `act`; one of `networks`."""
        ...

    @property
    def action_dim(self) -> int:
        """The number of action dims, n_a."""
        ...

    @property
    def num_tokens(self) -> int:
        """The critic's number of tokens L, for ln L."""
        ...

    def fit_rewards(self, rewards: NDArray[np.floating[Any]]) -> None:
        """Learn what the method needs from the data's rewards `(N,)`, before training."""
        ...

    def draw_noise(self, actions: Float[Tensor, "batch action"], generator: torch.Generator) -> Any:
        """Draw every random number of one update; the losses take it as an argument."""
        ...

    def update(self, batch: Batch, generator: torch.Generator, step: int) -> Metrics:
        """Take gradient step `step` (from 1); the metrics returned stay on the device."""
        ...

    def noise_dim(self, policy: str) -> int:
        """How many noise values per row `act` takes for a policy."""
        ...

    def act(
        self,
        policy: str,
        observations: Float[Tensor, "batch state"],
        noise: Float[Tensor, "batch noise"],
    ) -> Float[Tensor, "batch action"]:
        """Actions in [-1, 1] of a named policy for given noise z ~ N(0, I)."""
        ...


def make_agent(
    config: Config, observation_dim: int, action_dim: int, device: torch.device
) -> Agent:
    """The agent of a config's objective, with initial weights drawn from the config's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        make = resolve_name(OBJECTIVES[config.objective])
        agent: Agent = make(config, observation_dim, action_dim, device)
    return agent


def make_agent_of_shapes(config: Config, observation_dim: int, action_dim: int) -> Agent:
    """The same agent without storage: on `meta`, where operations only yield shapes."""
    with META:
        return make_agent(config, observation_dim, action_dim, META)


def numpy_policy(agent: Agent, policy: str, device: torch.device) -> NumpyPolicy:
    """A policy as the evaluator calls it: `(observations, noise) → actions`, all float32 arrays."""

    def act(observations: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            tensors = (torch.as_tensor(a, device=device) for a in (observations, noise))
            actions: NDArray[Any] = agent.act(policy, *tensors).float().cpu().numpy()
        return actions

    return act
