import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marks import slowly

from tql_offline import locks
from tql_offline.datasets import behaviours
from tql_offline.datasets import collect as module
from tql_offline.datasets.behaviours import (
    block_stays_visible,
    cells_at_distance,
    episode_runner,
    make_environment,
    manipulation_behaviours,
    maze_behaviours,
    vertex_cells,
)
from tql_offline.datasets.collect import collect, collectable, official_size
from tql_offline.datasets.digests import file_sha256
from tql_offline.errors import InputError

MAZE = "pointmaze-medium-navigate-v0"
CUBE = "cube-single-play-v0"
BEHAVIOURS: dict[str, Any] = maze_behaviours() | manipulation_behaviours()
STEP = 0.2
"""The farthest a point moves along one axis in a step: PointEnv scales its actions by this."""
ROOT = Path(__file__).parent.parent


def read(path) -> dict[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, column in one.items():
        np.testing.assert_array_equal(column, other[name], err_msg=name, strict=True)


def ogbench_reads(name, path):
    """What OGBench's own loader makes of a file: environment, training and validation set."""
    with warnings.catch_warnings():
        # Its environments' action spaces warn at each access.
        warnings.simplefilter("ignore")
        import ogbench

        return ogbench.make_env_and_datasets(name, dataset_path=str(path), add_info=True)


# The files.


@pytest.mark.parametrize(
    ("name", "episodes", "steps", "sizes"),
    [(MAZE, 20, 30, (2, 2)), (CUBE, 2, 6, (28, 5))],
)
def test_ogbench_reads_what_was_written(tmp_path, name, episodes, steps, sizes):
    collected = collect(name, out=tmp_path, episodes=episodes, steps=steps, processes=1)
    validation = max(1, episodes // 10)
    assert collected.rows == episodes * (steps + 1)
    env, *sets = ogbench_reads(name, collected.train)
    run = episode_runner(BEHAVIOURS[name], rows=steps + 1)
    files = (collected.train, collected.val)
    counts = (episodes, validation)
    for split, (dataset, path, count) in enumerate(zip(sets, files, counts, strict=True)):
        columns = read(path)
        rows = slice((count - 1) * (steps + 1), None)
        assert_same(run((0, split, count - 1)), {key: columns[key][rows] for key in columns})
        ends = np.flatnonzero(columns["terminals"])
        np.testing.assert_array_equal(ends, np.arange(1, count + 1) * (steps + 1) - 1)
        for key in ("observations", "actions", "qpos", "qvel"):
            assert columns[key].dtype == np.float32
            by_episode = columns[key].reshape(count, steps + 1, -1)
            flat = by_episode[:, :-1].reshape(count * steps, -1)
            np.testing.assert_array_equal(dataset[key], flat, err_msg=key)
        by_episode = columns["observations"].reshape(count, steps + 1, -1)
        following = by_episode[:, 1:].reshape(count * steps, -1)
        np.testing.assert_array_equal(dataset["next_observations"], following)
        assert dataset["observations"].shape == (count * steps, sizes[0])
        assert dataset["actions"].shape == (count * steps, sizes[1])
        assert np.abs(dataset["actions"]).max() <= 1
        assert np.isfinite(dataset["observations"]).all()
    assert env.observation_space.shape == (sizes[0],)


@pytest.mark.parametrize("name", [MAZE, CUBE, "scene-play-v0"])
def test_singletask_names_get_rewards_from_the_file(tmp_path, name):
    singletask = name.replace("-v0", "-singletask-task1-v0")
    collected = collect(singletask, out=tmp_path, episodes=2, steps=6, processes=1)
    assert collected.train.name == f"{name}.npz"
    _, train, val = ogbench_reads(singletask, collected.train)
    assert train["rewards"].shape == (12,)
    assert val["masks"].shape == (6,)
    assert train["rewards"].max() <= 0
    if name == "scene-play-v0":
        assert read(collected.train)["button_states"].dtype == np.int64


def test_manifest_describes_the_files(tmp_path):
    collected = collect(MAZE, out=tmp_path, episodes=30, steps=5, seed=7, processes=1)
    manifest = json.loads(collected.manifest.read_text())
    assert manifest["dataset"] == MAZE
    assert (manifest["seed"], manifest["episodes"], manifest["steps"]) == (7, 30, 5)
    assert manifest["validation_episodes"] == 3
    assert manifest["sha256"][collected.val.name] == file_sha256(collected.val)
    assert set(manifest["versions"]) == {"ogbench", "mujoco", "gymnasium", "numpy"}
    assert file_sha256(collected.train) == collected.train_sha256
    # Nothing else is left behind: no parts, no lock, no file written aside.
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {collected.train.name, collected.val.name, collected.manifest.name}


def test_archives_carry_no_clock(tmp_path):
    collected = collect(MAZE, out=tmp_path, episodes=1, steps=2, processes=1)
    with zipfile.ZipFile(collected.train) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


# Determinism.


def test_same_bytes_for_one_and_two_processes(tmp_path):
    sizes: dict[str, Any] = {"episodes": 66, "steps": 4, "seed": 3}
    alone = collect(MAZE, out=tmp_path / "1", processes=1, **sizes)
    shared = collect(MAZE, out=tmp_path / "2", processes=2, **sizes)
    assert alone.train.read_bytes() == shared.train.read_bytes()
    assert alone.val.read_bytes() == shared.val.read_bytes()


def test_the_seed_decides(tmp_path):
    first = collect(MAZE, out=tmp_path / "a", episodes=2, steps=5, processes=1)
    again = collect(MAZE, out=tmp_path / "b", episodes=2, steps=5, processes=1)
    other = collect(MAZE, out=tmp_path / "c", episodes=2, steps=5, seed=1, processes=1)
    assert first.train_sha256 == again.train_sha256
    assert first.train_sha256 != other.train_sha256
    episodes = [
        *np.split(read(first.train)["observations"], 2),
        read(first.val)["observations"],
        *np.split(read(other.train)["observations"], 2),
    ]
    starts = {tuple(episode[0]) for episode in episodes}
    assert len(starts) == len(episodes)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (MAZE, 120),
        slowly(CUBE, 60),
        # Long enough for several sub-tasks: the scene's locks and targets outlive an episode.
        ("scene-noisy-v0", 300),
        slowly("pointmaze-teleport-navigate-v0", 120),
        slowly("cube-double-noisy-v0", 60),
        slowly("puzzle-3x3-play-v0", 60),
    ],
)
def test_an_episode_does_not_depend_on_the_ones_before(name, rows):
    run = episode_runner(BEHAVIOURS[name], rows=rows)
    first = run((0, 0, 0))
    run((0, 0, 1))
    assert_same(first, run((0, 0, 0)))


def test_the_global_generator_is_given_back(tmp_path):
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.uniform()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    collect(MAZE, out=tmp_path, episodes=1, steps=5, processes=1)
    assert np.random.uniform() == expected  # noqa: NPY002


# The behaviour.


def test_replayed_actions_lead_to_the_next_observations():
    rows = 300
    columns: dict[str, Any] = episode_runner(BEHAVIOURS[MAZE], rows=rows)((0, 0, 2))
    env = make_environment(BEHAVIOURS[MAZE], rows=rows)
    env.reset(seed=0)
    reached = np.empty((rows - 1, 2))
    for row in range(rows - 1):
        env.unwrapped.set_state(
            columns["qpos"][row].astype(np.float64), columns["qvel"][row].astype(np.float64)
        )
        reached[row] = env.step(columns["actions"][row].astype(np.float64))[0]
    np.testing.assert_allclose(reached, columns["observations"][1:], atol=1e-5)


def test_navigation_reaches_one_goal_after_another(monkeypatch):
    goals: list[tuple[int, int]] = []
    set_goal = behaviours._set_goal

    def noted(maze, cell):
        goals.append(cell)
        set_goal(maze, cell)

    monkeypatch.setattr(behaviours, "_set_goal", noted)
    run = episode_runner(BEHAVIOURS[MAZE], rows=1001)
    for episode in range(3):
        columns: dict[str, Any] = run((0, 0, episode))
    # A path takes some 250 steps.
    assert len(goals) >= 6
    jumps = np.abs(np.diff(columns["observations"], axis=0))
    assert jumps.max() < 1.5 * STEP
    np.testing.assert_array_equal(columns["observations"], columns["qpos"])
    # It goes somewhere: more cells than the 4-unit cell it starts in.
    assert len(np.unique(np.round(columns["observations"] / 4), axis=0)) >= 10


def test_stitching_stays_within_four_cells():
    behaviour = BEHAVIOURS["pointmaze-large-stitch-v0"]
    run = episode_runner(behaviour, rows=201)
    for episode in range(3):
        xy: Any = run((0, 0, episode))["observations"]
        travelled = np.abs(xy[-1] - xy[0]).sum()
        # Four cells of four units, and half a cell of noise at both ends.
        assert travelled <= 20
        assert np.abs(np.diff(xy[-20:], axis=0)).max() < 1.5 * STEP


def test_an_arm_moves_its_block_and_takes_new_targets():
    columns: dict[str, Any] = episode_runner(BEHAVIOURS[CUBE], rows=300)((0, 0, 0))
    block = columns["qpos"][:, 14:17]
    assert block[:, 2].max() > 0.1
    assert np.linalg.norm(block[-1, :2] - block[0, :2]) > 0.05


def test_buttons_are_pressed():
    columns = episode_runner(BEHAVIOURS["puzzle-3x3-play-v0"], rows=150)((0, 0, 0))
    assert columns["button_states"].shape == (150, 9)
    # The first target alone would make two.
    assert len(np.unique(columns["button_states"], axis=0)) >= 3


def test_noisy_actions_are_random_now_and_then():
    always = replace(BEHAVIOURS["cube-single-noisy-v0"], p_random_action=1.0)
    actions: Any = episode_runner(always, rows=100)((0, 0, 0))["actions"]
    assert abs(actions.mean()) < 0.15
    assert actions.std() == pytest.approx(1 / np.sqrt(3), abs=0.05)


def test_vertices_are_ends_corners_and_crossings():
    maze = np.ones((5, 5), dtype=int)
    maze[1, 1:4] = maze[1:4, 1] = maze[3, 1:3] = 0
    assert vertex_cells(maze) == [(1, 1), (1, 3), (3, 1), (3, 2)]


def test_distance_is_counted_along_the_way():
    maze = np.ones((5, 5), dtype=int)
    maze[1, 1:4] = maze[2, 3] = maze[3, 1:4] = 0
    assert cells_at_distance(maze, (1, 1), 4) == [(3, 3)]
    assert cells_at_distance(maze, (1, 1), 6) == [(3, 1)]
    assert cells_at_distance(maze, (1, 1), 7) == []


def test_an_episode_that_loses_its_block_is_repeated(monkeypatch):
    judged: list[Any] = []

    def second(qpos):
        judged.append(qpos)
        return len(judged) == 2

    monkeypatch.setattr(behaviours, "block_stays_visible", second)
    columns = episode_runner(BEHAVIOURS["scene-play-v0"], rows=5)((0, 0, 0))
    assert len(judged) == 2
    assert not np.array_equal(judged[0], judged[1])
    np.testing.assert_array_equal(columns["qpos"], judged[1].astype(np.float32))


@pytest.mark.parametrize(
    ("y", "z", "visible"),
    [
        (0.28, 0.02, True),
        (0.29, 0.02, False),
        (-0.29, 0.02, True),
        (-0.3, 0.059, False),
        (-0.3, 0.07, True),
        (-0.3, 0.081, False),
    ],
)
def test_block_is_visible_on_the_table_or_in_the_drawer(y, z, visible):
    qpos = np.zeros((3, 25))
    qpos[1, 15:17] = y, z
    assert block_stays_visible(qpos) is visible


# Interruption.


def test_goes_on_from_the_parts_that_are_left(tmp_path, monkeypatch):
    sizes: dict[str, Any] = {"episodes": 20, "steps": 5, "processes": 1}
    whole = collect(MAZE, out=tmp_path / "whole", **sizes)
    written: list[str] = []
    write_part = module._write_part

    def fail_half_way(*args):
        if len(written) == 11:
            raise KeyboardInterrupt
        written.append(args[-1].file)
        write_part(*args)

    monkeypatch.setattr(module, "_write_part", fail_half_way)
    with pytest.raises(KeyboardInterrupt):
        collect(MAZE, out=tmp_path / "cut", **sizes)
    assert not (tmp_path / "cut" / f"{MAZE}.npz").exists()
    (tmp_path / "cut" / f".{MAZE}.parts" / written[0]).unlink()

    rewritten: list[str] = []

    def noted(*args):
        rewritten.append(args[-1].file)
        write_part(*args)

    monkeypatch.setattr(module, "_write_part", noted)
    reported: list[int] = []
    resumed = collect(MAZE, out=tmp_path / "cut", progress=reported.append, **sizes)
    assert resumed.train.read_bytes() == whole.train.read_bytes()
    assert resumed.val.read_bytes() == whole.val.read_bytes()
    assert len(rewritten) == 22 - 10
    assert written[0] in rewritten
    assert not set(written[1:]) & set(rewritten)
    assert sum(reported) == 22 * 5


def test_a_kill_between_the_last_renames_is_mended(tmp_path):
    sizes: dict[str, Any] = {"episodes": 3, "steps": 4, "processes": 1}
    whole = collect(MAZE, out=tmp_path, **sizes)
    train = whole.train.read_bytes()
    # Killed after the manifest and the validation file, before the training file.
    whole.train.unlink()
    order = module._order(MAZE, 3, 4, 0)
    places = module._Places(tmp_path, MAZE)
    module._open_parts(places, order, False)
    assert collect(MAZE, out=tmp_path, **sizes) == whole
    assert whole.train.read_bytes() == train
    # Killed after all of them, before the parts were removed.
    module._open_parts(places, order, False)
    assert collect(MAZE, out=tmp_path, **sizes) == whole
    assert not places.parts.exists()


SCRIPT = """
    import sys
    from pathlib import Path
    from tql_offline.datasets.collect import collect

    if __name__ == "__main__":
        collect({name!r}, out=Path(sys.argv[1]), episodes=64, steps=500, processes=2)
"""


def alive(group):
    """Processes of a group that still run; one that nobody waits for (a zombie) does not."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            states.append(path.parent.name)
    return states


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes by /proc")
@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_killed_run_leaves_no_process_and_goes_on(tmp_path, sent):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(name=MAZE)))
    out = tmp_path / "cut"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script), str(out)],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        parts = out / f".{MAZE}.parts"
        deadline = time.monotonic() + 60
        while len(list(parts.glob("train-*.npz"))) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        if sent == signal.SIGINT:
            # A terminal sends Ctrl-C to the workers as well.
            os.killpg(process.pid, sent)
        else:
            process.kill()
        assert process.wait(timeout=30) == -sent
        while alive(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    done = {path.name for path in parts.glob("train-*.npz")}
    assert not (out / f"{MAZE}.npz").exists()
    assert 3 <= len(done) < 64
    resumed = collect(MAZE, out=out, episodes=64, steps=500, processes=1)
    run = episode_runner(BEHAVIOURS[MAZE], rows=501)
    columns = read(resumed.train)
    for episode in (0, 63):
        rows = slice(episode * 501, (episode + 1) * 501)
        assert_same(run((0, 0, episode)), {key: value[rows] for key, value in columns.items()})


def die(*_):
    os._exit(1)


def test_a_dead_worker_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_work", die)
    with pytest.raises(InputError, match=r"worker process died.*fewer --processes"):
        collect(MAZE, out=tmp_path, episodes=64, steps=2, processes=2)


def test_workers_do_not_import_torch():
    code = "import sys, tql_offline.datasets.collect; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


# What is already there.


def test_a_finished_collection_is_returned_at_once(tmp_path, monkeypatch):
    first = collect(MAZE, out=tmp_path, episodes=2, steps=3, processes=1)
    monkeypatch.setattr(module, "_collect_parts", None)
    assert collect(MAZE, out=tmp_path, episodes=2, steps=3, processes=1) == first


def test_other_settings_need_force(tmp_path):
    collect(MAZE, out=tmp_path, episodes=2, steps=3, processes=1)
    before = (tmp_path / f"{MAZE}.npz").read_bytes()
    with pytest.raises(
        InputError, match=r"navigate-v0\.npz was collected with seed 0 instead of 1"
    ):
        collect(MAZE, out=tmp_path, episodes=2, steps=3, seed=1, processes=1)
    assert (tmp_path / f"{MAZE}.npz").read_bytes() == before
    replaced = collect(MAZE, out=tmp_path, episodes=2, steps=3, seed=1, processes=1, force=True)
    assert replaced.train.read_bytes() != before


@pytest.mark.parametrize("suffix", [".npz", "-val.npz"])
def test_a_file_of_unknown_origin_is_not_replaced(tmp_path, suffix):
    path = tmp_path / f"{MAZE}{suffix}"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{path.name} is in the way.*--force"):
        collect(MAZE, out=tmp_path, episodes=2, steps=3, processes=1)
    assert path.read_bytes() == b"mine"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert collect(MAZE, out=tmp_path, episodes=2, steps=3, processes=1, force=True).rows == 8


def test_a_file_that_is_not_the_manifests_is_refused(tmp_path):
    collected = collect(MAZE, out=tmp_path, episodes=2, steps=3, processes=1)
    collected.train.write_bytes(b"another")
    with pytest.raises(InputError, match=r"are not the files that .*json describes"):
        collect(MAZE, out=tmp_path, episodes=2, steps=3, processes=1)


def test_leftovers_of_other_settings_are_named(tmp_path):
    places = module._Places(tmp_path, MAZE)
    module._open_parts(places, module._order(MAZE, 2, 3, 0), False)
    (places.parts / "train-000000.npz").write_bytes(b"of another run")
    with pytest.raises(InputError, match="interrupted collection with steps 3 instead of 4"):
        collect(MAZE, out=tmp_path, episodes=2, steps=4, processes=1)
    assert (places.parts / "train-000000.npz").exists()
    assert collect(MAZE, out=tmp_path, episodes=2, steps=4, processes=1, force=True).rows == 10


def test_a_damaged_part_is_named(tmp_path):
    places = module._Places(tmp_path, MAZE)
    module._open_parts(places, module._order(MAZE, 2, 3, 0), False)
    part = places.parts / "train-000001.npz"
    part.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"train-000001\.npz is damaged; delete it"):
        collect(MAZE, out=tmp_path, episodes=2, steps=3, processes=1)
    part.unlink()
    assert collect(MAZE, out=tmp_path, episodes=2, steps=3, processes=1).rows == 8


# Names and numbers.


def test_every_collectable_dataset_has_an_environment_and_a_size():
    import gymnasium
    import ogbench  # noqa: F401  (registers the environments)

    names = collectable()
    assert len(names) == len(set(names)) == 8 + 8 + 2 + 8
    for name in names:
        assert BEHAVIOURS[name].env_id in gymnasium.registry
        assert min(official_size(name)) >= 200


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("pointmaze-medium-navigate-v0", (1000, 1000)),
        ("pointmaze-giant-navigate-v0", (500, 2000)),
        ("pointmaze-giant-stitch-v0", (5000, 200)),
        ("cube-double-play-singletask-task2-v0", (1000, 1000)),
        ("cube-triple-noisy-v0", (3000, 1000)),
        ("cube-quadruple-play-v0", (5000, 1000)),
        ("puzzle-4x5-play-v0", (3000, 1000)),
        ("puzzle-4x6-noisy-v0", (5000, 1000)),
        ("scene-play-v0", (1000, 1000)),
    ],
)
def test_official_sizes(name, size):
    assert official_size(name) == size


@pytest.mark.parametrize("name", ["antmaze-large-navigate-v0", "cube-single-expert-v0"])
def test_a_dataset_that_cannot_be_collected_names_those_that_can(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}.*cannot be collected.*pointmaze-medium-stitch"):
        collect(name, out=tmp_path)
    with pytest.raises(InputError, match="cannot be collected"):
        official_size(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 0}, "episodes is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"processes": -1}, "processes is -1"),
        ({"processes": 0}, "processes is 0"),
    ],
)
def test_numbers_out_of_range_are_named(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        collect(MAZE, out=tmp_path, **settings)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*/file/out"):
        collect(MAZE, out=tmp_path / "file" / "out", episodes=1, steps=1)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_nothing_is_collected(tmp_path, no_flock, number):
    no_flock(number)
    with pytest.raises(InputError, match=r"has no locks.*; choose another folder, or mount"):
        collect(MAZE, out=tmp_path / "out", episodes=1, steps=1, processes=1)
    assert not list((tmp_path / "out").glob("*.npz"))


def test_without_locks_the_process_waited_for_is_named(tmp_path, monkeypatch, no_flock):
    """Once told that it is gone, the user deletes its file, and the collection begins."""
    lock = module._Places(tmp_path / "out", MAZE).lock
    lock.parent.mkdir()
    lock.write_text("4711\nnode7\n")
    monkeypatch.setattr(locks, "SOFT_PATIENCE_SECONDS", 0.1)
    no_flock(errno.ENOSYS)
    order = {"out": lock.parent, "episodes": 1, "steps": 1, "processes": 1}
    with pytest.raises(InputError) as error:
        collect(MAZE, **order)
    assert str(error.value) == (
        f"another process is collecting {tmp_path / 'out' / MAZE}.npz; wait until it has finished, "
        f"or delete {lock} if process 4711 on host 'node7' is gone"
    )
    lock.unlink()
    assert collect(MAZE, **order).train.is_file()
    assert not lock.exists()


def test_the_end_of_another_collection_is_waited_for(tmp_path, monkeypatch):
    """The system's lock ends with its process."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(locks, "SOFT_PATIENCE_SECONDS", 0.0)
    released = []

    def release():
        released.append(True)
        fcntl.flock(other, fcntl.LOCK_UN)

    with module._Places(tmp_path, MAZE).lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.3, release).start()
        collect(MAZE, out=tmp_path, episodes=1, steps=1, processes=1)
        assert released
