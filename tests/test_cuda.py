"""What must hold on a GPU; skipped without one."""

import numpy as np
import pytest
import torch
from test_golden import CASES, Case, critic_losses

from tql_offline.agents import make_agent, numpy_policy
from tql_offline.config import resolve
from tql_offline.datasets.buffer import make_buffer
from tql_offline.datasets.episodes import Episodes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda")


class CudaCase(Case):
    def __getitem__(self, key):
        return super().__getitem__(key).to(CUDA)

    def critic(self, prefix="param."):
        return super().critic(prefix).to(CUDA)

    def controller(self):
        return super().controller().to(CUDA)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_gradients(path, dtype):
    case = CudaCase(path, dtype)
    critic, controller = case.critic(), case.controller()
    sum(critic_losses(case, critic, controller)).backward()
    for name, parameter in critic.named_parameters():
        case.assert_close(parameter.grad, f"grad.{name}")


def test_buffer_samples_and_agent_updates_on_the_device():
    episodes = Episodes(
        observations=np.random.default_rng(0).standard_normal((102, 3), dtype=np.float32),
        actions=np.zeros((100, 2), dtype=np.float32),
        rewards=-np.ones(100, dtype=np.float32),
        masks=np.ones(100, dtype=np.float32),
        lengths=np.array([50, 50]),
    )
    buffer = make_buffer(episodes, n_step=5, discount=0.9, device=CUDA)
    generator = torch.Generator(CUDA).manual_seed(0)
    batch = buffer.sample(32, generator)
    assert all(column.device.type == "cuda" for column in batch)
    config = resolve({"critic": {"size": "tiny"}, "flow": {"hidden": [32, 32]}})
    agent = make_agent(config, 3, 2, CUDA)
    metrics = agent.update(batch, generator, 1)
    assert all(value.isfinite().all() and value.device.type == "cuda" for value in metrics.values())
    inputs = [np.zeros((4, n), dtype=np.float32) for n in (3, 2)]
    assert numpy_policy(agent, "learned", CUDA)(*inputs).shape == (4, 2)
