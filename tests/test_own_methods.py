"""Methods of one's own: told apart by class, settings and code, and trained as they are."""

import pytest
from command_line import command
from own_data import write_own
from stand_ins import Noting

from tql_offline.config import is_own, resolve
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.eval.variants import differing, effective
from tql_offline.files import read_json, read_jsonl
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


def test_changed_code_is_another_variant_and_is_told_on_resuming(
    data, module, tmp_path, monkeypatch
):
    folder = trained(data, settings(data, module), tmp_path / "runs")
    recorded = read_json(folder.provenance)["own_method"]
    assert recorded["file"] == module.name
    folder.result.unlink()
    again = Noting()
    resume(folder.path, lambda _: data, again)
    assert not any("has changed" in sentence for sentence in again.sentences)
    module.write_text(MODULE.replace("WEIGHT = 1.0", "WEIGHT = -1.0"))
    changed = Noting()
    folder.result.unlink()
    resume(folder.path, lambda _: data, changed)
    assert any(f"({module.name}) has changed" in sentence for sentence in changed.sentences)
    other = run(settings(data, module, seed=1), data, tmp_path / "runs", "other", SilentReporter())
    assert read_json(other.provenance)["own_method"]["sha256"] != recorded["sha256"]


def test_the_packages_methods_have_no_code_of_ones_own(data, module, tmp_path):
    folder = trained(data, settings(data, module, objective="flow"), tmp_path / "runs")
    assert "own_method" not in read_json(folder.provenance)
