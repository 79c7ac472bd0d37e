"""d3rlpy's own IQL and CQL at equal widths, ensemble, batch and sampled actions.

An update is timed as its `fit` makes one: a batch from its replay buffer, then `update`. Its CQL
has our settings: a constant conservative weight of 5, 10 sampled actions. Its layers are Linear and
ReLU; ours have a GELU and a LayerNorm each.
"""

import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.models.encoders import VectorEncoderFactory

from tql_offline.bench.ours import waiting
from tql_offline.bench.workload import Contender, Transitions, Unavailable, Workload


def _iql(workload: Workload, graph: bool) -> Any:
    encoder = VectorEncoderFactory(hidden_units=list(workload.hidden))
    return d3rlpy.algos.IQLConfig(
        batch_size=workload.batch_size,
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        value_encoder_factory=encoder,
        compile_graph=graph,
    )


def _cql(workload: Workload, graph: bool) -> Any:
    encoder = VectorEncoderFactory(hidden_units=list(workload.hidden))
    return d3rlpy.algos.CQLConfig(
        batch_size=workload.batch_size,
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        n_action_samples=10,
        conservative_weight=5.0,
        initial_alpha=1.0,
        alpha_learning_rate=0.0,
        compile_graph=graph,
    )


def _contender(
    config_of: Callable[[Workload, bool], Any],
    workload: Workload,
    data: Transitions,
    graph: bool = False,
) -> Contender:
    if graph and workload.device != "cuda":
        raise Unavailable("its graphs are for GPUs")
    config = config_of(workload, graph)
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


make_iql, make_cql = partial(_contender, _iql), partial(_contender, _cql)
# With its CUDA graphs.
make_iql_graph, make_cql_graph = partial(make_iql, graph=True), partial(make_cql, graph=True)


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
