"""What is timed, on which data, and who takes part."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

METHODS = ("flow", "implicit", "conservative")


class Unavailable(Exception):  # noqa: N818 — no error: a peer that cannot take part
    """Why a peer is left out, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One update to time; the dims are cube-double's (L = 43 tokens).

    Attributes:
        method: one of `METHODS`.
        size: of the transformer critic; `flow` alone.
        hidden: layer widths of MLP critics, values and policies; all methods but `flow`, whose
            policies are the paper's 4×512.
        batch_size: transitions per update.
        observation_dim: n_s.
        action_dim: n_a.
        device: `cpu` or `cuda`.
        seed: of initial weights and sampling.
    """

    method: str
    size: str = "small"
    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    observation_dim: int = 37
    action_dim: int = 5
    device: str = "cpu"
    seed: int = 0

    def __str__(self) -> str:
        """The sizes that are equal between all contenders."""
        widths = "×".join(map(str, self.hidden))
        critic = f"transformer {self.size}, policies 4×512" if self.method == "flow" else widths
        return f"{self.method}, {critic}, batch {self.batch_size}"


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
class Peer:
    """A contender.

    Attributes:
        name: whose implementation.
        method: one of `METHODS`.
        version: of its framework.
        step: starts whole updates, sampling included; it need not wait for them.
        synchronise: waits until all updates started are done.
        updates_per_step: updates that one call of `step` makes.
    """

    name: str
    method: str
    version: str
    step: Callable[[], object]
    synchronise: Callable[[], None]
    updates_per_step: int = 1


PEERS: dict[str, tuple[tuple[str, str], ...]] = {
    "flow": (("jax_tql", "make_peers"),),
    "implicit": (("corl_style", "make_iql"), ("d3rlpy_updates", "make_iql")),
    "conservative": (("corl_style", "make_cql"), ("d3rlpy_updates", "make_cql")),
}
"""Method → modules of this folder and the function in each that makes its peers."""


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


def available_peers(workload: Workload, data: Transitions) -> tuple[list[Peer], dict[str, str]]:
    """The peers of a workload, and for each module that is left out one sentence why."""
    peers: list[Peer] = []
    left_out: dict[str, str] = {}
    for module_name, maker_name in PEERS[workload.method]:
        try:
            module = importlib.import_module(f"benchmarks.peers.{module_name}")
            peers += getattr(module, maker_name)(workload, data)
        except ImportError as error:
            left_out[module_name] = f"{error.name or error} cannot be imported here ({error})"
        except Unavailable as reason:
            left_out[module_name] = str(reason)
    return peers, left_out
