"""The flow agent: what each gradient may touch, what control does, a task of known answer."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tql_offline.agents import make_agent
from tql_offline.agents.flow_q import FlowQ
from tql_offline.agents.optimizers import critic_groups, learning_rate, set_learning_rate
from tql_offline.batch import Batch
from tql_offline.config import resolve
from tql_offline.networks.control import EntropyController, entropy_targets

CPU = torch.device("cpu")


def make_config(**overrides):
    base = {"critic": {"size": "tiny"}, "flow": {"hidden": [32, 32], "alpha": 1.0}, "steps": 100}
    return resolve(base | overrides)


def build(config, observation_dim=3, action_dim=2):
    agent = make_agent(config, observation_dim, action_dim, CPU)
    assert isinstance(agent, FlowQ)
    return agent


def make_batch(size=16, observation_dim=3, action_dim=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        observations=torch.randn(size, observation_dim, generator=g),
        actions=torch.rand(size, action_dim, generator=g) * 2 - 1,
        rewards=-torch.ones(size),
        next_observations=torch.randn(size, observation_dim, generator=g),
        discounts=torch.full((size,), 0.9),
        next_actions=(torch.rand(size, action_dim, generator=g) * 2 - 1) * 0.99,
        next_action_mask=torch.ones(size),
        returns_to_go=-torch.ones(size),
    )


def run_updates(agent, count, batch=None, warmup=0):
    generator = torch.Generator().manual_seed(0)
    for step in range(count):
        set_learning_rate(agent.optimizers, agent.learning_rates, step, warmup, count)
        metrics = agent.update(batch or make_batch(), generator, step + 1)
    return metrics


def test_updates_alone_go_at_the_configs_rate():
    """One's own loop needs no schedule: without one the rate is the config's, and constant."""
    settings = {"optimizer": {"critic_lr": 3e-3, "warmup": 0, "schedule": "constant"}}
    alone, scheduled = (build(make_config(**settings)) for _ in range(2))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    for step in range(1, 4):
        alone.update(make_batch(), generators[0], step)
        schedule = (step - 1, 0, 3, "constant")
        set_learning_rate(scheduled.optimizers, scheduled.learning_rates, *schedule)
        scheduled.update(make_batch(), generators[1], step)
    for name, parameter in alone.critic.named_parameters():
        assert torch.equal(parameter, dict(scheduled.critic.named_parameters())[name])
        assert name == "value_token" or not torch.equal(
            parameter, dict(build(make_config(**settings)).critic.named_parameters())[name]
        )


def test_policy_loss_gives_the_critic_no_gradient_step():
    """With the critic's rate at 0 an update leaves the critic as it was, and moves the policies."""
    config = make_config()
    agent = build(config)
    agent.learning_rates["critic"] = 0.0
    before = {n: p.clone() for n, p in agent.critic.named_parameters()}
    policy_before = [p.clone() for p in agent.policy_parameters]
    run_updates(agent, 2)
    for name, parameter in agent.critic.named_parameters():
        assert torch.equal(parameter, before[name]), name
    moved = [
        not torch.equal(p, b) for p, b in zip(agent.policy_parameters, policy_before, strict=True)
    ]
    assert all(moved)


def test_critic_gradient_comes_from_the_critic_loss_alone():
    agent = build(make_config())
    batch, generator = make_batch(), torch.Generator().manual_seed(0)
    noise = agent.draw_noise(batch.actions, torch.Generator().manual_seed(0))
    loss, _ = agent.critic_loss(batch, noise)
    want = torch.autograd.grad(loss, list(agent.critic.parameters()))
    agent.update(batch, generator, 1)  # learning rate still 0
    for parameter, gradient in zip(agent.critic.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_every_network_trains_and_the_target_follows_slowly():
    agent = build(make_config())
    start = agent.critic.value_token.clone()
    run_updates(agent, 1)
    moved = agent.critic.value_token - start
    followed = agent.target_critic.value_token - start
    torch.testing.assert_close(followed, agent.config.polyak * moved, rtol=1e-3, atol=1e-9)


def test_weight_decay_only_on_matrices_of_blocks_and_heads():
    agent = build(make_config())
    decayed, plain = critic_groups([agent.critic], agent.control, 0.01)
    names = {id(p): n for n, p in agent.critic.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        f"{owner}.weight"
        for owner in (
            *(f"blocks.{i}.{part}" for i in (0, 1) for part in ("qkv", "out", "mlp.0", "mlp.2")),
            *(f"heads.{k}.{i}" for k in (0, 1) for i in (0, 2)),
        )
    }
    assert decayed["weight_decay"] == 0.01
    assert plain["weight_decay"] == 0.0
    assert any(p is agent.control.log_temperature for p in plain["params"])


@pytest.mark.parametrize("objective", ["flow", "conservative", "cloning"])
def test_policies_decay_by_their_matrices_alone(objective):
    config = make_config(objective=objective, optimizer={"policy_weight_decay": 0.02})
    agent = make_agent(config, 3, 2, CPU)
    decayed, plain = agent.optimizers["policy"].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.02, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert max(p.ndim for p in plain["params"]) == 1
    policies = [agent.networks.get(name) for name in ("behaviour", "policy", "temperature")]
    count = sum(1 for policy in policies if policy is not None for _ in policy.parameters())
    assert len(decayed["params"]) + len(plain["params"]) == count
    without = make_config(objective=objective, optimizer={"policy_weight_decay": 0.0})
    (alone,) = make_agent(without, 3, 2, CPU).optimizers["policy"].param_groups
    assert (alone["weight_decay"], len(alone["params"])) == (0.0, count)


def test_schedule_warms_up_from_one_percent_and_ends_at_ten():
    rates = [learning_rate(step, 2.0, 10, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[10] == max(rates) == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 * 0.55)
    assert rates[100] == rates[110] == pytest.approx(0.2)


@pytest.mark.parametrize("steps", [1, 7, 15, 19, 20, 21])
def test_a_short_run_still_reaches_its_peak_and_falls_smoothly(steps):
    rates = [learning_rate(step, 1.0, 10, steps) for step in range(steps)]
    assert max(rates) == 1.0
    assert all(abs(a - b) < 1.0 for a, b in pairwise(rates))


@pytest.mark.parametrize("mode", ["fixed", "single", "layerwise"])
def test_entropy_term_raises_entropy(mode):
    control = EntropyController(mode, torch.full((2, 2), 1.0))
    entropy = torch.full((2, 2), 0.5, requires_grad=True)
    bonus, _ = control(entropy)
    (gradient,) = torch.autograd.grad(bonus, entropy)
    assert (gradient < 0).all()


@pytest.mark.parametrize("mode", ["single", "layerwise"])
@pytest.mark.parametrize(("entropy", "direction"), [(0.5, 1), (1.5, -1)])
def test_temperature_rises_below_target_and_falls_above(mode, entropy, direction):
    control = EntropyController(mode, torch.full((2, 2), 1.0))
    optimizer = torch.optim.SGD(control.parameters(), lr=0.1)
    _, loss = control(torch.full((2, 2), entropy))
    loss.backward()
    optimizer.step()
    assert (torch.sign(control.temperatures - 1) == direction).all()


def test_layerwise_temperatures_move_apart_and_a_single_one_cannot():
    entropy = torch.tensor([[0.5, 1.5], [1.5, 0.5]])
    control = EntropyController("layerwise", torch.full((2, 2), 1.0))
    (gradient,) = torch.autograd.grad(control(entropy)[1], control.log_temperature)
    assert torch.equal(torch.sign(-gradient), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    single = EntropyController("single", torch.full((2, 2), 1.0))
    assert single.log_temperature.numel() == 1


@pytest.mark.parametrize("mode", ["none", "fixed"])
def test_modes_without_learned_temperature(mode):
    control = EntropyController(mode, torch.full((2, 2), 1.0))
    assert not list(control.parameters())
    bonus, loss = control(torch.full((2, 2), 0.5))
    assert loss == 0
    assert bonus == (0 if mode == "none" else -0.5)


def test_targets_are_fractions_of_the_largest_entropy():
    targets = entropy_targets(depth=3, num_tokens=43, fraction=0.8, last_fraction=0.65)
    want = np.log(43) * np.array([[0.8, 0.8], [0.8, 0.8], [0.65, 0.65]])
    np.testing.assert_allclose(targets.numpy(), want, rtol=1e-6)


def test_same_seed_same_bits_and_other_seed_others():
    def weights(seed):
        agent = build(make_config(seed=seed))
        run_updates(agent, 3)
        return torch.cat([p.flatten() for n in agent.networks.values() for p in n.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.slow  # tests/test_truth.py has a quicker one
def test_known_answer_one_step_bandit():
    """Reward -|a - 0.5|² on uniform actions, no bootstrap: Q fits it and the policy finds 0.5."""
    generator = torch.Generator().manual_seed(1)
    config = make_config(
        flow={"hidden": [64, 64], "alpha": 0.03},
        entropy={"mode": "none"},
        optimizer={"critic_lr": 2e-3, "policy_lr": 2e-3, "warmup": 0},
        steps=400,
    )
    agent = build(config, 1, 1)
    for step in range(400):
        actions = torch.rand(64, 1, generator=generator) * 2 - 1
        states = torch.randn(64, 1, generator=generator)
        rewards = -(actions - 0.5).square().squeeze(1)
        zeros = torch.zeros(64)
        batch = Batch(states, actions, rewards, states, zeros, rewards, actions, zeros)
        set_learning_rate(agent.optimizers, agent.learning_rates, step, 0, 400)
        agent.update(batch, generator, step + 1)
    states, grid = torch.zeros(21, 1), torch.linspace(-1, 1, 21).unsqueeze(1)
    with torch.no_grad():
        q = agent.critic(states, grid).mean(dim=1)
        noise = torch.randn(200, 1, generator=generator)
        learned = agent.act("learned", torch.zeros(200, 1), noise)
        behaviour = agent.act("behaviour", torch.zeros(200, 1), noise)
    assert (q + (grid.squeeze(1) - 0.5).square()).abs().mean() < 0.06
    assert abs(learned.mean() - 0.5) < 0.15
    assert learned.std() < 0.1
    # The flow imitates the data: uniform on [-1, 1], mean 0 and standard deviation 1/√3.
    assert abs(behaviour.mean()) < 0.15
    assert abs(behaviour.std() - 3**-0.5) < 0.1
