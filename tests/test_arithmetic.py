"""The counted arithmetic of an update: by PyTorch's counter, by the method, and without a trace."""

import json

import pytest
import torch
from agent_cases import CPU, METHODS, build, make_batch
from torch.utils.flop_counter import FlopCounterMode

from tql_offline.agents import make_agent
from tql_offline.bench.ours import pytorch_operations
from tql_offline.config import resolve
from tql_offline.networks import SIZES
from tql_offline.training.arithmetic import flops_per_update


@pytest.mark.parametrize("critic", ["transformer", "mlp"])
@pytest.mark.parametrize("method", list(METHODS))
def test_count_is_pytorchs_over_the_updates_of_a_period(method, critic):
    agent = build(method, critic)
    counted = flops_per_update(agent, 16)
    period = getattr(agent, "policy_delay", 1)
    with pytorch_operations(), FlopCounterMode(display=False) as counter:
        for step in range(1, period + 1):
            agent.update(make_batch(16), torch.Generator(), step)
    assert counted * period == counter.get_total_flops()


def test_a_flow_updates_count_is_the_methods_60_d2_per_token():
    """Multiply-adds of critic, target and policy passes with both exact savings (two blocks).

    What grows as d² is left by three widths, each double the last: the rest is linear in d. Of a
    token it is 60 d²; what only the [VALUE] token passes, and the heads, is one of 101 tokens.
    """
    shape, rows = (97, 3), 100_000
    counts = []
    for size in ("tiny", "small", "medium"):
        config = resolve({"critic": {"size": size}, "flow": {"hidden": [8, 8]}})
        agent = make_agent(config, *shape, CPU)
        counts.append(flops_per_update(agent, rows) / 2 / rows / (1 + sum(shape)))
    one, two, four = counts
    d = SIZES["tiny"].width
    # f = a d² + b d + c: f(4d) - f(2d) - 2 (f(2d) - f(d)) = 6 a d².
    per_token = (four - two - 2 * (two - one)) / (6 * d**2)
    assert per_token == pytest.approx(60, rel=0.03)


def test_counting_leaves_no_trace():
    agent, drawn = build("flow"), torch.get_rng_state()
    before = {
        f"{name}.{key}": value.clone()
        for name, network in agent.networks.items()
        for key, value in network.state_dict().items()
    }
    flops_per_update(agent, 16)
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, network in agent.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[f"{name}.{key}"]), key
        assert all(parameter.grad is None for parameter in network.parameters())
    assert all(not optimizer.state for optimizer in agent.optimizers.values())
    assert all(optimizer.param_groups for optimizer in agent.optimizers.values())


def test_a_run_records_it(tmp_path):
    """As provenance and result, by the sizes of its own data."""
    import numpy as np

    from tql_offline.datasets.load import load
    from tql_offline.training.loop import SilentReporter
    from tql_offline.training.run import run

    ends = np.zeros(12, dtype=bool)
    ends[11] = True
    path = tmp_path / "mine.npz"
    np.savez(
        path,
        observations=np.zeros((12, 3), dtype=np.float32),
        actions=np.zeros((12, 2), dtype=np.float32),
        rewards=np.zeros(12, dtype=np.float32),
        masks=np.ones(12, dtype=np.float32),
        terminals=ends,
    )
    small = {"critic": {"size": "tiny"}, "flow": {"hidden": [16, 16]}, "steps": 1, "batch_size": 16}
    config = resolve(small | {"dataset": {"name": str(path)}})
    folder = run(config, load(str(path)), tmp_path / "runs", "a", SilentReporter())
    counted = flops_per_update(make_agent(config, 3, 2, CPU), 16)
    result = json.loads(folder.result.read_text())
    assert result["flops_per_update"] == result["provenance"]["flops_per_update"] == counted
