"""Data and environments whose actions have other bounds than -1 and 1."""

import json
import pickle
import re

import gymnasium
import numpy as np
import pytest
from command_line import command

import tql_offline
from tql_offline.config import resolve
from tql_offline.datasets.action_bounds import checked_bounds, scale_actions
from tql_offline.datasets.arrays import from_arrays
from tql_offline.datasets.convert import convert
from tql_offline.datasets.load import load
from tql_offline.datasets.reading import Columns
from tql_offline.errors import InputError
from tql_offline.eval import bounds as bounds_module
from tql_offline.eval import environments
from tql_offline.eval.environments import action_space, make
from tql_offline.eval.unit_actions import in_unit_actions, within
from tql_offline.files import read_json, read_jsonl
from tql_offline.sharing.export import export_run
from tql_offline.sharing.model import _scaling
from tql_offline.training.data import refuse_other_data
from tql_offline.training.environment import fitting_environment
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.rescoring import evaluate_run
from tql_offline.training.run import run

pytestmark = pytest.mark.usefixtures("short_protocols")

BOUNDS = [-2.0, 2.0]


def pendulum_file(path):
    """Rows of Pendulum-v1 in its own unit, torques from -2 to 2, one step a row."""
    env, rng, rows = gymnasium.make("Pendulum-v1"), np.random.default_rng(0), []
    for episode in range(2):
        observation, _ = env.reset(seed=episode)
        for step in range(60):
            action = rng.uniform(-2, 2, 1)
            after, reward, _, _, _ = env.step(action)
            rows.append((observation, action, reward, after, step == 59))
            observation = after
    names = ("observations", "actions", "rewards", "next_observations", "timeouts")
    columns = {
        name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    np.savez(path, terminals=np.zeros(len(rows)), **columns)
    return str(path)


def test_data_and_environment_of_other_bounds_are_scaled_alike(tmp_path, capsys):
    file = pendulum_file(tmp_path / "mine.npz")
    told = r"name their bounds by --set 'dataset.action_bounds=\[LOW,HIGH\]',"
    with pytest.raises(InputError, match=told):
        load(file)
    data = load(file, env_id="Pendulum-v1", action_bounds=BOUNDS)
    with np.load(file) as stored:
        np.testing.assert_allclose(data.episodes.actions, stored["actions"] / 2, atol=1e-5)
    config, folder = trained_on_pendulum(file, tmp_path)
    assert read_json(folder.provenance)["dataset"]["action_bounds"] == [[-2.0], [2.0]]
    for env_id, bounds, own in (
        ("Pendulum-v1", None, "-2,2"),
        ("InvertedPendulum-v5", ([-2.0], [2.0]), "-3,3"),
    ):
        told = rf"takes actions .* those of mine .* --set 'dataset\.action_bounds=\[{own}\]'"
        with pytest.raises(InputError, match=told):
            fitting_environment(env_id, config, *(DIMS[env_id]), whose="mine", bounds=bounds)
    (scored,) = read_json(folder.result)["evaluations"]
    assert (scored["env_id"], scored["episodes"]) == ("Pendulum-v1", 2)


@pytest.mark.parametrize("bounds", [(0.0, 1e-46), (5.0, 5.0), (1.0, -1.0), (0.0, 1e31)])
def test_bounds_that_float32_cannot_scale_by_are_refused(bounds, tmp_path):
    file = pendulum_file(tmp_path / "mine.npz")
    with pytest.raises(InputError, match="bounds"):
        load(file, action_bounds=bounds)


def test_scaled_actions_are_looked_at_again():
    """Reading had found the column finite."""
    columns = Columns()
    columns.add("actions", np.full((2, 1), 3e38, np.float32), True)
    scale_actions(columns, (-1e-3, 1e-3))
    assert np.isinf(columns["actions"]).all()
    assert "actions" not in columns.finite


def trained_on_pendulum(file, tmp_path):
    """Settings of a run on data in Pendulum's own unit, and the run, scored."""
    dataset = {"name": file, "env_id": "Pendulum-v1", "action_bounds": BOUNDS}
    tiny = {"critic": {"size": "tiny"}, "flow": {"hidden": [8]}, "steps": 2, "batch_size": 8}
    evaluation = {"protocol": "quick-return", "processes": 1, "enabled": False}
    config = resolve(tiny | {"dataset": dataset, "evaluation": evaluation})
    data = load(file, env_id="Pendulum-v1", action_bounds=BOUNDS)
    folder = run(config, data, tmp_path / "runs", "r", SilentReporter())
    evaluate_run(folder.path, policies=("learned",), reporter=SilentReporter())
    return config, folder


def test_an_episode_by_hand_in_the_environments_unit_is_the_evaluated_one(tmp_path):
    """In the policy's own unit it is another, which nothing would tell."""
    _, folder = trained_on_pendulum(pendulum_file(tmp_path / "mine.npz"), tmp_path)
    model = export_run(folder.path, tmp_path / "model", onnx=False).folder
    policy = tql_offline.load(model)
    (line,) = read_jsonl(folder.evaluations)
    env = gymnasium.make("Pendulum-v1")  # the user's, which takes torques from -2 to 2
    for episode in line["episodes"]:
        right = return_by_hand(env, policy, policy.to_environment, episode["seed"])
        wrong = return_by_hand(env, policy, np.asarray, episode["seed"])
        # The evaluator acts in both episodes at once, which may change last bits.
        assert right == pytest.approx(episode["return"], rel=1e-4)
        assert abs(wrong - episode["return"]) > 1
    assert (
        "action = policy.to_environment(policy(observation))" in (model / "README.md").read_text()
    )


def return_by_hand(env, policy, to_environment, seed):
    """An episode of a loop of one's own."""
    observation, _ = env.reset(seed=seed)
    policy.reset(seed)
    total, done = 0.0, False
    while not done:
        action = to_environment(policy(observation))
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
    return total


def test_actions_are_scaled_to_each_dims_bounds_and_no_further(tmp_path):
    _, folder = trained_on_pendulum(pendulum_file(tmp_path / "mine.npz"), tmp_path)
    model = export_run(folder.path, tmp_path / "model", onnx=False).folder
    document = json.loads((model / "model.json").read_text())
    for bounds, wanted in (
        ([[-2.0], [2.0]], [-2.0, 1.0, 2.0]),
        ([[0.0], [8.0]], [0.0, 6.0, 8.0]),
        (None, [-1.0, 0.5, 1.0]),
    ):
        (model / "model.json").write_text(json.dumps(document | {"action_bounds": bounds}))
        policy = tql_offline.load(model)
        scaled = policy.to_environment([[-1.0], [0.5], [1.0]])
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled[:, 0], wanted)
        np.testing.assert_array_equal(policy.to_environment([0.5]), scaled[1])
        for wrong in ([0.5, 0.5], [np.nan], 0.5):
            with pytest.raises(InputError, match="the action"):
                policy.to_environment(wrong)
    (model / "model.json").write_text(json.dumps(document | {"action_bounds": [[0.1], [0.3]]}))
    least, greatest = tql_offline.load(model).to_environment([[-1.0], [1.0]])[:, 0]
    assert least >= np.float32(0.1)
    assert greatest <= np.float32(0.3)


class Exact(gymnasium.Env):
    """Refuses actions beyond its bounds, by however little."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(
        np.array([-2, 0, -0.1], np.float32), np.array([2, 10, 0.5], np.float32)
    )

    def step(self, action):
        assert self.action_space.contains(action), action
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_an_action_at_a_bound_is_not_beyond_it():
    """In float32, -1 scaled to [-0.1, 0.5] would be -0.10000002."""
    env = in_unit_actions(Exact())
    for action in ([-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]):
        env.step(np.array(action, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_scales_actions_to_the_bit_as_gymnasium_does(dtype):
    """Bounds that no power of two divides, written to model.json and read again."""
    low, high = np.array([-2, -0.3, 0.1], dtype), np.array([0.5, 0.3, 2 * np.pi / 3], dtype)
    env = Exact()
    env.action_space = gymnasium.spaces.Box(low, high, dtype=dtype)
    one = dtype(1)
    theirs = gymnasium.wrappers.RescaleAction(env, -one, one)
    recorded = json.loads(json.dumps([low.tolist(), high.tolist()]))
    scaled = _scaling({"action_bounds": recorded, "action_dtype": dtype.__name__})
    actions = np.random.default_rng(0).uniform(-1, 1, (2000, 3)).astype(np.float32)
    actions[:2] = [[-1], [1]]
    given = scaled(actions)
    assert given.dtype == dtype
    np.testing.assert_array_equal(given, np.clip(theirs.action(actions), low, high))
    assert all(env.action_space.contains(action) for action in given)
    unit = in_unit_actions(env)
    for action in actions[:50]:
        unit.step(action)


def test_bounds_that_a_type_lacks_round_inward():
    low, high = np.array([-0.3, 0.1]), np.array([0.3, 0.7])
    box = within(low, high, "float32")
    assert (box.low.astype(np.float64) >= low).all()
    assert (box.high.astype(np.float64) <= high).all()


def test_bounds_that_were_typed_lead_to_no_action_beyond_the_environments(tmp_path, capsys):
    """Their printed digits are the environment's; shorter ones are replaced by its own."""
    env_id = "rollout_environments:Turning-v0"
    rng = np.random.default_rng(0)
    ends = np.arange(40) % 20 == 19
    columns = {"observations": rng.normal(size=(40, 4)), "rewards": np.ones(40),
               "actions": rng.uniform(-2.09, 2.09, (40, 2)), "timeouts": ends,
               "terminals": np.zeros(40)}  # fmt: skip
    np.savez(tmp_path / "mine.npz", **columns)
    name = str(tmp_path / "mine.npz")
    _, output = command(["datasets", "check", name, "--env", env_id], capsys)
    assert "--action-bounds -2.0943952,2.0943952" in output.out.replace("\n", "")
    bounds = (-2.0944, 2.0944)
    dataset = {"name": name, "env_id": env_id, "action_bounds": bounds}
    tiny = {"critic": {"size": "tiny"}, "flow": {"hidden": [8]}, "steps": 2, "batch_size": 8}
    evaluation = {"protocol": "quick-return", "processes": 1, "enabled": False}
    config = resolve(tiny | {"dataset": dataset, "evaluation": evaluation})
    data = load(name, env_id=env_id, action_bounds=bounds)
    folder = run(config, data, tmp_path / "runs", "r", SilentReporter())
    policy = tql_offline.load(export_run(folder.path, tmp_path / "model", onnx=False).folder)
    for action in policy.to_environment([[-1, -1], [1, 1]]):
        assert make(env_id, unit_actions=False).action_space.contains(action)


@pytest.mark.parametrize(
    "bounds",
    [
        *(5, (np.ones(2), np.zeros(2)), (np.zeros(2), np.ones(3)), ("low", "high"), (1,)),
        *([[0, 1], [2, 3], [4, 5]], [[[0], [1]]]),
    ],
)
def test_bounds_of_another_form_are_a_sentence(bounds):
    with pytest.raises(InputError, match="not the least and the greatest action"):
        checked_bounds(bounds)


DIMS = {"Pendulum-v1": (3, 1), "InvertedPendulum-v5": (4, 1)}


def test_an_environment_of_other_bounds_takes_what_policies_give():
    """Played by a policy of ±1 it is the environment played by ±2."""
    own, scaled = gymnasium.make("Pendulum-v1"), make("Pendulum-v1")
    for env in (own, scaled):
        env.reset(seed=0)
    for action in (-1.0, 0.25, 1.0):
        theirs = own.step(np.array([2 * action], np.float32))
        ours = scaled.step(np.array([action], np.float32))
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
        assert ours[1] == pytest.approx(theirs[1], abs=1e-5)
    spaces = [action_space("Pendulum-v1"), action_space("pointmaze-medium-v0")]
    assert [(space.low.tolist(), space.high.tolist()) for space in spaces] == [
        ([-2.0], [2.0]),
        ([-1.0, -1.0], [1.0, 1.0]),
    ]


def test_bounds_that_no_setting_gives_are_not_advised(monkeypatch):
    config = resolve({"dataset": {"name": "mine.npz"}})
    for low, high, said in (
        ([-1, 0], [1, 5], "from -1, 0 to 1, 5 where"),
        ([-np.inf], [np.inf], "from -inf to inf where"),
        ([-1] * 12, [1] * 8 + [2] * 4, "from -1 to 1, 2 where"),
    ):
        box = gymnasium.spaces.Box(np.float32(low), np.float32(high))
        monkeypatch.setattr(bounds_module, "action_space", lambda _id, box=box: box)
        with pytest.raises(InputError, match=said) as error:
            fitting_environment("Pendulum-v1", config, 3, 1, whose="mine")
        assert ("dataset.action_bounds" in str(error.value)) == np.isfinite(low).all()


def test_bounds_by_dim_scale_each_dim_by_its_own(tmp_path):
    low, high = np.array([-2.0, 0.0, 3.0]), np.array([2.0, 0.5, 5.0])
    unit = np.random.default_rng(0).uniform(-0.99, 0.99, (40, 3)).astype(np.float32)
    columns = own_rows(np.zeros(40)) | {"actions": (unit + 1) / 2 * (high - low) + low}
    np.savez(tmp_path / "mine.npz", **columns)
    given = (*low, *high)
    from_file = load(str(tmp_path / "mine.npz"), action_bounds=given)
    from_memory = from_arrays(columns, "mine", action_bounds=(low, high), layout="ogbench")
    for data in (from_file, from_memory):
        assert data.action_bounds == (low.tolist(), high.tolist())
        np.testing.assert_allclose(data.episodes.actions, np.delete(unit, [20, 39], 0), atol=2e-6)
    config = resolve({"dataset": {"name": "mine", "action_bounds": list(given)}})
    refuse_other_data(config, from_memory)
    box = np.float32([-0.1, 0, 3]), np.float32([2, 0.5, 5])
    narrowly = columns | {"actions": np.clip(columns["actions"], *box)}
    of_box = from_arrays(narrowly, "mine", action_bounds=box, layout="ogbench")
    given = [-0.1, 0, 3, 2, 0.5, 5]
    refuse_other_data(resolve({"dataset": {"name": "mine", "action_bounds": given}}), of_box)
    other = resolve({"dataset": {"name": "mine", "action_bounds": [-2, 0, 3, 2, 1, 5]}})
    told = "bounds are -2,0,3 to 2,1,5 and the actions of mine were scaled by -2,0,3 to 2,0.5,5"
    with pytest.raises(InputError, match=told):
        refuse_other_data(other, from_memory)
    narrow = (-2, 0, 3, 2, 0.25, 5)
    with pytest.raises(InputError, match=r"dim 1, outside the given bounds \[0, 0.25\]; name"):
        load(str(tmp_path / "mine.npz"), action_bounds=narrow)
    with pytest.raises(InputError, match="action bounds of 2 dims are given for actions of 3; giv"):
        load(str(tmp_path / "mine.npz"), action_bounds=(-2, 0, 2, 5))


@pytest.mark.parametrize("bounds", [[1, -1], [0], [-1, 0, 1], [-1e31, 1]])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(InputError, match=r"dataset\.action_bounds"):
        resolve({"dataset": {"action_bounds": bounds}})


def test_bounds_are_for_files_of_ones_own():
    for name in ("cube-double-play-singletask-task1-v0", "hopper-medium-v2", "minari:a/b-v0"):
        with pytest.raises(InputError, match="for files of your own"):
            load(name, action_bounds=BOUNDS)


def test_the_checks_take_the_bounds_that_they_advise(tmp_path, capsys):
    file = pendulum_file(tmp_path / "wide.npz")
    check = ["datasets", "check", file, "--env", "Pendulum-v1"]
    code, output = command(check, capsys)
    told = "by --action-bounds -2,2 (in training: --set 'dataset.action_bounds=[-2,2]'), or"
    assert code == 1
    assert told in output.out
    for bounds in ("-2,2", "[-2,2]"):
        code, output = command([*check, "--action-bounds", bounds], capsys)
        assert "actions" not in output.out
        assert code == 0
    code, output = command([*check[:3], "--action-bounds", "-1.5,1.5"], capsys)
    assert code == 1
    assert "by --action-bounds LOW,HIGH (in" in output.out


def check_against(env_id, file, capsys, *options):
    """Exit code and output of the checks of a file against an environment of `Counting`."""
    check = ["datasets", "check", str(file), "--env", f"reader_environments:{env_id}", *options]
    code, output = command(check, capsys)
    return code, output.out


def of_counting(path, kind, greatest):
    """Data of `Counting`'s dims: a file in either layout, or a Minari folder."""
    columns = own_rows(np.linspace(-greatest, greatest, 40))
    columns |= {
        "observations": columns["observations"][:, :1],
        "actions": np.repeat(columns["actions"], 2, axis=1),
    }
    if kind == "flat":
        columns |= {"timeouts": columns.pop("terminals"), "terminals": np.zeros(40)}
    np.savez(path.with_suffix(".npz"), **columns)
    if kind != "minari":
        return path.with_suffix(".npz")
    convert(path.with_suffix(".npz"), path)
    return path


@pytest.mark.parametrize("kind", ["own", "flat", "minari"])
def test_the_checks_find_an_environment_of_other_bounds_that_training_refuses(
    kind, tmp_path, capsys
):
    file = of_counting(tmp_path / "unit", kind, 1)
    told = f"takes actions from -2, -5 to 2, 5 where those of {file} are from -1 to 1; if own data"
    code, output = check_against("CountingByDim-v0", file, capsys)
    assert (code, told in output, "give --action-bounds -2,-5,2,5" in output) == (1, True, True)
    told = "takes actions from -2 to 2 where .* in its unit, give --action-bounds -2,2 .in training"
    code, output = check_against("Counting-v0", file, capsys)
    assert code == 1
    assert re.search(told, output)
    code, output = check_against("Counting-v0", file, capsys, "--action-bounds", "-2,2")
    assert "takes actions" not in output
    code, output = check_against("CountingUnit-v0", file, capsys)
    assert "takes actions" not in output


@pytest.mark.parametrize("kind", ["own", "flat", "minari"])
def test_the_checks_take_the_bounds_by_dim_that_they_advise(kind, tmp_path, capsys):
    file = of_counting(tmp_path / "wide", kind, 2)
    check = ["datasets", "check", str(file), "--env", "reader_environments:CountingByDim-v0"]
    code, output = command(check, capsys)
    said = " ".join((output.out + output.err).split())
    assert code in (1, 2)
    told = "--action-bounds -2,-5,2,5 (in training: --set 'dataset.action_bounds=[-2,-5,2,5]')"
    assert told in said
    code, output = command([*check, "--action-bounds", "-2,-5,2,5"], capsys)
    assert (code, "bounds" in output.out) == (0, False)


def test_the_checks_advise_no_bounds_of_an_environment_without(tmp_path, capsys, monkeypatch):
    file = of_counting(tmp_path / "wide", "own", 2)
    endless = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    monkeypatch.setattr(environments, "action_space", lambda _id: endless)
    check = ["datasets", "check", str(file), "--env", "reader_environments:CountingByDim-v0"]
    said = " ".join(command(check, capsys)[1].out.split())
    assert "has no finite bounds; scale the data and register it with" in said


@pytest.mark.parametrize("flat", [False, True])
def test_actions_outside_given_bounds_are_told_as_they_are_stored(flat, tmp_path, capsys):
    columns = own_rows(np.linspace(-2, 2, 40))
    if flat:
        columns |= {"timeouts": columns.pop("terminals"), "terminals": np.zeros(40)}
    np.savez(tmp_path / "wide.npz", **columns)
    told = "has -2 at row 0, dim 0, outside the given bounds [-1.5, 1]; name the least and the"
    for load_it in (
        lambda: load(str(tmp_path / "wide.npz"), action_bounds=[-1.5, 1]),
        lambda: from_arrays(columns, "mine", action_bounds=[-1.5, 1], layout=None),
    ):
        with pytest.raises(InputError, match=re.escape(told)) as error:
            load_it()
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    check = ["datasets", "check", str(tmp_path / "wide.npz"), "--action-bounds", "-1.5,1"]
    assert told in command(check, capsys)[1].out


def own_rows(actions):
    """Two episodes in the layout of docs/data.md, of one action dim."""
    rng, rows = np.random.default_rng(0), len(actions)
    terminals = np.zeros(rows, bool)
    terminals[[rows // 2, rows - 1]] = True
    return {
        "observations": rng.standard_normal((rows, 3)),
        "actions": np.reshape(actions, (rows, 1)),
        "rewards": rng.standard_normal(rows),
        "masks": np.arange(rows) % (rows // 2) != rows // 2 - 1,
        "terminals": terminals,
    }


@pytest.mark.parametrize(
    ("kind", "low"), [(np.float64, -50), (np.int64, -50), (np.int8, -50), (np.uint8, 0)]
)
def test_the_checks_scale_what_training_scales(kind, low, tmp_path, capsys):
    """Integers, too, and a folder that `convert` wrote, whose bounds nobody knows."""
    high = low + 100
    actions = np.random.default_rng(1).uniform(low, high, 40).astype(kind)
    (tmp_path / "slices").mkdir()
    for name in ("wide.npz", "slices/0.npz"):
        np.savez(tmp_path / name, **own_rows(actions))
    convert(tmp_path / "wide.npz", tmp_path / "wide")
    convert(tmp_path / "wide.npz", tmp_path / "wide.hdf5")
    for name in ("wide.npz", "wide.hdf5", "wide", "slices"):
        check = ["datasets", "check", str(tmp_path / name)]
        code, output = command(check, capsys)
        assert code in (1, 2)
        assert "--action-bounds LOW,HIGH" in output.out + output.err
        code, output = command([*check, "--action-bounds", f"{low},{high}"], capsys)
        assert (code, "actions" in output.out) == (0, False)
        data = load(str(tmp_path / name), action_bounds=[low, high])
        stored = np.delete(actions, [20, 39]).astype(float) - (low + 50)
        np.testing.assert_allclose(data.episodes.actions[:, 0], stored / 50, atol=2e-5)


@pytest.mark.parametrize("bounds", ["2,-2", "2", "low,high", "-2,2,3", "nan,1"])
def test_bounds_of_the_checks_that_are_none_are_one_sentence(bounds, tmp_path, capsys):
    file = pendulum_file(tmp_path / "wide.npz")
    code, output = command(["datasets", "check", file, "--action-bounds", bounds], capsys)
    assert code == 2
    assert "give two numbers" in " ".join(output.err.split())


def test_the_checks_refuse_bounds_of_published_data(capsys):
    for name in ("cube-double-play-singletask-task1-v0", "hopper-medium-v2", "minari:a/b-v0"):
        code, output = command(["datasets", "check", name, "--action-bounds", "-2,2"], capsys)
        assert code == 2
        assert "for files of your own" in " ".join(output.err.split())


def test_a_message_lists_eight_bounds_at_most():
    assert bounds_module._listed(range(20)) == "0, 1, 2, 3, 4, 5, 6, 7"
