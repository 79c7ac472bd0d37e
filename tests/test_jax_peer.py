"""The JAX statement that ours is timed against is the same update: losses, gradients, whole steps.

Skipped where JAX, Flax or Optax is missing; `pip install -e .[peers]` brings them.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_golden import CASES, Case

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402

from tql_offline.agents import make_agent  # noqa: E402
from tql_offline.agents.flow_q import Noise  # noqa: E402
from tql_offline.agents.optimizers import set_learning_rate  # noqa: E402
from tql_offline.batch import Batch  # noqa: E402
from tql_offline.bench import jax_tql  # noqa: E402
from tql_offline.bench.workload import Workload, random_transitions  # noqa: E402
from tql_offline.config import resolve  # noqa: E402

CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of another framework's rounding."""
OBSERVATION_DIM, ACTION_DIM, BATCH, HIDDEN = 5, 2, 8, (24, 16)
TARGETS = ((1.5, 1.625), (1.25, 1.375))
"""Exact in float32, in which the controller is made."""
STEPS = 40
"""A schedule so short that four updates see warm-up and cosine."""


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param == torch.float64):
        yield request.param


def to_jax(tensor):
    return jnp.asarray(tensor.detach().numpy())


def insert(tree, names, value):
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
    tree[names[-1]] = value


def critic_tree(named):
    """Flax's parameters of tensors under our names: `blocks.0.mlp.2.weight` → its `kernel`."""
    tree = {}
    for key, tensor in named.items():
        *owner, last = key.split(".")
        if not owner:
            insert(tree, [key], to_jax(tensor))
            continue
        if owner[0] in ("blocks", "heads"):
            owner[:2] = [f"{owner[0]}_{owner[1]}"]
        if owner[0].startswith("heads"):
            owner = ["_".join(owner)]
        elif "mlp" in owner:
            owner[-2:] = [f"mlp_{owner[-1]}"]
        leaf, value = leaf_of(owner[-1].endswith("norm"), last, tensor)
        insert(tree, [*owner, leaf], value)
    return {"params": tree}


def leaf_of(is_norm, last, tensor):
    if last == "bias":
        return last, to_jax(tensor)
    return ("scale", to_jax(tensor)) if is_norm else ("kernel", to_jax(tensor.T))


def policy_tree(named):
    """Flax's parameters of a policy, whose layers are Linear, GELU, LayerNorm in threes."""
    tree = {}
    for key, tensor in named.items():
        _, index, last = key.split(".")
        layer, place = divmod(int(index), 3)
        leaf, value = leaf_of(place == 2, last, tensor)
        insert(tree, [f"{'norm' if place == 2 else 'dense'}_{layer}", leaf], value)
    return {"params": tree}


def trees(agent, tensor_of=lambda parameter: parameter):
    """An agent's critic side, target and policies in Flax's layout."""
    named = {
        name: {key: tensor_of(p) for key, p in agent.networks[name].named_parameters()}
        for name in ("critic", "behaviour", "policy", "control")
    }
    critic = {
        "critic": critic_tree(named["critic"]),
        "log_temperature": to_jax(named["control"]["log_temperature"]),
    }
    policies = {name: policy_tree(named[name]) for name in ("behaviour", "policy")}
    return critic, critic_tree(agent.target_critic.state_dict()), policies


def assert_trees_close(have, want, dtype):
    assert jax.tree.structure(have) == jax.tree.structure(want)
    flat = zip(jax.tree_util.tree_leaves_with_path(have), jax.tree.leaves(want), strict=True)
    for (path, h), w in flat:
        assert h.shape == w.shape, path
        scale = max(float(jnp.abs(w).max()), 1e-12)
        np.testing.assert_allclose(
            h, w, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale, err_msg=str(path)
        )


def value_and_gradient(loss):
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


class Pair:
    """Our flow agent and the JAX statement with its weights, a batch, and noise for both."""

    def __init__(self, dtype):
        self.dtype = dtype
        config = resolve(
            {
                "critic": {"size": "tiny"},
                "flow": {"hidden": list(HIDDEN), "alpha": 3.0},
                "entropy": {"targets_nats": [list(pair) for pair in TARGETS]},
                "steps": STEPS,
                "polyak": 0.1,
            }
        )
        torch.manual_seed(0)
        self.agent = make_agent(config, OBSERVATION_DIM, ACTION_DIM, CPU)
        for network in self.agent.networks.values():
            network.to(dtype)
        rates = self.agent.learning_rates
        self.agent.learning_rates = {name: 20 * rate for name, rate in rates.items()}
        self.randomise()
        self.tql = replace(
            jax_tql.make_tql("tiny", ACTION_DIM, HIDDEN),
            alpha=3.0,
            targets=TARGETS,
            polyak=config.polyak,
            critic_lr=self.agent.learning_rates["critic"],
            policy_lr=self.agent.learning_rates["policy"],
            warmup=config.optimizer.warmup,
            steps=STEPS,
        )

    def randomise(self):
        """No parameter at its initial 0 or 1, so that none can be forgotten or confused."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for network in self.agent.networks.values():
                for parameter in network.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter += 0.1 * noise.to(self.dtype)

    def inputs(self, seed=0):
        """A batch and noise in PyTorch, and the same in JAX."""
        g = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=g).to(self.dtype)

        actions, next_actions = normal(BATCH, ACTION_DIM).tanh(), normal(BATCH, ACTION_DIM).tanh()
        batch = Batch(
            observations=normal(BATCH, OBSERVATION_DIM),
            actions=actions,
            rewards=normal(BATCH),
            next_observations=normal(BATCH, OBSERVATION_DIM),
            discounts=0.9 * (normal(BATCH) > 0).to(self.dtype),
            returns_to_go=normal(BATCH),
            next_actions=next_actions,
            next_action_mask=torch.ones(BATCH, dtype=self.dtype),
        )
        shape = (BATCH, ACTION_DIM)
        t = torch.rand((BATCH, 1), generator=g).to(self.dtype)
        noise = Noise(next_policy=normal(*shape), x_0=normal(*shape), t=t, policy=normal(*shape))
        columns = (to_jax(getattr(batch, name)) for name in jax_tql.Batch._fields)
        numbers = (to_jax(getattr(noise, name)) for name in jax_tql.Noise._fields)
        return batch, noise, jax_tql.Batch(*columns), jax_tql.Noise(*numbers)

    def state(self):
        """The agent's weights as a state before the first update."""
        critic, target, policies = trees(self.agent)
        return jax_tql.State(
            critic=critic,
            target=target,
            policies=policies,
            critic_moments=self.tql.critic_optimizer().init(critic),
            policy_moments=self.tql.policy_optimizer().init(policies),
            key=jax.random.key(0),
        )


@pytest.fixture
def pair(dtype):
    return Pair(dtype)


def test_q_and_entropy(pair):
    batch, _, jax_batch, _ = pair.inputs()
    q, entropy = pair.agent.critic(batch.observations, batch.actions, return_entropy=True)
    have = pair.tql.critic.apply(
        pair.state().critic["critic"], jax_batch.observations, jax_batch.actions
    )
    assert_trees_close(have, (to_jax(q), to_jax(entropy)), pair.dtype)


def test_critic_loss_and_gradients(pair):
    batch, noise, jax_batch, jax_noise = pair.inputs()
    loss, _ = pair.agent.critic_loss(batch, noise)
    loss.backward()
    want = trees(pair.agent, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)[0]
    state = pair.state()
    (have_loss, _), have = value_and_gradient(pair.tql.critic_loss)(
        state.critic, state.target, state.policies, jax_batch, jax_noise
    )
    assert_trees_close((have_loss, have), (to_jax(loss), want), pair.dtype)


def test_policy_loss_and_gradients(pair):
    batch, noise, jax_batch, jax_noise = pair.inputs()
    loss, _ = pair.agent.policy_loss(batch, noise)
    loss.backward()
    want = trees(pair.agent, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)[2]
    state = pair.state()
    (have_loss, _), have = value_and_gradient(pair.tql.policy_loss)(
        state.policies, state.critic, jax_batch, jax_noise
    )
    assert_trees_close((have_loss, have), (to_jax(loss), want), pair.dtype)


@pytest.mark.parametrize("dtype", [torch.float64], indirect=True)
def test_whole_updates(pair, monkeypatch):
    """Weights after eight updates: optimizers, decay, schedules and the target network too.

    In float64 alone, as Adam turns rounding of a gradient near 0 into a step of either sign; and to
    a ten-thousandth of a step, as Optax's schedules are computed in float32.
    """
    state, rates, update = pair.state(), pair.agent.learning_rates, jax.jit(pair.tql.update)
    for step in range(8):
        batch, noise, jax_batch, jax_noise = pair.inputs(seed=step)
        monkeypatch.setattr(pair.agent, "draw_noise", lambda *_, noise=noise: noise)
        set_learning_rate(pair.agent.optimizers, rates, step, pair.tql.warmup, STEPS)
        pair.agent.update(batch, torch.Generator(), step + 1)
        state, _ = update(state, jax_batch, jax_noise)
    have = jax.tree.leaves((state.critic, state.target, state.policies))
    for h, w in zip(have, jax.tree.leaves(trees(pair.agent)), strict=True):
        assert float(jnp.abs(h - w).max()) < 1e-4 * max(rates.values())


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden_cases(path, dtype):
    """Q, entropies and the three critic losses of the golden files."""
    case = Case(path, dtype)
    depth, ensemble, heads = (int(case.arrays[k]) for k in ("depth", "ensemble", "heads"))
    width = len(case.arrays["param.value_token"])
    critic = jax_tql.Critic(width, heads, depth, ensemble)
    params, target = (critic_tree(case.named(prefix)) for prefix in ("param.", "target_param."))
    s, a, next_s, next_a = (
        to_jax(case[key])
        for key in ("observations", "actions", "next_observations", "next_actions")
    )
    q, entropy = critic.apply(params, s, a)
    want = (to_jax(case["expected_q"]), to_jax(case["expected_entropy"]))
    assert_trees_close((q, entropy), want, dtype)
    next_q, _ = critic.apply(target, next_s, next_a)
    discounts = to_jax(case["discount"] * case["masks"])
    y = to_jax(case["rewards"]) + discounts * next_q.mean(axis=-1)
    assert_trees_close(y, to_jax(case["expected_target"]), dtype)


@pytest.mark.parametrize("updates_per_call", [1, 3])
def test_a_trainer_trains(updates_per_call):
    workload = Workload(
        objective="flow", size="tiny", batch_size=4, observation_dim=3, action_dim=2
    )
    data = random_transitions(workload, episodes=2, length=5)
    trainer = jax_tql.Trainer(workload, data, updates_per_call)
    trainer.step()
    first = jax.tree.map(np.array, trainer.state.critic)
    trainer.step()
    trainer.block()
    count = trainer.state.policy_moments[0].count
    assert count == 2 * updates_per_call
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first, trainer.state.critic)
    assert all(jax.tree.leaves(moved))
    assert np.isfinite(trainer.metrics["critic_loss"])
