"""Tasks whose answer is known: each objective must reach what its theory says."""

import numpy as np
import pytest
import torch
from agent_cases import bandit, fit, uniform
from marks import slowly

from tql_offline.batch import Batch

GAMMA = 0.9


def state_value(agent):
    with torch.no_grad():
        return agent.value(torch.zeros(1, 1), torch.zeros(1, 0)).item()


def q_of(agent, action):
    with torch.no_grad():
        return agent.critic(torch.zeros(1, 1), torch.tensor([[action]])).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_implicit_value_is_the_expectile_of_q(kind):
    """r = a, a uniform on [-1, 1]: the τ-expectile m solves τ(1-m)² = (1-τ)(1+m)².

    So m = (√τ - √(1-τ))/(√τ + √(1-τ)): 0 at τ = 0.5 (the behaviour's value), 0.5 at τ = 0.9, and
    below the optimum 1 for every τ < 1.
    """
    sample = bandit(lambda a: a.squeeze(1), uniform)
    values = {
        expectile: state_value(
            fit(sample, 300, kind=kind, objective="implicit", implicit={"expectile": expectile})
        )
        for expectile in (0.5, 0.9)
    }
    assert values[0.5] == pytest.approx(0.0, abs=0.1)
    assert values[0.9] == pytest.approx(0.5, abs=0.1)


def test_conservative_q_is_a_lower_bound_on_unseen_actions():
    """r = 0 everywhere, data only of a > 0: the true Q is 0, the unseen half must lie below it."""
    sample = bandit(lambda a: torch.zeros(len(a)), lambda g: uniform(g).abs())
    agent, free = (
        fit(sample, 45, objective="conservative", conservative={"alpha": alpha, "samples": 2})
        for alpha in (1.0, 1e-9)
    )
    # Where there are no data, whatever the network makes of them is no answer: 0 ± 2 without α.
    assert q_of(agent, -0.8) < min(q_of(free, -0.8), 0) - 4
    assert q_of(agent, 0.5) == pytest.approx(0, abs=0.1)


@pytest.mark.slow  # as the moons below, of another objective
def test_flow_fits_two_modes_that_a_gaussian_cannot():
    """Actions near -0.8 and 0.8: flow samples lie on both, the Gaussian's action on neither."""

    def modes(generator):
        sign = torch.randint(0, 2, (64, 1), generator=generator) * 2.0 - 1
        return sign * 0.8 + 0.02 * torch.randn(64, 1, generator=generator)

    sample = bandit(lambda a: torch.zeros(len(a)), modes)
    implicit = {"extraction": "best-of-n", "samples": 2}
    flow = fit(sample, 400, objective="implicit", implicit=implicit)
    noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actions = flow.act("behaviour", torch.zeros(400, 1), noise)
    near = [((actions - mode).abs() < 0.25).float().mean().item() for mode in (-0.8, 0.8)]
    assert min(near) > 0.3
    assert sum(near) > 0.8

    gaussian = fit(sample, 400, objective="implicit", implicit={"inverse_temperature": 1e-6})
    with torch.no_grad():
        action = gaussian.act("learned", torch.zeros(1, 1), noise[:1]).item()
    assert abs(action) < 0.5


def moons(generator):
    """Actions on two interleaved half circles of radius 0.5, `(256, 2)`."""
    angle = torch.rand(256, generator=generator) * torch.pi
    upper = torch.rand(256, generator=generator) < 0.5
    x = torch.where(upper, -0.25 + 0.5 * angle.cos(), 0.25 - 0.5 * angle.cos())
    y = torch.where(upper, -0.125 + 0.5 * angle.sin(), 0.125 - 0.5 * angle.sin())
    return torch.stack([x, y], dim=1)


def share_off_the_data(actions, data):
    """Share of actions farther than 0.1 from every action of the data."""
    return (torch.cdist(actions, data).min(dim=1).values > 0.1).float().mean().item()


@pytest.mark.slow
def test_cloned_flow_lies_on_two_moons_and_a_gaussian_between_them():
    data = torch.cat([moons(torch.Generator().manual_seed(seed)) for seed in range(1, 5)])
    noise = torch.randn(len(data), 2, generator=torch.Generator().manual_seed(0))
    states, sample = torch.zeros(len(data), 1), bandit(lambda a: torch.zeros(len(a)), moons)
    deep = {"hidden": [128, 128, 128]}
    flow = fit(sample, 2000, objective="cloning", cloning={"policy": "flow"}, flow=deep)
    gaussian = fit(sample, 400, objective="cloning")
    with torch.no_grad():
        mean, log_std = gaussian.policy(states)
        # It is the best Gaussian: its mean and standard deviation are the data's.
        torch.testing.assert_close(mean[0], data.mean(dim=0), atol=0.05, rtol=0)
        torch.testing.assert_close(log_std[0].exp(), data.std(dim=0), atol=0.05, rtol=0)
        off_gaussian = share_off_the_data(mean + log_std.exp() * noise, data)
        off_flow = share_off_the_data(flow.act("learned", states, noise), data)
    assert off_gaussian > 0.3
    assert off_flow < 0.5 * off_gaussian


def test_cloned_gaussian_has_the_datas_mean_however_many_actions_lie_at_the_bound():
    """0.4 in 70 % and -1 in 30 % of the data: the mean is -0.02.

    A likelihood before the tanh would see -1 at -6.1 and put the mode near tanh(-1.5) = -0.9.
    """

    def saturated(generator):
        at_bound = torch.rand(256, 1, generator=generator) < 0.3
        return torch.where(at_bound, -1 + 1e-5, 0.4)

    agent = fit(bandit(lambda a: torch.zeros(len(a)), saturated), 400, objective="cloning")
    with torch.no_grad():
        action = agent.act("learned", torch.zeros(1, 1), torch.zeros(1, 1)).item()
    assert action == pytest.approx(-0.02, abs=0.1)


def corridor(generator):
    """Three cells, one-hot; a > 0 moves right, else left; -1 a step; the third ends the task."""
    cell = torch.randint(0, 2, (128,), generator=generator)
    actions = uniform(generator, len(cell))
    to = (cell + torch.where(actions.squeeze(1) > 0, 1, -1)).clamp(min=0)
    eye = torch.eye(3)
    rewards, discounts = -torch.ones(len(cell)), GAMMA * (to < 2).float()
    unknown = torch.zeros(len(cell))
    return Batch(eye[cell], actions, rewards, eye[to], discounts, rewards, actions, unknown)


OPTIMAL = {(1, 0.7): -1.0, (0, 0.7): -1.9, (0, -0.7): -2.71, (1, -0.7): -2.71}
"""Q*(1, right) = -1, Q*(0, right) = -1 - γ, and going left costs one more step from cell 0."""


@pytest.mark.parametrize(
    ("updates", "settings"),
    [
        (150, {"flow": {"hidden": [64, 64], "alpha": 0.03, "flow_steps": 2}}),
        slowly(200, {"alpha": 0.03, "kind": "transformer"}),
        (200, {"objective": "implicit", "implicit": {"expectile": 0.99}}),
    ],
    ids=["flow", "flow transformer", "implicit"],
)
def test_q_reaches_the_optimum_of_a_known_mdp(updates, settings):
    agent = fit(corridor, updates, **settings)
    with torch.no_grad():
        for (cell, action), wanted in OPTIMAL.items():
            q = agent.critic(torch.eye(3)[cell : cell + 1], torch.tensor([[action]])).mean()
            assert q.item() == pytest.approx(wanted, abs=0.35), (cell, action)


@pytest.mark.slow
def test_implicit_value_rises_with_the_expectile_between_behaviour_and_optimum():
    """In the corridor the behaviour is random: its V(1) solves two equations, the optimum is -1."""
    # V_b(0) = -1 + γ(V_b(0) + V_b(1))/2 and V_b(1) = -1 + γ V_b(0)/2.
    behaviour = np.linalg.solve([[1 - GAMMA / 2, -GAMMA / 2], [-GAMMA / 2, 1.0]], [-1.0, -1.0])[1]
    values = []
    for expectile in (0.5, 0.8, 0.99):
        agent = fit(corridor, 500, objective="implicit", implicit={"expectile": expectile})
        with torch.no_grad():
            values.append(agent.value(torch.eye(3)[1:2], torch.zeros(1, 0)).item())
    assert values == sorted(values)
    assert values[0] == pytest.approx(behaviour, abs=0.3)
    assert values[-1] == pytest.approx(-1.0, abs=0.3)
