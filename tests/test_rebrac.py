"""ReBRAC against the definition of its target, and at both ends of its penalty."""

import numpy as np
import pytest
import torch
from agent_cases import bandit, build, fit, make_batch, train, uniform

from tql_offline.objectives.rebrac import behaviour_penalty, normalised_value, smoothed_action


def test_terms_by_hand():
    actions = torch.tensor([[0.5, -0.5], [0.0, 1.0]])
    penalty = behaviour_penalty(actions, torch.tensor([[0.0, 0.5], [0.0, 0.0]]))
    assert penalty.tolist() == [0.25 + 1.0, 1.0]
    # Standard deviation 0.2 of noise ±10 is cut to ±0.5, and the action to [-1, 1].
    noise = torch.tensor([[10.0, -10.0], [1.0, 10.0]])
    torch.testing.assert_close(
        smoothed_action(actions, noise, 0.2, 0.5), torch.tensor([[1.0, -1.0], [0.2, 1.0]])
    )
    q = torch.tensor([2.0, -6.0], requires_grad=True)
    value = normalised_value(q)
    assert value.tolist() == [0.5, -1.5]
    (gradient,) = torch.autograd.grad(value.sum(), q)
    assert gradient.tolist() == [0.25, 0.25]  # the scale carries none


def test_a_value_of_zero_is_not_divided_by_zero():
    assert normalised_value(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_a_value_of_zero_has_a_bounded_gradient():
    q = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(normalised_value(q).sum(), q)
    assert gradient.abs().max() <= 1e6


def test_target_pays_for_leaving_the_datas_next_action_where_there_is_one():
    agent = build("rebrac", rebrac={"critic_alpha": 0.7, "smoothing": 0.4})
    train(agent, 3)
    mask = torch.arange(16) % 2.0
    batch = make_batch()._replace(next_action_mask=mask)
    noise = agent.draw_noise(batch.actions, torch.Generator().manual_seed(0))
    _, metrics = agent.critic_loss(batch, noise)
    targets = []
    with torch.no_grad():
        for i in range(16):
            state = batch.next_observations[i : i + 1]
            smoothing = np.clip(0.4 * noise.smoothing[i].numpy(), -0.5, 0.5)
            action = np.clip(agent.target_policy(state)[0].numpy() + smoothing, -1, 1)
            action = torch.as_tensor(action)[None]
            value = agent.target_critic(state, action).min()
            if mask[i]:
                value = value - 0.7 * ((action - batch.next_actions[i]) ** 2).sum()
            targets.append((batch.rewards[i] + batch.discounts[i] * value).item())
    assert metrics["target_mean"].item() == pytest.approx(np.mean(targets), rel=1e-5)


def test_policy_and_targets_step_at_every_other_update():
    agent = build("rebrac")
    generator = torch.Generator().manual_seed(0)
    for optimizer in agent.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
    followers = ("policy", "target_policy", "target_critic")
    for step, moves in ((1, False), (2, True), (3, False), (4, True)):
        before = {n: next(agent.networks[n].parameters()).clone() for n in followers}
        critic = [p.clone() for p in agent.critic.parameters()]
        agent.update(make_batch(), generator, step)
        assert not all(map(torch.equal, agent.critic.parameters(), critic))
        for name, old in before.items():
            assert torch.equal(next(agent.networks[name].parameters()), old) is not moves, name


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.3, 100.0])
def test_policy_balances_the_datas_mean_against_the_best_action(alpha):
    """Actions uniform on [-1, 1], r = 1 - (a - 0.6)²: the data's mean is 0, the optimum 0.6.

    Where Q is near 1 the loss is α·(a² + 1/3) - 1 + (a - 0.6)², whose minimum is 0.6/(1 + α).
    """
    sample = bandit(lambda a: 1 - (a - 0.6).square().squeeze(1), uniform)
    agent = fit(sample, 600, objective="rebrac", rebrac={"policy_alpha": alpha})
    with torch.no_grad():
        action = agent.act("learned", torch.zeros(1, 1), torch.zeros(1, 1)).item()
    assert action == pytest.approx(0.6 / (1 + alpha), abs=0.15)
