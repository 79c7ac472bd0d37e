"""Emulated precisions: products are rounded as tensor cores do, and runs of each are compared."""

import json

import pytest
import torch
from own_data import write_own

from benchmarks import precision
from tql_offline.runs import read_json


def test_tf32_keeps_ten_bits_and_rounds_ties_to_even():
    step = 2.0**-10
    x = torch.tensor([1 + 0.4 * step, 1 + 0.5 * step, 1 + 1.5 * step, 1 + 0.6 * step, -3e-5, 0.0])
    rounded = precision.to_tf32(x)
    assert rounded[:4].tolist() == [1.0, 1.0, 1 + 2 * step, 1 + step]
    assert ((rounded - x).abs() <= x.abs() * step / 2).all()
    assert rounded[5] == 0


def test_products_and_their_gradients_are_rounded_and_nothing_else():
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    ra, rb = precision.to_tf32(a.detach()), precision.to_tf32(b.detach())
    with precision.Emulated("tf32"):
        out = a @ b
        out.sum().backward()
        total = a + a
    assert torch.equal(out, ra @ rb)
    assert torch.equal(a.grad, torch.ones(4, 3) @ rb.T)
    assert torch.equal(total, a + a)
    with precision.Emulated("bfloat16"), torch.autocast("cpu", torch.bfloat16):
        low = a @ b
    assert torch.equal(low, (a.bfloat16().float() @ b.bfloat16().float()).bfloat16())


def test_without_runs_to_compare_with_it_ends_in_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        precision.main(["table", str(tmp_path)])
    assert stop.value.code == 2
    assert f"{tmp_path} has no runs in float32; train them first" in capsys.readouterr().err


def test_runs_of_every_precision_are_compared(tmp_path, capsys):
    data = write_own(tmp_path / "mine.npz", (20, 20), 3)
    runs = tmp_path / "runs"
    flags = ["--seeds", "0", "--updates", "3", "--device", "cpu"]
    precision.main(["train", "--runs", str(runs), "--path", str(data), *flags])
    precision.main(["table", str(runs), "--json", str(tmp_path / "out.json")])
    document = read_json(tmp_path / "out.json")
    assert document["emulated"]
    assert set(document["curves"]) == {"float32", "tf32", "bfloat16"}
    for row in document["distances"]:
        assert row["one float32 seed"] == 0
        assert 0 <= row["tf32"] < 0.1 * abs(row["float32 at the end"])
    q = {name: curve["Q"][0][-1] for name, curve in document["curves"].items()}
    assert len(set(q.values())) == 3
    assert "| quantity |" in capsys.readouterr().out
    assert json.dumps(document)
