"""Whole runs from a file to the result on every device there is, without a simulator."""

from typing import Any

import pytest
import torch
from agent_cases import without_key_biases
from marks import slowly
from own_data import write_own
from safetensors.torch import load_file
from test_resume import Killed, killing

from tql_offline.config import resolve
from tql_offline.datasets.load import load
from tql_offline.files import read_json, read_jsonl
from tql_offline.training.fqe import Fit, evaluate_offline
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.resume import resume
from tql_offline.training.run import run, run_seeds

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# On a CPU test_resume.py and test_execution.py have the same, to the bit.
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.slow),
    pytest.param("cuda", marks=needs_gpu),
]
SETTINGS = {
    "critic": {"size": "tiny"},
    "flow": {"hidden": [16, 16], "flow_steps": 2},
    "steps": 60,
    "batch_size": 16,
    "log_every": 20,
    "checkpoint_every": 30,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load(str(write_own(tmp_path_factory.mktemp("data") / "mine.npz", (50, 50), 3)))


def settings(data, device, **over):
    execution = {"compile": "off", "updates_per_launch": 10} | over.pop("execution", {})
    whole = SETTINGS | {"device": device, "dataset": {"name": str(data.path)}} | over
    if over.get("objective") == "pac":
        whole |= {"critic": {"size": "tiny", "kind": "perceiver"}}
    return resolve(whole | {"execution": execution})


def weights(folder):
    files = (folder.checkpoints / "60").glob("*.safetensors")
    return {
        f"{file.stem}.{name}": tensor
        for file in files
        if file.stem not in ("random", "window")
        for name, tensor in load_file(file).items()
    }


def assert_same(one, other, device):
    """The same bits on a CPU; on a GPU sums may be made in another order."""
    assert one.keys() == other.keys()
    near = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
    if device != "cpu":
        one, other = without_key_biases(one), without_key_biases(other)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, **near, msg=name)


OBJECTIVES = ("flow", "implicit", "conservative", "rebrac", "floq", "pac")
WAYS: list[Any] = [
    # Such runs are what test_export.py exports.
    *(slowly("cpu", objective, {}) for objective in OBJECTIVES),
    *(
        pytest.param("cuda", objective, execution, marks=needs_gpu)
        for objective, execution in [
            *((objective, {}) for objective in OBJECTIVES),
            ("flow", {"precision": "tf32"}),
            ("flow", {"data": "host"}),
        ]
    ),
    *(
        pytest.param("cuda", "flow", how, marks=needs_gpu, id=f"compiled-{len(how)}")
        for how in ({"compile": "on"}, {"compile": "on", "precision": "bfloat16"})
    ),
]


@pytest.mark.parametrize(("device", "objective", "execution"), WAYS)
@pytest.mark.filterwarnings("default")  # a compiler's own
def test_a_whole_run(data, device, objective, execution, tmp_path):
    config = settings(data, device, objective=objective, execution=execution)
    folder = run(config, data, tmp_path, "r", SilentReporter())
    recorded = read_json(folder.provenance)["execution"]
    compiled = execution.get("compile", "off") == "on"
    is_graphed = device == "cuda" and "data" not in execution
    mode = ("compiled" if compiled else "eager") + (", graphed" if is_graphed else "")
    assert (recorded["mode"], recorded["reason"]) == (mode, "")
    assert [line["step"] for line in read_jsonl(folder.metrics)] == [20, 40, 60]
    assert all(line["seconds"] > 0 for line in read_jsonl(folder.timing))
    assert read_json(folder.result)["updates"] == 60


@pytest.mark.parametrize("device", DEVICES)
def test_a_killed_run_goes_on(data, device, tmp_path):
    config = settings(data, device)
    whole = run(config, data, tmp_path, "whole", SilentReporter())
    with pytest.raises(Killed):
        run(config, data, tmp_path, "killed", killing("logged", 2))
    folder = resume(tmp_path / "killed", lambda _config: data, SilentReporter())
    assert_same(weights(whole), weights(folder), device)


@pytest.mark.parametrize("device", DEVICES)
def test_seeds_at_once_are_each_what_it_is_alone(data, device, tmp_path):
    seeds = (0, 1)
    together = run_seeds(settings(data, device), seeds, data, tmp_path, "r", SilentReporter())
    for seed, folder in zip(seeds, together, strict=True):
        alone = run(settings(data, device, seed=seed), data, tmp_path, f"{seed}", SilentReporter())
        assert_same(weights(alone), weights(folder), device)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_estimates_from_data_alone(data, device, tmp_path):
    folder = run(settings(data, device, steps=2), data, tmp_path, "r", SilentReporter())
    fit = Fit(updates=3, batch_size=8, members=2, hidden=(8,))
    lines = evaluate_offline(
        folder.path, fit=fit, device=device, load_dataset=lambda _: data, reporter=SilentReporter()
    )
    assert [line["policy"] for line in lines] == ["learned", "behaviour"]
    assert all(line["low"] < line["value"] < line["high"] for line in lines)
