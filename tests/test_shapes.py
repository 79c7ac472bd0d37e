"""Shapes given at once are those that PyTorch works out."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from agent_cases import METHODS
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

LIKE_FIRST = (
    *(aten.gelu.default, aten.relu.default, aten.tanh.default, aten.softplus.default),
    *(aten.abs.default, aten.cos.default, aten.erf.default, aten.exp.default, aten.log.default),
    *(aten.neg.default, aten.rsqrt.default, aten.sqrt.default, aten.zeros_like.default),
    *(aten.uniform_.default, aten.normal_.default, aten.abs_.default, aten.neg_.default),
)
WITH_NUMBER = (
    *(aten.mul.Scalar, aten.div.Scalar, aten.rsub.Scalar, aten.pow.Tensor_Scalar),
    *(aten.clamp.default, aten.clamp_min.default),
    *(aten.ge.Scalar, aten.le.Scalar, aten.lt.Scalar),
)
OF_TWO = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default)
COMPARED = (aten.eq.Tensor, aten.gt.Tensor, aten.lt.Tensor)
REDUCED = (aten.sum.dim_IntList, aten.mean.dim, aten.logsumexp.default)
PAIRS = [(ROWS, ROWS), (ROWS, ONE), (ONE, ROWS), (HALF, ONE), (WHOLE, ONE), (WHOLE, WHOLE)]
SOFTMAX_BACKWARD = (ROWS, ROWS, -1, torch.float32)

CASES = [
    *((op, (ROWS,)) for op in LIKE_FIRST),
    *((op, (of, 2)) for op in WITH_NUMBER for of in (ROWS, HALF, WHOLE)),
    *((op, both) for op in OF_TWO for both in PAIRS),
    *((op, both) for op in COMPARED for both in ((ROWS, ONE), (WHOLE, WHOLE))),
    *((op, (ROWS, dims, keep)) for op in REDUCED for dims in ([0, -1], [1]) for keep in (0, 1)),
    *((op, (ROWS, ROWS)) for op in (aten.tanh_backward.default, aten.gelu_backward.default)),
    *((op, (ROWS, ROWS)) for op in (aten.add_.Tensor, aten.mul_.Tensor, aten.div_.Tensor)),
    *((op, (ROWS, ROWS, ROWS)) for op in (aten.addcmul_.default, aten.addcdiv_.default)),
    *(
        (op, ([ROWS, ROWS], dim))
        for op in (aten.cat.default, aten.stack.default)
        for dim in (0, -1)
    ),
    (aten.cat.default, ([ROWS, ROWS[:, :3]], 1)),
    (aten.cat.default, ([ROWS, HALF], 0)),
    (aten.cat.default, ([WHOLE, WHOLE],)),
    (aten.stack.default, ([ONE, ONE], 1)),
    (aten.gelu.default, (TURNED,)),
    (aten.sqrt.default, (WHOLE,)),
    (aten.zeros_like.default, (WHOLE,)),
    (aten.mul.Tensor, (TURNED, 2.0)),
    (aten.lerp_.Scalar, (ROWS, ROWS, 0.5)),
    (aten.clamp_min_.default, (ROWS, 0)),
    (aten.clamp.Tensor, (ROWS, ONE, ROWS)),
    (aten.clamp.Tensor, (ROWS, None, ONE)),
    (aten.where.self, (ROWS > 0, ROWS, ONE)),
    (aten.where.self, (ROWS > 0, ONE, HALF)),
    (aten.where.self, (ROWS > 0, WHOLE, WHOLE)),
    (aten.threshold_backward.default, (ROWS, ROWS, 0)),
    (aten.softplus_backward.default, (ROWS, ROWS, 1, 20)),
    (aten._log_softmax.default, (ROWS, -1, False)),
    (aten._safe_softmax.default, (ROWS, -1)),
    (aten._safe_softmax.default, (HALF, -1, torch.float32)),
    (aten._log_softmax_backward_data.default, SOFTMAX_BACKWARD),
    (aten._softmax_backward_data.default, SOFTMAX_BACKWARD),
    (aten.mean.default, (ROWS,)),
    (aten.mean.dim, (ROWS, None)),
    (aten.std.correction, (ROWS, [0])),
    (aten.std.correction, (ROWS,)),
    (aten.sum.dim_IntList, (WHOLE, [0])),
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
    (partial(aten.randn.generator, generator=torch.Generator(), device=META), ([4, 3],)),
    (partial(aten.mean.dim, dtype=torch.float64), (ROWS, [0])),
    (partial(aten.zeros_like.default, dtype=torch.float64), (ROWS,)),
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
    assert {getattr(operation, "func", operation) for operation, _ in CASES} == set(RESULTS)


def test_numbers_stay_pytorchs():
    with ShapesAtOnce():
        assert torch.equal(torch.ones(2) + torch.ones(2), torch.full((2,), 2.0))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ROWS + torch.empty(5, device=META),
        lambda: torch.cat([ROWS, FLAT]),
        lambda: torch.stack([ROWS, FLAT]),
        lambda: torch.addmm(ONE, FLAT, FLAT),
        lambda: torch.addmm(torch.empty(3, device=META), FLAT, SQUARE),
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong):
    # PyTorch 2.6 asserts it of `stack`.
    with ShapesAtOnce(), pytest.raises((RuntimeError, AssertionError)):
        wrong()


def test_products_are_counted():
    with ShapesAtOnce(), FlopCounterMode(display=False) as counter:
        torch.nn.functional.linear(FLAT, SQUARE.T, torch.empty(5, device=META))
    assert counter.get_total_flops() == 2 * 4 * 6 * 5


def test_no_method_needs_the_compiler():
    """Its import takes 2.5 s; a process of its own, as tests before this one may have done it."""
    code = (
        "import sys, torch\n"
        "from agent_cases import METHODS, build, train\n"
        "from tql_offline.training.arithmetic import flops_per_update\n"
        "for method in METHODS:\n"
        "    agent = build(method)\n"
        "    train(agent, 1)\n"
        "    flops_per_update(agent.config, 3, 2)\n"
        "    for optimizer in agent.optimizers.values():\n"
        "        optimizer.load_state_dict(optimizer.state_dict())\n"
        "    print(method, 'torch._dynamo' in sys.modules)\n"
    )
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{method} False" for method in METHODS], done.stderr
