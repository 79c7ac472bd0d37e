"""PAC against its definition, number by number, and on tasks of known value."""

import math

import numpy as np
import pytest
import torch
from agent_cases import CPU, bandit, build, fit, make_batch, train, uniform
from hypothesis import given
from hypothesis import strategies as st
from own_data import write_own
from torch.nn import functional

from tql_offline.agents import make_agent
from tql_offline.config import resolve
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.networks import SIZES, PerceiverCritic, TransformerCritic
from tql_offline.objectives.pac import categorical_error, expected_value, projected_target
from tql_offline.training import checkpoint
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

VALUES = torch.linspace(-4, 0, 5, dtype=torch.float64)


def projected(probabilities, reward, discount):
    rows = [torch.tensor([x], dtype=torch.float64) for x in (probabilities, reward, discount)]
    return projected_target(rows[0], VALUES, rows[1], rows[2])[0].tolist()


@pytest.mark.parametrize(
    ("reward", "discount", "wanted"),
    [
        (0.0, 1.0, [0, 0.5, 0.5, 0, 0]),  # unchanged
        (-1.0, 1.0, [0.5, 0.5, 0, 0, 0]),  # one value lower
        (0.25, 1.0, [0, 0.375, 0.5, 0.125, 0]),  # shared by distance
        (0.0, 0.5, [0, 0, 0.25, 0.75, 0]),  # -3 and -2 become -1.5 and -1
        (-2.0, 1.0, [1.0, 0, 0, 0, 0]),  # clipped below
        (9.0, 1.0, [0, 0, 0, 0, 1.0]),  # and above
        (-1.25, 0.0, [0, 0, 0.25, 0.75, 0]),  # the task has ended
    ],
)
def test_a_targets_distribution_is_that_of_c51(reward, discount, wanted):
    assert projected([0, 0.5, 0.5, 0, 0], reward, discount) == pytest.approx(wanted)


@given(
    weights=st.lists(st.floats(0.01, 1), min_size=5, max_size=5),
    reward=st.floats(-6, 3),
    discount=st.floats(0, 1),
)
def test_a_target_is_c51s_loop_and_keeps_its_mean_where_nothing_is_clipped(
    weights, reward, discount
):
    p = np.array(weights) / sum(weights)
    values, wanted = VALUES.numpy(), np.zeros(5)
    for probability, value in zip(p, values, strict=True):
        place = (np.clip(reward + discount * value, -4, 0) + 4) / 1.0
        low = int(np.floor(place))
        wanted[low] += probability * (1 - (place - low))
        wanted[min(low + 1, 4)] += probability * (place - low)
    have = np.array(projected(p.tolist(), reward, discount))
    np.testing.assert_allclose(have, wanted, atol=1e-12)
    if reward - 4 * discount >= -4 and reward <= 0:
        assert have @ values == pytest.approx(reward + discount * (p @ values))


def test_an_error_is_least_at_the_target_itself():
    target = torch.tensor([[0.2, 0.5, 0.3]])
    least = categorical_error(target.log(), target).item()
    assert least == pytest.approx(-sum(p * math.log(p) for p in target[0].tolist()))
    assert categorical_error(torch.zeros(1, 3), target).item() == pytest.approx(math.log(3))
    assert least < math.log(3)


def test_targets_have_all_digits_beside_products_in_bfloat16():
    logits, values = torch.randn(4, 201), torch.linspace(-200, 0, 201)
    p, rewards = torch.softmax(logits, -1), torch.full((4,), -0.3)

    def terms():
        target = projected_target(p, values, rewards, torch.full((4,), 0.99))
        error = categorical_error(logits, target)
        return (*target.unbind(), expected_value(logits, values), error)

    with torch.autocast("cpu", torch.bfloat16):
        have = terms()
    for one, other in zip(have, terms(), strict=True):
        assert torch.equal(one, other)


def attended(block, x, queries, context, projections):
    """A block's two updates of the vectors x, one head at a time."""
    inputs = (queries, context, context)
    q, k, v = (functional.linear(i, *w) for i, w in zip(inputs, projections, strict=True))
    mixed = []
    for rows in torch.arange(x.shape[-1]).chunk(block.num_heads):
        scores = q[:, rows] @ k[:, rows].T / math.sqrt(len(rows))
        mixed.append(torch.softmax(scores, dim=-1) @ v[:, rows])
    x = x + block.out(torch.cat(mixed, dim=-1))
    first, _, last = block.mlp
    return x + last(functional.gelu(first(block.mlp_norm(x)), approximate="tanh"))


def split(layer, parts):
    """Weights and biases of a layer that computes several projections."""
    return zip(layer.weight.chunk(parts), layer.bias.chunk(parts), strict=True)


def crossed(block, x, context):
    projections = [*split(block.q, 1), *split(block.kv, 2)]
    return attended(block, x, block.query_norm(x), block.context_norm(context), projections)


def slow_logits(critic, state, action):
    """One transition's logits, with attention as its formula."""
    read, *others, decode = critic.blocks
    pairs = zip(state, critic.position, strict=True)
    tokens = torch.stack([critic.observation_embedding(s[None]) + p for s, p in pairs])
    x = crossed(read, critic.latents, tokens)
    for block in others:
        normed = block.attention_norm(x)
        x = attended(block, x, normed, normed, split(block.qkv, 3))
    x = critic.latent_norm(x)
    embedded = torch.cat([critic.action_embedding(a[None]) for a in action])
    query = critic.action_norm(critic.heads["query"](embedded))
    decoded = critic.final_norm(crossed(decode, query[None], x)[0])
    hidden = functional.gelu(critic.heads["hidden"](decoded), approximate="tanh")
    return critic.heads["logits"](hidden)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_logits_are_those_of_the_definition_one_transition_at_a_time(depth):
    torch.manual_seed(0)
    critic = PerceiverCritic(3, 2, 8, 2, depth, latents=4, atoms=7).double()
    for parameter in critic.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    states, actions = torch.randn(5, 3).double(), torch.rand(5, 2).double()
    with torch.no_grad():
        have = critic.logits(states, actions)
        wanted = [slow_logits(critic, s, a) for s, a in zip(states, actions, strict=True)]
        torch.testing.assert_close(have, torch.stack(wanted), rtol=1e-10, atol=1e-10)
        q, entropy = critic(states, actions, return_entropy=True)
        means = torch.softmax(have, dim=-1) @ critic.values
    torch.testing.assert_close(q, means.unsqueeze(-1))
    assert torch.equal(q, expected_value(have, critic.values).unsqueeze(-1))
    assert entropy.shape == (0, 2)


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("dims", [(2, 2), (37, 5), (55, 5)])
@pytest.mark.parametrize("atoms", [201, 301, 401, 901])
def test_the_critic_has_the_transformers_parameter_count(size, dims, atoms):
    with torch.device("meta"):
        critics = (
            TransformerCritic.of_size(size, *dims),
            PerceiverCritic.of_size(size, *dims, atoms=atoms),
        )
    counts = [sum(p.numel() for p in critic.parameters()) for critic in critics]
    assert counts[1] == pytest.approx(counts[0], rel=0.05)


def test_losses_are_those_of_the_definition():
    agent, batch = build("pac"), make_batch(6)
    agent.fit_rewards(np.array([-2.0, 0.0]))
    train(agent, 3)
    batch = batch._replace(rewards=torch.linspace(-3, 1, 6))
    noise = agent.draw_noise(batch.actions, torch.Generator().manual_seed(0))
    values = agent.critic.values
    with torch.no_grad():
        next_actions = agent.policy(batch.next_observations, noise.next_policy).clamp(-1, 1)
        losses, targets = [], []
        for i in range(6):
            next_p = torch.softmax(
                slow_logits(agent.target_critic, batch.next_observations[i], next_actions[i]), -1
            )
            m = torch.zeros(len(values), dtype=torch.float64)
            for p, z in zip(next_p.tolist(), values.tolist(), strict=True):
                moved = min(
                    max(batch.rewards[i].item() + 0.9 * z, values[0].item()), values[-1].item()
                )
                place = (moved - values[0].item()) / (values[1] - values[0]).item()
                low = min(int(place), len(values) - 2)
                m[low] += p * (1 - (place - low))
                m[low + 1] += p * (place - low)
            logits = slow_logits(agent.critic, batch.observations[i], batch.actions[i]).double()
            losses.append(-(m * torch.log_softmax(logits, -1)).sum().item())
            targets.append((m @ values.double()).item())
        loss, metrics = agent.critic_loss(batch, noise)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert metrics["target_mean"].item() == pytest.approx(np.mean(targets), rel=1e-4)


@pytest.mark.parametrize(
    ("rewards", "ends"),
    [
        ((-2.0, 0.0), (-20.0, 0.0)),  # of endless episodes
        ((-2.0, -1.0), (-20.0, -1.0)),  # an episode may end at once
        ((0.5, 1.0), (0.5, 10.0)),
        ((-1.0, 3.0), (-10.0, 30.0)),
        ((0.0, 0.0), (-1.0, 1.0)),  # there must be some range
    ],
)
def test_values_are_all_that_rewards_allow(rewards, ends):
    critic = PerceiverCritic(3, 2, 8, 2, atoms=5)
    critic.fit(*rewards, discount=0.9)
    assert (critic.values[0].item(), critic.values[-1].item()) == pytest.approx(ends)
    steps = critic.values.diff()
    torch.testing.assert_close(steps, steps[:1].expand(4))


@pytest.mark.parametrize(("rewards", "discount"), [((-1e37, 0.0), 0.99), ((1.0, 1.000001), 1e-9)])
def test_values_that_float32_cannot_hold_are_refused(rewards, discount):
    critic = PerceiverCritic(3, 2, 8, 2)
    with pytest.raises(InputError, match="are not 201 numbers of float32; scale"):
        critic.fit(*rewards, discount=discount)


def test_a_value_of_states_is_no_perceiver():
    with pytest.raises(InputError, match="judges actions"):
        PerceiverCritic.of_size("tiny", 3, 0)


@pytest.mark.parametrize(
    ("family", "count", "rewards"),
    [
        ("cube-double", 201, (-2.0, 0.0)),
        ("cube-triple", 301, (-3.0, 0.0)),
        ("scene", 401, (-5.0, 0.0)),
        ("puzzle-3x3", 301, (-9.0, 0.0)),
        ("puzzle-4x4", 901, (-16.0, 0.0)),
    ],
)
def test_values_are_those_of_published_commands(family, count, rewards):
    """The pac_fql_script/ of khhung-906/floq: 1 apart, whatever more the rewards allow."""
    config = resolve(
        {
            "preset": "pac",
            "dataset": {"name": f"{family}-play-singletask-task3-v0"},
            "critic": {"size": "tiny"},
        }
    )
    assert config.flow.alpha == (1000.0 if "puzzle" in family else 300.0)
    assert (config.optimizer.critic_lr, config.optimizer.policy_lr) == (1e-4, 5e-4)
    agent = make_agent(config, 3, 2, CPU)
    agent.fit_rewards(np.array(rewards))
    for critic in (agent.critic, agent.target_critic):
        torch.testing.assert_close(critic.values, torch.linspace(1.0 - count, 0, count))
        assert len(critic.latents) == 32


def test_a_least_value_above_all_returns_is_refused():
    critic = PerceiverCritic(3, 2, 8, 2)
    with pytest.raises(
        InputError, match="pac.least is -1, but .* no return above -2; set it lower"
    ):
        critic.fit(-4.0, -2.0, 0.99, lowest=-1.0)


def test_a_run_keeps_its_values(tmp_path):
    path = write_own(tmp_path / "mine.npz", (30, 20), 3)
    settings = {
        "preset": "pac",
        "pac": {"atoms": 9, "latents": 3},
        "critic": {"size": "tiny"},
        "flow": {"hidden": [16]},
        "dataset": {"name": str(path), "reward_scale": 2.0, "reward_shift": -4.0},
        "discount": 0.9,
        "steps": 2,
        "batch_size": 8,
    }
    config = resolve(settings)
    data = load(str(path))
    folder = run(config, data, tmp_path, "r", SilentReporter())
    agent = make_agent(config, 3, 2, CPU)
    checkpoint.load_networks(folder.checkpoints / "2", agent)
    rewards = 2 * data.episodes.rewards - 4
    wanted = min(rewards.min(), 10 * rewards.min()), max(rewards.max(), 10 * rewards.max())
    for critic in (agent.critic, agent.target_critic):
        assert critic.values.shape == (9,)
        assert (critic.values[0].item(), critic.values[-1].item()) == pytest.approx(wanted)
    assert agent.critic.latents.shape[0] == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "pac"}, "set critic.kind to 'perceiver'"),
        ({"objective": "pac", "critic": {"kind": "mlp"}}, "critic.kind is 'mlp'"),
        ({"critic": {"kind": "perceiver"}}, "is of objective 'pac', not 'flow'"),
        ({"preset": "iql", "critic": {"kind": "perceiver"}}, "not 'implicit'"),
        ({"preset": "pac", "discount": 1.0}, "'pac' needs a discount below 1"),
        ({"preset": "pac", "pac": {"atoms": 1}}, "pac.atoms"),
        ({"preset": "pac", "pac": {"least": 1.0}}, "pac.least"),
    ],
)
def test_what_does_not_fit_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        resolve(settings)


@pytest.mark.slow
def test_values_of_a_bandit_and_the_policy_that_takes_its_best_action():
    """r = -(a - 0.6)² for a uniform on [-1, 1]: Q(a) is r(a), and the best action is 0.6."""
    sample = bandit(lambda a: -(a - 0.6).square().squeeze(1), uniform)
    given = {"objective": "pac", "kind": "perceiver", "fits_rewards": True}
    agent = fit(sample, 1500, **given, alpha=0.01, discount=0.5)
    actions = torch.linspace(-0.9, 0.9, 13).unsqueeze(1)
    states, wanted = torch.zeros(13, 1), -(actions - 0.6).square()
    with torch.no_grad():
        assert (agent.critic(states, actions) - wanted).abs().max() < 0.25
        action = agent.act("learned", torch.zeros(64, 1), torch.randn(64, 1)).mean().item()
    assert action == pytest.approx(0.6, abs=0.15)
