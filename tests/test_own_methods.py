"""Methods of one's own: told apart by class, settings and code, and trained as they are."""

import copy
import hashlib
import re
import shutil
import sys
from functools import partial
from importlib import invalidate_caches

import numpy as np
import pytest
import torch
from command_line import command
from own_data import write_own
from report_runs import make_run
from stand_ins import Noting, raising

from tql_offline.agents import make_agent, make_agent_of_shapes, numpy_policy
from tql_offline.config import is_own, resolve
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.eval.report import write_report
from tql_offline.eval.run_records import read_run
from tql_offline.eval.variants import differing, effective, settings_of
from tql_offline.files import read_json, read_jsonl, write_json
from tql_offline.runs import RunFolder
from tql_offline.sharing.export import export_run
from tql_offline.sharing.model import load as load_policy
from tql_offline.training.compile import compile_losses
from tql_offline.training.own_settings import watched
from tql_offline.training.provenance import resumed_code
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.resume import resume
from tql_offline.training.run import run, run_seeds
from tql_offline.training.sweep import first_difference

CPU = torch.device("cpu")
MODULE = """
import torch

from tql_offline.agents.flow_q import FlowQ
from tql_offline.errors import InputError


class Mine(FlowQ):
    WEIGHT = 1.0

    def critic_loss(self, batch, noise):
        loss, metrics = super().critic_loss(batch, noise)
        weight = self.config.own.get("weight", self.WEIGHT)
        return weight * loss / max(1.0, loss.abs().item()), metrics | {"weight": weight}


class FQL(Mine):
    pass


class WithoutMetrics(FlowQ):
    def critic_loss(self, batch, noise):
        return super().critic_loss(batch, noise)[0]


class FailsAfter(FlowQ):
    def update(self, batch, generator, step):
        if step > self.config.own["updates"]:
            raise ValueError("of the method's own")
        return super().update(batch, generator, step)


class FailsOfSeedZero(FlowQ):
    def update(self, batch, generator, step):
        if self.config.seed == 0 and batch.rewards.device.type != "meta":
            raise InputError("of seed 0")
        return super().update(batch, generator, step)


class FailsOfSeedOne(FlowQ):
    def update(self, batch, generator, step):
        if self.config.seed == 1 and step == 2:
            raise RuntimeError("of seed 1")
        return super().update(batch, generator, step)


class Delayed(Mine):
    policy_delay = 2

    def policy_loss(self, batch, noise):
        loss, metrics = super().policy_loss(batch, noise)
        return self.config.own.get("scale", 1.0) * loss, metrics


class Scaled(FlowQ):
    def critic_loss(self, batch, noise):
        loss, metrics = super().critic_loss(batch, noise)
        return self.config.own.get("scale", 1.0) * loss, metrics


class Counting(FlowQ):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.policy_delay = self.config.own.get("delay", 1)
        self.calls = self.own_calls = self.begun = 0
        self.kept = 3.0

    def critic_loss(self, batch, noise):
        loss, metrics = super().critic_loss(batch, noise)
        self.calls += 1
        self.begun = 1
        return loss * min(1.0, self.calls / 100), metrics

    def policy_loss(self, batch, noise):
        self.own_calls += 1
        return super().policy_loss(batch, noise)


class Wide(FlowQ):
    def act(self, policy, observations, noise):
        actions = super().act(policy, observations, noise)
        torch.rand(5)
        observations.zero_()
        return torch.cat([actions, actions], dim=-1) if policy == self.config.own["of"] else actions


class Listing(FlowQ):
    def act(self, policy, observations, noise):
        return super().act(policy, observations, noise).tolist()


class Acts(FlowQ):
    HOW = {
        "random": lambda actions: actions + 0.3 * torch.randn(actions.shape),
        "not finite": lambda actions: actions / 0 * 0,
        "far": lambda actions: 5 * actions + 3,
        "by numbers": lambda actions: 0.9 * actions if (actions.abs() > 0.1).any() else actions,
        "on the CPU": lambda actions: actions * torch.tensor([0.9, 0.8]),
        "infinite": lambda actions: (actions + 2) / 0,
    }

    def act(self, policy, observations, noise):
        return self.HOW[self.config.own["how"]](super().act(policy, observations, noise))


class Inner(FlowQ):
    @torch.no_grad()
    def act(self, policy, observations, noise):
        states = self.normaliser(observations)
        return self.policy.net(torch.cat([states, noise], dim=-1)).clamp(-1, 1)


class Returns(FlowQ):
    HOW = {
        "vector": lambda loss, metrics: (loss.expand(3), metrics),
        "number": lambda loss, metrics: (1.0, metrics),
        "detached": lambda loss, metrics: (loss.detach(), metrics),
        "no name": lambda loss, metrics: (loss, metrics | {3: loss}),
        "text": lambda loss, metrics: (loss, metrics | {"mine": "text"}),
        "step": lambda loss, metrics: (loss, metrics | {"step": 7}),
        "entropy": lambda loss, metrics: (loss, metrics | {"entropy": loss}),
        "nan": lambda loss, metrics: (loss / 0 * 0, metrics | {"a": loss / 0 * 0}),
    }

    def critic_loss(self, batch, noise):
        return self.HOW[self.config.own["how"]](*super().critic_loss(batch, noise))
"""
CHANGED = MODULE.replace("WEIGHT = 1.0", "WEIGHT = -1.0")


@pytest.fixture
def data(tmp_path):
    return load(str(write_own(tmp_path / "mine.npz", (30, 30), 3)))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module's file, whose class has this test's own name so that no other test has seen it."""
    path = tmp_path / f"methods_of_{abs(hash(tmp_path)) % 10**9}.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def settings(data, module, name="Mine", **over):
    small = {
        "critic": {"size": "tiny"},
        "flow": {"hidden": [8], "flow_steps": 2},
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "checkpoint_every": 2,
        "dataset": {"name": str(data.path)},
        "objective": f"{module.stem}:{name}",
    }
    return resolve(small | over)


def trained(data, config, folder, reporter=None):
    return run(config, data, folder, "r", reporter or SilentReporter())


def test_one_that_looks_at_numbers_trains_without_a_count(data, module, tmp_path):
    noted = Noting()
    folder = trained(data, settings(data, module), tmp_path / "runs", noted)
    assert read_json(folder.result)["flops_per_update"] is None
    assert [line["weight"] for line in read_jsonl(folder.metrics)] == [1.0, 1.0]
    (said,) = (sentence for sentence in noted.sentences if "not counted" in sentence)
    assert "execution.updates_per_launch 0" in said


def test_a_loss_without_metrics_is_named(data, module, tmp_path):
    with pytest.raises(InputError, match=r"WithoutMetrics\.critic_loss returns a Tensor where"):
        trained(data, settings(data, module, "WithoutMetrics"), tmp_path / "runs")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Mime", "has no class 'Mime'; did you mean Mine?"),
        ("Other", "has no class 'Other'; choose one of its agents: Mine, FQL, WithoutMetrics"),
    ],
)
def test_a_class_that_its_module_lacks_is_named_with_those_that_it_has(
    name, said, data, module, tmp_path
):
    with pytest.raises(InputError, match=f"^module '{module.stem}' {re.escape(said)}"):
        trained(data, settings(data, module, name), tmp_path / "runs")
    module.write_text("import torch")
    with pytest.raises(InputError, match=r"Mine'; write one there"):
        make_agent_of_shapes(settings(data, reloaded(module)), 3, 2)


def reloaded(module):
    sys.modules.pop(module.stem, None)
    invalidate_caches()
    return module


def test_settings_of_ones_own_are_read_recorded_and_required(data, module, tmp_path):
    config = settings(data, module, own={"weight": 2.5, "on": True, "name": "a"})
    folder = trained(data, config, tmp_path / "runs")
    assert [line["weight"] for line in read_jsonl(folder.metrics)] == [2.5, 2.5]
    assert read_json(folder.result)["settings"]["own"] == {"weight": 2.5, "on": True, "name": "a"}
    assert resolve({}, file=folder.config) == config
    with pytest.raises(InputError, match=r"own\.beta, which the objective reads, is not given"):
        config.own["beta"]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"b a": 1}, "'b a' must be a name"),
        ({"b": [1]}, "b must be a finite number"),
        ({"b": float("inf")}, "b must be a finite number"),
        ({"b": 10**400}, "b must be a finite number"),
        ({"b": "x" * 5000}, "b must be a finite number, a text"),
        ({f"x{n}": n for n in range(65)}, "64 settings at most"),
    ],
)
def test_settings_of_ones_own_are_plain(own, said):
    with pytest.raises(InputError, match=said):
        resolve({"objective": "my_methods:Mine", "own": own})


def test_settings_of_ones_own_are_for_ones_own_methods(capsys):
    with pytest.raises(InputError, match=r"own\.beta is given, and objective 'flow' reads no"):
        resolve({"own": {"beta": 1}})
    code, output = command(["train", "--set", "own.beta=1"], capsys)
    assert (code, "own.beta" in output.err) == (2, True)


def test_a_class_named_as_a_published_method_is_none():
    mlp = {"critic": {"kind": "mlp"}}
    assert resolve({"objective": "my:Mine"} | mlp).method == "Mine"
    for name in ("FQL", "TQL", "BC"):
        assert resolve({"objective": f"my:{name}"} | mlp).method == f"my:{name}"
    assert not is_own("flow")


def test_ones_own_methods_are_told_apart_by_every_setting():
    """By any of the package's, on whose methods they may build; by class; by their own."""
    base = {"objective": "a:Mine", "flow.alpha": 1.0, "implicit.expectile": 0.5}
    base |= {"own.beta": 3}
    for key, value in (
        ("flow.alpha", 100.0),
        ("implicit.expectile", 0.9),
        ("own.beta", 4),
        ("objective", "b:Mine"),
    ):
        other = base | {key: value}
        both = [effective(flat, flat["objective"]) for flat in (base, other)]
        assert differing(both) == (key,)
    without = {key: value for key, value in base.items() if key != "own.beta"}
    both = [effective(flat, "a:Mine") for flat in (base, without)]
    assert differing(both) == ("own.beta",)


def test_a_sweep_tells_settings_of_ones_own_apart():
    one, none = ({"objective": "a:Mine", "own": own} for own in ({"beta": 3}, {}))
    assert first_difference(resolve(one), resolve(none)).startswith("own.beta 3 where")
    assert first_difference(resolve(none), resolve(one)).startswith("own.beta 'unset' where")
    assert not first_difference(resolve(one), resolve(one))


def test_changed_code_is_another_variant(data, module, tmp_path):
    folder = trained(data, settings(data, module), tmp_path / "runs")
    recorded = read_json(folder.provenance)["own_method"]
    assert recorded["file"] == module.name
    module.write_text(CHANGED)
    other = run(settings(data, module, seed=1), data, tmp_path / "runs", "other", SilentReporter())
    assert read_json(other.provenance)["own_method"]["sha256"] != recorded["sha256"]
    assert len({settings_of(read_run(each))["code"] for each in (folder, other)}) == 2


def test_code_that_changed_before_a_run_was_resumed_is_told_and_recorded(data, module, tmp_path):
    folder = trained(data, settings(data, module), tmp_path / "runs")
    clean, code = folder.provenance.read_bytes(), [settings_of(read_run(folder))["code"]]
    record = read_json(folder.provenance)["own_method"]
    assert not any("has changed" in sentence for sentence in resumed_from(folder, 2, data))
    assert folder.provenance.read_bytes() == clean
    module.write_text(CHANGED)
    for _ in range(2):  # the second time, its code is what it was resumed with
        said = resumed_from(folder, 2, data)
        assert any(f"({module.name}) has changed" in sentence for sentence in said)
        digest = hashlib.sha256(module.read_bytes()).hexdigest()
        resumed = record | {"resumed_with": [{"step": 2, "sha256": digest}]}
        assert read_json(folder.provenance)["own_method"] == resumed
        assert read_json(folder.result)["provenance"]["own_method"] == resumed
    code.append(settings_of(read_run(folder))["code"])
    assert code[1] == f"{code[0]} then {digest[:8]} from update 2"
    module.write_text(MODULE)  # what the other version did is gone
    assert not any("has changed" in sentence for sentence in resumed_from(folder, 2, data))
    assert folder.provenance.read_bytes() == clean


def test_a_run_that_starts_again_from_nothing_is_of_the_code_as_it_is_now(data, module, tmp_path):
    folder = trained(data, settings(data, module), tmp_path / "runs")
    module.write_text(CHANGED)
    assert not any("has changed" in sentence for sentence in resumed_from(folder, 0, data))
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    record = {"file": module.name, "sha256": digest}
    assert read_json(folder.provenance)["own_method"] == record


def resumed_from(folder, step, data):
    """What is said where a finished run is resumed from an earlier checkpoint."""
    folder.result.unlink()
    for later in folder.checkpoint_steps():
        if later > step:
            shutil.rmtree(folder.checkpoints / str(later))
    said = Noting()
    resume(folder.path, lambda _: data, said)
    return said.sentences


def test_versions_of_which_a_run_has_kept_nothing_are_left_out():
    first = {"file": "my.py", "sha256": "a"}
    two = resumed_code(first, {"file": "my.py", "sha256": "b"}, 4, is_scored=False)
    assert two == first | {"resumed_with": [{"step": 4, "sha256": "b"}]}
    c = {"file": "my.py", "sha256": "c"}
    replaced = resumed_code(two, c, 4, is_scored=False)
    assert replaced == first | {"resumed_with": [{"step": 4, "sha256": "c"}]}
    scored = resumed_code(two, c, 4, is_scored=True)
    assert scored["resumed_with"] == [*two["resumed_with"], {"step": 4, "sha256": "c"}]
    assert resumed_code(two, first, 2, is_scored=True) == first
    foreign = first | {"resumed_with": [7, {"step": "x", "sha256": "b"}, {"step": 1}]}
    assert resumed_code(foreign, first, 4, is_scored=False) == first


def test_a_report_has_runs_resumed_with_other_code_in_a_column_and_says_why(tmp_path):
    later = [{"step": 5000, "sha256": "bb" * 32}]
    records = [{"sha256": "aa" * 32}, {"sha256": "aa" * 32, "resumed_with": later}]
    records += [{"sha256": "bb" * 32}, {"sha256": "aa" * 32, "resumed_with": [*later, *later, 3]}]
    records += [{"sha256": "aa" * 32, "resumed_with": 3 * later}]
    runs = [make_run(tmp_path / f"s{seed}", seed=seed) for seed, _ in enumerate(records)]
    for folder, record in zip(runs, records, strict=True):
        for file, keys in ((folder.provenance, ()), (folder.result, ("provenance",))):
            document = read_json(file)
            table = document
            for key in keys:
                table = table[key]
            table["own_method"] = record
            write_json(file, document)
    codes = [settings_of(read_run(folder))["code"] for folder in runs]
    mixed = "aaaaaaaa then bbbbbbbb from update 5000"
    twice = f"{mixed} then bbbbbbbb from update 5000"
    assert codes[:4] == ["aaaaaaaa", mixed, "bbbbbbbb", twice]
    assert codes[4].startswith("aaaaaaaa then 3 others, ")
    text = write_report(runs[:3], tmp_path / "out").markdown.read_text()
    assert f"TQL (code {mixed})" in text
    assert (
        f"The code of TQL was changed and the run resumed (code {mixed}), so it ended as neither "
        "version would and is no seed of either: s1."
    ) in text


# What fails at once.


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_run_whose_method_fails_before_anything_is_kept_leaves_no_folder(
    data, module, tmp_path, seeds
):
    config = settings(data, module, "FailsAfter", own={"updates": 0})
    noted = Noting()
    with pytest.raises(ValueError, match="of the method's own"):
        run_seeds(config, seeds, data, tmp_path / "runs", "r", noted)
    assert not any((tmp_path / "runs").iterdir())
    assert not any("not counted" in sentence for sentence in noted.sentences)


def test_a_seed_that_fails_takes_no_other_with_it(data, module, tmp_path):
    with pytest.raises(InputError, match="of seed 0"):
        run_seeds(
            settings(data, module, "FailsOfSeedZero"),
            (0, 1),
            data,
            tmp_path / "runs",
            "r",
            SilentReporter(),
        )
    (left,) = (tmp_path / "runs").iterdir()
    assert (left.name, RunFolder(left).is_finished()) == ("r-s1", True)


def test_a_seed_that_fails_in_any_way_is_told_at_once_and_the_others_end(data, module, tmp_path):
    config = settings(data, module, "FailsOfSeedOne", log_every=1, checkpoint_every=1)
    noted = Noting()
    with pytest.raises(RuntimeError, match="of seed 1"):
        run_seeds(config, (0, 1, 2), data, tmp_path / "runs", "r", noted)
    folders = [RunFolder(tmp_path / "runs" / f"r-s{seed}") for seed in range(3)]
    assert [folder.is_finished() for folder in folders] == [True, False, True]
    assert folders[1].checkpoint_steps() == [1]
    assert f"seed 1: run {folders[1].path} failed: RuntimeError of seed 1" in noted.sentences


@pytest.mark.parametrize(
    ("over", "kept"),
    [
        ({"log_every": 1, "checkpoint_every": 4}, "metrics.jsonl"),
        ({"log_every": 4, "checkpoint_every": 1}, "checkpoints"),
    ],
)
def test_a_run_whose_method_fails_later_keeps_what_it_has(data, module, tmp_path, over, kept):
    config = settings(data, module, "FailsAfter", own={"updates": 1}, **over)
    with pytest.raises(ValueError, match="of the method's own"):
        run(config, data, tmp_path / "runs", "r", SilentReporter())
    names = {path.name for path in (tmp_path / "runs" / "r").iterdir()}
    assert {"config.toml", "provenance.json", kept} <= names


def test_a_stop_is_no_failure(data, module, tmp_path, monkeypatch):
    monkeypatch.setattr("tql_offline.training.run.train", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trained(data, settings(data, module), tmp_path / "runs")
    assert RunFolder(tmp_path / "runs" / "r").provenance.is_file()


def test_only_what_a_run_begins_with_is_removed(tmp_path):
    folder = RunFolder(tmp_path)
    for name in ("config.toml", "provenance.json", ".lock", "tensorboard/events", "metrics.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "metrics.jsonl" else "a")
    folder.checkpoints.mkdir()
    assert folder.has_only_begun()
    for name in ("metrics.jsonl", "evaluations.jsonl", "checkpoints/2.damaged", "mine.txt"):
        (tmp_path / name).write_text("a")
        assert not folder.has_only_begun(), name
        (tmp_path / name).unlink()


def test_a_setting_that_the_objective_lacks_is_named_before_there_is_a_folder(
    data, module, tmp_path
):
    noted = Noting()
    with pytest.raises(InputError, match=r"own\.updates, which the objective reads"):
        trained(data, settings(data, module, "FailsAfter"), tmp_path / "runs", noted)
    assert (noted.sentences, (tmp_path / "runs").exists()) == ([], False)


@pytest.mark.parametrize(
    ("name", "own", "said"),
    [
        (
            "Wide",
            {"of": "learned"},
            r"Wide\.act gives actions of shape \(3, 4\) for 3 obs.*learned",
        ),
        ("Wide", {"of": "behaviour"}, r"\(3, 4\).* 'behaviour', where a tensor of shape \(3, 2\)"),
        ("Listing", {}, r"Listing\.act gives a list for 3 obs.* one row of 2 numbers"),
        ("Acts", {"how": "random"}, r"Acts\.act gives other actions when asked again .*noise_dim"),
        ("Acts", {"how": "not finite"}, r"Acts\.act gives actions that are not finite .*\[-1, 1\]"),
    ],
)
def test_actions_that_cannot_be_scored_are_refused_before_training(
    data, module, tmp_path, name, own, said
):
    with pytest.raises(InputError, match=said):
        trained(data, settings(data, module, name, own=own), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_infinite_actions_are_not_clipped_before_anyone_looks(data, module):
    agent = make_agent(settings(data, module, "Acts", own={"how": "infinite"}), 3, 2, CPU)
    act = numpy_policy(agent, "learned", CPU)
    assert np.isinf(act(np.ones((4, 3)), np.ones((4, 2)))).all(), "also of float64"
    with pytest.raises(InputError, match="no policy 'nope'"):
        numpy_policy(agent, "nope", CPU)


def test_a_policy_without_gradients_that_runs_a_part_of_a_network_is_shared(data, module, tmp_path):
    folder = trained(data, settings(data, module, "Inner"), tmp_path / "runs")
    model = export_run(folder.path, tmp_path / "model", onnx=False).folder
    policy = load_policy(model, own_methods=True)
    assert policy.noise_dim == 2
    assert policy(data.episodes.observations[:4]).shape == (4, 2)


@pytest.mark.parametrize("how", ["far", "by numbers", "on the CPU"])
def test_a_policy_that_looks_at_numbers_is_shared_and_acts_in_bounds(data, module, tmp_path, how):
    folder = trained(data, settings(data, module, "Acts", own={"how": how}), tmp_path / "runs")
    model = export_run(folder.path, tmp_path / "model", onnx=False).folder
    policy = load_policy(model, own_methods=True)
    few = data.episodes.observations[:4]
    actions = policy(few)
    assert actions.shape == (4, 2)
    assert abs(actions).max() <= 1
    if how == "far":
        exported = export_run(folder.path, tmp_path / "with", onnx=True)
        assert exported.comparison.difference < 1e-5


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("vector", r"returns a loss of shape \(3,\) where a tensor of one number .* take its mean"),
        ("number", r"returns a loss 1\.0 where a tensor of one number is needed"),
        ("detached", r"returns a loss without gradient"),
        ("no name", r"returns a metric named 3; name metrics by text"),
        ("text", r"returns a metric 'mine' that is a str; give a number or a tensor"),
        ("step", r"returns a metric named 'step', as lines name the update"),
        ("entropy", r"returns a metric 'entropy' that is not two numbers a layer"),
        ("nan", r"critic_loss became nan by update 2; .* or mend the losses of Returns"),
    ],
)
def test_losses_that_are_none_are_named(data, module, tmp_path, how, said):
    config = settings(data, module, "Returns", own={"how": how})
    with pytest.raises(InputError, match=said):
        trained(data, config, tmp_path / "runs")


def test_trying_to_act_changes_no_data_and_no_random_numbers(data, module, tmp_path):
    before, state = data.episodes.observations.copy(), torch.get_rng_state()
    folder = trained(data, settings(data, module, "Wide", own={"of": "none"}), tmp_path / "runs")
    assert (data.episodes.observations == before).all()
    assert torch.equal(torch.get_rng_state(), state)
    like = settings(data, module, objective="flow")
    plain = run(like, data, tmp_path / "runs", "plain", SilentReporter())
    assert folder.metrics.read_bytes() == plain.metrics.read_bytes()


# Numbers that no checkpoint holds.


@pytest.mark.parametrize("delay", [1, 2])
def test_python_numbers_that_change_are_named(data, module, tmp_path, delay):
    noted = Noting()
    config = settings(data, module, "Counting", own={"delay": delay})
    folder = trained(data, config, tmp_path / "runs", noted)
    (said,) = (sentence for sentence in noted.sentences if "in no checkpoint" in sentence)
    assert said.startswith("note: Counting.calls, Counting.own_calls: Python's numbers that change")
    noted = Noting()
    resume(folder.path, lambda _: data, noted, steps=8)
    assert said in noted.sentences
    noted = Noting()
    run(settings(data, module, "Scaled"), data, tmp_path / "runs", "other", noted)
    assert not any("in no checkpoint" in sentence for sentence in noted.sentences)


# Settings that nothing reads.


@pytest.mark.parametrize(
    ("name", "own", "said"),
    [
        (
            "Mine",
            {"wieght": 2.0},
            ["own.wieght by the end of its first update; did you mean own.w"],
        ),
        (
            "Mine",
            {"zeta": 2.0},
            ["own.zeta by the end of its first update; it has read own.weight"],
        ),
        ("FQL", {"weight": 2.0}, []),
        ("Delayed", {"scale": 2.0}, []),
        ("Delayed", {"sclae": 2.0}, ["by the end of its first 2 updates; did you mean own.scale?"]),
        ("FailsAfter", {"updates": 9, "beta": 1}, ["own.beta by"]),
    ],
)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_settings_that_a_method_does_not_read_are_named(
    data, module, tmp_path, name, own, said, seeds
):
    noted = Noting()
    config = settings(data, module, name, own=own)
    (folder, *_) = run_seeds(config, seeds, data, tmp_path / "runs", "r", noted)
    told = [sentence for sentence in noted.sentences if "has not read own." in sentence]
    assert len(told) == len(said)
    assert all(part in sentence for part, sentence in zip(said, told, strict=True))
    assert folder.config.read_text() == config.to_toml()


def test_reading_a_setting_in_any_way_is_reading_it():
    config = resolve({"objective": "my:Mine", "own": {"beta": 3.0, "gamma": 2}})
    everything = (
        dict,
        lambda own: own.model_dump(),
        lambda own: own.names,
        lambda own: own.model_extra,
    )
    ways = [lambda own: own["beta"], lambda own: own.get("beta", 1), lambda own: own.beta]
    ways += [lambda own: copy.deepcopy(own)["beta"], *everything]
    for way in ways:
        own = watched(config).own
        assert own.unread == ("beta", "gamma")
        way(own)
        assert own.unread == (() if way in everything else ("gamma",))


def test_watching_settings_changes_none():
    config = resolve({"objective": "my:Mine", "own": {"beta": 3.0, "gamma": 2}})
    seen = watched(config)
    seen.own["beta"]
    assert (seen == config, config == seen, hash(seen)) == (True, True, hash(config))
    assert seen != resolve({"objective": "my:Mine", "own": {"beta": 3.0}})
    assert (seen.to_toml(), repr(seen.own.get("z", 7))) == (config.to_toml(), "7")
    with pytest.raises(InputError, match=r"own\.z, which the objective reads"):
        seen.own["z"]


@pytest.mark.slow
def test_settings_that_only_compiled_code_reads_are_read(data, module, tmp_path, monkeypatch):
    """Nobody sees it read them; the same code without numbers is seen."""
    compiled = partial(compile_losses, backend="eager")
    monkeypatch.setattr("tql_offline.training.compile.compile_losses", compiled)
    # The second time, the operations are known without an update.
    for own, said in (({"scale": 2.0}, 0), ({"scale": 2.0}, 0), ({"sclae": 2.0}, 1)):
        noted = Noting()
        config = settings(data, module, "Scaled", own=own, execution={"compile": "on"})
        folder = run(config, data, tmp_path / "runs", "", noted)
        assert read_json(folder.provenance)["execution"]["mode"] == "compiled"
        assert sum("did you mean own.scale?" in sentence for sentence in noted.sentences) == said
        assert sum("has not read" in sentence for sentence in noted.sentences) == said


def test_the_packages_methods_have_no_code_of_ones_own(data, module, tmp_path):
    folder = trained(data, settings(data, module, objective="flow"), tmp_path / "runs")
    assert "own_method" not in read_json(folder.provenance)
