"""Small agents of every method, random batches, and tasks of known answer."""

import torch

from tql_offline.agents import make_agent
from tql_offline.agents.optimizers import set_learning_rate
from tql_offline.batch import Batch
from tql_offline.config import resolve

CPU = torch.device("cpu")
METHODS = {
    "flow": {"objective": "flow"},
    "implicit awr": {"objective": "implicit"},
    "implicit best-of-n": {
        "objective": "implicit",
        "implicit": {"extraction": "best-of-n", "samples": 3},
    },
    "conservative": {"objective": "conservative", "conservative": {"samples": 2}},
    "conservative lagrange": {
        "objective": "conservative",
        "conservative": {"samples": 2, "lagrange": True, "target_gap": 1.0, "calibrated": True},
    },
    "conservative best": {
        "objective": "conservative",
        "conservative": {"samples": 2, "backup": "best", "importance_weights": False},
    },
    "rebrac": {"objective": "rebrac"},
    "floq": {"objective": "floq", "floq": {"samples": 3, "steps": 2}},
    "pac": {
        "objective": "pac",
        "pac": {"atoms": 21, "latents": 4},
        "critic": {"kind": "perceiver"},
    },
    "cloning gaussian": {"objective": "cloning"},
    "cloning flow": {"objective": "cloning", "cloning": {"policy": "flow"}},
}


def build(method, critic="transformer", entropy="layerwise", seed=0, **overrides):
    kind = kind_of(method, critic)
    config = resolve(
        METHODS[method]
        | {"critic": {"size": "tiny", "kind": kind}, "entropy": {"mode": entropy}}
        | {"flow": {"hidden": [16, 16]}, "seed": seed}
        | overrides
    )
    return make_agent(config, 3, 2, CPU)


def kind_of(method, kind):
    """A critic's kind, of which PAC can have one alone."""
    return METHODS[method].get("critic", {}).get("kind", kind)


def make_batch(size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        observations=torch.randn(size, 3, generator=g),
        actions=(torch.rand(size, 2, generator=g) * 2 - 1) * 0.99,
        rewards=-torch.ones(size),
        next_observations=torch.randn(size, 3, generator=g),
        discounts=torch.full((size,), 0.9),
        next_actions=(torch.rand(size, 2, generator=g) * 2 - 1) * 0.99,
        next_action_mask=torch.ones(size),
        returns_to_go=torch.full((size,), -5.0),
    )


def train(agent, count=20):
    generator = torch.Generator().manual_seed(0)
    for step in range(count):
        set_learning_rate(agent.optimizers, agent.learning_rates, step, 0, count)
        metrics = agent.update(make_batch(seed=step), generator, step + 1)
    return metrics


def fit(sample, updates, **settings):
    """Train a tiny agent without entropy term on batches of `sample(generator)`."""
    fits_rewards = settings.pop("fits_rewards", False)
    base = {
        "critic": {"size": "tiny", "kind": settings.pop("kind", "mlp")},
        "entropy": {"mode": "none"},
        "flow": {"hidden": [64, 64], "alpha": settings.pop("alpha", 1.0)},
        "optimizer": {"critic_lr": 2e-3, "policy_lr": 2e-3, "warmup": 0},
        "polyak": 0.05,
        "steps": updates,
    }
    generator = torch.Generator().manual_seed(0)
    first = sample(generator)
    dims = (first.observations.shape[1], first.actions.shape[1])
    agent = make_agent(resolve(base | settings), *dims, CPU)
    if fits_rewards:
        agent.fit_rewards(first.rewards.numpy())
    for step in range(updates):
        set_learning_rate(agent.optimizers, agent.learning_rates, step, 0, updates)
        agent.update(sample(generator), generator, step + 1)
    return agent


def bandit(reward, draw):
    """One state, one step: transitions of actions drawn by `draw(generator)`, `(B, n_a)`."""

    def sample(generator):
        actions = draw(generator)
        states, zeros = torch.zeros(len(actions), 1), torch.zeros(len(actions))
        rewards = reward(actions)
        ones = torch.ones(len(actions))
        return Batch(states, actions, rewards, states, zeros, rewards, actions, ones)

    return sample


def uniform(generator, count=64):
    return (torch.rand(count, 1, generator=generator) * 2 - 1) * 0.999


def without_key_biases(state):
    """Weights by name, those of the keys' biases 0.

    They cancel in the softmax: their gradient is rounding alone, which Adam makes steps of.
    """
    cleared = {}
    for name, value in state.items():
        cleared[name] = value
        if name.endswith("qkv.bias"):
            third = len(value) // 3
            cleared[name] = torch.cat([value[:third], 0 * value[:third], value[2 * third :]])
    return cleared
