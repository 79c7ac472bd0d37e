"""floq against its definition, number by number, and on tasks of known value."""

import numpy as np
import pytest
import torch
from agent_cases import CPU, METHODS, bandit, build, fit, make_batch, train, uniform
from own_data import write_own
from scipy import stats

from tql_offline.agents import make_agent
from tql_offline.batch import Batch
from tql_offline.config import resolve
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.files import read_json
from tql_offline.networks import SIZES, TransformerCritic, ValueFlow
from tql_offline.objectives.floq import bin_probabilities, value_flow_error
from tql_offline.training import checkpoint
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

SAMPLES, STEPS = 3, 2
"""Of the method's case."""


def test_an_encoding_is_a_normal_cut_to_the_bins():
    edges = torch.linspace(-5, 5, 11, dtype=torch.float64)
    values = torch.tensor([-4.2, 0.0, 3.9], dtype=torch.float64)
    have = bin_probabilities(values, edges, 1.3)
    for value, row in zip(values.tolist(), have, strict=True):
        below = stats.norm.cdf(edges.numpy(), value, 1.3)
        np.testing.assert_allclose(row, np.diff(below) / (below[-1] - below[0]), atol=1e-15)


def test_an_encoding_has_digits_wherever_the_flow_is():
    edges = torch.linspace(-101, 1, 51)
    for value in (-1e30, -1e4, -50.0, 1e4, 1e30):
        seen = bin_probabilities(torch.tensor([value]), edges, 16 * 2.04)
        assert seen.isfinite().all()
        assert seen.sum().item() == pytest.approx(1, rel=1e-3)
    high, low = (bin_probabilities(torch.tensor([v]), edges, 16 * 2.04)[0] for v in (1e9, -1e9))
    assert high.argmax() == 49
    assert low.argmax() == 0


@pytest.mark.parametrize(
    ("rewards", "ends"),
    [
        ((-1.0, 0.0), (-10.0, 0.0)),
        ((-2.0, -1.0), (-20.0, -1.0)),  # an episode may end at once
        ((0.5, 1.0), (0.5, 10.0)),
        ((-1.0, 3.0), (-10.0, 30.0)),
    ],
)
def test_the_flow_has_room_for_all_values_that_rewards_allow(rewards, ends):
    flow = ValueFlow(3, 2, (8,), ensemble=1, discount=0.9, coverage=1.0)
    flow.fit(*rewards)
    assert flow.values.tolist() == pytest.approx(ends)
    assert (flow.edges[0].item(), flow.edges[-1].item()) == pytest.approx(
        (ends[0] - 0.1, ends[1] + 0.1)
    )
    assert flow.noise(torch.tensor([0.0, 1.0])).tolist() == pytest.approx(ends)


def test_an_error_is_summed_over_samples_alone():
    velocity = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # a transition, two samples, two members
    z_0, target = torch.tensor([[0.5, 1.5]]), torch.tensor([2.0])
    have = value_flow_error(velocity, z_0, target)
    assert have.tolist() == [[(1 - 1.5) ** 2 + (3 - 0.5) ** 2, (2 - 1.5) ** 2 + (4 - 0.5) ** 2]]


def slow_velocity(flow, member, state, action, z, t):
    """One member's velocity for one transition, its inputs made by NumPy."""
    edges = flow.edges.numpy().astype(np.float64)
    below = stats.norm.cdf(edges, z, 16 * (edges[1] - edges[0]))
    seen = np.diff(below) / (below[-1] - below[0])
    time = np.cos(np.pi * t * np.arange(1, 65))
    inputs = torch.as_tensor(np.concatenate([state, action, time, seen])).float()
    return flow.members[member](inputs[None]).item()


def slow_end(flow, member, state, action, z):
    for step in range(STEPS):
        z = z + slow_velocity(flow, member, state, action, z, step / STEPS) / STEPS
    return z


@pytest.mark.parametrize("reduction", ["mean", "min"])
def test_losses_are_those_of_the_definition_one_number_at_a_time(reduction):
    critic = {"size": "tiny", "kind": "mlp", "reduction": reduction}
    config = resolve(
        METHODS["floq"] | {"critic": critic, "discount": 0.99, "flow": {"hidden": [9]}}
    )
    agent = make_agent(config, 3, 2, CPU)
    train(agent, 5)
    with torch.no_grad():  # what it sees of z says little in a new network
        for flow in (agent.value_flow, agent.target_value_flow):
            for member in flow.members:
                member[0].weight[:, -50:] *= 100
    size = 4
    batch = make_batch(size)._replace(rewards=torch.linspace(-3, 1, size))
    noise = agent.draw_noise(batch.actions, torch.Generator().manual_seed(0))
    starts = 0.1 * -100 * (1 - noise.start.numpy().astype(np.float64))  # coverage, values
    next_starts = 0.1 * -100 * (1 - noise.next_start.numpy().astype(np.float64))
    with torch.no_grad():
        loss, metrics = agent.critic_loss(batch, noise)
        flow_losses, distillations, errors, targets = [], [], [], []
        for i in range(size):
            s, a, s_next = (
                x[i].numpy() for x in (batch.observations, batch.actions, batch.next_observations)
            )
            next_values = []
            for j in range(SAMPLES):
                z = noise.next_policy[i * SAMPLES + j]
                a_next = agent.policy(torch.as_tensor(s_next)[None], z[None])[0].clamp(-1, 1)
                ends = [
                    slow_end(agent.target_value_flow, k, s_next, a_next.numpy(), next_starts[i, j])
                    for k in range(2)
                ]
                next_values.append(getattr(np, reduction)(ends))
            target = batch.rewards[i].item() + 0.9 * np.mean(next_values)
            flow = agent.value_flow
            value = np.mean([slow_end(flow, k, s, a, z) for k in range(2) for z in starts[i]])
            for k in range(2):
                of_samples = 0.0
                for z_0, t in zip(starts[i], noise.time[i].tolist(), strict=True):
                    z_t = (1 - t) * z_0 + t * target
                    of_samples += (slow_velocity(flow, k, s, a, z_t, t) - (target - z_0)) ** 2
                flow_losses.append(of_samples)
            q = agent.critic(batch.observations[i : i + 1], batch.actions[i : i + 1])[0].tolist()
            distillations += [(one - value) ** 2 for one in q]
            errors.append((value - target) ** 2)
            targets.append(target)
    wanted = {
        "value_flow_loss": np.mean(flow_losses),
        "critic_distillation_loss": np.mean(distillations),
        "td_loss": np.mean(errors),
        "target_mean": np.mean(targets),
        "critic_loss": np.mean(flow_losses) + np.mean(distillations),
    }
    for name, number in wanted.items():
        assert metrics[name].item() == pytest.approx(number, rel=1e-4), name
    assert loss.item() == metrics["critic_loss"].item()


def test_each_network_learns_from_its_own_loss():
    """The critic from the flow's ends, the flow from its target, policies from the critic."""
    agent = build("floq")
    batch = make_batch()
    noise = agent.draw_noise(batch.actions, torch.Generator().manual_seed(0))
    loss, metrics = agent.critic_loss(batch, noise)
    policy_loss, _ = agent.policy_loss(batch, noise)
    critic, flow, policy = (
        list(network.parameters()) for network in (agent.critic, agent.value_flow, agent.policy)
    )
    target = list(agent.target_value_flow.parameters())

    def reaches(of, parameters):
        grads = torch.autograd.grad(of, parameters, retain_graph=True, allow_unused=True)
        return [grad is not None for grad in grads]

    assert all(reaches(metrics["value_flow_loss"], flow))
    assert not any(reaches(metrics["value_flow_loss"], critic))
    assert not any(reaches(metrics["critic_distillation_loss"], flow))
    assert all(reaches(metrics["critic_distillation_loss"], critic))
    assert not any(reaches(loss, policy))
    assert all(reaches(policy_loss, policy))
    assert not any(reaches(policy_loss, flow))
    assert not any(parameter.requires_grad for parameter in target)


def test_the_target_flow_follows_and_the_critic_has_no_target():
    agent = build("floq", polyak=0.25)
    assert "target_critic" not in agent.networks
    before = agent.target_value_flow.members[0][0].weight.clone()
    assert torch.equal(agent.value_flow.members[0][0].weight, before)
    for group in agent.optimizers["critic"].param_groups:
        group["lr"] = 1e-2
    agent.update(make_batch(), torch.Generator().manual_seed(0), 1)
    now = agent.value_flow.members[0][0].weight
    followed = before + 0.25 * (now - before)
    torch.testing.assert_close(agent.target_value_flow.members[0][0].weight, followed)
    assert not torch.equal(now, before)


@pytest.mark.parametrize("size", list(SIZES))
def test_the_value_flow_has_the_critics_parameter_count(size):
    with torch.device("meta"):
        critic = TransformerCritic.of_size(size, 37, 5)
        flow = ValueFlow.of_size(size, 37, 5, discount=0.99, coverage=0.1)
    counts = [sum(p.numel() for p in network.parameters()) for network in (critic, flow)]
    assert counts[1] == pytest.approx(counts[0], rel=0.05)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_sizes_may_be_of_each_member_of_the_flow_alone(size, tmp_path):
    """As in the code that sweeps them: the critic distilled from the flow has one width."""
    path = write_own(tmp_path / "mine.npz", (30, 20), 3)
    settings = {
        "objective": "floq",
        "floq": {"samples": 2, "steps": 2, "critic_width": 24},
        "critic": {"size": size, "kind": "mlp", "counted": "member"},
        "flow": {"hidden": [16]},
        "dataset": {"name": str(path)},
        "steps": 2,
        "batch_size": 8,
    }
    config = resolve(settings)
    folder = run(config, load(str(path)), tmp_path, "r", SilentReporter())
    agent = make_agent(config, 3, 2, CPU)
    checkpoint.load_networks(folder.checkpoints / "2", agent)
    widths = [[layer.out_features for layer in one if hasattr(layer, "out_features")]
              for one in agent.critic.members]  # fmt: skip
    assert widths == [[24, 24, 24, 24, 1]] * 2
    with torch.device("meta"):
        wanted = sum(p.numel() for p in TransformerCritic.of_size(size, 3, 2).parameters())
    each = [sum(p.numel() for p in one.parameters()) for one in agent.value_flow.members]
    assert each == pytest.approx([wanted] * 2, rel=0.05)
    assert read_json(folder.path / "result.json")["parameters"] == sum(each)


def test_a_transformer_has_no_width_of_that_kind():
    with pytest.raises(InputError, match=r"floq.critic_width is given, but critic.kind is"):
        build("floq", floq={"critic_width": 24})


def test_a_run_takes_the_range_of_values_from_the_rewards_it_trains_on(tmp_path):
    path = write_own(tmp_path / "mine.npz", (30, 20), 3)
    with np.load(path) as file:
        columns = dict(file)
    columns["rewards"][:40] = 3.0
    np.savez(path, **columns)
    data = {"name": str(path), "reward_scale": 2.0}
    settings = {
        "objective": "floq",
        "floq": {"samples": 2, "steps": 2},
        "critic": {"size": "tiny", "kind": "mlp"},
        "flow": {"hidden": [16]},
        "discount": 0.9,
        "steps": 2,
        "batch_size": 8,
    }
    config = resolve(settings | {"dataset": data})
    folder = run(config, load(str(path)), tmp_path, "r", SilentReporter())
    agent = make_agent(config, 3, 2, CPU)
    checkpoint.load_networks(folder.checkpoints / "2", agent)
    for flow in (agent.value_flow, agent.target_value_flow):
        assert flow.values.tolist() == pytest.approx([-20, 60], rel=1e-5)
        assert (flow.edges[0].item(), flow.edges[-1].item()) == pytest.approx((-20.1, 60.1))
        starts = flow.noise(torch.tensor([0.0, 1.0]))
        assert starts.tolist() == pytest.approx([-2, 6], rel=1e-5)


def test_a_discount_of_one_is_refused():
    with pytest.raises(InputError, match="'floq' needs a discount below 1"):
        build("floq", discount=1.0)


def test_one_start_is_enough():
    metrics = train(build("floq", floq={"samples": 1, "steps": 1}), 3)
    assert all(value.isfinite().all() for value in metrics.values())


def ends_of(agent, states, actions):
    z_0 = agent.value_flow.noise(torch.linspace(0.05, 0.95, len(states)))
    with torch.no_grad():
        return agent.value_flow.integrate(states, actions, z_0, agent.config.floq.steps)


@pytest.mark.slow
def test_values_of_a_bandit_and_the_policy_that_takes_its_best_action():
    """r = -(a - 0.6)² for a uniform on [-1, 1]: Q(a) is r(a), and the best action is 0.6."""
    sample = bandit(lambda a: -(a - 0.6).square().squeeze(1), uniform)
    agent = fit(sample, 1500, objective="floq", alpha=0.01, discount=0.5)
    actions = torch.linspace(-0.9, 0.9, 13).unsqueeze(1)
    states, wanted = torch.zeros(13, 1), -(actions - 0.6).square()
    assert (ends_of(agent, states, actions) - wanted).abs().max() < 0.25
    with torch.no_grad():
        assert (agent.critic(states, actions) - wanted).abs().max() < 0.25
        action = agent.act("learned", torch.zeros(64, 1), torch.randn(64, 1)).mean().item()
    assert action == pytest.approx(0.6, abs=0.15)


@pytest.mark.slow
def test_values_of_a_chain_are_its_discounted_returns():
    """States 1 to 4 steps from an end, -1 a step, γ 0.9: Q is -(1 - 0.9^k)/0.1 of k steps."""

    def sample(generator):
        k = torch.randint(1, 5, (64,), generator=generator).float()
        actions = uniform(generator)
        one = torch.ones(64)
        states, later = (x.unsqueeze(1) / 2 - 1 for x in (k, k - 1))
        masks = 0.9 * (k > 1)
        return Batch(states, actions, -one, later, masks, -one, actions, one)

    agent = fit(sample, 1500, objective="floq", discount=0.9)
    k = torch.arange(1.0, 5)
    states, actions = k.unsqueeze(1) / 2 - 1, torch.zeros(4, 1)
    wanted = (-(1 - 0.9**k) / 0.1).unsqueeze(1)
    torch.testing.assert_close(
        ends_of(agent, states, actions), wanted.expand(4, 2), atol=0.3, rtol=0
    )
    with torch.no_grad():
        torch.testing.assert_close(
            agent.critic(states, actions), wanted.expand(4, 2), atol=0.3, rtol=0
        )
