"""The transformer critic's sizes, exact savings and entropies."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tql_offline.errors import InputError
from tql_offline.networks import SIZES, TransformerCritic, attention_with_entropy

PARAMETERS = {
    "tiny": 107_458,
    "small": 419_714,
    "medium": 1_658_626,
    "large": 6_594_050,
    "xl": 26_295_298,
    "xxl": 105_019_394,
}


@pytest.mark.parametrize("size", list(SIZES))
def test_parameter_counts_at_cube_doubles_shape(size):
    """37 + 5 scalars, two blocks: the counts that docs/cost.md prints."""
    with torch.device("meta"):
        critic = TransformerCritic.of_size(size, 37, 5)
    assert sum(p.numel() for p in critic.parameters()) == PARAMETERS[size]


def test_unknown_size_is_named():
    with pytest.raises(InputError, match=r"'huge'.*xxl"):
        TransformerCritic.of_size("huge", 3, 2)
    with pytest.raises(InputError, match="not divisible"):
        TransformerCritic(3, 2, width=10, heads=4)


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def assert_same(have, want):
    """To 1e-10 in float64 and 1e-5 in float32, of the tensor's own scale and at least of 1."""
    difference, scale = (have - want).detach().abs().max(), float(want.detach().abs().max())
    assert difference <= TOLERANCE[want.dtype] * max(1.0, scale)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@settings(deadline=None, max_examples=20)
@given(
    dims=st.tuples(st.integers(1, 9), st.integers(1, 5)),
    heads=st.sampled_from([1, 2, 4]),
    depth=st.integers(1, 4),
    batch=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_exact_savings_change_nothing(dtype, dims, heads, depth, batch, seed):
    """Q, entropies and all gradients of both fast paths equal the plain path's."""
    torch.manual_seed(seed)
    critic = TransformerCritic(*dims, width=8 * heads, heads=heads, depth=depth)
    for parameter in critic.parameters():  # no zero biases or unit norms, which hide mistakes
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    critic = critic.to(dtype)
    observations = torch.randn(batch, dims[0], dtype=dtype)
    actions = torch.randn(batch, dims[1], dtype=dtype, requires_grad=True)

    q, entropy = critic.forward_plain(observations, actions)
    fast_q, fast_entropy = critic(observations, actions, return_entropy=True)
    lean_q = critic(observations, actions)
    assert_same(fast_q, q)
    assert_same(lean_q, q)
    assert_same(fast_entropy, entropy)

    inputs = [actions, *critic.parameters()]
    weights = torch.randn_like(entropy)
    want = torch.autograd.grad(q.square().mean() + (weights * entropy).mean(), inputs)
    have = torch.autograd.grad(fast_q.square().mean() + (weights * fast_entropy).mean(), inputs)
    for one, other in zip(have, want, strict=True):
        assert_same(one, other)
    q_only = torch.autograd.grad(critic.forward_plain(observations, actions)[0].mean(), inputs)
    lean = torch.autograd.grad(lean_q.mean(), inputs)
    for one, other in zip(lean, q_only, strict=True):
        assert_same(one, other)


def test_entropy_of_uniform_and_of_sharp_attention():
    keys = torch.eye(4).reshape(1, 1, 4, 4)
    _, uniform = attention_with_entropy(torch.zeros(1, 1, 4, 4), keys, keys)
    torch.testing.assert_close(uniform, torch.full((1, 1, 4), math.log(4)))
    _, sharp = attention_with_entropy(1000 * keys, keys, keys)
    torch.testing.assert_close(sharp, torch.zeros(1, 1, 4))


def test_entropy_of_sharp_attention_has_finite_gradients():
    query = (1e4 * torch.eye(3)).reshape(1, 1, 3, 3).requires_grad_()
    _, entropy = attention_with_entropy(query, query, query)
    (gradient,) = torch.autograd.grad(entropy.sum(), query)
    assert gradient.isfinite().all()


def test_initial_weights_are_lecun_normal():
    torch.manual_seed(0)
    critic = TransformerCritic.of_size("medium", 37, 5)
    weight = critic.blocks[0].qkv.weight
    assert weight.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert critic.position.std().item() == pytest.approx(0.02, rel=0.1)
    assert not critic.blocks[0].qkv.bias.any()


@pytest.mark.parametrize(("with_entropy", "most"), [(True, 0.50), (False, 0.42)])
def test_exact_savings_halve_the_arithmetic(with_entropy, most):
    """Multiply-adds of the forward pass at depth 2 and 43 tokens, by PyTorch's counter."""
    critic = TransformerCritic.of_size("small", 37, 5)
    inputs = (torch.zeros(256, 37), torch.zeros(256, 5))

    def count(forward, *arguments):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(*arguments)
        return counter.get_total_flops()

    assert count(critic, *inputs, with_entropy) <= most * count(critic.forward_plain, *inputs)
