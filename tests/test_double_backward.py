"""The critic in other people's code: second derivatives, torch.func, shapes of every kind."""

import copy
import re

import pytest
import torch
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

from tql_offline.errors import InputError
from tql_offline.networks import TransformerCritic, cpu_kernels

S, A = 3, 2


def made(size="tiny", dtype=torch.float32):
    torch.manual_seed(0)
    critic = TransformerCritic.of_size(size, S, A).to(dtype)
    return critic, torch.randn(6, S, dtype=dtype), torch.rand(6, A, dtype=dtype) * 2 - 1


def second_derivatives(q, critic, observations, actions):
    """Of the squared gradients by state and action, by every weight and by the inputs."""
    inputs = [x.clone().requires_grad_() for x in (observations, actions)]
    first = torch.autograd.grad(q(*inputs).square().sum(), inputs, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in first)
    every = [*critic.parameters(), *inputs]
    return torch.autograd.grad(penalty, every, allow_unused=True)


WAYS = {
    "in C": (torch.float32, True),
    "in C, without entropy": (torch.float32, False),
    "by hand": (torch.float32, True),
    "float64": (torch.float64, True),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_second_derivatives_are_those_of_the_plain_path(way, monkeypatch):
    """A gradient penalty that is silently wrong trains something else."""
    dtype, with_entropy = WAYS[way]
    critic, *batch = made(dtype=dtype)
    exact, *exact_batch = made(dtype=torch.float64)
    exact.load_state_dict(critic.state_dict())
    exact_batch = [x.double() for x in batch]
    if way == "by hand":
        monkeypatch.setattr(cpu_kernels, "enabled", False)
    elif way.startswith("in C") and not cpu_kernels.usable():
        pytest.skip("no kernels in C")

    def ours(observations, actions):
        if not with_entropy:
            return critic(observations, actions)
        q, entropy = critic(observations, actions, return_entropy=True)
        return q + entropy.sum()

    def plain(observations, actions):
        q, entropy = exact.forward_plain(observations, actions, with_entropy)
        return q + entropy.sum()

    found = second_derivatives(ours, critic, *batch)
    wanted = second_derivatives(plain, exact, *exact_batch)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    scale = max(want.abs().max() for want in wanted if want is not None)
    for have, want in zip(found, wanted, strict=True):
        zero = torch.zeros(1, dtype=torch.float64)
        difference = (zero if have is None else have.double()) - (zero if want is None else want)
        assert difference.abs().max() <= tolerance * scale


def test_without_the_kernels_in_c_pytorchs_attention_refuses_second_derivatives(monkeypatch):
    """It has none without the entropy; `forward_plain` has."""
    monkeypatch.setattr(cpu_kernels, "enabled", False)
    critic, *batch = made()
    with pytest.raises(RuntimeError, match="is not implemented"):
        second_derivatives(critic, critic, *batch)


def test_gradients_can_be_had_again_from_a_kept_graph():
    critic, observations, actions = made()
    actions.requires_grad_()
    loss = critic(observations, actions).sum()
    (first,) = torch.autograd.grad(loss, actions, retain_graph=True)
    (again,) = torch.autograd.grad(loss, actions, create_graph=True)
    torch.testing.assert_close(first, again)
    assert again.requires_grad


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_critic_works_under_pytorchs_transforms():
    critic, observations, actions = made()
    loss = critic(observations, actions).square().mean()
    loss.backward()
    weights = dict(critic.named_parameters())

    def mean_square(weights, observations, actions):
        return functional_call(critic, weights, (observations, actions)).square().mean()

    found = grad(mean_square)({k: w.detach() for k, w in weights.items()}, observations, actions)
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5)
    jacobian = jacrev(lambda action: critic(observations[:1], action))(actions[:1])
    assert jacobian.shape == (1, 2, 1, A)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_an_ensemble_of_critics_runs_under_vmap():
    critics = [copy.deepcopy(made()[0]) for _ in range(3)]
    for number, critic in enumerate(critics):
        torch.nn.init.normal_(critic.value_token, std=1.0 + number)
    _, *batch = made()
    weights, _ = stack_module_state(critics)

    def one(weights):
        return functional_call(critics[0], weights, (*batch, True))

    q, entropy = vmap(one)(weights)
    for number, critic in enumerate(critics):
        want_q, want_entropy = critic(*batch, return_entropy=True)
        torch.testing.assert_close(q[number], want_q, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(entropy[number], want_entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("leading", [(), (4,), (2, 5), (3, 1, 2), (0,)])
def test_any_leading_dims_are_taken(leading):
    critic, _, _ = made()
    observations, actions = torch.randn(*leading, S), torch.randn(*leading, A)
    q = critic(observations, actions)
    assert q.shape == (*leading, 2)
    flat = critic(observations.reshape(-1, S), actions.reshape(-1, A))
    assert torch.equal(q.reshape(-1, 2), flat)
    if q.numel():
        same, entropy = critic(observations, actions, return_entropy=True)
        torch.testing.assert_close(same, q, rtol=1e-4, atol=1e-5)
        assert entropy.shape == (2, 2)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [((6, A), (6, S)), ((6, S + 1), (6, A)), ((6, S), (5, A)), ((1, S), (6, A)), ((), (A,))],
)
def test_shapes_that_do_not_fit_are_refused(observations, actions):
    critic, _, _ = made()
    said = re.escape(f"(B, {S}) and actions (B, {A}), in this order, and was given {observations}")
    with pytest.raises(InputError, match=said):
        critic(torch.zeros(observations), torch.zeros(actions))
