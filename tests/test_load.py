"""Reading datasets: alignment, rewards, and every kind of file that must be refused."""

import pickle
import zipfile

import h5py
import numpy as np
import ogbench
import pytest

from tql_offline.datasets.collect import collect
from tql_offline.datasets.load import load
from tql_offline.datasets.names import find_file, parse_name
from tql_offline.errors import InputError

TASK = "pointmaze-medium-navigate-singletask-task1-v0"


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """A small collected pointmaze file."""
    folder = tmp_path_factory.mktemp("maze")
    return collect(TASK, out=folder, episodes=3, steps=300, processes=1).train


def columns_of(path):
    return dict(np.load(path))


def write(path, columns):
    if path.suffix == ".npz":
        np.savez_compressed(path, **columns)
        return path
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[name] = column
    return path


def own_columns(lengths=(3, 2)):
    rows = sum(lengths) + len(lengths)
    terminals = np.zeros(rows, dtype=bool)
    terminals[np.cumsum(np.array(lengths) + 1) - 1] = True
    return {
        "observations": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2),
        "actions": np.linspace(-1, 1, rows, dtype=np.float32)[:, None],
        "terminals": terminals,
        "rewards": np.arange(rows, dtype=np.float32),
    }


def test_ogbench_file_reads_as_ogbench_reads_it(maze):
    ours = load(TASK, maze).episodes
    _, theirs, _ = ogbench.make_env_and_datasets(TASK, dataset_path=str(maze))
    starts = ours.start_rows()
    np.testing.assert_array_equal(ours.observations[starts], theirs["observations"])
    np.testing.assert_array_equal(ours.observations[starts + 1], theirs["next_observations"])
    np.testing.assert_array_equal(ours.rewards, theirs["rewards"])
    np.testing.assert_array_equal(ours.masks, theirs["masks"])
    np.testing.assert_allclose(ours.actions, theirs["actions"], atol=1.01e-5)
    assert np.abs(ours.actions).max() <= 1 - 1e-5
    np.testing.assert_array_equal(np.flatnonzero(theirs["terminals"]), ours.last_transitions())


def test_dataset_says_where_it_came_from(maze):
    data = load(TASK, maze)
    described = data.describe()
    assert described["transitions"] == 900
    assert described["episodes"] == 3
    assert len(described["sha256"]) == 64
    assert data.env_id == "pointmaze-medium-singletask-task1-v0"


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_own_file_keeps_alignment_and_last_observation(tmp_path, suffix):
    path = write(tmp_path / f"mine{suffix}", own_columns())
    data = load(str(path))
    episodes = data.episodes
    assert episodes.lengths.tolist() == [3, 2]
    assert episodes.observations[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert episodes.rewards.tolist() == [0, 1, 2, 4, 5]
    assert episodes.masks.tolist() == [1] * 5
    assert (data.source, data.env_id) == ("own file", None)


def test_own_masks_are_read(tmp_path):
    masks = np.array([1, 1, 0, 0, 1, 0, 0], dtype=np.float32)
    path = write(tmp_path / "mine.npz", own_columns() | {"masks": masks})
    assert load(str(path)).episodes.masks.tolist() == [1, 1, 0, 1, 0]


BROKEN = {
    "no column": lambda c: {k: v for k, v in c.items() if k != "rewards"},
    "short column": lambda c: c | {"actions": c["actions"][:-1]},
    "flat observations": lambda c: c | {"observations": c["observations"][:, 0]},
    "text": lambda c: c | {"rewards": np.array(["a"] * len(c["rewards"]))},
    "not finite": lambda c: c | {"observations": np.where(c["observations"] == 4, np.nan, 0.0)},
    "cut off": lambda c: {k: v[:-1] for k, v in c.items()},
    "empty": lambda c: {k: v[:0] for k, v in c.items()},
    "episode without transition": lambda c: c | {"terminals": np.ones_like(c["terminals"])},
    "wide rewards": lambda c: c | {"rewards": np.stack([c["rewards"]] * 2, axis=1)},
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_broken_columns_are_named_in_one_sentence(tmp_path, fault):
    path = write(tmp_path / "mine.npz", BROKEN[fault](own_columns()))
    with pytest.raises(InputError) as caught:
        load(str(path))
    assert "mine.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_file_is_refused(tmp_path, maze):
    whole = maze.read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 5):
        path = tmp_path / "half.npz"
        path.write_bytes(whole[:keep])
        with pytest.raises(InputError, match=r"half.npz.*(download|collect)"):
            load(TASK, path)


def test_file_of_another_environment_is_refused(tmp_path, maze):
    columns = columns_of(maze)
    columns["observations"] = np.repeat(columns["observations"], 3, axis=1)
    path = write(tmp_path / "wrong.npz", columns)
    with pytest.raises(
        InputError, match=r"6 observation dims.*pointmaze-medium-singletask-task1-v0 has 2"
    ):
        load(TASK, path)


def test_file_without_simulator_states_is_refused(tmp_path, maze):
    columns = {k: v for k, v in columns_of(maze).items() if k != "qpos"}
    with pytest.raises(InputError, match="qpos"):
        load(TASK, write(tmp_path / "bare.npz", columns))


def test_pickled_arrays_are_never_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as archive:
        header = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        archive.writestr("observations.npy", header.ljust(127) + b"\n" + pickle.dumps([Bomb()]))
    with pytest.raises(InputError, match="bomb.npz"):
        load(str(path))


def test_hdf5_links_out_of_the_file_are_not_followed(tmp_path):
    secret = write(tmp_path / "secret.hdf5", own_columns())
    path = tmp_path / "link.hdf5"
    with h5py.File(path, "w") as file:
        for name in own_columns():
            file[name] = h5py.ExternalLink(str(secret), name)
    with pytest.raises(InputError, match="link.hdf5"):
        load(str(path))


def test_missing_files_and_bad_names_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"tql-offline download.*tql-offline collect"):
        find_file(parse_name(TASK))
    with pytest.raises(InputError, match="does not exist"):
        load(str(tmp_path / "none.npz"))
    with pytest.raises(InputError, match="has no rewards"):
        load("pointmaze-medium-navigate-v0")
    with pytest.raises(InputError, match="not a dataset name"):
        load("Not A Name")
