"""Every suite's reader gives the same alignment; environments are recovered, not trusted."""

import json
import shutil
import sys
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import gymnasium
import h5py
import numpy as np
import pytest
import reader_environments  # (registers)
from command_line import command
from rollouts import rollout
from typer.testing import CliRunner

from tql_offline.cli import app
from tql_offline.cli.train import load_and_say
from tql_offline.config import resolve
from tql_offline.datasets import catalogue
from tql_offline.datasets.arrays import from_arrays
from tql_offline.datasets.catalogue import find
from tql_offline.datasets.check_dataset import check_dataset
from tql_offline.datasets.checks import check
from tql_offline.datasets.columns import is_flat
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.load import load
from tql_offline.datasets.returns import targets
from tql_offline.datasets.verify import _check_hdf5
from tql_offline.datasets.views import view_of_flat
from tql_offline.errors import InputError
from tql_offline.eval.environments import SeededEnvironment, action_space, describe, make
from tql_offline.eval.protocol import get
from tql_offline.eval.references import reference_for

minari = pytest.importorskip("minari")

LENGTH = reader_environments.LENGTH
EPISODES = 3
"""Of which the second terminates and the others are cut off."""


# One recording in every suite's layout. Observations are 100 times the episode plus the step.


def counts():
    """Observations of each episode, its last included."""
    return [100.0 * episode + np.arange(LENGTH + 1) for episode in range(EPISODES)]


def actions():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (EPISODES, LENGTH, 2)).astype(np.float32)


def rewards():
    return 10.0 * np.arange(1, LENGTH + 1) + actions()[:, :, 0]


def own_columns():
    """The layout of docs/data.md: a row more an episode."""
    marks = np.zeros((EPISODES, LENGTH + 1))
    marks[:, -1] = 1
    masks = np.ones((EPISODES, LENGTH + 1))
    masks[1, LENGTH - 1] = 0
    pad = ((0, 0), (0, 1))
    return {
        "observations": np.concatenate(counts()).astype(np.float32)[:, None],
        "actions": np.pad(actions(), (*pad, (0, 0))).reshape(-1, 2),
        "rewards": np.pad(rewards(), pad).ravel(),
        "masks": masks.ravel(),
        "terminals": marks.ravel(),
    }


def flat_columns():
    """D4RL's layout, without and with `next_observations`."""
    terminals, timeouts = np.zeros((2, EPISODES, LENGTH), bool)
    terminals[1, -1] = timeouts[0, -1] = timeouts[2, -1] = True
    return {
        "observations": np.concatenate([c[:-1] for c in counts()]).astype(np.float32)[:, None],
        "actions": actions().reshape(-1, 2),
        "rewards": rewards().ravel().astype(np.float32),
        "terminals": terminals.ravel(),
        "timeouts": timeouts.ravel(),
    }


def next_column():
    return np.concatenate([c[1:] for c in counts()]).astype(np.float32)[:, None]


def loader_columns():
    """What OGBench's loader returns: `terminals` end every episode, `masks` say where tasks end."""
    terminals = np.zeros((EPISODES, LENGTH))
    terminals[:, -1] = 1
    masks = np.ones((EPISODES, LENGTH), np.float32)
    masks[1, -1] = 0
    columns = {name: flat_columns()[name] for name in ("observations", "actions", "rewards")}
    return columns | {
        "next_observations": next_column(),
        "terminals": terminals.ravel(),
        "masks": masks.ravel(),
    }


def write_npz(path, columns):
    np.savez(path, **columns)
    return path


def write_hdf5(path, columns):
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column)
    return path


def write_d4rl(path, columns):
    """With the groups that D4RL's own files have."""
    with h5py.File(write_hdf5(path, columns), "a") as file:
        file["metadata/algorithm"] = "SAC"
        file["infos/qpos"] = np.zeros((EPISODES * LENGTH, 1))
    return path


def record(name, env_id="CountingUnit-v0", storage="hdf5", scale=1.0, dims=2, **more):
    """Played in an environment and written by Minari itself, into its own folder."""
    env = gymnasium.make(env_id, disable_env_checker=True)
    episodes = [play(env, episode[:, :dims] * np.float32(scale)) for episode in actions()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an author that is not named
        minari.create_dataset_from_buffers(
            name, episodes, env=env, eval_env=env_id, data_format=storage, **more
        )
    return minari_folder() / name


def play(env, actions):
    from minari.data_collector import EpisodeBuffer

    first, _ = env.reset()
    observations, *columns = zip(*(env.step(action)[:4] for action in actions), strict=True)
    rewards, terminations, truncations = map(list, columns)
    return EpisodeBuffer(
        observations=stacked([first, *observations]),
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
    )


def stacked(observations):
    """Steps of a structure to a structure of steps, as Minari's own collector gives."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: stacked([one[key] for one in observations]) for key in first}
    if isinstance(first, tuple):
        return tuple(stacked(list(parts)) for parts in zip(*observations, strict=True))
    return np.stack(observations)


def minari_folder():
    from tql_offline.datasets.names import minari_folder

    return minari_folder()


WRITERS = {
    "npz": lambda folder: write_npz(folder / "own.npz", own_columns()),
    "ogbench's loader": lambda folder: write_npz(folder / "loaded.npz", loader_columns()),
    "hdf5": lambda folder: write_hdf5(folder / "own.hdf5", own_columns()),
    "d4rl": lambda folder: write_d4rl(
        folder / "flat.hdf5", flat_columns() | {"next_observations": next_column()}
    ),
    "minari hdf5": lambda _: record("made/unit-v0"),
    "minari arrow": lambda _: record("made/unit-v0", storage="arrow"),
    "minari dict": lambda _: record("made/dict-v0", "CountingDict-v0", scale=2.0),
    "minari dict arrow": lambda _: record("made/dict-v0", "CountingDict-v0", "arrow", scale=2.0),
}


def first_numbers(observations, nested):
    """What counts, of an observation; of nested ones, z, which is flattened last."""
    return observations[:, -1 if nested else 0]


@pytest.mark.parametrize("suite", list(WRITERS))
def test_a_transition_is_what_happened(suite, tmp_path):
    data = load(str(WRITERS[suite](tmp_path)))
    episodes, nested = data.episodes, "dict" in suite
    assert episodes.lengths.tolist() == [LENGTH] * EPISODES  # the last transition is kept
    starts = episodes.start_rows()
    numbers = first_numbers(episodes.observations, nested)
    inside = np.concatenate([c[:-1] for c in counts()])
    np.testing.assert_array_equal(numbers[starts], inside)
    np.testing.assert_array_equal(numbers[starts + 1], inside + 1)
    np.testing.assert_allclose(episodes.actions, actions().reshape(-1, 2), atol=2e-5)
    scale = 2 if nested else 1
    want = 10.0 * np.tile(np.arange(1, LENGTH + 1), EPISODES) + scale * actions()[..., 0].ravel()
    np.testing.assert_allclose(episodes.rewards, want, rtol=1e-5)
    # Truncation bootstraps, termination does not.
    ends = episodes.last_transitions()
    assert episodes.masks[ends].tolist() == [1, 0, 1]
    assert episodes.masks.sum() == EPISODES * LENGTH - 1


@pytest.mark.parametrize("suite", list(WRITERS))
def test_targets_of_two_steps_stay_in_their_episode(suite, tmp_path):
    data = load(str(WRITERS[suite](tmp_path)))
    table = targets(data.episodes, 2, 0.5)
    one = data.episodes.rewards.reshape(EPISODES, LENGTH)
    want = one.copy()
    want[:, :-1] += 0.5 * one[:, 1:]
    np.testing.assert_allclose(table.returns.reshape(want.shape), want, rtol=1e-6)
    discounts = table.discounts.reshape(want.shape)
    np.testing.assert_allclose(discounts[0], [0.25, 0.25, 0.25, 0.5])
    np.testing.assert_allclose(discounts[1], [0.25, 0.25, 0, 0])


# D4RL.


def test_without_next_observations_what_cannot_bootstrap_is_left_out(tmp_path):
    data = load(str(write_d4rl(tmp_path / "flat.hdf5", flat_columns())))
    episodes = data.episodes
    assert episodes.lengths.tolist() == [LENGTH - 1, LENGTH, LENGTH - 1]
    assert episodes.masks.tolist() == [1, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    numbers, starts = episodes.observations[:, 0], episodes.start_rows()
    np.testing.assert_array_equal((numbers[starts + 1] - numbers[starts])[episodes.masks == 1], 1)
    np.testing.assert_array_equal(
        episodes.actions.ravel(),
        np.delete(flat_columns()["actions"], [LENGTH - 1, 3 * LENGTH - 1], axis=0).ravel(),
    )
    (note,) = data.notes
    assert note.startswith("2 transitions at cuts")
    assert "qlearning_dataset" in note
    assert data.describe()["notes"] == [note]


def d4rls_rows(columns, limit):
    """Rows that D4RL's qlearning_dataset keeps: its branches in its order, with its counting."""
    kept, step = [], 0
    for row in range(len(columns["rewards"]) - 1):
        final = columns["timeouts"][row] if "timeouts" in columns else step == limit - 1
        if final:
            step = 0
            continue
        if columns["terminals"][row]:
            step = 0
        kept.append(row)
        step += 1
    return kept


def random_columns(seed):
    """Columns with terminals at random, and timeouts for them."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(5, 40))
    columns = {
        "observations": np.arange(rows, dtype=np.float32)[:, None],
        "actions": np.zeros((rows, 1), np.float32),
        "rewards": np.arange(rows, dtype=np.float32),
        "terminals": rng.random(rows) < 0.15,
    }
    return columns, rng.random(rows) < 0.15


def kept_of(columns, path, limit=6):
    """Rows that are read, each with its observations and mask."""
    from tql_offline.datasets.d4rl import episodes_of

    episodes, _ = episodes_of(columns, path, max_episode_steps=limit)
    kept = episodes.rewards.tolist()
    starts = episodes.start_rows()
    assert episodes.observations[starts, 0].tolist() == kept
    bootstraps = ~columns["terminals"][episodes.rewards.astype(int)]
    assert episodes.masks.tolist() == bootstraps.tolist()
    after = episodes.observations[starts + 1, 0][bootstraps]
    assert after.tolist() == (episodes.rewards[bootstraps] + 1).tolist()
    return kept


def last_terminal(columns):
    """The file's last row if it ends the task; D4RL drops every last row."""
    return [len(columns["rewards"]) - 1] * bool(columns["terminals"][-1])


@pytest.mark.parametrize("seed", range(40))
def test_with_timeouts_the_rows_are_those_of_qlearning_dataset(seed, tmp_path):
    columns, timeouts = random_columns(seed)
    columns["timeouts"] = timeouts & ~columns["terminals"]
    want = d4rls_rows(columns, limit=6) + last_terminal(columns)
    assert kept_of(columns, tmp_path / "x") == want


@pytest.mark.parametrize("seed", range(40))
def test_qlearning_dataset_drops_rows_that_are_both_and_they_are_kept(seed, tmp_path):
    columns, columns["timeouts"] = random_columns(seed)
    both = columns["terminals"] & columns["timeouts"]
    both[-1] = False
    dropped = np.flatnonzero(both).tolist()
    theirs = d4rls_rows(columns, limit=6)
    assert not set(dropped) & set(theirs)
    assert kept_of(columns, tmp_path / "x") == sorted(theirs + dropped) + last_terminal(columns)


def test_some_of_these_files_have_rows_that_are_both():
    drawn = [random_columns(seed) for seed in range(40)]
    assert sum((columns["terminals"] & timeouts)[:-1].any() for columns, timeouts in drawn) > 5


def test_without_timeouts_qlearning_dataset_counts_a_limit_a_row_short_after_a_terminal(tmp_path):
    """Its count is 1 at the row after a terminal, and 0 at the row after a limit."""
    rows = np.arange(17)
    columns = {
        "observations": rows.astype(np.float32)[:, None],
        "actions": np.zeros((17, 1), np.float32),
        "rewards": rows.astype(np.float32),
        "terminals": rows == 3,
    }
    theirs, ours = d4rls_rows(columns, limit=6), kept_of(columns, tmp_path / "x")
    assert sorted(set(rows.tolist()) - set(theirs)) == [8, 14, 16]
    assert sorted(set(rows.tolist()) - set(ours)) == [9, 15, 16]


@pytest.mark.parametrize("seed", range(40))
def test_without_timeouts_rows_are_qlearning_datasets_of_what_ends_at_each_terminal(seed, tmp_path):
    """Read on its own, with a row after it, what ends at a terminal is counted from 0."""
    columns, _ = random_columns(seed)
    count = len(columns["rewards"])
    terminals = np.flatnonzero(columns["terminals"]).tolist()
    want = set(terminals)
    for start, stop in zip([0, *(row + 1 for row in terminals)], [*terminals, count], strict=True):
        part = {name: column[start : stop + 2] for name, column in columns.items()}
        want |= {start + row for row in d4rls_rows(part, limit=6)}
    assert kept_of(columns, tmp_path / "x") == sorted(want)


def test_an_end_that_is_not_marked_is_cut_there(tmp_path, capsys):
    columns = flat_columns() | {"next_observations": next_column()}
    columns["timeouts"] = np.zeros(EPISODES * LENGTH)
    data = load(str(write_d4rl(tmp_path / "flat.hdf5", columns)))
    assert data.episodes.lengths.tolist() == [LENGTH] * EPISODES
    assert data.episodes.masks[data.episodes.last_transitions()].tolist() == [1, 0, 1]
    said = f"at 1 row of flat.hdf5 (first {LENGTH - 1}) the next observation is not"
    assert data.notes[0].startswith(said)
    (jump,) = [f for f in check_dataset(str(data.path)) if f.kind == "jump"]
    assert (jump.level, jump.sentence) == ("warning", data.notes[0])
    load_and_say(resolve({"dataset": {"name": str(data.path)}}))
    assert f"warning: {said}" in " ".join(capsys.readouterr().out.split())


def test_a_terminal_that_is_a_timeout_too_is_the_tasks_end(tmp_path):
    columns = flat_columns()
    columns["timeouts"][2 * LENGTH - 1] = True
    data = load(str(write_d4rl(tmp_path / "flat.hdf5", columns)))
    assert data.episodes.masks.tolist() == [1, 1, 1, 1, 1, 1, 0, 1, 1, 1]


def test_masks_say_where_the_task_ends_and_terminals_only_end_episodes(tmp_path):
    columns = loader_columns()
    columns["masks"][[1, 2]] = 0  # OGBench's episodes go on after their task's end
    data = load(str(write_npz(tmp_path / "loaded.npz", columns)))
    assert data.episodes.lengths.tolist() == [LENGTH] * EPISODES
    assert data.episodes.masks.tolist() == columns["masks"].tolist()
    assert data.notes[0].startswith("2 of 3 rows that 'terminals' marks have mask 1")
    assert from_arrays(columns, "mine").episodes.masks.tolist() == columns["masks"].tolist()


def test_the_check_of_a_flat_file_sees_its_masks(tmp_path):
    columns = loader_columns()
    columns["masks"][1] = 0
    path = write_npz(tmp_path / "loaded.npz", columns)
    done = CliRunner().invoke(app, ["datasets", "check", str(path)])
    assert "1 episode continues after the task ended (first episode 0, row 1, mask 0)" in " ".join(
        done.output.split()
    )


def test_the_check_of_a_flat_file_says_what_training_refuses(tmp_path):
    columns = loader_columns()
    del columns["terminals"], columns["masks"]
    path = write_npz(tmp_path / "unmarked.npz", columns)
    with pytest.raises(InputError, match="no column 'terminals'"):
        load(str(path))
    done = CliRunner().invoke(app, ["datasets", "check", str(path)])
    assert done.exit_code == 1
    assert "training refuses it: " in done.output
    assert "no column 'terminals'" in " ".join(done.output.split())


def test_ends_that_lie_in_last_rows_alone_are_said(tmp_path):
    columns = own_columns()
    columns["masks"] = 1 - columns["terminals"]
    (note,) = load(str(write_npz(tmp_path / "late.npz", columns))).notes
    assert note.startswith("'masks' is 0 in the last rows of 3 episodes and nowhere else")
    columns["masks"][LENGTH - 1] = 0  # where they mean something elsewhere, as in OGBench's
    assert load(str(write_npz(tmp_path / "both.npz", columns))).notes == ()


def test_without_next_observations_a_mask_keeps_the_last_transition(tmp_path):
    columns = loader_columns()
    del columns["next_observations"]
    columns["timeouts"] = np.zeros(EPISODES * LENGTH)
    data = load(str(write_npz(tmp_path / "loaded.npz", columns)))
    assert data.episodes.lengths.tolist() == [LENGTH - 1, LENGTH, LENGTH - 1]


def named_d4rl(private_home, name, dims, **changed):
    """A small file under the name of one of D4RL's."""
    entry = find(name)
    columns = flat_columns()
    columns["observations"] = np.repeat(columns["observations"], entry.observation_dim, axis=1)
    columns["actions"] = np.repeat(columns["actions"][:, :1], dims or entry.action_dim, axis=1)
    folder = private_home / "d4rl"
    folder.mkdir(exist_ok=True)
    return write_d4rl(folder / entry.files[0].name, columns | changed)


def test_d4rls_names_are_found_where_d4rl_keeps_them(private_home):
    with pytest.raises(InputError, match=r"d4rl/hopper_medium-v2.hdf5.*download hopper-medium-v2"):
        load("hopper-medium-v2")
    path = named_d4rl(private_home, "hopper-medium-v2", 0)
    data = load("hopper-medium-v2")
    assert (data.name, data.path, data.source) == ("hopper-medium-v2", path, "downloaded")
    assert data.env_id == "Hopper-v4"
    assert "mujoco-py" in data.notes[-1]
    assert describe("Hopper-v4")["observation_dim"] == data.episodes.observations.shape[1]
    assert load("hopper-medium-v2", env_id="Hopper-v5").env_id == "Hopper-v5"
    with pytest.raises(InputError, match=r"11 observation dims where walker2d-medium-v2 has 17"):
        load("walker2d-medium-v2", path)


def test_a_broken_dataset_is_taken_only_when_it_is_asked_for(private_home):
    named_d4rl(private_home, "antmaze-umaze-v0", 0)
    with pytest.raises(InputError, match=r"D4RL#77.*use antmaze-umaze-v2.*--allow-broken"):
        load("antmaze-umaze-v0")
    data = load("antmaze-umaze-v0", allow_broken=True)
    assert "D4RL#77" in data.notes[0]
    assert data.env_id is None
    assert "give --env" in data.unscored


def test_actions_of_d4rls_own_are_clipped_and_of_others_refused(private_home, tmp_path):
    actions = np.zeros((EPISODES * LENGTH, 3), np.float32)
    actions[[2, 5], 1] = 1.5
    path = named_d4rl(private_home, "hopper-medium-v2", 0, actions=actions)
    data = load("hopper-medium-v2")
    assert "2 actions outside [-1, 1] were clipped" in " ".join(data.notes)
    assert data.episodes.actions.max() < 1
    with pytest.raises(InputError, match=r"'actions'.*1\.5 at row 2, dim 1"):
        load(str(path))


HOSTILE_FLAT = {
    "no terminals": lambda c: c.pop("terminals"),
    "short": lambda c: c.update(timeouts=np.zeros(3)),
    "nan": lambda c: c["observations"].__setitem__((3, 0), np.nan),
    "next is other": lambda c: c.update(next_observations=np.zeros((EPISODES * LENGTH, 2))),
    "all are cuts": lambda c: c.update(
        timeouts=np.ones(EPISODES * LENGTH), terminals=0 * c["rewards"]
    ),
    "masks of halves": lambda c: c.update(masks=np.full(EPISODES * LENGTH, 0.5)),
    "nothing": lambda c: c.update({name: column[:0] for name, column in c.items()}),
}


@pytest.mark.parametrize("fault", list(HOSTILE_FLAT))
def test_a_flat_file_that_is_wrong_is_one_sentence(fault, tmp_path):
    columns = flat_columns()
    HOSTILE_FLAT[fault](columns)
    with pytest.raises(InputError) as caught:
        load(str(write_d4rl(tmp_path / "flat.hdf5", columns)))
    assert "\n" not in str(caught.value)


@contextmanager
def locked_elsewhere(*paths):
    """HDF5 is refused its own lock, as on a file system without locks."""
    fcntl = pytest.importorskip("fcntl")
    with ExitStack() as stack:
        for path in paths:
            fcntl.flock(stack.enter_context(path.open("rb")), fcntl.LOCK_EX)
            with pytest.raises(OSError, match="unable to lock file"):
                h5py.File(path, "r")
        yield


def test_files_are_read_without_locks(tmp_path):
    path = write_d4rl(tmp_path / "flat.hdf5", flat_columns())
    file = record("made/counting-v0") / "data" / "main_data.hdf5"
    with locked_elsewhere(path, file):
        assert is_flat(path)
        assert load(str(path)).episodes.num_episodes
        assert load("minari:made/counting-v0").episodes.num_episodes
        _check_hdf5(path)


# Minari.


def test_nested_observations_are_flattened_as_gymnasium_does(tmp_path):
    record("made/dict-v0", "CountingDict-v0", scale=2.0)
    data = load("minari:made/dict-v0")
    env = gymnasium.make("CountingDict-v0", disable_env_checker=True)
    observation, _ = env.reset()
    want = gymnasium.spaces.flatten(env.observation_space, observation)
    np.testing.assert_array_equal(data.episodes.observations[0], want)
    np.testing.assert_array_equal(data.episodes.observations[1], [-1, 1.25, 1.5, 0, 1, 0, 1])


@pytest.mark.parametrize("storage", ["hdf5", "arrow"])
def test_the_order_of_keys_in_a_file_does_not_matter(storage, tmp_path):
    folder = record("made/dict-v0", "CountingDict-v0", storage, scale=2.0)
    want = load("minari:made/dict-v0").episodes.observations
    stored = json.loads((folder / "data" / "metadata.json").read_text())["observation_space"]
    spaces = json.loads(stored)
    turned = dict(reversed(list(spaces["subspaces"].items())))
    assert list(turned) != sorted(turned)
    edit(folder, observation_space=json.dumps(spaces | {"subspaces": turned}))
    np.testing.assert_array_equal(load("minari:made/dict-v0").episodes.observations, want)


@pytest.mark.parametrize("storage", ["hdf5", "arrow"])
def test_actions_are_scaled_with_their_environment(storage, tmp_path):
    record("made/scaled-v0", "Counting-v0", storage, scale=2.0)
    data = load("minari:made/scaled-v0")
    assert data.action_bounds == ([-2.0, -2.0], [2.0, 2.0])
    assert "scaled from [-2, 2] to [-1, 1]" in data.notes[0]
    space = action_space(data.env_id)
    assert (space.low.tolist(), space.high.tolist()) == ([-1, -1], [1, 1])
    env = SeededEnvironment(make(data.env_id))
    env.reset(0)
    _, reward, *_ = env.step(np.array([0.5, 0], np.float32))
    assert reward == 10 + 2 * 0.5


@pytest.mark.parametrize("suite", ["minari hdf5", "minari dict arrow"])
def test_the_environment_has_the_datas_dims(suite, tmp_path):
    data = load(str(WRITERS[suite](tmp_path)))
    described = describe(data.env_id)
    assert described["observation_dim"] == data.episodes.observations.shape[1]
    assert described["action_dim"] == data.episodes.actions.shape[1]
    assert described["max_episode_steps"] == (100 if "dict" in suite else None)


def test_an_environment_that_is_named_has_the_datas_dims_too(tmp_path):
    record("made/dict-v0", "CountingDict-v0", scale=2.0)
    data = load("minari:made/dict-v0", env_id="reader_environments:CountingDict-v0")
    assert data.env_id == "reader_environments:CountingDict-v0"
    env = SeededEnvironment(make(data.env_id))
    np.testing.assert_array_equal(env.reset(0), data.episodes.observations[0])


def test_minari_makes_the_environment_and_without_it_gymnasium_does(tmp_path, monkeypatch):
    record("made/unit-v0")
    made = []

    def recover(self, eval_env=False, **more):
        made.append(eval_env)
        return gymnasium.make(self.env_spec, **more)

    monkeypatch.setattr(minari.MinariDataset, "recover_environment", recover)
    assert isinstance(make("minari:made/unit-v0").unwrapped, reader_environments.Counting)
    assert made == [True]
    monkeypatch.setitem(sys.modules, "minari", None)
    data = load("minari:made/unit-v0")
    assert isinstance(make(data.env_id).unwrapped, reader_environments.Counting)
    assert made == [True]


def test_wrappers_that_are_lost_without_minari_are_said(tmp_path, monkeypatch):
    module = "gymnasium.wrappers.transform_observation"
    wrapper = {
        "name": "RescaleObservation",
        "entry_point": f"{module}:RescaleObservation",
        "kwargs": {"min_obs": -1.0, "max_obs": 1.0},
    }
    edit_spec(
        record("made/pendulum-v0", "Pendulum-v1", scale=2.0, dims=1), additional_wrappers=[wrapper]
    )
    name = "minari:made/pendulum-v0"
    (scaled,) = load(name).notes
    assert "actions are scaled" in scaled
    assert make(name).observation_space.high.max() == 1
    for fault in ("absent", "raising"):
        with monkeypatch.context() as patch:
            if fault == "absent":
                patch.setitem(sys.modules, "minari", None)
            else:
                patch.delattr(minari.MinariDataset, "recover_environment")
            note = load(name).notes[-1]
            assert "Pendulum-v1 is made without RescaleObservation, which the dataset names" in note
            assert make(name).observation_space.high.max() == 8


@pytest.mark.parametrize("storage", ["hdf5", "arrow"])
def test_minari_datasets_of_ones_own_are_listed_by_names_that_load(storage, tmp_path, capsys):
    folder = record("made/dict-v0", "CountingDict-v0", storage)
    shutil.copytree(folder, tmp_path / "elsewhere")
    for hidden in (".made-v1", ".aside/made-v1"):  # such as a conversion being written
        shutil.copytree(folder, folder.parent / hidden)
    (folder.parent / "linked-v0").symlink_to(tmp_path / "elsewhere")
    for options in (["--installed"], ["--suite", "minari", "--installed"], ["made/"]):
        code, output = command(["datasets", "list", *options], capsys)
        assert code == 0
        rows = [line.split() for line in output.out.replace("│", " ").splitlines()]
        rows = [row for row in rows if "made" in str(row)]
        assert rows == [
            ["minari:made/dict-v0", "7", "2", "installed"],
            ["minari:made/linked-v0", "7", "2", "installed"],
        ]
        for name, *_ in rows:
            assert load(name).episodes.observations.shape[1] == 7
    code, output = command(["datasets", "list", "--suite", "d4rl", "--installed"], capsys)
    assert "made" not in output.out


def test_without_pyarrow_arrow_storage_is_one_sentence(tmp_path, monkeypatch):
    record("made/unit-v0", storage="arrow")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pyarrow is not installed.*tql-offline\[minari\]"):
        load("minari:made/unit-v0")


def test_what_convert_wrote_is_what_was_converted(tmp_path):
    from tql_offline.datasets.convert import convert

    source = write_npz(tmp_path / "own.npz", own_columns())
    convert(source, tmp_path / "there")
    want, have = load(str(source)), load(str(tmp_path / "there"))
    assert have.source == "own file"
    for column in ("observations", "actions", "rewards", "masks", "lengths"):
        np.testing.assert_array_equal(
            getattr(have.episodes, column), getattr(want.episodes, column)
        )


def edit(folder, **changed):
    path = folder / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def edit_spec(folder, **changed):
    for key in ("env_spec", "eval_env_spec"):
        spec = json.loads(json.loads((folder / "data" / "metadata.json").read_text())[key])
        edit(folder, **{key: json.dumps(spec | changed)})


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_d4rls_layout_is_converted_between_files(suffix, tmp_path):
    from tql_offline.datasets.convert import convert

    columns = flat_columns() | {"next_observations": next_column()}
    source = write_d4rl(tmp_path / "flat.hdf5", columns)
    manifest = convert(source, tmp_path / f"copy{suffix}")
    assert set(manifest["columns"]) == set(columns), "without the groups"
    one, other = load(str(source)), load(str(tmp_path / f"copy{suffix}"))
    assert one.episodes.masks.tolist() == other.episodes.masks.tolist()
    assert one.episodes.observations.tolist() == other.episodes.observations.tolist()
    with pytest.raises(InputError, match="a row a step"):
        convert(source, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_strangers_program_is_not_run(tmp_path, monkeypatch):
    """Neither its environment nor its wrapper: the one registered under the id is made."""
    (tmp_path / "evil_module.py").write_text("raise SystemExit('the stranger has run')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = record("made/unit-v0")
    wrapper = {"name": "Evil", "entry_point": "evil_module:Evil", "kwargs": {}}
    for changed in ({"entry_point": "evil_module:make"}, {"additional_wrappers": [wrapper]}):
        edit_spec(folder, **changed)
        data = load("minari:made/unit-v0")
        assert "is made" in data.notes[0]
        env = make(data.env_id)
        assert isinstance(env.unwrapped, reader_environments.Counting)
    edit_spec(folder, id="evil_module:Evil-v0")
    data = load("minari:made/unit-v0")
    assert data.env_id is None
    assert "not registered" in data.unscored
    with pytest.raises(InputError, match="not registered"):
        make("minari:made/unit-v0")


UNRECOVERABLE = {
    "no spec": ({"env_spec": None, "eval_env_spec": None}, "names no environment"),
    "no JSON": ({"eval_env_spec": "{"}, "is damaged"),
    "a list": ({"eval_env_spec": "[]"}, "is damaged"),
    "deep": ({"eval_env_spec": "[" * 5000}, "is damaged"),
    "a number": ({"eval_env_spec": 3}, "is damaged"),
    "its own files": (
        {"eval_env_spec": json.dumps({"id": "Hopper-v5", "kwargs": {"xml_file": "/tmp/x.xml"}})},
        "files of its own",
    ),
}


@pytest.mark.parametrize("fault", list(UNRECOVERABLE))
def test_an_environment_that_cannot_be_recovered_is_one_sentence(fault, tmp_path):
    changed, words = UNRECOVERABLE[fault]
    edit(record("made/unit-v0"), **changed)
    data = load("minari:made/unit-v0")
    assert data.env_id is None
    assert words in data.unscored
    assert "give --env" in data.unscored
    with pytest.raises(InputError, match=words):
        make("minari:made/unit-v0")


def test_an_environment_of_other_actions_is_refused(tmp_path):
    edit_spec(record("made/unit-v0"), id="Counting-v0", kwargs={})
    with pytest.raises(InputError, match=r"Counting-v0 has actions in Box.*has others"):
        make("minari:made/unit-v0")


def test_requirements_that_are_not_met_are_said(tmp_path):
    edit(record("made/unit-v0"), requirements=["numpy==1.0", "no-such-thing>=1", "]["])
    (note,) = load("minari:made/unit-v0").notes
    assert "numpy==1.0" in note


def space(metadata, **changed):
    return json.dumps(json.loads(metadata) | changed)


HOSTILE_METADATA = {
    "discrete": ({"action_space": '{"type": "Discrete", "n": 2, "start": 0}'}, "continuous"),
    "text": ({"observation_space": '{"type": "Text"}'}, "'Text'"),
    "no space": ({"observation_space": None}, "do not describe"),
    "true": ({"observation_space": '{"type": "MultiBinary", "n": true}'}, "do not describe"),
    "huge": ({"observation_space": '{"type": "Discrete", "n": 99999999999, "start": 0}'}, "space"),
    "wide": (
        {"action_space": '{"type": "Box", "shape": [3], "low": [0], "high": [1], "dtype": "f4"}'},
        "do not describe",
    ),
    "storage": ({"data_format": "pickle"}, "'pickle'"),
    "episodes": ({"total_episodes": 99}, "99"),
}


@pytest.mark.parametrize("storage", ["hdf5", "arrow"])
@pytest.mark.parametrize("fault", list(HOSTILE_METADATA))
def test_metadata_that_are_wrong_are_one_sentence(fault, storage, tmp_path):
    changed, words = HOSTILE_METADATA[fault]
    edit(record("made/unit-v0", storage=storage), **changed)
    with pytest.raises(InputError, match=words) as caught:
        load("minari:made/unit-v0")
    assert "\n" not in str(caught.value)


def shorten(file):
    """Minari#199: an episode with as many observations as actions."""
    data = file["episode_1/observations"][:LENGTH]
    del file["episode_1/observations"]
    file["episode_1/observations"] = data


def link_outside(file):
    del file["episode_0/rewards"]
    file["episode_0/rewards"] = h5py.ExternalLink("/etc/passwd", "/")


HOSTILE_HDF5 = {
    "lost": (shorten, "episode 1 of"),
    "linked": (link_outside, "'rewards'"),
    "missing": (lambda file: file.pop("episode_1"), "'episode_1'"),
    "nan": (
        lambda file: file["episode_2/rewards"].write_direct(np.full(LENGTH, np.nan)),
        "episode 2",
    ),
}


@pytest.mark.parametrize("fault", list(HOSTILE_HDF5))
def test_an_hdf5_storage_that_is_wrong_is_one_sentence(fault, tmp_path):
    spoil, words = HOSTILE_HDF5[fault]
    folder = record("made/unit-v0")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        spoil(file)
    with pytest.raises(InputError, match=words) as caught:
        load("minari:made/unit-v0")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["cut", "gone", "missing", "others"])
def test_an_arrow_storage_that_is_wrong_is_one_sentence(fault, tmp_path):
    folder = record("made/unit-v0", storage="arrow")
    (file,) = (folder / "data" / "1").glob("*.arrow")
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-300])
    elif fault == "gone":
        shutil.rmtree(file.parent)
    elif fault == "missing":
        file.unlink()
    else:
        other = record("made/dict-v0", "CountingDict-v0", "arrow")
        shutil.copy(next((other / "data" / "1").glob("*.arrow")), file)
    with pytest.raises(InputError, match=r"data") as caught:
        load("minari:made/unit-v0")
    assert "\n" not in str(caught.value)


def test_an_arrow_file_that_unpacks_to_much_is_refused_before_it_does(tmp_path):
    """400 MB of one letter, which zstd packs into some KB."""
    import pyarrow

    folder = record("made/unit-v0", storage="arrow")
    (file,) = (folder / "data" / "1").glob("*.arrow")
    with pyarrow.ipc.open_file(file) as opened:
        batch = opened.get_batch(0)
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")

    def write(column):
        with pyarrow.ipc.new_file(file, batch.schema.append(column), options=options) as out:
            out.write_batch(batch.append_column(column, pyarrow.array(values)))

    values = [1.5] * batch.num_rows
    write(pyarrow.field("more", pyarrow.float64()))
    assert load("minari:made/unit-v0").episodes.num_episodes == EPISODES
    values = ["x" * 80_000_000] * batch.num_rows
    write(pyarrow.field("more", pyarrow.string()))
    assert file.stat().st_size < 200_000
    before = pyarrow.total_allocated_bytes()
    with pytest.raises(InputError, match="claims 400"):
        load("minari:made/unit-v0")
    assert pyarrow.total_allocated_bytes() - before < 1_000_000


@pytest.mark.parametrize(
    "name", ["minari:../../etc", "minari:", "minari:a//b", "mujoco/hopper/medium-v0"]
)
def test_a_dataset_that_is_not_here_is_one_sentence(name):
    with pytest.raises(InputError, match=r"is not (the name|here)"):
        load(name)


def test_worker_processes_recover_the_environment_too():
    """They know nothing but its id."""
    record("made/pendulum-v0", "Pendulum-v1", scale=2.0, dims=1)
    data = load("minari:made/pendulum-v0")

    def rest(observations, _noise):
        return np.zeros((len(observations), 1), np.float32)

    scored = {
        processes: rollout(
            rest, data.env_id, seeds=[1, 2], noise_dim=0, slots=2, processes=processes
        )
        for processes in (1, 2)
    }
    assert [episode.length for episode in scored[2]] == [200, 200]
    assert scored[1] == scored[2]


# From a name to a score.

TINY = ["--steps=4", "--batch-size=8", "--size=tiny", "--device=cpu", "--set=log_every=2"]
TINY += ["--set=flow.hidden=[8]", "--set=flow.flow_steps=2", "--set=evaluation.processes=1"]


def trained(tmp_path, *arguments):
    done = CliRunner().invoke(
        app, ["train", *arguments, *TINY, "--runs", str(tmp_path / "runs"), "--name", "run"]
    )
    assert done.exit_code == 0, done.output
    return json.loads((tmp_path / "runs" / "run" / "result.json").read_text()), done.output


@pytest.mark.parametrize("storage", ["hdf5", "arrow"])
def test_minari_from_a_name_to_a_score(storage, tmp_path, short_protocols):
    record(
        "made/dict-v0",
        "CountingDict-v0",
        storage,
        scale=2.0,
        ref_min_score=0.0,
        ref_max_score=200.0,
        num_episodes_average_score=1,
    )
    result, output = trained(tmp_path, "--dataset", "minari:made/dict-v0", "--protocol", "minari")
    assert "scaled from [-2, 2]" in output
    assert result["task"] == "minari:made/dict-v0"
    last = result["evaluations"][-1]
    # 10 + 20 + 30 + 40 and four times an action of at most 2, of 200.
    assert abs(last["return_mean"] - 100) <= 8
    assert last["score"] == pytest.approx(last["return_mean"] / 200)


def test_minari_from_a_moved_folder_to_a_score(tmp_path, short_protocols):
    folder = record(
        "D4RL/pen/human-v2",
        ref_min_score=0.0,
        ref_max_score=200.0,
        num_episodes_average_score=1,
    )
    shutil.move(folder, tmp_path / "moved")
    arguments = ("--dataset", "D4RL/pen/human-v2", "--path", str(tmp_path / "moved"))
    result, _ = trained(tmp_path, *arguments)
    last = result["evaluations"][-1]
    assert last["score"] == pytest.approx(last["return_mean"] / 200)
    assert last["reference"]["source"].startswith("metadata of Minari dataset D4RL/pen/human-v2,")
    scored = CliRunner().invoke(app, ["eval", str(tmp_path / "runs" / "run")])
    assert scored.exit_code == 0, scored.output


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mine", marks=pytest.mark.slow),
        pytest.param("minari:mine", marks=pytest.mark.slow),
        "minari:begun/mine",
    ],
)
def test_a_run_finds_its_minari_folder_from_another_folder(name, tmp_path, monkeypatch, capsys):
    begun = tmp_path if "/" in name else tmp_path / "begun"
    moved, place = tmp_path / "moved", tmp_path / "begun" / "mine"
    place.parent.mkdir()
    shutil.move(record("made/unit-v0"), place)
    monkeypatch.chdir(begun)
    trained(tmp_path, "--dataset", name, "--set=evaluation.enabled=false")
    run = tmp_path / "runs" / "run"
    recorded = json.loads((run / "provenance.json").read_text())["dataset"]
    assert (recorded["source"], recorded["path"]) == ("given folder", str(place))
    monkeypatch.chdir(tmp_path / "runs")
    for to_resume in (place, moved):
        if to_resume == moved:
            place.rename(moved)
            code, output = command(["inspect", str(run), "--grid", "2"], capsys)
            said = " ".join(output.err.split())
            assert (code, f"{str(place)!r}, is not there any more; move it" in said) == (2, True)
        path = ["--path", str(moved)] if to_resume == moved else []
        (run / "result.json").unlink()
        code, output = command(["train", "--resume", str(run), *path], capsys)
        assert code == 0, output.err
    code, output = command(["inspect", str(run), "--grid", "2", "--path", str(moved)], capsys)
    assert code == 0, output.err


def test_the_caveat_of_references_is_said_however_the_data_are_named(tmp_path):
    folder = record(
        "D4RL/pen/human-v2", ref_min_score=0.0, ref_max_score=1.0, num_episodes_average_score=1
    )
    moved = shutil.copytree(folder, tmp_path / "moved")
    caveat = "measured with 100 steps where the environment now allows 200"
    protocol = get("minari")
    for name in ("D4RL/pen/human-v2", "minari:D4RL/pen/human-v2"):
        for path in ("", str(moved)):
            source = reference_for(protocol, name, path).source
            assert source.startswith(f"metadata of Minari dataset D4RL/pen/human-v2, {caveat}")
    assert caveat in reference_for(protocol, str(moved)).source


def test_d4rl_from_a_name_to_a_score(tmp_path, private_home, short_protocols):
    named_d4rl(private_home, "hopper-medium-v2", 0)
    result, output = trained(tmp_path, "--dataset", "hopper-medium-v2")
    assert "qlearning_dataset" in output
    assert (result["task"], result["protocol"]["name"]) == ("Hopper-v4", "d4rl")
    last = result["evaluations"][-1]
    want = 100 * (last["return_mean"] + 20.272305) / (3234.3 + 20.272305)
    assert last["score"] == pytest.approx(want)
    assert "not comparable" not in output


@pytest.mark.parametrize("is_published", [False, True])
def test_a_file_that_is_not_the_published_one_of_its_name_is_told(
    is_published, tmp_path, private_home, short_protocols, monkeypatch
):
    path, name = named_d4rl(private_home, "hopper-medium-v2", 0), "hopper-medium-v2"
    if is_published:
        file = replace(find(name).files[0], sha256=file_sha256(path))
        entry = replace(find(name), files=(file,))
        monkeypatch.setattr(catalogue, "_entries", lambda: {name: entry})
    _, output = trained(tmp_path, "--dataset", name)
    run = CliRunner().invoke
    checked = run(app, ["datasets", "check", name]).output
    shown = " ".join(run(app, ["datasets", "info", name]).output.replace("│", " ").split())
    begin = f"{path} is not the published hopper_medium-v2.hdf5: its SHA-256 is "
    provenance = json.loads((tmp_path / "runs/run/provenance.json").read_text())
    recorded = [said for said in provenance["data_findings"] if f"warning: {begin}" in said]
    assert len(recorded) == (not is_published)
    end = f"run `tql-offline download {name} --force`, or, if these data are meant"
    for told in (output, checked, *recorded):
        assert (begin in told, end in told) == (not is_published, not is_published)
    assert ("is not the published" in shown) == (not is_published)
    _, output = trained(tmp_path / "given", "--dataset", name, "--path", str(path))
    assert "is not the published" not in output


def test_a_step_limit_that_is_not_the_references_is_said_and_recorded(
    tmp_path, private_home, short_protocols
):
    named_d4rl(private_home, "hopper-medium-v2", 0)
    own = ("--dataset", "hopper-medium-v2", "--env", "reader_environments:ShortHopper-v0")
    _, output = trained(tmp_path, *own)
    said = (
        "episodes end after 50 steps in reader_environments:ShortHopper-v0 where "
        "hopper-medium-v2's references were measured with 1000"
    )
    assert output.count(said) == 1
    run = tmp_path / "runs" / "run"
    assert said in json.loads((run / "provenance.json").read_text())["dataset"]["notes"][-1]
    assert said in CliRunner().invoke(app, ["eval", str(run)]).output
    plain = CliRunner().invoke(app, ["eval", str(run), "--protocol", "quick-return"])
    assert "not comparable" not in plain.output


def test_without_an_environment_eval_says_what_is_missing(tmp_path, private_home):
    named_d4rl(private_home, "antmaze-umaze-v2", 0)
    trained(tmp_path, "--dataset", "antmaze-umaze-v2")
    config = (tmp_path / "runs" / "run" / "config.toml").read_text()
    assert "reward_shift = -1.0" in config
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "runs" / "run")])
    assert done.exit_code != 0
    assert "antmaze-umaze-v2 is not in Gymnasium" in str(done.exception)


def test_check_and_info_know_both_suites(tmp_path, private_home):
    named_d4rl(private_home, "antmaze-umaze-v0", 0)
    record("made/unit-v0", storage="arrow")
    run = CliRunner().invoke
    checked = run(app, ["datasets", "check", "antmaze-umaze-v0"])
    assert checked.exit_code == 1
    assert "D4RL#77" in checked.output
    assert "2 transitions at cuts of episodes (first row 3) have no next" in checked.output
    for arguments in (
        ["check", "minari:made/unit-v0"],
        ["check", str(minari_folder() / "made/unit-v0")],
    ):
        checked = run(app, ["datasets", *arguments])
        assert checked.exit_code == 0, checked.output
    shown = run(app, ["datasets", "info", "antmaze-umaze-v0"])
    assert "qlearning_dataset" in " ".join(shown.output.split()), shown.output
    assert run(app, ["datasets", "info", "minari:made/unit-v0"]).exit_code == 0


def test_the_check_of_one_of_d4rls_names_cuts_at_its_step_limit_as_training_does(private_home):
    random, lengths = np.random.default_rng(0), (300, 1000, 1000, 700)
    starts = [random.normal(0, 20, 11) for _ in lengths]
    walks = [
        start + np.cumsum(random.normal(0, 0.1, (length, 11)), axis=0)
        for start, length in zip(starts, lengths, strict=True)
    ]
    columns = {
        "observations": np.concatenate(walks).astype(np.float32),
        "actions": random.uniform(-0.9, 0.9, (3000, 3)).astype(np.float32),
        "rewards": random.uniform(size=3000),
        "terminals": np.arange(3000) == 299,
    }
    (private_home / "d4rl").mkdir()
    write_d4rl(private_home / "d4rl" / "hopper_medium-v2.hdf5", columns)
    # Of episodes that were cut, the last transition is lost.
    assert load("hopper-medium-v2").episodes.lengths.tolist() == [300, 999, 999, 699]
    assert view_of_flat(columns, "x", 1000).lengths.tolist() == [*lengths]
    assert "jump" not in [finding.kind for finding in check_dataset("hopper-medium-v2")]
    unknown = check(view_of_flat(columns, "x"))
    assert [finding.kind for finding in unknown if finding.level == "warning"] == ["jump"] * 2


@pytest.mark.parametrize(
    ("name", "protocol", "shift"),
    [
        ("hopper-medium-v2", "d4rl", 0),
        ("maze2d-umaze-v1", "d4rl:100", 0),
        ("antmaze-umaze-diverse-v2", "d4rl-antmaze", -1),
        ("antmaze-large-play-v2", "d4rl-antmaze", -1),
        ("antmaze-large-navigate-singletask-task1-v0", "ogbench-singletask", 0),
        ("D4RL/pen/human-v2", "minari", 0),
        ("minari:D4RL/antmaze/umaze-v1", "minari", -1),
        ("mujoco/hopper/medium-v0", "quick-return", 0),
    ],
)
def test_a_suites_presets_are_its_protocol(name, protocol, shift):
    config = resolve({"dataset": {"name": name}})
    assert (config.evaluation.protocol, config.dataset.reward_shift) == (protocol, shift)
