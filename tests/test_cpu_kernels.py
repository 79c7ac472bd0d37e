"""The kernels in C against plain expressions in float64, and what happens without a compiler."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import first_weights, layer_by_layer, plain
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tql_offline import native
from tql_offline.networks import TransformerCritic, attention, cpu_kernels, kernels

pytestmark = [
    pytest.mark.skipif(bool(cpu_kernels.why_not()), reason=cpu_kernels.why_not()),
    pytest.mark.usefixtures("same_threads"),
]

shapes = {
    "batch": st.integers(1, 5),
    "length": st.sampled_from([1, 2, 7, 8, 9, 24, 43, 128]),
    "heads": st.integers(1, 3),
    "width": st.sampled_from([8, 16, 24, 32, 40, 64]),
    "spread": st.sampled_from([0.0, 0.3, 1.0]),
    "seed": st.integers(0, 1000),
}


@pytest.fixture
def fresh():
    """Kernels are looked for anew, before and after."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def assert_near(have, want, exact_inputs):
    """Results and gradients in float32 within rounding of those in float64."""
    inputs = [x.float().requires_grad_() for x in exact_inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    pairs = list(zip(have(*inputs), want(*exact), strict=True))
    weights = [torch.randn_like(x) for _, x in pairs]
    losses = [
        sum((w.to(x.dtype) * x).sum() for w, x in zip(weights, side, strict=True))
        for side in zip(*pairs, strict=True)
    ]
    gradients = zip(
        torch.autograd.grad(losses[0], inputs), torch.autograd.grad(losses[1], exact), strict=True
    )
    for one, other in (*pairs, *gradients):
        scale = max(1e-2, float(other.detach().abs().max()))
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(**shapes)
def test_attention_entropies_and_gradients(batch, length, heads, width, spread, seed):
    torch.manual_seed(seed)
    qkv = torch.randn(batch, length, 3 * heads * width) * spread**0.5
    qk = qkv[..., : 2 * heads * width]
    assert cpu_kernels.takes_attention(qkv, 3, heads)
    apply = cpu_kernels.Attention.apply
    assert_near(lambda x: apply(x, 3, heads, True), lambda x: plain(x, heads), [qkv])
    assert_near(lambda x: apply(x, 3, heads, False)[:1], lambda x: plain(x, heads)[:1], [qkv])
    assert_near(
        lambda x: apply(x.contiguous(), 2, heads, True), lambda x: first_weights(x, heads), [qk]
    )


def test_all_weight_on_one_key_and_scores_beyond_what_float32_can_exponentiate():
    qkv = torch.zeros(1, 9, 3 * 8)
    qkv[..., 0] = 300.0  # of the queries
    qkv[:, 4, 8] = 5.0  # of one key: its score is 530, e^530 has no float32
    apply = cpu_kernels.Attention.apply
    assert_near(lambda x: apply(x, 3, 1, True), lambda x: plain(x, 1), [qkv])


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, -1])
@pytest.mark.parametrize("parts", [2, 3])
def test_nan_in_gives_nan_out(parts, bits):
    joint = torch.zeros(2, 5, parts * 8)
    joint.view(torch.int32)[1, 0, 0] = bits  # the first query of the second of the batch
    out, entropy = cpu_kernels.Attention.apply(joint, parts, 1, True)
    assert not out[0].isnan().any()
    assert not entropy[0].isnan().any()
    assert entropy[1, 0].isnan().tolist() == [True, False, False, False, False]
    assert (out[1, 0, :5] if parts == 2 else out[1, 0]).isnan().all()


@pytest.mark.parametrize("rows", [1, 4, 5, 12])
def test_feed_forward_and_gelu(rows, monkeypatch):
    monkeypatch.setattr(kernels, "ROWS", 4)
    x, *layers = (torch.randn(s) for s in ((rows, 8), (32, 8), (32,), (8, 32), (8,)))
    assert cpu_kernels.takes(x)
    assert_near(lambda *t: (kernels.FeedForward.apply(*t, True),), layer_by_layer, [x, *layers])


def test_gelu_far_out():
    x = torch.tensor([-1e4, -30.0, -6.0, -1e-30, 1e-30, 6.0, 30.0, 1e4])
    huge = torch.tensor([-1e13, -1e9, -1e5, -7.0, 7.0, 1e5, 1e9, 1e13])
    for inputs in (x, x[1:7].repeat(4), x[3:5].repeat(4), huge):
        assert_near(
            lambda t: (kernels.Gelu.apply(t),),
            lambda t: (functional.gelu(t, approximate="tanh"),),
            [inputs],
        )
    assert kernels.Gelu.apply(torch.full((8,), torch.nan)).isnan().all()


def test_affine_projection():
    tensors = [torch.randn(s) for s in ((9, 5), (9, 5), (5, 16), (5, 16), (16,))]
    assert_near(
        lambda *t: (kernels.AffineProjection.apply(*t),),
        lambda *t: (kernels.AffineProjection.plain(*t),),
        tensors,
    )


def passes(critic, *inputs):
    q, entropy = critic(*inputs, return_entropy=True)
    return q, entropy, *torch.autograd.grad(q.sum() + entropy.sum(), list(critic.parameters()))


def test_the_number_of_threads_changes_no_bit():
    tensors = [torch.randn(s) for s in ((9, 5), (9, 5), (5, 16), (5, 16), (16,))]
    qkv, rows, found = torch.randn(5, 43, 96), torch.randn(7, 16), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        given = [x.clone().requires_grad_() for x in (qkv, rows, *tensors)]
        out, entropy = cpu_kernels.Attention.apply(given[0], 3, 2, True)
        results = (out, entropy, kernels.Gelu.apply(given[1]))
        results += (kernels.AffineProjection.apply(*given[2:]),)
        gradients = torch.autograd.grad(sum((r**2).sum() for r in results), given)
        found.append([r.detach().numpy().tobytes() for r in (*results, *gradients)])
    assert found[0] == found[1] == found[2]


def test_a_critic_with_and_without():
    torch.manual_seed(0)
    critic = TransformerCritic(6, 2, width=32, heads=2)
    inputs, found = (torch.randn(4, 6), torch.rand(4, 2)), []
    for enabled in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_kernels, "enabled", enabled)
            found.append(passes(critic, *inputs))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(
    "joint",
    [
        torch.zeros(2, 5, 24, dtype=torch.float64),
        torch.zeros(2, 129, 24),
        torch.zeros(2, 5, 36),
        torch.zeros(2, 5, 3 * 72),
        torch.zeros(2, 24, 5).mT,
    ],
    ids=["float64", "many tokens", "no whole vectors", "wide heads", "not contiguous"],
)
def test_what_they_do_not_take_is_computed_without(joint, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_call", None)
    mixed, entropy = attention.mix(joint, 1, True)
    assert mixed.shape == (*joint.shape[:2], joint.shape[2] // 3)
    assert entropy.isfinite().all()


def test_operations_are_counted_as_without():
    critic, inputs = (
        TransformerCritic(6, 2, width=32, heads=2),
        (torch.randn(4, 6), torch.rand(4, 2)),
    )
    counts = []
    for enabled in (True, False):
        with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
            patch.setattr(cpu_kernels, "enabled", enabled)
            sum(x.sum() for x in critic(*inputs, return_entropy=True)).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_tensors_whose_memory_is_not_their_value_are_not_taken():
    x = torch.randn(2, 5, 24)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    for other in (fake, torch._efficientzerotensor((2, 5, 24)), torch._neg_view(x), x.to("meta")):
        assert not cpu_kernels.takes(other)
        assert not cpu_kernels.takes(x, other)
    assert cpu_kernels.takes(x, torch.nn.Parameter(x))


@pytest.mark.parametrize(
    ("width", "parts", "heads"), [(80, 3, 3), (8, 3, 3), (8, 2, 8), (48, 3, 3)]
)
def test_widths_that_are_no_whole_heads_are_not_taken(width, parts, heads):
    assert not cpu_kernels.takes_attention(torch.zeros(2, 5, width), parts, heads)


def test_what_was_saved_may_come_back_in_other_strides():
    qkv = torch.randn(3, 5, 24, requires_grad=True)

    def turned(x):
        return x.mT.contiguous().mT if x.ndim > 1 else x

    gradients = []
    for unpack in (lambda x: x, turned):
        with saved_tensors_hooks(lambda x: x, unpack):
            out, entropy = cpu_kernels.Attention.apply(qkv, 3, 1, True)
        gradients.append(torch.autograd.grad(out.sum() + entropy.sum(), qkv)[0])
    assert torch.equal(*gradients)


def test_a_bias_learns_where_its_weight_does_not():
    x, w1, b1, w2, b2 = (torch.randn(s) for s in ((4, 8), (32, 8), (32,), (8, 32), (8,)))
    out = kernels.FeedForward.apply(x, w1, b1.requires_grad_(), w2, b2, True)
    (gradient,) = torch.autograd.grad(out.sum(), b1)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("parts", [2, 3])
def test_second_derivatives_are_those_of_the_plain_expression(parts):
    qkv = torch.randn(2, 5, parts * 16, requires_grad=True)
    exact = qkv.detach().double().requires_grad_()
    sizes = (2, 5, 2, 8, parts)
    found = []
    for x, way in (
        (qkv, lambda x: cpu_kernels.Attention.apply(x, parts, 2, True)),
        (exact, lambda x: cpu_kernels.Attention.plain(x, sizes, True)),
    ):
        out, entropy = way(x)
        loss = out.square().sum() + entropy.square().sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        gradient.square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        ("no-such-cc", r"there is no C compiler \(no-such-cc\)"),
        ("false", "false failed: status 1"),
        ("gcc -DX='half", "No closing quotation"),
        ("sh -c 'printf \\\\351 >&2; exit 1'", "sh failed: \ufffd"),
    ],
)
@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_pytorch_computes_and_the_reason_is_told(compiler, why, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    assert re.search(why, cpu_kernels.why_not())
    assert not cpu_kernels.takes(torch.zeros(8))
    monkeypatch.setattr(cpu_kernels, "_call", None)
    assert torch.isfinite(attention.mix(torch.randn(2, 5, 24), 1, True)[0]).all()


@pytest.mark.usefixtures("fresh")
def test_on_windows_none_are_built(monkeypatch):
    monkeypatch.setattr(native.platform, "system", lambda: "Windows")
    assert cpu_kernels.why_not() == "they are not built on Windows"


@pytest.mark.usefixtures("fresh")
def test_a_home_that_cannot_be_written_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / ".tql-offline").write_text("a file, not a folder")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ".tql-offline" in cpu_kernels.why_not()


@pytest.mark.usefixtures("fresh")
def test_compiled_once_and_nothing_else_is_left(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    library = native.compiled(cpu_kernels.SOURCE, *cpu_kernels.FLAGS)
    made = library.stat().st_mtime_ns
    assert [library] == list((tmp_path / ".tql-offline" / "compiled").iterdir())
    again = native.compiled(cpu_kernels.SOURCE, *cpu_kernels.FLAGS)
    assert again.stat().st_mtime_ns == made
    library.write_bytes(b"not a library")
    assert cpu_kernels.why_not() == ""  # made again
    assert library.stat().st_size > 1000


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_threads_are_those_of_pytorch():
    """Two OpenMP runtimes would be two teams of threads that spin against one another."""
    code = (
        "import torch; from tql_offline.networks import cpu_kernels\n"
        "assert not cpu_kernels.why_not(); torch.zeros(9, 9) @ torch.zeros(9, 9)\n"
        "print(open('/proc/self/maps').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(re.findall(r"/\S*/lib[gi]?omp\d*[-.]\S*", done.stdout))
    assert len(found) == 1, found
