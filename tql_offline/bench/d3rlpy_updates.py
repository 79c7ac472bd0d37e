"""d3rlpy's own IQL and CQL at equal widths, ensemble, batch and sampled actions.

An update is timed as its `fit` makes one: a batch from its replay buffer, then `update`. Its CQL
has our settings: a constant conservative weight of 5, 10 sampled actions. Its layers are Linear and
ReLU; ours have a GELU and a LayerNorm each.
"""

import importlib.metadata
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.models.encoders import VectorEncoderFactory

from tql_offline.bench.ours import waiting
from tql_offline.bench.workload import Contender, Transitions, Unavailable, Workload


def make_iql(workload: Workload, data: Transitions, graph: bool = False) -> Contender:
    """IQL, eager."""
    encoder = VectorEncoderFactory(hidden_units=list(workload.hidden))
    config = d3rlpy.algos.IQLConfig(
        batch_size=workload.batch_size,
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        value_encoder_factory=encoder,
        compile_graph=graph,
    )
    return _contender(config, workload, data)


def make_cql(workload: Workload, data: Transitions, graph: bool = False) -> Contender:
    """CQL, eager."""
    encoder = VectorEncoderFactory(hidden_units=list(workload.hidden))
    config = d3rlpy.algos.CQLConfig(
        batch_size=workload.batch_size,
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        n_action_samples=10,
        conservative_weight=5.0,
        initial_alpha=1.0,
        alpha_learning_rate=0.0,
        compile_graph=graph,
    )
    return _contender(config, workload, data)


def make_iql_graph(workload: Workload, data: Transitions) -> Contender:
    """IQL with d3rlpy's CUDA graphs."""
    _only_on_a_gpu(workload)
    return make_iql(workload, data, graph=True)


def make_cql_graph(workload: Workload, data: Transitions) -> Contender:
    """CQL with d3rlpy's CUDA graphs."""
    _only_on_a_gpu(workload)
    return make_cql(workload, data, graph=True)


def _only_on_a_gpu(workload: Workload) -> None:
    if workload.device != "cuda":
        raise Unavailable("its graphs are for GPUs")


def _contender(config: Any, workload: Workload, data: Transitions) -> Contender:
    d3rlpy.seed(workload.seed)
    dataset = _dataset(data)
    algorithm = config.create(device="cuda:0" if workload.device == "cuda" else workload.device)
    algorithm.create_impl((workload.observation_dim,), workload.action_dim)

    def step() -> int:
        algorithm.update(dataset.sample_transition_batch(workload.batch_size))
        return 1

    return Contender(
        version=f"d3rlpy {importlib.metadata.version('d3rlpy')}, torch {torch.__version__}",
        step=step,
        synchronise=waiting(workload.device),
        warm_up=10,
    )


def _dataset(data: Transitions) -> Any:
    """d3rlpy's replay buffer of the transitions; all episodes are cut off, none terminates."""
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
