"""Attention and its hand-written passes against the plain expressions, gradients included."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_critic import TOLERANCE, assert_same
from torch.nn import functional

from tql_offline.networks import attention, kernels

DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "attention.py"


def assert_same_passes(have, want, *inputs):
    """Results, and gradients of a random sum of them."""
    inputs = [x.requires_grad_() for x in inputs]
    pairs = list(zip(have(*inputs), want(*inputs), strict=True))
    losses = [0, 0]
    for pair in pairs:
        assert_same(*pair)
        weights = torch.randn_like(pair[1]) / pair[1].numel() ** 0.5
        losses = [loss + (weights * x).sum() for loss, x in zip(losses, pair, strict=True)]
    gradients = [torch.autograd.grad(loss, inputs) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        assert_same(one, other)


def plain(qkv, heads):
    q, k, v = (attention.split_heads(part, heads) for part in qkv.chunk(3, dim=-1))
    mixed, entropy = attention.attention_with_entropy(q, k, v)
    return mixed.transpose(1, 2).flatten(2), entropy


shapes = {
    "batch": st.integers(1, 9),
    "length": st.integers(1, 12),
    "heads": st.sampled_from([1, 2, 4]),
    "seed": st.integers(0, 1000),
}


def first_weights(qk, heads):
    q, k = (attention.split_heads(part, heads) for part in qk.chunk(2, dim=-1))
    log_p = attention.attention_log_weights(q, k)
    return log_p[:, :, 0].exp(), attention.weights_entropy(log_p)


def layer_by_layer(x, w1, b1, w2, b2):
    hidden = functional.gelu(functional.linear(x, w1, b1), approximate="tanh")
    return (functional.linear(hidden, w2, b2),)


@DTYPES
@pytest.mark.parametrize("rows", [1, 4, 5, 12])
def test_feed_forward_and_gelu(dtype, rows, monkeypatch):
    monkeypatch.setattr(kernels, "ROWS", 4)
    shapes = ((rows, 6), (24, 6), (24,), (6, 24), (6,))
    x, *layers = (torch.randn(shape, dtype=dtype) for shape in shapes)
    assert_same_passes(
        lambda *t: (kernels.FeedForward.apply(*t, True),), layer_by_layer, x, *layers
    )
    assert_same_passes(
        lambda t: (kernels.Gelu.apply(t),), lambda t: (functional.gelu(t, approximate="tanh"),), x
    )
    with torch.no_grad():
        assert_same(kernels.FeedForward.apply(x, *layers, False), layer_by_layer(x, *layers)[0])


@DTYPES
def test_gelu_far_out(dtype):
    x = torch.tensor([-1e4, -30.0, -1e-30, 0.0, 1e-30, 30.0, 1e4], dtype=dtype)
    assert_same_passes(
        lambda t: (kernels.Gelu.apply(t),), lambda t: (functional.gelu(t, approximate="tanh"),), x
    )


@DTYPES
def test_affine_projection(dtype, monkeypatch):
    monkeypatch.setattr(kernels, "NUMBERS", 2 * 5 * 7)
    tensors = [torch.randn(s, dtype=dtype) for s in ((9, 5), (9, 5), (5, 7), (5, 7), (7,))]
    assert_same_passes(
        lambda *t: (kernels.AffineProjection.apply(*t),),
        lambda *t: (kernels.AffineProjection.plain(*t),),
        *tensors,
    )


@DTYPES
@settings(deadline=None, max_examples=20)
@given(**shapes)
def test_entropy_without_the_weights(dtype, batch, length, heads, seed):
    """From a fused kernel's log-sum-exp."""
    torch.manual_seed(seed)
    q, k = torch.randn(2, batch, heads, length, 8, dtype=dtype).unbind()
    assert_same_passes(
        lambda q, k: (attention.LongEntropy.apply(q, k),),
        lambda q, k: (attention.weights_entropy(attention.attention_log_weights(q, k)),),
        q.clone(),
        k.clone(),
    )


@DTYPES
@pytest.mark.parametrize("length", [attention.LONG, attention.LONG + 1])
def test_both_sides_of_the_length_where_the_form_changes(dtype, length):
    torch.manual_seed(0)
    qkv = torch.randn(2, length, 48, dtype=dtype)

    def grouped(x):
        mixed, entropy = plain(x, 2)
        return mixed, attention.group_entropy(entropy)

    assert_same_passes(lambda x: attention.mix(x, 2, True), grouped, qkv)
    assert_same_passes(lambda x: attention.mix(x, 2, False)[:1], lambda x: plain(x, 2)[:1], qkv)

    def grouped_first(x):
        weights, entropy = first_weights(x, 2)
        return weights, attention.group_entropy(entropy)

    qk = qkv[..., :32].detach().contiguous()
    assert_same_passes(lambda x: attention.value_weights(x, 2), grouped_first, qk)


def test_memory_of_the_long_form_is_linear():
    """Twice the tokens, twice the peak; four times for the plain form, which shows the counter."""
    spec = importlib.util.spec_from_file_location("attention_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)

    def growth(form):
        peaks = [
            benchmark.measure(form, length, torch.device("cpu"), rounds=1)["peak_bytes"]
            for length in (256, 512)
        ]
        return peaks[1] / peaks[0]

    assert growth(benchmark.linear) == pytest.approx(2, rel=0.02)
    assert growth(attention.attention_with_entropy) == pytest.approx(4, rel=0.15)
