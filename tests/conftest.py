"""Fixtures for every test: a home of its own, so that no test reads or writes the user's data."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("MUJOCO_GL", "disable")
# Two test processes with two threads each spin against one another on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if shutil.which("nvidia-smi") is None and not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when PyTorch first imports Triton


@pytest.fixture(autouse=True)
def private_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TQL_OFFLINE_DATA", str(tmp_path / "collected"))
    monkeypatch.setenv("OGBENCH_DATA", str(tmp_path / "ogbench"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.delenv("TQL_OFFLINE_LOCAL_ONLY", raising=False)
    return tmp_path


@pytest.fixture
def no_flock(monkeypatch):
    """The file system answers a request for a lock with an error."""
    from stand_ins import raising

    fcntl = pytest.importorskip("fcntl")

    return lambda number: monkeypatch.setattr(
        fcntl, "flock", raising(OSError(number, os.strerror(number)))
    )


_DOCUMENTS: dict[str, str] = {}


@pytest.fixture
def panels_drawn_once(monkeypatch):
    """A panel that an earlier test drew is not drawn again: most made-up runs have one curve."""
    from tql_offline.eval import plots

    draw = plots._panel_document

    def drawn(panel):
        key = repr(panel)
        if key not in _DOCUMENTS:
            _DOCUMENTS[key] = draw(panel)
        return _DOCUMENTS[key]

    monkeypatch.setattr(plots, "_panel_document", drawn)
    return _DOCUMENTS


@pytest.fixture
def same_threads():
    """PyTorch's number of threads is the same afterwards."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def short_protocols():
    """Every protocol has two episodes: untrained policies play each to its last step."""
    from stand_ins import shortened

    from tql_offline.eval import protocol

    real = protocol.get
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "get", shortened(real, episodes=2, slots=2))
        yield


@pytest.fixture
def short_maze(monkeypatch):
    """Episodes end after 30 of their 1,000 steps in OGBench's maze, where it is made here."""
    import gymnasium
    import ogbench  # noqa: F401  (registers it)

    spec = gymnasium.spec("pointmaze-medium-singletask-task1-v0")
    monkeypatch.setattr(spec, "max_episode_steps", 30)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few hundred rows of a real maze, scored in one whose episodes end after 30 steps."""
    from tql_offline.datasets.collect import collect
    from tql_offline.datasets.load import load

    name = "pointmaze-medium-navigate-singletask-task1-v0"
    folder = tmp_path_factory.mktemp("maze")
    data = load(name, collect(name, out=folder, episodes=3, steps=200, processes=1).train)
    return replace(data, env_id="rollout_environments:ShortMaze-v0")
