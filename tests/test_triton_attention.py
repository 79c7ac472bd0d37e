"""The GPU's attention kernel against the plain path, in Triton's interpreter where no GPU is."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with PyTorch for GPUs")

from tql_offline.networks import attention, triton_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def plain(qkv, parts, heads):
    """Mixed values, or the first query's weights; and the entropies."""
    q, k, *v = (attention.split_heads(part, heads) for part in qkv.chunk(parts, dim=-1))
    log_p = attention.attention_log_weights(q, k)
    if parts == 2:
        return log_p[:, :, 0].exp(), attention.weights_entropy(log_p)
    mixed = (log_p.exp().to(v[0].dtype) @ v[0]).transpose(1, 2).flatten(2)
    return mixed, attention.weights_entropy(log_p)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize(("length", "heads", "head_width"), [(43, 2, 32), (7, 3, 16), (66, 1, 64)])
def test_values_entropies_and_gradients(parts, length, heads, head_width):
    torch.manual_seed(0)
    width = parts * heads * head_width
    qkv = torch.randn(2, length, width, device=DEVICE, requires_grad=True)
    have = triton_attention.attend(qkv, parts, heads)[:2]
    want = plain(qkv, parts, heads)
    weights = [torch.randn_like(part) for part in want]
    gradients = []
    for results in (have, want):
        loss = sum((w * r).sum() for w, r in zip(weights, results, strict=True))
        gradients.append(torch.autograd.grad(loss, qkv)[0])
    for one, other in zip((*have, gradients[0]), (*want, gradients[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_one_result_alone(which):
    torch.manual_seed(1)
    qkv = torch.randn(2, 9, 96, device=DEVICE, requires_grad=True)
    have, want = triton_attention.attend(qkv, 3, 2)[which], plain(qkv, 3, 2)[which]
    weights = torch.randn_like(want)
    pair = (torch.autograd.grad((weights * r).sum(), qkv)[0] for r in (have, want))
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no bfloat16")
def test_bfloat16_products_have_float32_sums():
    torch.manual_seed(2)
    qkv = torch.randn(4, 43, 3 * 64, device=DEVICE)
    low = qkv.bfloat16().requires_grad_()
    exact = low.detach().double().requires_grad_()
    have, want = triton_attention.attend(low, 3, 2)[:2], plain(exact, 3, 2)
    for one, other in zip(have, want, strict=True):
        assert (one.double() - other).norm() / other.norm() < 5e-3
    weights = torch.randn_like(want[0])
    gradients = [
        torch.autograd.grad((weights.to(r.dtype) * r).sum() + e.sum(), x)[0].double()
        for x, (r, e) in ((low, have), (exact, want))
    ]
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-2


def test_the_operators_are_what_the_compiler_is_told():
    qkv = torch.randn(1, 5, 96, device=DEVICE, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton_attention.attend, (qkv, 3, 2), test_utils=checks)
