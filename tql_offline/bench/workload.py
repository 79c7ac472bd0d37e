"""What is timed, on which data, and who takes part."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


class Unavailable(Exception):  # noqa: N818 — no error: a contender that cannot take part
    """Why a contender is left out, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One update to time; the dims are cube-double's (L = 43 tokens).

    Attributes:
        objective: one of `bench.OBJECTIVES`.
        size: size of the transformer critic.
        hidden: layer widths of MLP critics, values and policies in place of the transformer and
            the paper's policies of 4×512; empty for these.
        batch_size: transitions per update.
        observation_dim: n_s.
        action_dim: n_a.
        device: `cpu` or `cuda`.
        seed: seed of initial weights and sampling.
    """

    objective: str
    size: str = "small"
    hidden: tuple[int, ...] = ()
    batch_size: int = 256
    observation_dim: int = 37
    action_dim: int = 5
    device: str = "cpu"
    seed: int = 0

    def __str__(self) -> str:
        """The sizes that are equal between all contenders."""
        critic = f"transformer {self.size}"
        if self.hidden:
            critic = f"MLPs of {'×'.join(map(str, self.hidden))}"
        return f"{self.objective}, {critic}, batch {self.batch_size}"


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """N random transitions as plain columns; an update's time does not depend on their values.

    Attributes:
        observations: `(N, n_s)` float32.
        actions: `(N, n_a)` float32, inside (-1, 1).
        rewards: `(N,)` float32.
        next_observations: `(N, n_s)` float32, the next row's observation.
        discounts: `(N,)` float32, γ·mask.
        episode_length: transitions per episode.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    next_observations: NDArray[np.float32]
    discounts: NDArray[np.float32]
    episode_length: int


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that runs whole updates, sampling included.

    Attributes:
        version: version of its framework.
        step: starts one or more updates, need not wait for them, and returns how many they are.
        synchronise: waits until all updates started are done.
        dtype: dtype of its matrix products.
        tf32: whether float32 products are computed as TF32, which is a setting of the process.
        flops: operations of matrix products in one update; 0 if they are not counted.
        warm_up: updates before it runs at full speed.
        note: one sentence on how it is run, or empty.
        peak_gpu_bytes: most memory it has held on the GPU.
    """

    version: str
    step: Callable[[], int]
    synchronise: Callable[[], None]
    dtype: torch.dtype = torch.float32
    tf32: bool = False
    flops: int = 0
    warm_up: int = 3
    note: str = ""
    peak_gpu_bytes: Callable[[], int] = torch.cuda.max_memory_reserved


Make = Callable[[Workload, Transitions], Contender]

_JAX = {
    "JAX/Flax": "jax_tql:make_single",
    "JAX/Flax, scan of 10": "jax_tql:make_scan",
    "JAX/Flax, scan of 10, TF32": "jax_tql:make_tf32_scan",
}
PEERS: dict[tuple[str, bool], dict[str, str]] = {
    ("flow", False): _JAX,
    ("implicit", True): {
        "CORL-style": "corl_style:make_iql",
        "d3rlpy": "d3rlpy_updates:make_iql",
        "d3rlpy, graph": "d3rlpy_updates:make_iql_graph",
    },
    ("conservative", True): {
        "CORL-style": "corl_style:make_cql",
        "d3rlpy": "d3rlpy_updates:make_cql",
        "d3rlpy, graph": "d3rlpy_updates:make_cql_graph",
    },
}
"""(objective, whether with MLPs of given widths) → name → module of this folder and function."""


def random_transitions(workload: Workload, episodes: int = 250, length: int = 200) -> Transitions:
    """Normal observations, uniform actions, reward -1, episodes that are cut off (never end)."""
    rng = np.random.default_rng(workload.seed)
    count = episodes * length
    states = rng.standard_normal((count + 1, workload.observation_dim), dtype=np.float32)
    actions = rng.uniform(-0.99, 0.99, (count, workload.action_dim)).astype(np.float32)
    return Transitions(
        observations=states[:-1],
        actions=actions,
        rewards=np.full(count, -1.0, np.float32),
        next_observations=states[1:],
        discounts=np.full(count, 0.99, np.float32),
        episode_length=length,
    )


def peers_of(workload: Workload) -> list[str]:
    """Names of others' implementations of a workload's update."""
    return list(PEERS.get((workload.objective, bool(workload.hidden)), ()))


def make_peer(name: str, workload: Workload, data: Transitions) -> Contender:
    """Make someone else's implementation of a workload's update.

    Raises:
        Unavailable: it is not installed here, or not for this device.
    """
    module, function = PEERS[workload.objective, bool(workload.hidden)][name].split(":")
    try:
        make: Make = getattr(importlib.import_module(f"tql_offline.bench.{module}"), function)
    except ImportError as error:
        raise Unavailable(f"{error.name or 'what it needs'} is not installed ({error})") from error
    return make(workload, data)
