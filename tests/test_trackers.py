"""Trackers: numbers arrive under their names, and a missing package is one sentence."""

import sys
import types

import pytest

from tql_offline.errors import InputError
from tql_offline.runs import RunFolder
from tql_offline.training.trackers import check_tracker, make_tracker


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.logged, self.finished, self.settings = [], False, {}

    def init(self, **settings):
        self.settings = settings
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished = True


class FakeTensorBoard(types.ModuleType):
    def __init__(self):
        super().__init__("torch.utils.tensorboard")
        self.scalars, self.closed = [], False

    def SummaryWriter(self, folder):  # noqa: N802  (its name in PyTorch)
        self.folder = folder
        return self

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


def test_wandb_gets_settings_and_numbers(monkeypatch, tmp_path):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = make_tracker("wandb", RunFolder(tmp_path / "mine"), {"seed": 3})
    tracker.log({"loss": 0.5}, 7)
    tracker.close()
    assert fake.settings["name"] == "mine"
    assert fake.settings["config"] == {"seed": 3}
    assert (fake.logged, fake.finished) == ([(7, {"loss": 0.5})], True)


def test_tensorboard_gets_scalars(monkeypatch, tmp_path):
    fake = FakeTensorBoard()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    tracker = make_tracker("tensorboard", RunFolder(tmp_path), {})
    tracker.log({"loss": 0.5, "q": 1.0}, 7)
    tracker.close()
    assert fake.scalars == [("loss", 0.5, 7), ("q", 1.0, 7)]
    assert fake.closed
    assert fake.folder == str(tmp_path / "tensorboard")


@pytest.mark.parametrize(
    ("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_missing_package_is_named_with_its_command(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install 'tql-offline\[{name}\]'"):
        check_tracker(name)
