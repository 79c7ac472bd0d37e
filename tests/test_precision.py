"""Emulated precisions: products are rounded as tensor cores do, and runs of each are compared."""

import json
import sys

import numpy as np
import pytest
import torch
from own_data import write_own

from benchmarks import precision
from tql_offline.config import resolve
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.files import read_json
from tql_offline.networks import kernels
from tql_offline.training.reporters import SilentReporter


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


def test_scores_are_read_from_a_sweeps_runs(tmp_path, monkeypatch, capsys):
    """As precision.toml has them."""
    data = load(str(write_own(tmp_path / "mine.npz", (20, 20), 3)))
    base = {"critic": {"size": "tiny"}, "steps": 3, "dataset": {"name": str(data.path)}}
    monkeypatch.setattr(sys, "argv", ["tql-offline", "sweep", "precision.toml"])
    for name, wins in (("float32", 2), ("bfloat16", 1)):
        settings = resolve(base | {"flow": {"hidden": [8]}, "batch_size": 4})
        folder = precision.runs.run(settings, data, tmp_path / name, f"{name}-s0", SilentReporter())
        episodes = [{"success": number < wins} for number in range(3)]
        line = {"step": 3, "policy": "learned", "episodes": episodes}
        folder.evaluations.write_text(json.dumps(line))
    for other in (".sweep", "float32-s0.log"):
        (tmp_path / "float32" / other).mkdir()
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("float32", "bfloat16"):
        (tmp_path / name).rename(runs / name)
    precision.main(["table", str(runs), "--json", str(tmp_path / "out.json")])
    document = read_json(tmp_path / "out.json")
    assert document["successes of 50, by update"] == [
        {"precision": "bfloat16", "3": "1"},
        {"precision": "float32", "3": "2"},
    ]
    assert "| float32 | 2 |" in capsys.readouterr().out


def test_runs_of_every_precision_are_compared(tmp_path, capsys, monkeypatch):
    run, had_kernels = precision.runs.run, {}

    def noted(config, dataset, folder, *others):
        had_kernels[folder.name] = kernels.enabled
        return run(config, dataset, folder, *others)

    monkeypatch.setattr(precision.runs, "run", noted)
    data = write_own(tmp_path / "mine.npz", (20, 20), 3)
    runs = tmp_path / "runs"
    flags = ["--seeds", "0", "--updates", "3", "--device", "cpu"]
    precision.main(["train", "--runs", str(runs), "--path", str(data), *flags])
    precision.main(["table", str(runs), "--json", str(tmp_path / "out.json")])
    document = read_json(tmp_path / "out.json")
    assert document["emulated"]
    assert set(document["curves"]) == {"float32", "control", "tf32", "bfloat16"}
    q = {name: curve["Q"][0] for name, curve in document["curves"].items()}
    assert len({values[-1] for values in q.values()}) >= 3
    assert had_kernels == {"float32": True, "control": False, "tf32": True, "bfloat16": True}
    for row in document["differences"]:
        assert abs(row["control"]["mean"]) < 1e-4 * abs(row["float32"])
        assert abs(row["tf32"]["mean"]) < 0.1 * abs(row["float32"])
    assert row["tf32"]["by seed"] == [pytest.approx(q["tf32"][-1] - q["float32"][-1])]
    assert "| quantity |" in capsys.readouterr().out
    assert json.dumps(document)
    (runs / "tf32" / "tf32-0" / "result.json").unlink()
    with pytest.raises(InputError, match="tf32-0 is unfinished"):
        precision.curves_of(runs / "tf32")


def made_up(seeds, values):
    values = np.asarray(values, dtype=float)
    return precision.Curves(seeds, np.arange(1, 11) * 100, {"Q": values}, {})


def test_the_last_fifth_is_compared_seed_by_seed():
    base = np.arange(20.0).reshape(2, 10)
    more = base + np.array([[50] * 8 + [1, 3], [50] * 8 + [4, 4]])
    (row,) = precision.differences(
        {"float32": made_up([0, 1], base), "tf32": made_up([0, 1], more)}
    )
    assert row["float32"] == (8.5 + 18.5) / 2
    assert row["tf32"]["by seed"] == [2, 4]
    assert row["tf32"]["mean"] == 3
    # t of one degree of freedom at 97.5 % is 12.706; the mean of 2 and 4 has a standard error of 1.
    assert row["tf32"]["plus or minus"] == pytest.approx(12.706, abs=1e-3)


def test_the_largest_distance_is_that_of_one_seed_at_one_update():
    base = np.arange(20.0).reshape(2, 10)
    more = base + np.array([[50] * 5 + [1, 1, -3, 1, 1], [50] * 5 + [2] * 5])
    curves = {"float32": made_up([0, 1], base), "tf32": made_up([0, 1], more)}
    assert list(precision.distances(curves)) == [{"quantity": "Q", "another seed": 10, "tf32": 3}]


def test_seeds_that_were_not_trained_are_named():
    curves = {"float32": made_up([0, 1], np.ones((2, 10))), "tf32": made_up([0], np.ones((1, 10)))}
    with pytest.raises(InputError, match=r"tf32 has runs of seeds \[0\] and float32 of \[0, 1\]"):
        list(precision.differences(curves))
