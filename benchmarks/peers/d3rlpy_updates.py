"""d3rlpy's own IQL and CQL at equal widths, ensemble, batch and sampled actions.

Each is timed in two ways: as its `fit` makes an update (a batch from its replay buffer, then
`update`), and `update` alone on batches that were drawn before. Its CQL is set as ours is: a
constant conservative weight of 5, 10 sampled actions. Its layers are Linear and ReLU; ours have a
GELU and a LayerNorm each.
"""

import importlib.metadata
from collections.abc import Callable
from itertools import cycle
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.models.encoders import VectorEncoderFactory

from benchmarks.peers.ours import waiting
from benchmarks.peers.workload import Peer, Transitions, Workload

DRAWN_BEFORE = 16
"""Batches that `update` alone goes round."""


def make_iql(workload: Workload, data: Transitions) -> list[Peer]:
    """IQL as two peers."""
    encoder = VectorEncoderFactory(hidden_units=list(workload.hidden))
    return _peers(
        lambda graph: d3rlpy.algos.IQLConfig(
            batch_size=workload.batch_size,
            actor_encoder_factory=encoder,
            critic_encoder_factory=encoder,
            value_encoder_factory=encoder,
            compile_graph=graph,
        ),
        workload,
        data,
    )


def make_cql(workload: Workload, data: Transitions) -> list[Peer]:
    """CQL as two peers."""
    encoder = VectorEncoderFactory(hidden_units=list(workload.hidden))
    return _peers(
        lambda graph: d3rlpy.algos.CQLConfig(
            batch_size=workload.batch_size,
            actor_encoder_factory=encoder,
            critic_encoder_factory=encoder,
            n_action_samples=10,
            conservative_weight=5.0,
            initial_alpha=1.0,
            alpha_learning_rate=0.0,
            compile_graph=graph,
        ),
        workload,
        data,
    )


def _peers(config: Callable[[bool], Any], workload: Workload, data: Transitions) -> list[Peer]:
    """Eager peers, and on a GPU those of d3rlpy's CUDA graphs too."""
    dataset = _dataset(data)
    peers = _timed_two_ways("d3rlpy", config(False), dataset, workload)
    if workload.device == "cuda":
        peers += _timed_two_ways("d3rlpy, compile_graph", config(True), dataset, workload)
    return peers


def _timed_two_ways(name: str, config: Any, dataset: Any, workload: Workload) -> list[Peer]:
    d3rlpy.seed(workload.seed)
    device = "cuda:0" if workload.device == "cuda" else workload.device
    algorithm = config.create(device=device)
    algorithm.create_impl((workload.observation_dim,), workload.action_dim)

    def draw() -> Any:
        return dataset.sample_transition_batch(workload.batch_size)

    drawn = cycle([draw() for _ in range(DRAWN_BEFORE)])
    steps = {
        name: lambda: algorithm.update(draw()),
        f"{name}, update alone": lambda: algorithm.update(next(drawn)),
    }
    version = f"d3rlpy {importlib.metadata.version('d3rlpy')}, torch {torch.__version__}"
    wait = waiting(workload.device)
    return [
        Peer(name=label, method=workload.method, version=version, step=step, synchronise=wait)
        for label, step in steps.items()
    ]


def _dataset(data: Transitions) -> Any:
    """d3rlpy's replay buffer of the transitions; its episodes are cut off, none ends."""
    cut = np.zeros(len(data.rewards), np.float32)
    cut[data.episode_length - 1 :: data.episode_length] = 1.0
    return d3rlpy.dataset.MDPDataset(
        observations=data.observations,
        actions=data.actions,
        rewards=data.rewards,
        terminals=np.zeros_like(cut),
        timeouts=cut,
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
    )
