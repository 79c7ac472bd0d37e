"""Trackers: numbers arrive under their names, and a missing package is one sentence."""

import sys
import types

import pytest
from stand_ins import raising

from tql_offline.errors import InputError
from tql_offline.runs import RunFolder
from tql_offline.training.trackers import check_tracker, make_tracker


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.runs = []

    def init(self, reinit=None, **settings):
        """Outside of notebooks an active run is returned, unless a new one is asked for."""
        active = [run for run in self.runs if not run.finished]
        if active and reinit != "create_new":
            return active[-1]
        self.runs.append(FakeWandbRun(settings))
        return self.runs[-1]


class FakeWandbRun:
    def __init__(self, settings):
        self.logged, self.finished, self.settings = [], False, settings

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished = True


class FakeTensorBoard(types.ModuleType):
    def __init__(self):
        super().__init__("torch.utils.tensorboard")
        self.scalars, self.closed = [], False

    def SummaryWriter(self, folder, purge_step=None):  # noqa: N802  (its name in PyTorch)
        self.folder, self.purge_step = folder, purge_step
        return self

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


def test_wandb_gets_settings_and_numbers(monkeypatch, tmp_path):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder = RunFolder(tmp_path / "mine")
    folder.path.mkdir()
    tracker = make_tracker("wandb", folder, {"seed": 3})
    tracker.log({"loss": 0.5}, 7)
    tracker.close()
    (run,) = fake.runs
    assert run.settings["name"] == "mine"
    assert run.settings["config"] == {"seed": 3}
    assert (run.logged, run.finished) == ([(7, {"loss": 0.5})], True)


def test_wandb_without_a_login_is_one_sentence(monkeypatch, tmp_path):
    fake = FakeWandb()
    fake.init = raising(RuntimeError("No API key configured. Use `wandb login`.\nmore"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(InputError, match=r"cannot begin \(No API key .*\); log in by .*offline$"):
        make_tracker("wandb", RunFolder(tmp_path), {})


def test_seeds_of_one_process_are_runs_of_their_own_in_wandb(monkeypatch, tmp_path):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folders = [RunFolder(tmp_path / f"s{seed}") for seed in (0, 1)]
    for folder in folders:
        folder.path.mkdir()
    trackers = [make_tracker("wandb", folder, {}) for folder in folders]
    for seed, tracker in enumerate(trackers):
        tracker.log({"loss": seed}, 10)
        tracker.close()
    assert [run.logged for run in fake.runs] == [[(10, {"loss": 0})], [(10, {"loss": 1})]]
    assert len({run.settings["id"] for run in fake.runs}) == 2


def test_a_resumed_run_goes_on_as_the_same_in_wandb(monkeypatch, tmp_path):
    fake, folder = FakeWandb(), RunFolder(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (0, 30):
        make_tracker("wandb", folder, {"steps": step}, step).close()
    first, second = (run.settings for run in fake.runs)
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert second["allow_val_change"], "of the number of updates"
    folder.wandb_id.write_text("../../what is this")
    make_tracker("wandb", folder, {}, 40)
    assert fake.runs[-1].settings["id"].isalnum()


def test_tensorboard_gets_scalars(monkeypatch, tmp_path):
    fake = FakeTensorBoard()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    tracker = make_tracker("tensorboard", RunFolder(tmp_path), {})
    tracker.log({"loss": 0.5, "q": 1.0}, 7)
    tracker.close()
    assert fake.scalars == [("loss", 0.5, 7), ("q", 1.0, 7)]
    assert fake.closed
    assert fake.folder == str(tmp_path / "tensorboard")
    assert fake.purge_step == 1, "nothing, or what was logged before the first checkpoint"
    make_tracker("tensorboard", RunFolder(tmp_path), {}, 20)
    assert fake.purge_step == 21, "what was logged after the checkpoint comes again"


@pytest.mark.parametrize(
    ("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_missing_package_is_named_with_its_command(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install 'tql-offline\[{name}\]'"):
        check_tracker(name)
