"""Which settings change nothing of a run, against runs that differ in one of them."""

from operator import ne
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from agent_cases import METHODS

from tql_offline.config import Config, resolve
from tql_offline.datasets.load import load
from tql_offline.documents import flatten
from tql_offline.errors import InputError
from tql_offline.presets import merge
from tql_offline.setting_effects import idle_settings
from tql_offline.training.setup import set_up

UPDATES = 3
"""Past every delay of a policy, whose target networks are then used."""
BASE = {
    "dataset": {"name": "mine.npz"},
    "critic": {"size": "tiny"},
    "flow": {"hidden": [8], "flow_steps": 2},
    "optimizer": {"warmup": 1},
    "steps": 100,
    "batch_size": 4,
}
CASES = {
    ("flow", "transformer"): {},
    ("flow", "mlp"): {},
    ("implicit awr", "mlp"): {},
    ("implicit best-of-n", "transformer"): {},
    ("conservative", "mlp"): {},
    ("conservative lagrange", "transformer"): {},
    ("conservative best", "mlp"): {},
    ("rebrac", "mlp"): {"optimizer": {"warmup": 0, "schedule": "constant"}},
    ("floq", "transformer"): {"entropy": {"mode": "fixed"}},
    ("floq", "mlp"): {},
    ("pac", "perceiver"): {},
    ("cloning gaussian", "transformer"): {"entropy": {"mode": "none"}},
    ("cloning flow", "perceiver"): {},
    ("rebrac", "transformer"): {"entropy": {"mode": "none"}},
}
"""Method and kind of critic → further settings, so that each branch of `idle_settings` is there."""
OTHERS = {
    "flow.hidden": (9,),
    "critic.ensemble": 8,  # of which a Perceiver's width follows in coarse steps
    "entropy.targets_nats": ((0.5, 0.5), (0.5, 0.5)),
    "optimizer.warmup": 2,
    "pac.least": -1.0,
}
"""What a setting becomes whose other value does not follow from its type."""
ELSEWHERE = {
    "objective": "the case itself",
    "steps": "how many updates there are",
    "conservative.rows_at_once": "how many actions are in memory at once",
    "dataset.name": "which data",
    "dataset.path": "which data",
    "dataset.slices": "which data",
    "dataset.allow_broken": "which data",
    "dataset.action_bounds": "which data",
    "dataset.env_id": "where policies are scored",
    "evaluation.": "how policies are scored",
    "execution.": "how updates are computed",
    "device": "how updates are computed",
    "watch.": "when a run stops",
    "log_every": "what is written",
    "checkpoint_every": "what is written",
    "keep_checkpoints": "what is written",
    "tracker": "what is written",
    "preset": "a name",
}
"""Settings that do their work outside the updates that are tried here."""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Three episodes: one ends its task, two are cut."""
    path, rng = tmp_path_factory.mktemp("data") / "mine.npz", np.random.default_rng(0)
    ends = np.cumsum([7, 7, 7]) - 1
    masks, terminals = np.ones(21, np.float32), np.zeros(21, bool)
    terminals[ends], masks[ends[0] - 1] = True, 0
    np.savez(
        path,
        observations=3 + 2 * rng.standard_normal((21, 2), dtype=np.float32),
        actions=rng.uniform(-0.9, 0.9, (21, 1)).astype(np.float32),
        rewards=rng.uniform(-1, 9, 21).astype(np.float32),
        masks=masks,
        terminals=terminals,
    )
    return load(str(path))


def outcomes(settings, data):
    """Weights, losses and actions after every update, as bytes by name."""
    setup = set_up(resolve(settings), data)
    for step in range(UPDATES):
        setup.updates(step + 1, 1)
        yield {name: value.numpy().tobytes() for name, value in state(setup)}


def state(setup):
    for name, network in setup.agent.networks.items():
        yield from ((f"{name}.{key}", value) for key, value in network.state_dict().items())
    yield from ((k, v) for k, v in setup.window.tensors().items() if k.endswith("loss"))
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(5, 2, generator=generator)
    for policy in setup.agent.policies:
        noise = torch.randn(5, setup.agent.noise_dim(policy), generator=generator)
        with torch.no_grad():
            yield policy, setup.agent.act(policy, observations, noise)


def fields():
    """Every setting's dotted name, with its field."""
    for name, field in Config.model_fields.items():
        if inner := getattr(field.annotation, "model_fields", None):
            yield from ((f"{name}.{key}", value) for key, value in inner.items())
        else:
            yield name, field


def other_value(name, field, value):
    if name in OTHERS:
        return OTHERS[name]
    if get_origin(field.annotation) is Literal:
        values = get_args(field.annotation)
        values = values[:2] if name == "critic.kind" and value != "perceiver" else values
        return values[(values.index(value) + 1) % len(values)]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 or 0.5


def changes(settings):
    """Every setting that may be another here, with that one: nested as in a config file."""
    flat = flatten(resolve(settings).model_dump())
    for name, field in fields():
        if not name.startswith((*ELSEWHERE, "own")):
            table, _, key = name.rpartition(".")
            other = other_value(name, field, flat[name])
            yield name, {table: {key: other}} if table else {key: other}


def is_taken(settings):
    try:
        return bool(resolve(settings))
    except InputError:  # such as a gap without a multiplier
        return False


def settings_of(case):
    method, kind = case
    return merge(merge(merge(BASE, METHODS[method]), CASES[case]), {"critic": {"kind": kind}})


def idle_of(settings):
    config = resolve(settings)
    return tuple(idle_settings(config.objective, flatten(config.model_dump(mode="json"))))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_idle_settings_change_nothing_even_all_at_once(own, case):
    settings = changed = settings_of(case)
    for name, change in changes(settings):
        if name.startswith(idle_of(settings)) and is_taken(merge(changed, change)):
            changed = merge(changed, change)
    assert [*outcomes(changed, own)] == [*outcomes(settings, own)]


LONG = {("flow", "mlp"), ("floq", "mlp"), ("floq", "transformer"), ("rebrac", "transformer")}
LONG |= {
    (f"conservative {way}", kind) for way, kind in (("lagrange", "transformer"), ("best", "mlp"))
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] * (c in LONG), id=" ".join(c)) for c in CASES],
)
def test_every_other_setting_changes_something(own, case):
    settings = settings_of(case)
    idle, before = idle_of(settings), [*outcomes(settings, own)]
    for name, change in changes(settings):
        changed = merge(settings, change)
        if not name.startswith(idle) and is_taken(changed):
            assert any(map(ne, outcomes(changed, own), before)), name
