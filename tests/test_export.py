"""`export` and `load`: the same actions, the same bytes, all or nothing, and strangers refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from agent_cases import METHODS
from marks import highest_memory, slowly
from own_data import write_own
from safetensors.torch import load_file, save_file

import tql_offline
from tql_offline.agents import make_agent, numpy_policy
from tql_offline.cli import main
from tql_offline.config import resolve
from tql_offline.datasets.load import load as load_dataset
from tql_offline.errors import InputError
from tql_offline.eval import protocol as protocols
from tql_offline.eval.rollout import evaluate
from tql_offline.eval.workers import EnvironmentPool
from tql_offline.files import append_jsonl, read_jsonl
from tql_offline.runs import RunFolder, find_runs
from tql_offline.sharing import export as export_module
from tql_offline.sharing import hub as hub_module
from tql_offline.sharing import onnx_policies
from tql_offline.sharing.export import export_run
from tql_offline.training import checkpoint
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.rescoring import evaluate_run
from tql_offline.training.result import open_run
from tql_offline.training.run import run

CPU = torch.device("cpu")
S, A = 3, 2
SETTINGS = {
    "critic": {"size": "tiny"},
    "flow": {"hidden": [16, 16], "flow_steps": 3},
    "steps": 4,
    "batch_size": 8,
    "log_every": 2,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module", autouse=True)
def one_registry():
    """PyTorch gathers its ONNX operators once, not at every export."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError, AttributeError):  # it is PyTorch's own affair
            from torch.onnx._internal.exporter._registration import ONNXRegistry as Registry

            patch.setattr(Registry, "from_torchlib", staticmethod(cache(Registry.from_torchlib)))
        yield


def merged(*layers):
    result = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = old | value if isinstance(old, dict) else value
    return result


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two episodes of 30 and 20 transitions, far from mean 0 and standard deviation 1."""
    path = tmp_path_factory.mktemp("data") / "mine.npz"
    return write_own(path, (30, 20), S, mean=5, deviation=3)


@pytest.fixture(scope="module")
def trained(own, tmp_path_factory):
    """Runs by method and kind of critic, each trained once."""
    known = {}

    def get(method="flow", kind="transformer"):
        if (method, kind) not in known:
            layers = (SETTINGS, {"critic": {"kind": kind}}, METHODS[method])
            data = {"dataset": {"name": str(own), "normalise": True}}
            folder = tmp_path_factory.mktemp("runs")
            config = resolve(merged(*layers, data))
            known[method, kind] = run(config, load_dataset(str(own)), folder, "", SilentReporter())
        return known[method, kind]

    return get


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A model without policy.onnx."""
    return export_run(trained().path, tmp_path_factory.mktemp("models") / "m", onnx=False).folder


@pytest.fixture
def model(exported, tmp_path):
    """A copy of it, free to be spoiled."""
    return shutil.copytree(exported, tmp_path / "model")


def agent_of(folder, step=4):
    """The agent as `eval` makes it."""
    _, config = open_run(folder.path)
    saved = folder.checkpoints / str(step)
    state = checkpoint.read_state(saved)
    agent = make_agent(config, state.observation_dim, state.action_dim, CPU)
    checkpoint.load_networks(saved, agent)
    return agent


def inputs(rows, noise_dim, seed=0):
    rng = np.random.default_rng(seed)
    observations = 5 + 3 * rng.standard_normal((rows, S), dtype=np.float32)
    return observations, rng.standard_normal((rows, noise_dim), dtype=np.float32)


def command(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["export", *map(str, arguments)])
    return stop.value.code


# The same actions.


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("transformer", method) for method in METHODS),
        ("mlp", "implicit best-of-n"),  # the others act without their critic
    ],
)
def test_a_loaded_policy_acts_as_the_evaluated_one(trained, tmp_path, method, kind):
    folder = trained(method, kind)
    out = export_run(folder.path, tmp_path / "model", onnx=False).folder
    agent = agent_of(folder)
    for name in agent.policies:
        policy = tql_offline.load(out, policy=name)
        observations, noise = inputs(50, agent.noise_dim(name))
        wanted = numpy_policy(agent, name, CPU)(observations, noise)
        given = policy(observations, noise[:, : policy.noise_dim])
        assert given.dtype == np.float32
        np.testing.assert_array_equal(given, wanted)


@pytest.mark.parametrize(
    ("method", "networks", "noise"),
    [
        ("flow", {"behaviour", "policy"}, {"learned": A, "behaviour": A}),
        ("implicit awr", {"policy"}, {"learned": 0}),
        ("implicit best-of-n", {"behaviour", "critic"}, {"learned": 3 * A, "behaviour": A}),
        ("conservative lagrange", {"policy"}, {"learned": 0}),
        ("rebrac", {"policy"}, {"learned": 0}),
        ("floq", {"behaviour", "policy"}, {"learned": A, "behaviour": A}),
        ("pac", {"behaviour", "policy"}, {"learned": A, "behaviour": A}),
        ("cloning gaussian", {"policy"}, {"learned": 0}),
        ("cloning flow", {"policy"}, {"learned": A}),
    ],
)
def test_a_model_has_what_acts_and_nothing_else(trained, tmp_path, method, networks, noise):
    done = export_run(trained(method).path, tmp_path / "model", onnx=False)
    files = {path.stem for path in done.folder.glob("*.safetensors")}
    assert files == networks | {"normaliser"}
    others = {path.name for path in done.folder.iterdir() if path.suffix != ".safetensors"}
    assert others == {"README.md", "config.toml", "model.json"}
    assert done.facts["policies"] == noise
    stochastic = "The policy is stochastic" in (done.folder / "README.md").read_text()
    assert stochastic == bool(noise["learned"])


ANOTHERS_POLICY = (
    *("floq", "pac", "conservative lagrange", "conservative best", "cloning gaussian"),
)
"""Methods whose policy is a network of the class that another's is."""


@pytest.mark.parametrize(
    "method",
    [slowly(m) if m in ("implicit best-of-n", *ANOTHERS_POLICY) else m for m in METHODS],
)
def test_the_onnx_policy_acts_as_the_original(trained, tmp_path, method):
    same_onnx_actions(trained(method), tmp_path)


def test_the_onnx_policy_acts_as_the_original_with_an_mlp_critic(trained, tmp_path):
    same_onnx_actions(trained("implicit best-of-n", "mlp"), tmp_path)


def same_onnx_actions(folder, tmp_path):
    import onnxruntime

    done = export_run(folder.path, tmp_path / "model")
    assert done.comparison.rows >= 40
    assert done.comparison.ties == 0
    assert done.comparison.difference <= 1e-5
    session = onnxruntime.InferenceSession(done.folder / "policy.onnx")
    agent, noise_dim = agent_of(folder), done.facts["policies"]["learned"]
    shapes = {each.name: each.shape for each in session.get_inputs()}
    batch = shapes["observation"][0]
    assert isinstance(batch, str)  # not a size; "batch" but in PyTorch 2.6
    assert shapes == {"observation": [batch, S]} | (
        {"noise": [batch, noise_dim]} if noise_dim else {}
    )
    assert [each.name for each in session.get_outputs()] == ["action"]
    for rows in (1, 7, 64):
        observations, noise = inputs(rows, agent.noise_dim("learned"), seed=rows)
        wanted = numpy_policy(agent, "learned", CPU)(observations, noise)
        given = session.run(
            None, {k: {"observation": observations, "noise": noise}[k] for k in shapes}
        )
        np.testing.assert_allclose(given[0], wanted, rtol=0, atol=1e-5)


def test_onnx_actions_that_differ_are_refused(trained, tmp_path, monkeypatch, capsys):
    traced = onnx_policies._traced

    def of_other_weights(acting):
        data = traced(acting)
        with torch.no_grad():
            acting.networks["policy"].net[-1].bias += 1e-4
        return data

    monkeypatch.setattr(onnx_policies, "_traced", of_other_weights)
    assert command(trained("rebrac").path, "--out", tmp_path / "out" / "model") == 2
    assert "differ from the original's by up to" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_an_action_that_rounding_moves_is_told_from_a_wrong_one():
    def threshold(observations, noise):
        return (observations + noise > 1).astype(np.float32)

    rows, zeros = np.array([[1.0], [2.0]], dtype=np.float32), np.zeros((2, 1), dtype=np.float32)
    assert onnx_policies._is_tie(threshold, rows, zeros, 0)
    assert not onnx_policies._is_tie(threshold, rows, zeros, 1)


# How it is used.


def test_one_observation_or_a_batch_by_one_generator(model):
    policy = tql_offline.load(model, seed=3)
    observations, _ = inputs(4, A)
    one_by_one = np.stack([policy(row) for row in observations])
    policy.reset(3)
    together = policy(observations)
    assert one_by_one.shape == together.shape == (4, A)
    np.testing.assert_allclose(one_by_one, together, rtol=0, atol=1e-6)
    assert (policy(observations) != together).any()
    np.testing.assert_array_equal(tql_offline.load(model, seed=3)(observations), together)
    assert (tql_offline.load(model, seed=4)(observations) != together).any()


def test_observations_come_as_an_environment_gives_them(model):
    policy = tql_offline.load(model)
    noise = np.zeros(A, dtype=np.float32)
    wanted = policy([1.0, 2.0, 3.0], noise)
    backwards = np.array([3.0, 2.0, 1.0])[::-1]
    backwards.flags.writeable = False
    np.testing.assert_array_equal(policy(backwards, noise), wanted)
    assert policy(np.zeros((0, S))).shape == (0, A)


@pytest.mark.parametrize(
    ("observation", "noise", "words"),
    [
        ([1.0, 2.0], None, r"shape \(2,\) where the policy takes \(3,\) or \(batch, 3\)"),
        (1.0, None, "shape"),
        ([[[1.0, 2.0, 3.0]]], None, "shape"),
        ([1.0, 2.0, np.nan], None, "observation is not finite"),
        ([1.0, 2.0, 1e300], None, "observation is not finite"),
        (["a", "b", "c"], None, "no array of numbers"),
        (
            {"a": [1.0, 2.0, 3.0]},
            None,
            r"a dict, .* give .*spaces\.flatten\(env\.observation_space,",
        ),
        ([1.0, 2.0, 3.0], [0.0], "noise has shape"),
        ([[1.0, 2.0, 3.0]], np.zeros((2, A)), "1 observations are given with 2 rows of noise"),
    ],
)
def test_an_argument_of_another_shape_is_refused(model, observation, noise, words):
    with pytest.raises(InputError, match=words):
        tql_offline.load(model)(observation, noise)


def test_a_seed_below_zero_is_refused(model):
    with pytest.raises(InputError, match="seed is -1"):
        tql_offline.load(model, seed=-1)


def test_importing_the_package_imports_no_pytorch():
    code = (
        "import sys, tql_offline; assert 'load' in dir(tql_offline); "
        "assert 'torch' not in sys.modules; print('ok')"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ok\n"
    with pytest.raises(AttributeError, match="no attribute 'save'"):
        _ = tql_offline.save


# The same episodes.


@pytest.fixture(scope="module", params=["flow", "implicit best-of-n"])
def evaluated(request, data, short_protocols, tmp_path_factory):
    """A run in a real maze whose last checkpoint `eval` has scored again."""
    layers = (SETTINGS, METHODS[request.param], {"steps": 2, "dataset": {"name": data.name}})
    settings = {"evaluation": {"protocol": "quick", "processes": 1}}
    folder = run(
        resolve(merged(*layers, settings)),
        data,
        tmp_path_factory.mktemp("maze"),
        "",
        SilentReporter(),
    )
    evaluate_run(
        folder.path,
        step=None,
        protocol="quick",
        policies=("learned",),
        device="cpu",
        reporter=SilentReporter(),
    )
    return folder


def test_an_exported_policy_plays_the_episodes_that_eval_has_scored(evaluated, tmp_path):
    out = export_run(evaluated.path, tmp_path / "model", onnx=False).folder
    policy, line = tql_offline.load(out), list(read_jsonl(evaluated.evaluations))[-1]
    protocol = protocols.get("quick")
    with EnvironmentPool(line["env_id"], slots=protocol.slots, processes=1) as pool:
        played = evaluate(
            policy,
            pool,
            protocol,
            step=policy.step,
            policy_name=policy.name,
            noise_dim=policy.noise_dim,
        )
    assert played == line


def test_by_hand_an_episode_of_a_seed_gets_the_evaluations_noise(evaluated, tmp_path):
    from tql_offline.eval.environments import make

    out = export_run(evaluated.path, tmp_path / "model", onnx=False).folder
    policy, line = tql_offline.load(out), list(read_jsonl(evaluated.evaluations))[-1]
    episode = line["episodes"][0]
    env = make(line["env_id"])
    observation, _ = env.reset(seed=episode["seed"])
    policy.reset(episode["seed"])
    total, length, done = 0.0, 0, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total, length, done = total + float(reward), length + 1, terminated or truncated
    env.close()
    assert (total, length) == (episode["return"], episode["length"])


# What is written.


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_among_runs_is_no_run(trained, tmp_path):
    folder = trained()
    runs = tmp_path / "runs"
    shutil.copytree(folder.path, runs / "run")
    model = export_run(folder.path, runs / "model", onnx=False).folder
    assert [run.path.name for run in find_runs([runs])] == ["run"]
    with pytest.raises(InputError, match="lies in .*, only exported models; give a run"):
        find_runs([model])
    shutil.copy(model / "model.json", runs / "run")
    assert [run.path.name for run in find_runs([runs])] == ["run"], "it was trained here"


@pytest.mark.slow
def test_two_exports_are_the_same_bytes(trained, tmp_path):
    folder = trained()
    first = export_run(folder.path, tmp_path / "a").folder
    done = subprocess.run(
        [sys.executable, "-m", "tql_offline", "export", folder.path, "--out", tmp_path / "b"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "policy.onnx: actions within" in done.stdout
    assert contents(tmp_path / "b") == contents(first)
    here = str(Path(tql_offline.__file__).parent).encode()
    assert not any(here in data for data in contents(first).values())


def test_every_file_has_the_mode_of_the_umask(trained, tmp_path):
    saved, before = trained().checkpoints / "4", os.umask(0o027)
    try:
        model = export_run(trained().path, tmp_path / "model", onnx=False).folder
        checkpoint.save_network(torch.nn.Linear(2, 1), tmp_path / "linear.safetensors")
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in [*model.iterdir(), *tmp_path.glob("*.s*")]}
    assert {"policy.safetensors", "model.json", "linear.safetensors"} <= modes.keys()
    assert set(modes.values()) == {0o640}, modes
    kept = {path.name: path.stat().st_mode & 0o777 for path in saved.iterdir()}
    assert set(kept.values()) == {0o666 & ~before}, kept


def test_a_folder_that_exists_is_replaced_by_force_alone(trained, tmp_path, capsys):
    out = tmp_path / "model"
    assert command(trained().path, "--out", out, "--no-onnx") == 0
    (out / "README.md").write_text("changed")
    assert command(trained().path, "--out", out, "--no-onnx") == 2
    assert "exists already; choose another --out, or give --force" in capsys.readouterr().err
    assert (out / "README.md").read_text() == "changed"
    assert command(trained("rebrac").path, "--out", out, "--no-onnx", "--force") == 0
    assert (out / "README.md").read_text().count("ReBRAC")
    assert not (out / "behaviour.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == ["model"]


def test_force_never_removes_what_is_not_an_exports(trained, tmp_path, capsys):
    folder = trained()
    before = sorted(folder.path.rglob("*"))
    assert command(folder.path, "--out", folder.path, "--force") == 2
    assert "is not of an earlier export" in capsys.readouterr().err
    assert sorted(folder.path.rglob("*")) == before
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "policy.safetensors").write_bytes(b"mine")
    assert command(folder.path, "--out", weights, "--force") == 2
    assert "is not an earlier export" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(weights)
    assert command(folder.path, "--out", tmp_path / "link", "--force") == 2
    assert (weights / "policy.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("moment", ["make_card", "put_folder"])
def test_a_stopped_export_leaves_what_was_there(trained, tmp_path, monkeypatch, moment):
    out = tmp_path / "models" / "model"
    export_run(trained("rebrac").path, out, onnx=False)
    before = contents(out)

    def stop(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, moment, stop)
    with pytest.raises(KeyboardInterrupt):
        export_run(trained().path, out, onnx=False, force=True)
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_stopped_between_two_renames_the_old_model_comes_back(trained, tmp_path, monkeypatch):
    out = tmp_path / "models" / "model"
    export_run(trained("rebrac").path, out, onnx=False)
    before, rename = contents(out), Path.rename

    def stop(path, target):
        if path.suffix == ".part":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        export_run(trained().path, out, onnx=False, force=True)
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_a_full_disk_is_one_sentence(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command(trained().path, "--out", tmp_path / "file" / "model", "--no-onnx") == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_the_last_checkpoint_unless_another_is_named(trained, tmp_path):
    folder = trained()
    last = export_run(folder.path, tmp_path / "last", onnx=False)
    early = export_run(folder.path, tmp_path / "early", step=2, onnx=False)
    assert (last.facts["step"], early.facts["step"]) == (4, 2)
    name = "policy.safetensors"
    for done in (last, early):
        saved = folder.checkpoints / str(done.facts["step"]) / name
        assert (done.folder / name).read_bytes() == saved.read_bytes()
    text = (early.folder / "README.md").read_text()
    assert "The checkpoint of update 2 of a finished run of 4 updates." in text
    with pytest.raises(InputError, match="has no checkpoint of step 3; it has 2, 4"):
        export_run(folder.path, tmp_path / "none", step=3)


def test_a_stopped_run_is_called_unfinished(trained, tmp_path, capsys):
    stopped = tmp_path / "stopped"
    shutil.copytree(trained().path, stopped)
    shutil.rmtree(stopped / "checkpoints" / "4")
    (stopped / "result.json").unlink()
    assert command(stopped, "--out", tmp_path / "model", "--no-onnx") == 0
    assert "update 2 of 4, unfinished" in capsys.readouterr().out
    text = (tmp_path / "model" / "README.md").read_text()
    assert "The checkpoint of update 2 of an **unfinished** run of 4 updates." in text
    assert tql_offline.load(tmp_path / "model").step == 2
    shutil.rmtree(stopped / "checkpoints")
    assert command(stopped, "--out", tmp_path / "none") == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["flow", "implicit best-of-n", "cloning flow"])
def test_a_flow_of_too_many_steps_is_refused_whatever_its_network_is_called(
    trained, tmp_path, monkeypatch, capsys, method
):
    monkeypatch.setattr(onnx_policies, "MAX_FLOW_STEPS", 2)
    assert command(trained(method).path, "--out", tmp_path / "model") == 2
    assert "a flow of 3 steps makes too large an ONNX graph" in capsys.readouterr().err


def test_without_the_onnx_packages_the_mend_is_named(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_policies, "find_spec", lambda _name: None)
    assert command(trained("rebrac").path, "--out", tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert "pip install 'tql-offline[onnx]'" in error
    assert "--no-onnx" in error
    assert not (tmp_path / "model").exists()
    assert command(trained("rebrac").path, "--out", tmp_path / "model", "--no-onnx") == 0
    assert "policy.onnx" not in (tmp_path / "model" / "README.md").read_text()


# The card.


def line_of(protocol, policy, step, returns, successes, **others):
    episodes = [
        {"seed": i, "return": r, "length": 9, "success": s}
        for i, (r, s) in enumerate(zip(returns, successes, strict=True))
    ]
    rate, mean = sum(successes) / len(successes), sum(returns) / len(returns)
    score = others.pop("score", 100 * rate)
    return {
        "step": step,
        "policy": policy,
        "protocol": asdict(protocols.get(protocol)),
        "env_id": "maze-v0",
        "success_timing": "pre",
        "episodes": episodes,
        "success_rate": rate,
        "return_mean": mean,
        "score": score,
    } | others


@pytest.fixture
def scored(trained, tmp_path):
    folder = RunFolder(tmp_path / "scored")
    shutil.copytree(trained().path, folder.path)
    returns, wins, lost = [-1.0, -2.0, -3.0, -6.0], [True, True, True, False], [False] * 4
    reference = {"min": -10.0, "max": 0.0, "scale": 100.0, "source": "x"}
    for line in (
        line_of("quick:4", "behaviour", 4, [0.0] * 4, lost),
        line_of("quick:4", "learned", 4, [0.0] * 4, lost),
        line_of("quick:4", "learned", 2, returns, [True] * 4),
        line_of("quick:4", "learned", 4, returns, wins),
        line_of("quick-return:4", "learned", 4, returns, wins, score=-3.0),
        line_of("d4rl:4", "learned", 4, returns, wins, score=70.0, reference=reference),
    ):
        append_jsonl(folder.evaluations, line)
    return folder


def test_scores_of_the_step_with_their_intervals(scored, tmp_path):
    done = export_run(scored.path, tmp_path / "model", onnx=False)
    found = [(e["policy"], e["protocol"], e["score"]) for e in done.facts["evaluations"]]
    assert found[-1] == ("behaviour", "quick:4 v1", 0.0)
    assert sorted(found[:-1]) == [
        ("learned", f"d4rl:4 v{protocols.get('d4rl').version}", 70.0),
        ("learned", "quick-return:4 v1", -3.0),
        ("learned", "quick:4 v1", 75.0),
    ]
    by_protocol = {e["protocol"].split(":")[0]: e for e in done.facts["evaluations"][:-1]}
    # Wilson's interval of 3 of 4, z = 1.96: (0.75 + z²/8 ± z·√(0.1875/4 + z²/64)) / (1 + z²/4).
    np.testing.assert_allclose(
        by_protocol["quick"]["score_interval"], [30.0642, 95.4413], atol=1e-3
    )
    # Mean -3, standard deviation √(14/3) = 2.1602, t of 3 degrees of freedom 3.1824: ± 3.4374.
    np.testing.assert_allclose(
        by_protocol["quick-return"]["score_interval"], [-6.4374, 0.4374], atol=1e-3
    )
    np.testing.assert_allclose(by_protocol["d4rl"]["score_interval"], [35.626, 104.374], atol=1e-2)
    # Episodes that all return the same do not tell how others would differ.
    assert done.facts["evaluations"][-1]["return_interval"] is None
    text = (done.folder / "README.md").read_text()
    assert r"3/4: 75 \[30.06, 95.44\] %" in text
    assert '- type: "success_rate"\n            value: 75.0\n' in text


def test_scores_of_another_number_of_episodes_are_no_card(scored, tmp_path):
    append_jsonl(scored.evaluations, line_of("quick:4", "learned", 4, [0.0], [False]))
    said = r"line 7 cannot be used \(has 1 episode where quick:4 v1 has 4\); remove the line"
    with pytest.raises(InputError, match=said):
        export_run(scored.path, tmp_path / "model", onnx=False)


def test_bounds_of_the_environments_actions_are_told_with_the_way_back(trained, tmp_path):
    run = RunFolder(shutil.copytree(trained("rebrac").path, tmp_path / "run"))
    plain = export_run(run.path, tmp_path / "plain", onnx=False)
    assert plain.facts["action_bounds"] is None
    assert "multiply" not in (plain.folder / "README.md").read_text()

    bounds = [[-2.0, -2.0], [2.0, 4.0]]
    facts = json.loads(run.provenance.read_text())
    facts["dataset"]["action_bounds"] = bounds
    run.provenance.write_text(json.dumps(facts))
    out = export_run(run.path, tmp_path / "scaled", onnx=False).folder
    assert tql_offline.load(out).facts["action_bounds"] == bounds
    card = (out / "README.md").read_text()
    assert "multiply each number by (high - low)/2 and add (high + low)/2" in card
    assert "where low is -2 and high is [2, 4]" in card

    facts["dataset"]["action_bounds"] = [[-2.0], [2.0]]
    run.provenance.write_text(json.dumps(facts))
    with pytest.raises(InputError, match="'action_bounds' in .*provenance.json are not 2 least"):
        export_run(run.path, tmp_path / "wrong", onnx=False)


def test_the_code_of_a_card_flattens_what_the_evaluator_flattens(trained, tmp_path):
    run = RunFolder(shutil.copytree(trained("rebrac").path, tmp_path / "run"))
    plain = export_run(run.path, tmp_path / "plain", onnx=False)
    assert plain.facts["flattened"] is None
    card = (plain.folder / "README.md").read_text()
    assert "An observation has 3 numbers, as the environment gives them;" in card
    assert "flat" not in card.partition("## Scores")[0]

    box = gymnasium.spaces.Box(-9, 9, (1, 2))
    space = gymnasium.spaces.Dict({"z": box, "a": gymnasium.spaces.Box(-9, 9, (1,))})
    facts = json.loads(run.provenance.read_text())
    facts["environment"] = {"env_id": "Nested-v0", "flattened": str(space)}
    run.provenance.write_text(json.dumps(facts))
    out = export_run(run.path, tmp_path / "nested", onnx=False).folder
    card = (out / "README.md").read_text()
    assert "as the environment gives them" not in card
    assert "An observation has 3 numbers, to which the environment's own, of the space Dict" in card

    code = card.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(out))
    names = {
        "env": types.SimpleNamespace(observation_space=space),
        "observation": {"z": np.array([[2.0, 3.0]]), "a": np.array([1.0])},
    }
    exec(code, names)
    np.testing.assert_array_equal(names["action"], tql_offline.load(out)([1.0, 2.0, 3.0]))


def test_a_model_from_before_bounds_were_told_is_loaded(model):
    facts = json.loads((model / "model.json").read_text())
    del facts["action_bounds"]
    (model / "model.json").write_text(json.dumps(facts))
    assert tql_offline.load(model).facts["action_bounds"] is None


def test_a_card_says_how_the_model_was_made(trained, own, tmp_path):
    folder = trained()
    facts = json.loads(folder.provenance.read_text())
    text = (
        export_run(folder.path, tmp_path / "model", onnx=False).folder / "README.md"
    ).read_text()
    for words in (
        "# TQL on mine.npz, seed 0",
        facts["dataset"]["sha256"],
        f"| torch | {facts['versions']['torch']} |",
        facts["command"][0],
        'policy = tql_offline.load("FOLDER")',
        "This checkpoint was not evaluated.",
    ):
        assert words in text
    assert str(own.parent) not in text


def test_the_front_matter_is_yaml(scored, tmp_path):
    text = (
        export_run(scored.path, tmp_path / "model", onnx=False).folder / "README.md"
    ).read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "tql-offline"
    assert header["tags"][-1] == "flow"
    results = header["model-index"][0]["results"]
    assert {result["task"]["type"] for result in results} == {"reinforcement-learning"}
    assert len(results) == 4


def test_a_strangers_text_stays_text(scored, tmp_path):
    evil = "x\n---\n# Hi <script>alert(1)</script> | `a` \x1b[2J \ud800 \x85 ![](http://x)"
    facts = json.loads(scored.provenance.read_text())
    facts |= {
        "command": ["```", evil],
        "git_commit": evil,
        "versions": {evil: evil},
        "device": evil,
    }
    facts["environment"] = {"env_id": evil}
    scored.provenance.write_text(json.dumps(facts))
    text = (
        export_run(scored.path, tmp_path / "model", onnx=False).folder / "README.md"
    ).read_text()
    assert text.count("\n---\n") == 1
    assert all(c.isprintable() or c == "\n" for c in text)
    outside = re.sub(r"````.*?\n````", "", text.split("\n---\n")[1], flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script|(?<!\\)!?(?<!\\)\[\]\(", outside)


# Folders of strangers.


def rewrite(path, **changes):
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | changes))


def spoil_tensor(path, change):
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = change(tensors[name])
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: (m / "model.json").unlink(), "not a model folder .*; check the path"),
        (lambda m: (m / "model.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda m: (m / "model.json").write_text("[]"), "holds no JSON object"),
        (lambda m: rewrite(m / "model.json", schema="x"), "has schema 'x'"),
        (lambda m: rewrite(m / "model.json", action_dim=10**9), "'action_dim' in .* not a whole"),
        (lambda m: rewrite(m / "model.json", step=True), "'step' in .* is not a whole number"),
        (lambda m: rewrite(m / "model.json", observation_dim=4), "does not fit"),
        *(
            (lambda m, b=bounds: rewrite(m / "model.json", action_bounds=b), "'action_bounds' in")
            for bounds in (2, [[-2, -2]], [[-2], [2]], [[-2, 2], [2, 2]], [[-2, "x"], [2, 2]])
        ),
        (lambda m: rewrite(m / "model.json", action_bounds=[[0, 0], [1, 10**400]]), "2 least and"),
        (lambda m: (m / "config.toml").unlink(), "config.toml cannot be read"),
        (lambda m: (m / "config.toml").write_text("a.b = 1"), "unknown setting 'a'"),
        (lambda m: (m / "config.toml").write_text("objective = 'x'"), "must be one of"),
        (lambda m: (m / "policy.safetensors").unlink(), "policy.safetensors is missing"),
        (lambda m: (m / "policy.safetensors").write_bytes(b"\xff" * 64), "is damaged"),
        (lambda m: os.truncate(m / "policy.safetensors", 200), "is damaged"),
        (lambda m: spoil_tensor(m / "policy.safetensors", lambda t: t.double()), "does not fit"),
        (lambda m: spoil_tensor(m / "policy.safetensors", lambda t: t * np.nan), "not finite"),
        (lambda m: spoil_tensor(m / "normaliser.safetensors", lambda t: t[:1]), "does not fit"),
    ],
)
def test_a_spoiled_model_is_refused_in_one_sentence(model, spoil, words):
    spoil(model)
    with pytest.raises(InputError, match=words) as error:
        tql_offline.load(model)
    assert "\n" not in str(error.value)


def test_a_config_of_a_giant_takes_no_memory(trained, tmp_path):
    """64 blocks of xxl: 13 GB, which no test machine could allocate within this limit."""
    out = export_run(trained("implicit best-of-n").path, tmp_path / "model", onnx=False).folder
    text = (out / "config.toml").read_text()
    text = text.replace('size = "tiny"', 'size = "xxl"').replace("depth = 2", "depth = 64")
    (out / "config.toml").write_text(text)
    before = highest_memory()
    with pytest.raises(InputError, match="critic.safetensors does not fit"):
        tql_offline.load(out)
    assert highest_memory() - before < 200 * 2**20


def test_loading_leaves_the_callers_randomness_alone(model):
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    tql_offline.load(model)
    assert torch.rand(1) == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "best"}, "no policy 'best' in .*; choose of learned, behaviour"),
        ({"device": "tpu"}, "no device 'tpu'"),
    ],
)
def test_what_a_model_does_not_have_is_named(model, options, words):
    with pytest.raises(InputError, match=words):
        tql_offline.load(model, **options)


def test_a_run_folder_is_told_from_a_model(trained):
    with pytest.raises(InputError, match="run `tql-offline export"):
        tql_offline.load(trained().path)


# The hub.


class FakeApi:
    """What of `huggingface_hub.HfApi` a push uses."""

    endpoint = "https://hub"
    error: Exception | None = None
    calls: list

    def __init__(self, library_name):
        assert library_name == "tql-offline"

    def create_repo(self, repo_id, **options):
        if self.error:
            raise self.error
        self.calls.append(("create", {"repo_id": repo_id} | options))

    def upload_folder(self, **options):
        files = sorted(path.name for path in options.pop("folder_path").iterdir())
        self.calls.append(("upload", options | {"files": files}))


@pytest.fixture
def api(monkeypatch):
    fake = type("Api", (FakeApi,), {"calls": []})
    module = types.SimpleNamespace(HfApi=fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr(hub_module, "find_spec", lambda _name: True)
    return fake


def test_a_push_makes_a_repository_and_uploads_the_folder(trained, tmp_path, api, capsys):
    out = tmp_path / "model"
    options = ("--no-onnx", "--push-to-hub", "me/tql-maze", "--private")
    assert command(trained("rebrac").path, "--out", out, *options) == 0
    (create, made), (upload, sent) = api.calls
    assert (create, upload) == ("create", "upload")
    assert made == {
        "repo_id": "me/tql-maze",
        "repo_type": "model",
        "private": True,
        "exist_ok": True,
    }
    assert sent["repo_id"] == "me/tql-maze"
    assert sent["delete_patterns"] == ["policy.onnx"]
    assert sent["files"] == sorted(path.name for path in out.iterdir())
    assert "pushed: https://hub/me/tql-maze" in capsys.readouterr().out


def test_a_push_without_network_keeps_the_model_and_says_so(trained, tmp_path, api, capsys):
    api.error = ConnectionError("Name or service\nnot known" + "x" * 1000)
    out = tmp_path / "model"
    assert command(trained("rebrac").path, "--out", out, "--no-onnx", "--push-to-hub", "me/x") == 2
    error = capsys.readouterr().err
    assert f"{out} is written but could not be pushed to me/x" in error
    assert "Name or service not known" in error
    assert error.count("\n") == 1
    assert tql_offline.load(out).step == 4


def test_without_the_hub_package_nothing_is_written(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub_module, "find_spec", lambda _name: None)
    assert command(trained().path, "--out", tmp_path / "model", "--push-to-hub", "me/x") == 2
    assert "pip install 'tql-offline[hub]'" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["x", "a/b/c", "../x/y", "a/..", "a b/c", "a/b.git", "a/b--c"])
def test_a_name_that_is_no_repository_is_refused(trained, tmp_path, api, capsys, name):
    assert command(trained().path, "--out", tmp_path / "model", "--push-to-hub", name) == 2
    assert "is no repository of the Hub" in capsys.readouterr().err
    assert api.calls == []
    assert not (tmp_path / "model").exists()
