"""Data and environments whose actions have other bounds than -1 and 1."""

import gymnasium
import numpy as np
import pytest

from tql_offline.config import resolve
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.eval.environments import action_bounds, make
from tql_offline.files import read_json
from tql_offline.training import environment
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
    told = "name their bounds by --set dataset.action_bounds"
    with pytest.raises(InputError, match=told):
        load(file)
    data = load(file, env_id="Pendulum-v1", action_bounds=BOUNDS)
    with np.load(file) as stored:
        np.testing.assert_allclose(data.episodes.actions, stored["actions"] / 2, atol=1e-5)
    dataset = {"name": file, "env_id": "Pendulum-v1", "action_bounds": BOUNDS}
    tiny = {"critic": {"size": "tiny"}, "flow": {"hidden": [8]}, "steps": 2, "batch_size": 8}
    evaluation = {"protocol": "quick-return", "processes": 1, "enabled": False}
    config = resolve(tiny | {"dataset": dataset, "evaluation": evaluation})
    folder = run(config, data, tmp_path / "runs", "r", SilentReporter())
    assert read_json(folder.provenance)["dataset"]["action_bounds"] == [[-2.0], [2.0]]
    for env_id, bounds in (("Pendulum-v1", None), ("InvertedPendulum-v5", ([-2.0], [2.0]))):
        with pytest.raises(InputError, match=r"takes actions from .* where those of mine are"):
            fitting_environment(env_id, config, *(DIMS[env_id]), whose="mine", bounds=bounds)
    evaluate_run(folder.path, policies=("learned",), reporter=SilentReporter())
    (scored,) = read_json(folder.result)["evaluations"]
    assert (scored["env_id"], scored["episodes"]) == ("Pendulum-v1", 2)


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
    assert (action_bounds("Pendulum-v1"), action_bounds("pointmaze-medium-v0")) == (
        ([-2.0], [2.0]),
        ([-1.0, -1.0], [1.0, 1.0]),
    )


def test_bounds_that_no_setting_gives_are_not_advised(monkeypatch):
    config = resolve({"dataset": {"name": "mine.npz"}})
    for low, high, said in (
        ([-1, 0], [1, 5], "from -1, 0 to 1, 5 where"),
        ([-np.inf], [np.inf], "from -inf to inf where"),
        ([-1] * 12, [1] * 8 + [2] * 4, "from -1 to 1, 2 where"),
    ):
        monkeypatch.setattr(environment, "action_bounds", lambda _id, b=(low, high): b)
        with pytest.raises(InputError, match=said) as error:
            fitting_environment("Pendulum-v1", config, 3, 1, whose="mine")
        assert "dataset.action_bounds" not in str(error.value)


@pytest.mark.parametrize("bounds", [[1, -1], [0], [-1, 0, 1], [-1e31, 1]])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(InputError, match=r"dataset\.action_bounds"):
        resolve({"dataset": {"action_bounds": bounds}})


def test_bounds_are_for_files_of_ones_own():
    for name in ("cube-double-play-singletask-task1-v0", "hopper-medium-v2", "minari:a/b-v0"):
        with pytest.raises(InputError, match="for files of your own"):
            load(name, action_bounds=BOUNDS)
