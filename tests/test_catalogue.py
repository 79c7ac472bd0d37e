import re
import warnings

import gymnasium
import ogbench  # noqa: F401  (registers the environments)
import pytest

from tql_offline.datasets import catalogue
from tql_offline.errors import InputError

SLOW_TO_BUILD = ("cube-quadruple", "cube-triple", "puzzle-4x5", "puzzle-4x6", "puzzle-4x4")


def _families():
    unique = {entry.family: entry for entry in catalogue.entries()}
    return [
        pytest.param(entry, id=family, marks=[pytest.mark.slow] if family in SLOW_TO_BUILD else [])
        for family, entry in unique.items()
    ]


@pytest.mark.parametrize("entry", _families())
def test_shapes_are_those_of_the_environment(entry):
    with warnings.catch_warnings():
        # gymnasium warns of float64 bounds cast to float32 when an environment is built.
        warnings.simplefilter("ignore")
        env = gymnasium.make(f"{entry.family}-v0")
        observations, actions = env.observation_space, env.action_space
    assert observations.shape == (entry.observation_dim,)
    assert actions.shape == (entry.action_dim,)
    assert env.spec.max_episode_steps == entry.max_episode_steps
    env.close()


def test_step_limits_are_those_registered_for_all_families():
    for entry in catalogue.entries():
        for env_id in (f"{entry.family}-v0", f"{entry.family}-singletask-task1-v0"):
            assert gymnasium.spec(env_id).max_episode_steps == entry.max_episode_steps


def test_every_published_state_based_dataset_is_listed_once():
    # 85 published datasets: 47 state-based, 35 pixel-based, 3 of powderworld; 5 x (47 + 35) = the
    # 410 single tasks of OGBench's README.
    names = [entry.name for entry in catalogue.entries()]
    assert len(names) == len(set(names)) == 47
    assert {"scene-noisy-v0", "antmaze-teleport-explore-v0", "puzzle-4x6-play-v0"} <= set(names)
    # Registered environments for which no dataset was published.
    assert not {"antmaze-giant-explore-v0", "humanoidmaze-teleport-navigate-v0"} & set(names)


def test_known_files_carry_their_length_and_digest():
    train, val = catalogue.find("cube-double-play-v0").files
    assert (train.name, train.bytes) == ("cube-double-play-v0.npz", 297435656)
    assert (val.name, val.bytes) == ("cube-double-play-v0-val.npz", 29726524)
    digests = [f.sha256 for entry in catalogue.entries() for f in entry.files if f.sha256]
    assert len(digests) == 2
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


@pytest.mark.parametrize(
    "name", ["scene-play-v0", "scene-play-singletask-v0", "scene-play-singletask-task3-v0"]
)
def test_singletask_names_resolve_to_their_file(name):
    assert catalogue.find(name).name == "scene-play-v0"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cube-duble-play-v0", "cube-double-play-v0"),
        ("cube-double-play", "cube-double-play-v0"),
        ("cube-dubble-play-singletask-task2-v0", "cube-double-play-v0"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, near):
    with pytest.raises(InputError, match=f"{name}.*did you mean {near}"):
        catalogue.find(name)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "wholly-other-thing-v0"])
def test_strange_names_are_refused(name):
    with pytest.raises(InputError, match="datasets list"):
        catalogue.find(name)


def test_mirrors_are_ordered_and_take_a_file_name():
    hosts = [mirror.url.split("/")[0:3:2] for mirror in catalogue.mirrors()]
    assert hosts == [
        ["https:", "rail.eecs.berkeley.edu"],
        ["http:", "rail.eecs.berkeley.edu"],
        ["https:", "huggingface.co"],
    ]
    assert all(m.url.endswith("/{file}") and m.note for m in catalogue.mirrors())
