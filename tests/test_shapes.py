"""Shapes given at once are those that PyTorch works out."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tql_offline.agents import META
from tql_offline.shapes import RESULTS, ShapesAtOnce

aten = torch.ops.aten
ROWS = torch.empty(4, 7, 6, device=META)
ONE = torch.empty(6, device=META)
FLAT, SQUARE = torch.empty(4, 6, device=META), torch.empty(6, 5, device=META)
MEANS = torch.empty(4, 7, 1, device=META)
WHOLE = torch.empty(6, device=META, dtype=torch.int64)
HALF = ROWS.to(torch.float16)
TURNED = ROWS.transpose(0, 2)

CASES = [
    *((op, (ROWS,)) for op in (aten.gelu.default, aten.sqrt.default, aten.zeros_like.default)),
    (aten.gelu.default, (TURNED,)),
    (aten.zeros_like.default, (WHOLE,)),
    (aten.gelu_backward.default, (ROWS, ROWS)),
    (aten.div.Scalar, (ROWS, 2)),
    (aten.mul.Scalar, (ROWS, 2.0)),
    (aten.pow.Tensor_Scalar, (HALF, 2)),
    (aten.clamp.default, (ROWS, -1, 1)),
    (aten.native_layer_norm.default, (ROWS, [6], ONE, ONE, 1e-5)),
    (aten.native_layer_norm.default, (ROWS, [7, 6], None, None, 1e-5)),
    *(
        (
            aten.native_layer_norm_backward.default,
            (ROWS, ROWS, [6], MEANS, MEANS, ONE, ONE, list(needed)),
        )
        for needed in ((True, True, True), (True, False, False), (False, True, True))
    ),
    (aten.addmm.default, (torch.empty(5, device=META), FLAT, SQUARE)),
    *(
        (op, both)
        for op in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
        for both in ((ROWS, ROWS), (ROWS, ONE), (ONE, ROWS), (HALF, ONE), (WHOLE, ONE))
    ),
    (aten.mul.Tensor, (TURNED, 2.0)),
    (aten.div.Tensor, (WHOLE, WHOLE)),
    (aten.add.Tensor, (WHOLE, WHOLE)),
    *((op, (ROWS, ROWS)) for op in (aten.add_.Tensor, aten.mul_.Tensor)),
    *((op, (ROWS, ROWS, ROWS)) for op in (aten.addcmul_.default, aten.addcdiv_.default)),
    (aten.lerp_.Scalar, (ROWS, ROWS, 0.5)),
    (aten.uniform_.default, (ROWS,)),
    (aten.normal_.default, (ROWS,)),
]


def shapes_of(results):
    results = [results] if isinstance(results, torch.Tensor) else results
    return [t if t is None else (t.shape, t.dtype, t.device) for t in results]


@pytest.mark.parametrize(("operation", "arguments"), CASES)
def test_shapes_are_pytorchs(operation, arguments):
    usual = operation(*arguments)
    with ShapesAtOnce():
        assert shapes_of(operation(*arguments)) == shapes_of(usual)


def test_every_operation_has_a_case():
    assert {operation for operation, _ in CASES} == set(RESULTS)


def test_numbers_stay_pytorchs():
    with ShapesAtOnce():
        assert torch.equal(torch.ones(2) + torch.ones(2), torch.full((2,), 2.0))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ROWS + torch.empty(5, device=META),
        lambda: torch.addmm(ONE, FLAT, FLAT),
        lambda: torch.addmm(torch.empty(3, device=META), FLAT, SQUARE),
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong):
    with ShapesAtOnce(), pytest.raises(RuntimeError):
        wrong()


def test_products_are_counted():
    with ShapesAtOnce(), FlopCounterMode(display=False) as counter:
        torch.nn.functional.linear(FLAT, SQUARE.T, torch.empty(5, device=META))
    assert counter.get_total_flops() == 2 * 4 * 6 * 5
