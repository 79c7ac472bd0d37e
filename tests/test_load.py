"""Reading datasets: alignment, rewards, and every kind of file that must be refused."""

import io
import pickle
import shutil
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import ogbench
import pytest
from own_data import write_own

from tql_offline.datasets import catalogue
from tql_offline.datasets.arrays import from_arrays
from tql_offline.datasets.collect import collect
from tql_offline.datasets.columns import read_columns
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.load import load
from tql_offline.datasets.names import find_file, parse_name
from tql_offline.datasets.ogbench import relabel
from tql_offline.datasets.reading import STEP_MARKS
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
    "no rows": lambda c: c | {"rewards": np.float32(1)},
    "too large for float32": lambda c: c | {"observations": np.full((7, 2), 1e300)},
    "fractional masks": lambda c: c | {"masks": np.full(len(c["rewards"]), 0.5)},
    "actions out of bounds": lambda c: c | {"actions": 2 * c["actions"]},
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_broken_columns_are_named_in_one_sentence(tmp_path, fault):
    path = write(tmp_path / "mine.npz", BROKEN[fault](own_columns()))
    with pytest.raises(InputError) as caught:
        load(str(path))
    assert "mine.npz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "collect" not in str(caught.value)


def test_layout_of_d4rl_is_named(tmp_path):
    path = tmp_path / "d4rl.hdf5"
    with h5py.File(write(path, own_columns() | {"timeouts": np.zeros(7)}), "a") as file:
        file.create_group("infos")
    with pytest.raises(InputError, match=r"'timeouts'.*D4RL.*docs/data.md"):
        read_columns(path)


def test_action_out_of_bounds_is_placed(tmp_path):
    columns = own_columns()
    columns["actions"][[3, 5]] = [[9.0], [1.1]]  # row 3 ends an episode: nothing reads its action
    with pytest.raises(InputError, match=r"'actions'.*1\.1 at row 5, dim 0"):
        load(str(write(tmp_path / "mine.npz", columns)))


def test_rounded_actions_are_clipped(tmp_path):
    columns = own_columns()
    columns["actions"] *= np.float32(1.0005)
    assert np.abs(load(str(write(tmp_path / "m.npz", columns))).episodes.actions).max() < 1


def test_values_of_rows_without_transition_are_not_checked(tmp_path):
    columns = own_columns() | {"masks": np.array([1, 1, 0, 7, 1, 0, 7.0])}
    assert load(str(write(tmp_path / "m.npz", columns))).episodes.masks.tolist() == [1, 1, 0, 1, 0]


def header(shape, descr="<f4"):
    """An npy file that ends with its header."""
    file = io.BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def zipped(content):
    """An npz file of one member."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("observations.npy", content)
    return file.getvalue()


def patched(archive, offset, value):
    """A zip file with two bytes changed in its local and in its central header."""
    changed = bytearray(archive)
    for start, shift in ((0, 0), (archive.index(b"PK\x01\x02"), 2)):
        place = start + offset + shift
        changed[place : place + 2] = value.to_bytes(2, "little")
    return bytes(changed)


WHOLE = zipped(header((1,)) + bytes(4))
HOSTILE = {
    "npy": header((1,)) + bytes(4),
    "encrypted": patched(WHOLE, 6, 1),
    "unknown packing": patched(WHOLE, 8, 77),
    "no array": zipped(b"just text"),
    "empty member": zipped(b""),
    "claims too much": zipped(header((2**58,)) + bytes(4)),
    "claims too many dims": zipped(header((2**30, 2**30, 2**30, 2**30))),
    "claims too little": zipped(header((1,)) + bytes(400)),
    "negative shape": zipped(header((-1, -1)) + bytes(4)),
    "no header": zipped(b"\x93NUMPY\x01\x00\x04\x00(((("),
    "unknown version": zipped(b"\x93NUMPY\x09\x00" + bytes(20)),
}


@pytest.mark.parametrize("fault", list(HOSTILE))
def test_hostile_npz_is_refused(tmp_path, fault):
    path = tmp_path / "hostile.npz"
    path.write_bytes(HOSTILE[fault])
    with pytest.raises(InputError, match=r"hostile.npz is not a whole npz .*docs/data.md says$"):
        load(str(path))


@pytest.mark.parametrize(
    "make",
    [
        lambda f: f.create_dataset("observations", data=h5py.Empty("f4")),
        lambda f: f.create_dataset("observations", shape=(2**40, 2), dtype="f4", chunks=(1, 2)),
        lambda f: f.create_dataset("observations", shape=(2**30, 2), dtype="f4", chunks=(1, 2)),
        lambda f: f.create_dataset("observations", data=["a", "b"]),
        lambda f: f.create_group("observations"),
    ],
    ids=["null", "beyond every bound", "beyond the file", "text", "group"],
)
def test_hostile_hdf5_is_refused(tmp_path, make):
    path = tmp_path / "hostile.hdf5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(InputError, match=r"hostile.hdf5 (claims|holds)"):
        load(str(path))


def test_columns_in_a_group_are_named(tmp_path):
    path = tmp_path / "nested.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("actions", "observations", "rewards", "terminals"):
            file[f"data/{name}"] = np.zeros(3)
    with pytest.raises(
        InputError, match=r"'data', a group of 'actions', 'observations', 'rewards', \.\.\."
    ):
        load(str(path))


def test_columns_beyond_memory_are_refused(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise MemoryError

    path = write(tmp_path / "large.npz", own_columns())
    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(InputError, match=r"large.npz do not fit into memory"):
        load(str(path))


STATES = {
    "short": lambda qpos: qpos[:-1],
    "narrow": lambda qpos: qpos[:, :1],
    "wide": lambda qpos: np.repeat(qpos, 2, axis=1),
    "flat": lambda qpos: qpos[:, 0],
    "scalar": lambda qpos: qpos[0, 0],
    "text": lambda qpos: qpos.astype(str),
    "not finite": lambda qpos: np.where(qpos == qpos[2], np.nan, qpos),
}


@pytest.mark.parametrize("fault", list(STATES))
def test_wrong_simulator_states_are_refused(tmp_path, maze, fault):
    columns = columns_of(maze)
    path = write(tmp_path / "wrong.npz", columns | {"qpos": STATES[fault](columns["qpos"])})
    with pytest.raises(InputError, match=r"'qpos' of .*wrong.npz"):
        load(TASK, path)


@pytest.mark.parametrize(
    ("states", "named"),
    [
        ({"qpos": np.zeros((4, 23))}, "lacks .*'button_states'"),
        ({"qpos": np.zeros((4, 23)), "button_states": np.zeros((4, 1))}, "'button_states' of"),
        ({"qpos": np.zeros((4, 28)), "button_states": np.zeros((4, 9))}, "'qpos' of"),
    ],
)
def test_manipulation_states_are_checked(tmp_path, states, named):
    name = parse_name("puzzle-3x3-play-singletask-task1-v0")
    with pytest.raises(InputError, match=named):
        relabel(name, 55, 5, states, tmp_path / "puzzle.npz")


def test_fitting_manipulation_states_give_rewards(tmp_path):
    name = parse_name("puzzle-3x3-play-singletask-task1-v0")
    states = {"qpos": np.zeros((4, 23)), "button_states": np.zeros((4, 9), dtype=np.int64)}
    rewards, masks = relabel(name, 55, 5, states, tmp_path / "puzzle.npz")
    assert rewards.shape == masks.shape == (4,)
    assert -9 <= rewards.min() < 0


def test_arguments_without_meaning_are_refused(tmp_path, maze):
    mine = write(tmp_path / "mine.npz", own_columns())
    with pytest.raises(InputError, match=r"--env"):
        load(TASK, maze, env_id="Pendulum-v1")
    with pytest.raises(InputError, match=r"two data files"):
        load(str(mine), maze)
    assert load(str(mine), env_id="Pendulum-v1").env_id == "Pendulum-v1"


def test_source_is_the_true_one(tmp_path, maze, monkeypatch):
    official, collected = tmp_path / "official", tmp_path / "collected"
    monkeypatch.setenv("OGBENCH_DATA", str(official))
    monkeypatch.setenv("TQL_OFFLINE_DATA", str(collected))
    for folder in (official, collected):
        folder.mkdir()
    known = {None: [], "0" * 64: ["not-published"], file_sha256(maze): []}
    """Digests that the catalogue may have, and what is then found about a file that is no other."""

    def source(found):
        for digest, kinds in known.items():
            entry = catalogue.find(TASK)
            entry = replace(entry, files=(replace(entry.files[0], sha256=digest),))
            with monkeypatch.context() as patch:
                patch.setattr(catalogue, "_entries", lambda entry=entry: {entry.name: entry})
                kinds_found = [finding.kind for finding in load(TASK, found).not_published()]
                is_to_be = load(TASK, found).source == "downloaded"
            assert kinds_found == (kinds if is_to_be else [])
        return load(TASK, found).source

    assert source(maze) == "given file"
    shutil.copy(maze, collected)
    assert source(None) == "collected"
    shutil.copy(maze, official)
    assert source(None) == "downloaded"
    shutil.copy(maze.with_suffix(".json"), official)
    assert source(None) == "collected"


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


@pytest.mark.parametrize("task", ["-task9", "-task0", "-task12", "-taskx", "-tasks"])
def test_tasks_are_one_to_five(task):
    with pytest.raises(InputError, match="tasks are task1 to task5"):
        load(f"cube-double-play-singletask{task}-v0")


@pytest.mark.parametrize(
    "name", ["cube-dobule-play-singletask-task1-v0", "cube-dobule-play-v0", "cube-double-pla-v0"]
)
def test_misspelt_names_get_suggestions(name):
    with pytest.raises(InputError, match=r"did you mean .*cube-double-play-v0") as caught:
        load(name)
    assert "tql-offline" not in str(caught.value)
    assert "singletask-task1" not in str(caught.value).replace(name, "")


def test_only_what_can_be_collected_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("OGBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("TQL_OFFLINE_DATA", str(tmp_path))
    name = "antmaze-large-navigate-singletask-task1-v0"
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"")
    for path in (None, damaged):
        with pytest.raises(
            InputError, match="run `tql-offline download antmaze-large-navigate-v0`$"
        ):
            load(name, path)


@pytest.mark.parametrize("marks", STEP_MARKS)
def test_marks_of_gymnasium_are_refused_with_the_names_to_give_them(tmp_path, marks):
    path = write_own(tmp_path / "mine.npz", (4, 4), 2)
    with np.load(path) as archive:
        columns = dict(archive)
    np.savez(path, **columns, **{marks: np.zeros(10)})
    with pytest.raises(InputError, match=f"column '{marks}'.*'timeouts' where an episode was cut"):
        load(str(path))


@pytest.mark.parametrize("marks", STEP_MARKS)
def test_marks_are_refused_beside_next_observations_and_in_arrays_too(tmp_path, marks):
    """They would be ignored, so that episodes ran into one another."""
    steps = {
        "observations": np.zeros((10, 3)),
        "actions": np.zeros((10, 2)),
        "rewards": np.arange(10.0),
        "terminals": np.zeros(10),
        marks: np.arange(10) % 5 == 4,
    }
    said = f"column '{marks}'.*'timeouts' where an episode was cut"
    with pytest.raises(InputError, match=said):
        from_arrays(steps, "mine", layout="steps")
    steps["next_observations"] = steps["observations"]
    np.savez(tmp_path / "mine.npz", **steps)
    with pytest.raises(InputError, match=said):
        load(str(tmp_path / "mine.npz"))
    np.savez(tmp_path / "mine.npz", **steps, timeouts=steps[marks])
    assert load(str(tmp_path / "mine.npz")).episodes.lengths.tolist() == [5, 5]


def test_ogbenchs_compact_rows_are_refused_with_the_terminals_to_give_them(tmp_path):
    """What its loader makes with compact_dataset=True: `terminals` also marks the last steps."""
    path = write_own(tmp_path / "mine.npz", (4, 4), 2)
    with np.load(path) as archive:
        columns = dict(archive)
    want, ends = load(str(path)).episodes, columns["terminals"] != 0
    compact = columns | {"valids": 1.0 - ends, "terminals": ends | np.append(ends[1:], True)}
    np.savez(path, **compact)
    with pytest.raises(InputError, match="write 1 - valids as 'terminals' and leave 'valids' out"):
        load(str(path))
    compact["terminals"] = 1 - compact.pop("valids")
    np.savez(path, **compact)
    np.testing.assert_array_equal(load(str(path)).episodes.lengths, want.lengths)


def test_without_masks_it_is_said_what_is_read(tmp_path):
    path = write_own(tmp_path / "mine.npz", (4, 4), 2)
    with np.load(path) as archive:
        columns = dict(archive)
    masks = columns.pop("masks")
    np.savez(path, **columns)
    assert any("without a column 'masks'" in note for note in load(str(path)).notes)
    np.savez(path, **columns, masks=masks)
    assert load(str(path)).notes == ()


def test_a_file_of_another_kind_is_named_as_a_file(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b")
    with pytest.raises(InputError, match="neither .npz nor HDF5"):
        load(str(path))
