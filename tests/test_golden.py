"""The critic and its losses against golden cases: direct evaluations of the method's equations."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tql_offline.networks import EntropyController, TransformerCritic
from tql_offline.objectives.conservative import conservative_gap, uniform_log_density
from tql_offline.objectives.implicit import expectile_error
from tql_offline.objectives.td import ensemble_value, squared_td_error, td_target

CASES = sorted((Path(__file__).parent / "golden").glob("*.npz"))
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class Case:
    """One golden file: tensors in the wanted dtype, and a critic with its parameters."""

    def __init__(self, path, dtype):
        self.arrays = dict(np.load(path))
        self.dtype = dtype

    def __getitem__(self, key):
        return torch.as_tensor(self.arrays[key]).to(self.dtype)

    def named(self, prefix):
        return {k.removeprefix(prefix): self[k] for k in self.arrays if k.startswith(prefix)}

    def critic(self, prefix="param."):
        width = len(self.arrays["param.value_token"])
        sizes = (self.arrays["observations"].shape[1], self.arrays["actions"].shape[1], width)
        heads, depth, ensemble = (int(self.arrays[k]) for k in ("heads", "depth", "ensemble"))
        critic = TransformerCritic(*sizes, heads, depth, ensemble).to(self.dtype)
        critic.load_state_dict(self.named(prefix), strict=True)
        return critic

    def controller(self):
        controller = EntropyController("layerwise", self["target_entropy"]).to(self.dtype)
        with torch.no_grad():
            controller.log_temperature.copy_(self["log_temperature"])
        return controller

    def assert_close(self, have, key):
        want = self[key]
        tolerance = TOLERANCE[self.dtype]
        # Relative to the tensor's own scale: an entry that cancels to 0 has no relative error.
        scale = max(float(want.abs().max()), 1e-12)
        torch.testing.assert_close(have, want, rtol=tolerance, atol=tolerance * scale, msg=key)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(params=CASES, ids=lambda p: p.stem)
def case(request, dtype):
    return Case(request.param, dtype)


def critic_losses(case, critic, controller):
    q, entropy = critic(case["observations"], case["actions"], return_entropy=True)
    next_q = case.critic("target_param.")(case["next_observations"], case["next_actions"])
    discounts = case["discount"] * case["masks"]
    target = td_target(case["rewards"], discounts, ensemble_value(next_q, "mean"))
    bonus, temperature = controller(entropy)
    return squared_td_error(q, target).mean(), bonus, temperature


def test_there_are_cases():
    assert len(CASES) == 2


def test_q_and_entropy(case):
    q, entropy = case.critic()(case["observations"], case["actions"], return_entropy=True)
    case.assert_close(q, "expected_q")
    case.assert_close(entropy, "expected_entropy")


def test_plain_path(case):
    q, entropy = case.critic().forward_plain(case["observations"], case["actions"])
    case.assert_close(q, "expected_q")
    case.assert_close(entropy, "expected_entropy")


def test_q_is_the_same_without_entropy(case):
    case.assert_close(case.critic()(case["observations"], case["actions"]), "expected_q")


@pytest.mark.parametrize(
    ("reduction", "key"), [("mean", "expected_target"), ("min", "expected_target_min")]
)
def test_td_target(case, reduction, key):
    next_q = case.critic("target_param.")(case["next_observations"], case["next_actions"])
    value = ensemble_value(next_q, reduction)
    target = td_target(case["rewards"], case["discount"] * case["masks"], value)
    case.assert_close(target, key)


def test_losses(case):
    losses = critic_losses(case, case.critic(), case.controller())
    for have, key in zip(losses, ("q", "entropy", "temperature"), strict=True):
        case.assert_close(have, f"expected_{key}_loss")


def test_gradient_of_every_parameter(case):
    critic, controller = case.critic(), case.controller()
    sum(critic_losses(case, critic, controller)).backward()
    have = {n: p.grad for n, p in critic.named_parameters()}
    have["log_temperature"] = controller.log_temperature.grad
    assert set(have) == set(case.named("grad."))
    for name, gradient in have.items():
        case.assert_close(gradient, f"grad.{name}")


@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradient_to_the_action(case, with_entropy):
    actions = case["actions"].requires_grad_()
    out = case.critic()(case["observations"], actions, return_entropy=with_entropy)
    q = out[0] if with_entropy else out
    (gradient,) = torch.autograd.grad(q.mean(dim=-1).sum(), actions)
    case.assert_close(gradient, "expected_action_gradient")


def sampled(case, critic, key):
    """Q of the (B, n, A) actions under `key`, at the case's observations: (B, n, E)."""
    actions = case[key]
    batch, count, _ = actions.shape
    observations = case["observations"].repeat_interleave(count, dim=0)
    return critic(observations, actions.flatten(0, 1)).view(batch, count, -1)


def test_expectile_error(case):
    """The case's value against the target critic's minimum at its next pair."""
    q = case.critic("target_param.")(case["next_observations"], case["next_actions"])
    error = expectile_error(case["value"], ensemble_value(q, "min"), float(case["expectile"]))
    case.assert_close(error.mean(), "expected_expectile_loss")


def test_conservative_penalty(case):
    critic = case.critic()
    names = ("uniform_actions", "policy_actions", "next_policy_actions")
    sampled_q = torch.cat([sampled(case, critic, name) for name in names], dim=1)
    _, count, action_dim = case["uniform_actions"].shape
    uniform = torch.full((len(sampled_q), count), uniform_log_density(action_dim), dtype=case.dtype)
    densities = [uniform, case["policy_log_prob"], case["next_policy_log_prob"]]
    data_q = critic(case["observations"], case["actions"])
    gap = conservative_gap(sampled_q, torch.cat(densities, dim=1), data_q)
    case.assert_close(gap.mean(), "expected_conservative_penalty")
