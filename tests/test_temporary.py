"""OGBench's temporary files: removed after an environment is made, and no others."""

import os
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tql_offline import doctor
from tql_offline.datasets.behaviours import make_environment, maze_behaviours
from tql_offline.eval.environments import SeededEnvironment, make
from tql_offline.temporary import environment_files_removed

MAZE = "pointmaze-medium-singletask-v0"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def opened(temporary, monkeypatch):
    """The files that `mkstemp` opened."""
    files, mkstemp = [], tempfile.mkstemp

    def noting(*arguments, **options):
        number, path = mkstemp(*arguments, **options)
        files.append((number, os.fstat(number).st_ino))
        return number, path

    monkeypatch.setattr(tempfile, "mkstemp", noting)
    return files


def is_open(number, inode):
    """Whether a file is still open: another one may have got its number."""
    try:
        return os.fstat(number).st_ino == inode
    except OSError:
        return False


def make_one():
    return make(MAZE)


def make_to_collect():
    return make_environment(maze_behaviours()["pointmaze-medium-navigate-v0"], rows=10)


@pytest.mark.parametrize("made_by", [make_one, make_to_collect])
def test_a_maze_leaves_no_file_and_plays_as_before(temporary, opened, made_by):
    """Two at once, each reset after a step, too."""
    before = tempfile.mkstemp
    with closing(made_by()) as one, closing(made_by()) as other:
        assert len(opened) == 2
        assert not any(is_open(*file) for file in opened)
        assert not list(temporary.iterdir())
        assert tempfile.mkstemp is before
        for env in (one, other):
            for _ in range(2):
                env.reset(seed=0)
                env.step(env.action_space.sample())


def test_two_mazes_play_the_same_episode(temporary):
    played = []
    for _ in range(2):
        env = SeededEnvironment(make(MAZE))
        played.append([env.reset(3), *(env.step(np.ones(2, np.float32))[0] for _ in range(5))])
        played[-1].append(env.reset(3))
        env.close()
    np.testing.assert_array_equal(*played)


def test_doctor_leaves_no_file(temporary, opened):
    assert doctor._environment()[0].state == "ok"
    assert opened
    assert not list(temporary.iterdir())


def test_files_of_other_threads_and_packages_stay(temporary, opened):
    made = []
    thread = threading.Thread(target=lambda: made.append(ogbench_makes_a_file()))
    with environment_files_removed():
        made.append(tempfile.mkstemp(suffix=".xml"))
        thread.start()
        thread.join()
        _, path = ogbench_makes_a_file()
    assert not Path(path).exists()
    assert [is_open(*file) for file in opened] == [True, True, False]
    for number, path in made:
        assert Path(path).exists()
        os.close(number)


def ogbench_makes_a_file():
    """Make a file as a module of OGBench does."""
    names = {"__name__": "ogbench.locomaze.maze", "tempfile": tempfile}
    exec("made = tempfile.mkstemp(text=True, suffix='.xml')", names)
    return names["made"]


def test_files_are_removed_where_no_environment_is_made(temporary, opened):
    with pytest.raises(RuntimeError), environment_files_removed():
        ogbench_makes_a_file()
        raise RuntimeError
    assert not is_open(*opened[0])
    assert not list(temporary.iterdir())
