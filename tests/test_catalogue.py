import csv
import re
import warnings
from importlib import resources

import gymnasium
import ogbench  # noqa: F401  (registers the environments)
import pytest

from tql_offline.datasets import catalogue
from tql_offline.errors import InputError

SLOW_TO_BUILD = ("cube-quadruple", "cube-triple", "puzzle-4x5", "puzzle-4x6", "puzzle-4x4")
OGBENCH = [*catalogue.entries("ogbench"), *catalogue.entries("ogbench-visual")]


def _families():
    unique = {entry.family: entry for entry in catalogue.entries("ogbench")}
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
    for entry in OGBENCH:
        tasks = () if entry.family.startswith("powderworld") else ("-singletask-task1",)
        for env_id in (f"{entry.family}{task}-v0" for task in ("", *tasks)):
            assert gymnasium.spec(env_id).max_episode_steps == entry.max_episode_steps


def test_images_have_the_size_that_their_environments_are_registered_with():
    for entry in catalogue.entries("ogbench-visual"):
        if entry.family.startswith("visual-"):
            options = gymnasium.spec(f"{entry.family}-v0").kwargs
            assert options["ob_type"] == "pixels"
            size = (options.get("height", 64), options.get("width", 64), 3)
            assert entry.observation_shape == size
            state = catalogue.find(entry.name.removeprefix("visual-"))
            assert entry.action_dim == state.action_dim


def test_powderworlds_shapes_are_those_of_its_environments():
    for entry in catalogue.entries("ogbench-visual"):
        if entry.family.startswith("powderworld"):
            env = gymnasium.make(f"{entry.family}-v0", disable_env_checker=True)
            assert env.observation_space.shape == entry.observation_shape
            assert env.action_space.n == entry.num_actions
            assert entry.action_dim is None
            env.close()


def test_every_published_dataset_of_ogbench_is_listed_once():
    # 85 published datasets: 47 state-based, 35 pixel-based, 3 of powderworld; 5 x (47 + 35) = the
    # 410 single tasks of OGBench's README.
    names = [entry.name for entry in OGBENCH]
    assert len(names) == len(set(names)) == 85
    kinds = {"powderworld": 3, "visual": 35}
    assert kinds == {kind: sum(n.startswith(kind) for n in names) for kind in kinds}
    assert {"scene-noisy-v0", "antmaze-teleport-explore-v0", "puzzle-4x6-play-v0"} <= set(names)
    # Registered environments for which no dataset was published.
    assert not {"antmaze-giant-explore-v0", "humanoidmaze-teleport-navigate-v0"} & set(names)
    assert not {"visual-humanoidmaze-teleport-stitch-v0", "visual-antsoccer-arena-v0"} & set(names)


def test_names_and_files_are_unique_across_suites():
    names = [entry.name for entry in catalogue.entries()]
    assert len(names) == len(set(names))
    paths = [(entry.suite, file.name) for entry in catalogue.entries() for file in entry.files]
    assert len(paths) == len(set(paths))
    assert {entry.suite for entry in catalogue.entries()} == set(catalogue.SUITES)


def test_d4rls_files_are_named_after_their_addresses():
    expected = {
        "antmaze-umaze-v2": "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed",
        "antmaze-large-play-v2": (
            "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed"
        ),
        "walker2d-medium-replay-v0": "walker_mixed",
        "walker2d-medium-replay-v2": "walker2d_medium_replay-v2",
        "kitchen-complete-v0": "mini_kitchen_microwave_kettle_light_slider-v0",
        "pen-human-v0": "pen-v0_demos_clipped",
    }
    for name, stem in expected.items():
        (file,) = catalogue.find(name).files
        assert file.name == f"{stem}.hdf5"
        assert file.folder


def test_the_counts_of_d4rl_are_those_of_its_own_registration():
    names = [entry.name for entry in catalogue.entries("d4rl")]
    # Four agents: six kinds of v1 and v2, five of v0; and one more of ant.
    mujoco = [n for n in names if n.split("-")[0] in {"halfcheetah", "hopper", "walker2d", "ant"}]
    assert len(mujoco) == 4 * (6 + 6 + 5) + 1
    assert sum(n.startswith("antmaze-") for n in names) == 6 * 3
    assert sum(n.split("-")[0] in {"pen", "hammer", "door", "relocate"} for n in names) == 4 * 3 * 2
    assert sum(n.startswith("kitchen-") for n in names) == 3
    assert sum(n.startswith("maze2d-") for n in names) == 8


def test_shapes_of_d4rls_mujoco_are_those_of_gymnasium():
    for family, env_id in (
        ("halfcheetah", "HalfCheetah-v4"),
        ("hopper", "Hopper-v4"),
        ("walker2d", "Walker2d-v4"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # v4 is out of date, and bounds are cast to float32
            env = gymnasium.make(env_id)
        entry = catalogue.find(f"{family}-medium-v2")
        assert env.observation_space.shape == entry.observation_shape
        assert env.action_space.shape == (entry.action_dim,)
        assert env.spec.max_episode_steps == entry.max_episode_steps
        env.close()


def test_known_files_carry_their_length_and_digest():
    train, val = catalogue.find("cube-double-play-v0").files
    assert (train.name, train.bytes) == ("cube-double-play-v0.npz", 297435656)
    assert (val.name, val.bytes) == ("cube-double-play-v0-val.npz", 29726524)
    files = [file for entry in catalogue.entries() for file in entry.files]
    digests = [file.sha256 for file in files if file.sha256]
    assert len(digests) == len(set(digests)) == 2 + 102
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    # A digest without a length, or the reverse, is half a measurement.
    assert all((file.bytes is None) == (file.sha256 is None) for file in files)


def test_what_nobody_has_measured_is_unknown():
    assert all(file.bytes is None for file in catalogue.find("maze2d-umaze-v1").files)
    assert catalogue.find("D4RL/pen/human-v2").files == ()
    assert catalogue.find("D4RL/pen/human-v2").observation_dim is None
    assert catalogue.find("visual-scene-play-v0").observation_dim is None
    assert catalogue.find("scene-play-v0").observation_dim == 40


@pytest.mark.parametrize(
    ("name", "fault", "instead"),
    [
        ("antmaze-large-diverse-v0", "timeouts are out of step", "use antmaze-large-diverse-v2"),
        ("hopper-medium-expert-v0", "replay data in the place", "use hopper-medium-expert-v2"),
        ("hopper-random-v1", "worse than their names", "use hopper-random-v2"),
    ],
)
def test_broken_datasets_are_refused_with_the_fault_and_what_to_use_instead(name, fault, instead):
    entry = catalogue.find(name)
    with pytest.raises(InputError, match=f"{fault}.*{instead}, or give --allow-broken"):
        catalogue.require_sound(entry)
    catalogue.require_sound(entry, allow_broken=True)


def test_only_versions_that_were_replaced_are_broken():
    broken = [entry.name for entry in catalogue.entries() if entry.faults]
    assert len(broken) == 6 + 6 + 1
    for entry in catalogue.entries():
        if not entry.faults:
            catalogue.require_sound(entry)


def test_what_a_user_should_know_is_noted():
    def notes(name):
        return " ".join(catalogue.find(name).notes)

    assert "sampling was cut" in notes("hopper-medium-replay-v2")
    assert "changes of goal" in notes("maze2d-large-v1")
    assert "single reward" in notes("antmaze-umaze-diverse-v2")
    assert "ogbench#26" in notes("puzzle-4x4-play-singletask-task1-v0")
    assert "Minari#303" in notes("D4RL/pen/human-v2")


def test_bundles_name_datasets_there_are():
    for name in catalogue.bundles():
        assert all(not entry.faults for entry in catalogue.select(name))
    paper = [entry.name for entry in catalogue.select("ogbench-paper-25")]
    table = resources.files("tql_offline.eval").joinpath("published", "tql_paper_ogbench.csv")
    tasks = {line["task"] for line in csv.DictReader(table.read_text().splitlines())}
    assert len(tasks) == 25
    assert {catalogue.find(task).name for task in tasks} == set(paper)
    assert len(catalogue.select("d4rl-locomotion-9")) == 9
    assert len(catalogue.select("d4rl-antmaze-6")) == 6
    assert catalogue.select("minari") == catalogue.entries("minari")


def test_an_unknown_suite_is_answered_with_those_there_are():
    with pytest.raises(InputError, match=r"no suite 'atari'.*ogbench, .*ogbench-paper-25"):
        catalogue.select("atari")


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
        ("hopper-mediun-v2", "hopper-medium-v2"),
        ("D4RL/pen/humans-v2", "D4RL/pen/human-v2"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, near):
    with pytest.raises(InputError, match=rf"{name}.*did you mean .*\b{near}"):
        catalogue.find(name)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "wholly-other-thing-v0"])
def test_strange_names_are_refused(name):
    with pytest.raises(InputError, match="datasets list"):
        catalogue.find(name)


def test_mirrors_are_ordered_and_take_a_file_name():
    hosts = [mirror.split("/")[0:3:2] for mirror in catalogue.mirrors()]
    assert hosts == [
        ["https:", "rail.eecs.berkeley.edu"],
        ["http:", "rail.eecs.berkeley.edu"],
        ["https:", "huggingface.co"],
    ]
    assert catalogue.mirrors("ogbench-visual") == catalogue.mirrors()
    assert catalogue.mirrors("minari") == []
    for suite in catalogue.SUITES:
        assert all(mirror.endswith("/{file}") for mirror in catalogue.mirrors(suite))
