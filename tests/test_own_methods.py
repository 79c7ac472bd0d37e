"""Methods of one's own: told apart by class, settings and code, and trained as they are."""

import hashlib
import shutil

import pytest
from command_line import command
from own_data import write_own
from report_runs import make_run
from stand_ins import Noting

from tql_offline.config import is_own, resolve
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.eval.report import write_report
from tql_offline.eval.run_records import read_run
from tql_offline.eval.variants import differing, effective, settings_of
from tql_offline.files import read_json, read_jsonl, write_json
from tql_offline.training.provenance import resumed_code
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import resume, run
from tql_offline.training.sweep import first_difference

MODULE = """
import torch

from tql_offline.agents.flow_q import FlowQ


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


def test_the_packages_methods_have_no_code_of_ones_own(data, module, tmp_path):
    folder = trained(data, settings(data, module, objective="flow"), tmp_path / "runs")
    assert "own_method" not in read_json(folder.provenance)
