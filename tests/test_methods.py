"""Every objective with every critic in every entropy mode: trains, saves, loads and acts."""

import math
from contextlib import nullcontext
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from agent_cases import CPU, METHODS, build, make_batch, train
from marks import slowly

from tql_offline.agents import make_agent, numpy_policy
from tql_offline.config import resolve
from tql_offline.errors import InputError
from tql_offline.networks import (
    ENTROPY_MODES,
    SIZES,
    GaussianPolicy,
    MLPCritic,
    TanhGaussianPolicy,
    TransformerCritic,
)
from tql_offline.objectives.conservative import calibrate, conservative_gap, uniform_log_density
from tql_offline.objectives.implicit import advantage_weight, expectile_error
from tql_offline.training import checkpoint
from tql_offline.training.metrics import MetricsWindow

# An MLP critic has no attention whose entropy a mode could steer, and cloning has no critic.
CRITICS = [("mlp", "layerwise"), *(("transformer", mode) for mode in ENTROPY_MODES)]
# A method does not see what a mode does with the entropies: all of them with one.
USUAL = (*CRITICS[:1], ("transformer", "layerwise"))
COMBINATIONS = [
    (method, *critic) if method == "flow" or critic in USUAL else slowly(method, *critic)
    for method in METHODS
    for critic in (CRITICS[:1] if method.startswith("cloning") else CRITICS)
]


@pytest.mark.parametrize(("method", "critic", "entropy"), COMBINATIONS)
def test_every_combination_trains(method, critic, entropy):
    agent = build(method, critic, entropy)
    before = {n: [p.clone() for p in net.parameters()] for n, net in agent.networks.items()}
    metrics = train(agent, 5)
    assert all(value.isfinite().all() for value in metrics.values())
    for name, network in agent.networks.items():
        pairs = zip(network.parameters(), before[name], strict=True)
        changed = [not torch.equal(now, old) for now, old in pairs]
        if name == "control":
            assert all(c == (critic == "transformer") for c in changed)
        else:
            assert all(changed), name
    for policy in agent.policies:
        inputs = (np.zeros((4, 3), np.float32), np.ones((4, agent.noise_dim(policy)), np.float32))
        actions = numpy_policy(agent, policy, CPU)(*inputs)
        assert actions.shape == (4, 2)
        assert np.abs(actions).max() <= 1


@pytest.mark.parametrize("method", list(METHODS))
def test_checkpoint_brings_everything_back(method, tmp_path):
    agent, generator = build(method), torch.Generator()
    train(agent, 3)
    state = checkpoint.State(step=3, observation_dim=3, action_dim=2)
    path = checkpoint.save(tmp_path / "a", agent, generator, state, MetricsWindow())
    other = build(method, seed=5)
    checkpoint.load_networks(path, other)
    checkpoint.load_training_state(path, other, torch.Generator(), MetricsWindow())
    again = checkpoint.save(tmp_path / "b", other, generator, state, MetricsWindow())
    assert sorted(p.name for p in path.iterdir()) == sorted(p.name for p in again.iterdir())
    for file in path.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("dims", [(2, 2), (37, 5)])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_mlp_critic_has_the_transformers_parameter_count(size, dims, depth):
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in kind.of_size(size, *dims, depth).parameters())
            for kind in (TransformerCritic, MLPCritic)
        ]
    assert counts[1] == pytest.approx(counts[0], rel=0.05)


@pytest.mark.parametrize("size", ["tiny", "xl"])
def test_each_member_may_have_the_transformers_parameter_count(size):
    with torch.device("meta"):
        wanted = sum(p.numel() for p in TransformerCritic.of_size(size, 37, 5).parameters())
        critic = MLPCritic.of_size(size, 37, 5, counted="member")
    for member in critic.members:
        assert sum(p.numel() for p in member.parameters()) == pytest.approx(wanted, rel=0.05)


def test_expectile_lies_between_mean_and_maximum_and_rises():
    """Minimising the expectile error over a grid: mean at 0.5, near the maximum at 0.99."""
    q = torch.tensor([0.0, 1.0, 2.0, 10.0], dtype=torch.float64)
    grid = torch.linspace(-1, 11, 12_001, dtype=torch.float64)

    def best(expectile):
        errors = torch.stack([expectile_error(v.expand(4), q, expectile).mean() for v in grid])
        return grid[errors.argmin()].item()

    values = [best(expectile) for expectile in (0.5, 0.7, 0.9, 0.99)]
    assert values[0] == pytest.approx(3.25, abs=1e-3)
    assert values == sorted(values)
    assert 9 < values[-1] < 10


def test_advantage_weight_is_exponential_bounded_and_without_gradient():
    q = torch.tensor([0.0, 1.0, 100.0], requires_grad=True)
    weight = advantage_weight(q, torch.zeros(3), 2.0)
    torch.testing.assert_close(weight, torch.tensor([1.0, float(np.exp(2.0)), 100.0]))
    assert not weight.requires_grad


def test_conservative_gap_estimates_the_integral_of_exp_q():
    """With Q(a) = c·a in one dim, log ∫_{-1}^{1} exp(c·a) da = log(2 sinh(c)/c)."""
    c, count = 2.0, 200_000
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(1, count, generator=generator, dtype=torch.float64) * 2 - 1
    # A second proposal: density (1 + a)/2 on [-1, 1], by inversion.
    skewed = 2 * torch.rand(1, count, generator=generator, dtype=torch.float64).sqrt() - 1
    actions = torch.cat([uniform, skewed], dim=1)
    flat = torch.full_like(uniform, uniform_log_density(1))
    log_density = torch.cat([flat, ((1 + skewed) / 2).log()], dim=1)
    gap = conservative_gap(c * actions.unsqueeze(-1), log_density, torch.zeros(1, 1).double())
    assert gap.item() == pytest.approx(np.log(2 * np.sinh(c) / c), abs=0.02)


def test_calibration_floors_the_policys_actions_alone():
    """Q of 5 policy actions a state is floored at the return-to-go, of uniform ones it is not."""
    q = torch.tensor([[[-9.0, -1.0], [3.0, -7.0]]])
    assert calibrate(q, torch.tensor([-5.0])).tolist() == [[[-5.0, -1.0], [3.0, -5.0]]]
    assert torch.equal(calibrate(q, torch.tensor([-torch.inf])), q)

    agent = build("conservative lagrange")
    batch = make_batch()._replace(returns_to_go=torch.full((16,), 50.0))
    noise = agent.draw_noise(batch.actions, torch.Generator().manual_seed(0))
    sampled, _, metrics = agent._sampled_q(batch, noise)
    assert (sampled[:, 2:] == 50).all()
    assert (sampled[:, :2] < 50).all()
    assert metrics["floored_share"] == 1
    batch.returns_to_go[:8] = -50.0
    assert agent.critic_loss(batch, noise)[1]["floored_share"] == 0.5


@pytest.mark.parametrize("rows", [0, 7])
def test_a_target_may_take_the_best_of_n_actions(rows):
    """One action at a time: the minimum of the ensemble, then the best of the actions."""
    settings = {"samples": 3, "backup": "best", "rows_at_once": rows}
    agent, batch = build("conservative", conservative=settings), make_batch()
    noise = agent.draw_noise(batch.actions, torch.Generator().manual_seed(0))
    values = []
    with torch.no_grad():
        for s, drawn in zip(batch.next_observations, noise.next_policy, strict=True):
            actions = [agent.policy.sample(s[None], z[None])[0] for z in drawn]
            values.append(max(agent.target_critic(s[None], a).min().item() for a in actions))
    wanted = batch.rewards + batch.discounts * torch.tensor(values)
    metrics = agent.critic_loss(batch, noise)[1]
    assert metrics["target_mean"].item() == pytest.approx(wanted.mean().item(), abs=1e-5)
    assert noise.next_policy.shape == (16, 3, 2)
    assert agent._next_value(batch, noise).tolist() == pytest.approx(values, abs=1e-5)


def test_a_gap_without_importance_weights_has_the_datas_action_among_its_own():
    settings = {"samples": 2, "importance_weights": False}
    agent, batch = build("conservative", conservative=settings), make_batch()
    noise = agent.draw_noise(batch.actions, torch.Generator().manual_seed(0))
    gaps = []
    with torch.no_grad():
        sampled_q, _, _ = agent._sampled_q(batch, noise)
        data_q = agent.critic(batch.observations, batch.actions)
        for i, member in product(range(16), range(2)):
            q = [*sampled_q[i, :, member].tolist(), data_q[i, member].item()]
            gaps.append(np.log(np.mean(np.exp(q))) - q[-1])
    gap = agent.critic_loss(batch, noise)[1]["conservative_gap"]
    assert gap.item() == pytest.approx(np.mean(gaps), abs=1e-5)

    # It pushes all of them down and the data's action up, as one expression does.
    here = [agent.policy.sample(batch.observations, noise.here[:, j])[0] for j in range(2)]
    there = [agent.policy.sample(batch.next_observations, noise.there[:, j])[0] for j in range(2)]
    each = [*noise.uniform.unbind(1), *here, *there, batch.actions]
    q = torch.stack([agent.critic(batch.observations, a.detach()) for a in each])
    wanted = (q.logsumexp(dim=0) - math.log(5 + 2) - q[-1]).mean()
    parameters = list(agent.critic.parameters())
    assert gap.item() == pytest.approx(wanted.item(), abs=1e-5)
    pairs = (torch.autograd.grad(g, parameters, allow_unused=True) for g in (gap, wanted))
    for have, want in zip(*pairs, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-6)


def test_uniform_actions_fill_the_whole_action_range():
    """Actions drawn in [0, 1] instead of [-1, 1] ruined a published CQL."""
    noise = build("conservative").draw_noise(torch.zeros(2000, 2), torch.Generator().manual_seed(0))
    assert noise.uniform.min() < -0.99
    assert noise.uniform.max() > 0.99
    assert abs(noise.uniform.mean()) < 0.02


def test_tanh_gaussian_density_integrates_to_one_and_matches_torch():
    torch.manual_seed(0)
    policy = TanhGaussianPolicy(3, 1, (8,)).double()
    state = torch.zeros(1, 3, dtype=torch.float64)
    with torch.no_grad():  # std e^-1: a wider one piles up at the edges
        policy.net[-1].bias[1] = np.arctanh(0.5 / 3.5)
        policy.net[-1].weight[1] = 0
    grid = torch.linspace(-1, 1, 200_002, dtype=torch.float64)[1:-1].unsqueeze(1)
    density = policy.log_prob(state.expand(len(grid), -1), grid).exp()
    assert (density.sum() * (grid[1] - grid[0])).item() == pytest.approx(1.0, abs=1e-3)

    noise = torch.randn(5, 1, dtype=torch.float64)
    actions, log_prob = policy.sample(state.expand(5, -1), noise)
    mean, log_std = policy(state.expand(5, -1))
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(
        normal, [torch.distributions.transforms.TanhTransform()]
    )
    torch.testing.assert_close(log_prob, squashed.log_prob(actions).squeeze(1))
    torch.testing.assert_close(log_prob, policy.log_prob(state.expand(5, -1), actions))


def test_gaussian_density_matches_torch():
    torch.manual_seed(0)
    policy = GaussianPolicy(3, 2, (8,)).double()
    states, actions = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    mean, log_std = policy(states)
    normal = torch.distributions.Normal(mean, log_std.exp())
    torch.testing.assert_close(policy.log_prob(states, actions), normal.log_prob(actions).sum(1))
    torch.testing.assert_close(policy.mode(states), mean.clamp(-1, 1))


def test_a_gaussian_of_deviation_1_is_fitted_by_weighted_squared_errors():
    agent = build("implicit awr", implicit={"deviation": "unit", "inverse_temperature": 3.0})
    batch = make_batch()
    agent.critic_loss(batch, None)
    loss, _ = agent.policy_loss(batch, None)
    q, v = agent._judged
    weight = (3 * (q - v)).exp().clamp(max=100)
    mean = agent.gaussian.net(batch.observations)
    assert mean.shape == batch.actions.shape
    errors = (batch.actions - mean).square().sum(dim=1) / 2
    want = (weight * (errors + math.log(2 * math.pi))).mean()  # two dims
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(agent.gaussian.mode(batch.observations), mean.clamp(-1, 1))


def test_iqls_deviation_is_1_where_fql_tuned_it():
    for name, deviation in (
        ("cube-double-play-singletask-v0", "unit"),
        ("humanoidmaze-large-navigate-singletask-v0", "unit"),
        ("antmaze-large-navigate-singletask-v0", "unit"),
        ("antsoccer-arena-navigate-singletask-v0", "learned"),
        ("hopper-medium-v2", "learned"),
    ):
        config = resolve({"dataset": {"name": name}}, preset="iql")
        assert config.implicit.deviation == deviation, name


def test_best_of_n_takes_the_sample_with_the_highest_q():
    agent = build("implicit best-of-n")
    train(agent, 3)
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(6, 3, generator=generator)
    noise = torch.randn(6, agent.noise_dim("learned"), generator=generator)
    with torch.no_grad():
        chosen = agent.act("learned", observations, noise)
        samples = [agent.act("behaviour", observations, part) for part in noise.chunk(3, dim=1)]
        q = [agent.critic(observations, a).min(dim=1).values for a in samples]
    best = torch.stack(q).argmax(dim=0)
    for row in range(6):
        torch.testing.assert_close(chosen[row], samples[best[row]][row])


def value_gradients(entropy, critic="transformer"):
    agent = build("implicit awr", critic, entropy)
    loss, metrics = agent.critic_loss(make_batch(), None)
    return torch.autograd.grad(loss, list(agent.value.parameters())), metrics


def test_the_entropy_modes_act_on_v_where_it_has_attention():
    none, logged = value_gradients("none")
    assert logged["value_entropy"].shape == (2, 2)  # looked at, though nothing pulls at it
    for mode in ("fixed", "single", "layerwise"):  # at temperatures of 1 all pull alike
        controlled, _ = value_gradients(mode)
        assert not all(map(partial(torch.allclose, atol=1e-5), controlled, none))
    none, logged = value_gradients("none", "mlp")
    controlled, _ = value_gradients("layerwise", "mlp")
    assert all(map(torch.equal, controlled, none))
    assert not any("entropy" in name for name in logged if name.startswith("value"))


@pytest.mark.parametrize("nats", [(), ((1.2, 1.0), (0.6, 0.5))])
def test_vs_control_is_the_critics_with_vs_own_entropies_and_tokens(nats):
    """Entropies from V's attention maps; targets of 6 tokens carried over to V's 4."""
    settings = {"objective": "implicit", "critic": {"size": "tiny"}, "flow": {"hidden": [16]}}
    agent = make_agent(resolve(settings | {"entropy": {"targets_nats": nats}}), 3, 2, CPU)
    tau = torch.tensor([[0.5, 2.0], [1.5, 3.0]])
    with torch.no_grad():
        agent.value_control.log_temperature.copy_(tau.log())
    batch = make_batch()
    loss, metrics = agent.critic_loss(batch, None)

    with torch.no_grad():
        p = agent.value.attention_maps(batch.observations, torch.zeros(16, 0)).numpy()
    each = -(p * np.log(p)).sum(-1)  # (layer, batch, head, query)
    entropy = np.stack([each[..., 0].mean((1, 2)), each[..., 1:].mean((1, 2, 3))], axis=1)
    fractions = np.array(nats) / np.log(6) if nats else np.array([[0.8, 0.8], [0.65, 0.65]])
    target = fractions * np.log(4)
    np.testing.assert_allclose(metrics["value_entropy"].detach(), entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["value_entropy_target"], target, rtol=1e-6)
    np.testing.assert_allclose(metrics["value_temperature"].detach(), tau, rtol=1e-6)

    h, h_target = metrics["entropy"], metrics["entropy_target"]
    of_q = metrics["td_loss"] - h.mean() + (h - h_target).mean()  # Q's temperatures are 1
    of_v = (tau.numpy() * (entropy - target)).mean() - (tau.numpy() * entropy).mean()
    assert (loss - of_q - metrics["value_loss"]).item() == pytest.approx(of_v, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, [agent.value_control.log_temperature])
    np.testing.assert_allclose(gradient, tau.numpy() * (entropy - target) / 4, atol=1e-6)


def test_a_checkpoint_from_before_vs_control_is_refused_where_it_would_have_acted(tmp_path):
    for mode, refused in (("layerwise", True), ("fixed", True), ("none", False)):
        agent = build("implicit awr", entropy=mode)
        state = checkpoint.State(step=3, observation_dim=3, action_dim=2)
        path = checkpoint.save(tmp_path / mode, agent, torch.Generator(), state, MetricsWindow())
        (path / "value_control.safetensors").unlink(missing_ok=True)
        with (
            pytest.raises(InputError, match="value_control.*is missing; .*the version of")
            if refused
            else nullcontext()
        ):
            checkpoint.load_networks(path, build("implicit awr", entropy=mode))


@pytest.mark.parametrize("critic", ["transformer", "mlp"])
def test_bounded_passes_give_the_same_loss_and_gradients(critic):
    results = []
    for rows in (0, 40):  # 16 transitions with 6 sampled actions each: 96 rows, the last pass short
        agent = build("conservative", critic, conservative={"samples": 2, "rows_at_once": rows})
        batch = make_batch()
        noise = agent.draw_noise(batch.actions, torch.Generator().manual_seed(0))
        with torch.autograd.graph.saved_tensors_hooks(Saved.pack, lambda tensor: tensor):
            Saved.bytes = 0
            loss, _ = agent.critic_loss(batch, noise)
            saved = Saved.bytes
        gradients = torch.autograd.grad(loss, list(agent.critic.parameters()))
        results.append((loss, gradients, saved))
    (loss, gradients, saved), (bounded_loss, bounded_gradients, bounded_saved) = results
    torch.testing.assert_close(bounded_loss, loss)
    for bounded, whole in zip(bounded_gradients, gradients, strict=True):
        torch.testing.assert_close(bounded, whole, rtol=1e-4, atol=1e-6)
    assert bounded_saved < 0.5 * saved


class Saved:
    """Counts the bytes that a forward pass keeps for its backward pass."""

    bytes = 0

    @classmethod
    def pack(cls, tensor):
        cls.bytes += tensor.numel() * tensor.element_size()
        return tensor


def test_lagrange_multiplier_grows_above_its_target_and_falls_below():
    for target, direction in ((-1e6, 1), (0.0, 1), (1e6, -1)):
        settings = {"samples": 2, "lagrange": True, "target_gap": target}
        agent = build("conservative lagrange", conservative=settings)
        start = agent.lagrange().item()
        train(agent, 5)
        assert np.sign(agent.lagrange().item() - start) == direction
