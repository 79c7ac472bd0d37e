import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from tql_offline.cli import main
from tql_offline.config import resolve
from tql_offline.datasets.catalogue import entries
from tql_offline.errors import InputError
from tql_offline.eval.environments import GOALS_PREFIX, SeededEnvironment, make
from tql_offline.eval.measured import measured
from tql_offline.eval.protocol import (
    MAX_EPISODES,
    Protocol,
    counted_steps,
    episode_seeds,
    evaluation_steps,
    evaluations_counted,
    get,
    goal_of_seed,
    known_protocol,
    protocols,
)
from tql_offline.eval.references import Reference, reference_for
from tql_offline.eval.rollout import evaluate
from tql_offline.eval.run_records import read_result, read_run
from tql_offline.eval.scores import bold, evaluation_score
from tql_offline.eval.workers import EnvironmentPool
from tql_offline.files import read_jsonl
from tql_offline.runs import RunFolder
from tql_offline.training import evaluation
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

OGBENCH = get("ogbench-singletask")
QUICK = get("quick")


def test_ogbench_singletask_is_the_published_protocol():
    """FQL, section 5 and its main.py: a change here needs a new version, not a new expectation."""
    assert dataclasses.asdict(OGBENCH) == {
        "name": "ogbench-singletask",
        "version": 1,
        "episodes": 50,
        "evaluate_every": 100_000,
        "evaluations": 0,
        "counted": "last-3",
        "training_steps": 1_000_000,
        "seeds": 8,
        "bold": 0.95,
        "score": "success",
        "slots": 25,
        "goals": 0,
        "references": "",
    }


def test_released_protocols_keep_their_fields():
    """Episodes, cadence, what counts, updates, seeds, score, goals, references: as published."""
    assert {p.name: fields(p) for p in protocols() if p.version == 1} == {
        "ogbench-singletask": (50, 100_000, "last-3", 1_000_000, 8, "success", 0, ""),
        "ogbench-goal": (50, 100_000, "last-3", 1_000_000, 8, "success", 5, ""),
        "d4rl": (10, 100_000, "last", 1_000_000, 4, "normalised", 0, "d4rl"),
        "d4rl-antmaze": (100, 100_000, "last", 1_000_000, 4, "normalised", 0, "d4rl"),
        "minari": (10, 100_000, "last", 1_000_000, 4, "normalised", 0, "minari"),
        "unifloral": (1000, 0, "last", 1_000_000, 20, "return", 0, ""),
        "quick": (50, 0, "last", 20_000, 1, "success", 0, ""),
        "quick-return": (50, 0, "last", 20_000, 1, "return", 0, ""),
    }


def fields(p):
    updates = (p.evaluate_every, p.counted, p.training_steps)
    return (p.episodes, *updates, p.seeds, p.score, p.goals, p.references)


def test_the_documents_table_is_that_of_the_protocols():
    document = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for p in protocols():
        every = f"{p.evaluate_every:,} updates" if p.evaluate_every else f"{p.evaluations} a run"
        episodes = f"{p.goals} × {p.episodes}" if p.goals else p.episodes
        counted = {"last": "last", "last-3": "mean of last three"}[p.counted]
        row = f"| `{p.name}` | {p.version} | {episodes} | {every} | {counted} | "
        assert f"{row}{p.training_steps:,} | {p.seeds} | {p.score} |" in document


@pytest.mark.parametrize("p", protocols(), ids=lambda p: p.name)
def test_entries_are_possible(p):
    assert min(p.version, p.episodes, p.training_steps, p.seeds, p.slots) >= 1
    assert min(p.evaluate_every, p.evaluations, p.goals) >= 0
    assert (p.evaluate_every == 0) != (p.evaluations == 0)
    assert p.counted in get_args(get_type_hints(Protocol)["counted"])
    assert p.score in get_args(get_type_hints(Protocol)["score"])
    assert bool(p.references) == (p.score == "normalised")
    assert 0 < p.bold <= 1


def test_names_and_versions_are_unique_keys():
    keys = [(p.name, p.version) for p in protocols()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("name", "version"), [("ogbench", None), ("quick", 9)])
def test_an_unknown_protocol_is_answered_with_the_list(name, version):
    with pytest.raises(InputError, match=r"ogbench-singletask \(version 1\), quick \(version 1\)"):
        get(name, version)


# Other numbers than an entry's.


@pytest.mark.parametrize(
    ("name", "episodes", "steps", "slots"),
    [
        ("quick:5", 5, [1000, 2000, 3000, 4000], 5),
        ("quick@1500", 50, [1500, 3000, 4000], 25),
        ("quick-return:200@3000", 200, [3000, 4000], 25),
        ("ogbench-goal:2", 2, [4000], 10),
    ],
)
def test_a_name_with_numbers_is_another_protocol(name, episodes, steps, slots):
    other = get(name)
    assert (other.name, other.episodes, other.slots) == (name, episodes, slots)
    assert evaluation_steps(other, 4000) == steps
    plain = get(name.split(":")[0].split("@")[0])
    numbers = ("name", "episodes", "slots", "evaluate_every", "evaluations")
    assert other == replace(plain, **{key: getattr(other, key) for key in numbers})
    assert known_protocol(f"{name} v1") == other


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("quick:0", "give 1 to 10000 episodes"),
        ("quick:10001", "give 1 to 10000 episodes"),
        ("quick@0", "at least 1 update"),
        *((name, "'quick'; name it so") for name in ("quick:50", "quick:050")),
        ("ogbench-singletask@100000", "'ogbench-singletask'; name it so"),
        ("quick:05@07", "'quick:5@7'; name it so"),
        *(
            (name, r"there is no protocol .*; with NAME:EPISODES@UPDATES")
            for name in ("quick:", "quick@", "quick:5:5", "quick@5:5", "quick:-5", "quick:5 ", ":5")
        ),
        ("quick:٥", "there is no protocol"),
    ],
)
def test_a_protocol_has_one_name(name, said):
    with pytest.raises(InputError, match=said):
        get(name)
    assert known_protocol(f"{name} v1") is None


@pytest.mark.parametrize("label", ["quick v01", "quick v9", "quick v", "quick v²", "quick:5"])
def test_a_label_has_a_version_that_there_is(label):
    assert known_protocol(label) is None


def test_fewer_episodes_are_the_first_of_more():
    seeds = episode_seeds(QUICK)
    assert episode_seeds(get("quick:5")) == seeds[:5]
    assert episode_seeds(get("quick:200"))[:50] == seeds


def test_a_run_is_scored_by_the_numbers_of_its_protocol(data, tmp_path):
    config = resolve(
        {
            "critic": {"size": "tiny", "kind": "mlp"},
            "flow": {"hidden": [8], "flow_steps": 1},
            "evaluation": {"protocol": "quick:3@4", "processes": 1},
            **{"steps": 10, "batch_size": 4},
        }
    )
    folder = run(config, data, tmp_path, "r", SilentReporter())
    lines = [line for line in read_jsonl(folder.evaluations) if line["policy"] == "learned"]
    assert [(line["step"], len(line["episodes"])) for line in lines] == [(4, 3), (8, 3), (10, 3)]
    found = measured(read_run(folder))
    assert found.setting.protocol == "quick:3@4 v1"
    assert found.score == lines[-1]["score"]
    assert found.in_own_episodes
    merged = read_result(folder.result)
    assert (merged.warnings, measured(merged).score) == ((), found.score)


@pytest.mark.parametrize(
    ("protocol", "steps", "expected"),
    [
        (OGBENCH, 1_000_000, list(range(100_000, 1_000_001, 100_000))),
        (OGBENCH, 150_000, [100_000, 150_000]),
        (OGBENCH, 7, [7]),
        (QUICK, 400, [100, 200, 300, 400]),
        (QUICK, 3, [1, 2, 3]),
        (QUICK, 1, [1]),
    ],
)
def test_the_last_update_is_always_evaluated(protocol, steps, expected):
    assert evaluation_steps(protocol, steps) == expected


def test_a_run_without_updates_is_refused():
    with pytest.raises(InputError, match="0 updates"):
        evaluation_steps(QUICK, 0)


@pytest.mark.parametrize("name", ["quick", "quick@3", "ogbench-singletask:5@7", "d4rl"])
def test_the_counted_steps_are_the_last_that_are_planned(name):
    protocol = get(name)
    for steps in (1, 2, 3, 6, 7, 8, 14, 15, 100, 100_001, 300_000):
        planned = evaluation_steps(protocol, steps)
        assert counted_steps(protocol, steps) == planned[-evaluations_counted(protocol.counted) :]


def test_the_counted_steps_of_a_strangers_run_take_no_time():
    assert counted_steps(get("ogbench-singletask@1"), 10**15)[-2:] == [10**15 - 1, 10**15]


def test_episode_seeds_are_distinct_and_repeat():
    seeds = episode_seeds(OGBENCH)
    assert len(set(seeds)) == 50
    assert seeds == episode_seeds(dataclasses.replace(QUICK, seeds=8))
    assert all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
    assert len(set(episode_seeds(dataclasses.replace(QUICK, episodes=5000)))) == 5000


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([100.0, 95.0, 94.9], [True, True, False]),
        ([0.0, 0.0], [False, False]),
        ([0.0, 0.0, -1.0], [True, True, False]),
        ([-100.0, -104.0, -106.0], [True, True, False]),
        ([float("nan"), 1.0, 0.5], [False, True, False]),
        ([float("nan"), 1.0], [False, False]),
        ([], []),
    ],
)
def test_bold_is_near_the_best(scores, expected):
    assert bold(scores, 0.95) == expected


@pytest.mark.parametrize(
    ("dataset", "returned", "score"),
    [
        ("hopper-medium-v2", 3234.3, 100.0),
        ("hopper-medium-v2", -20.272305, 0.0),
        # 100 · (1607.0138475 + 20.272305) / (3234.3 + 20.272305): halfway between the two.
        ("hopper-medium-expert-v0", 1607.0138475, 50.0),
        ("antmaze-large-play-v2", 0.25, 25.0),
        ("ant-medium-v2", -325.6, 0.0),
        ("kitchen-mixed-v0", 3.0, 75.0),
        ("maze2d-umaze-v1", 161.86, 100.0),
        ("maze2d-umaze-dense-v1", 193.66285642381482, 100.0),
        ("maze2d-open-dense-v0", 11.17817, 0.0),
        ("pen-human-v1", 4567.118253174032, 150.0),
    ],
)
def test_d4rls_scores_lie_between_its_references(dataset, returned, score):
    reference = reference_for(get("d4rl"), dataset)
    given = {"success_rate": 0.5, "return_mean": returned, "reference": reference}
    assert evaluation_score(get("d4rl"), **given) == pytest.approx(score, abs=1e-9)


def test_the_preset_of_every_d4rl_dataset_can_score_it():
    for entry in entries("d4rl"):
        given = resolve({"dataset": {"name": entry.name}}).evaluation.protocol
        assert reference_for(get(given), entry.name) is not None, entry.name
        assert get(given).episodes == (100 if "maze" in entry.name else 10), entry.name


def test_other_scores_take_no_reference():
    assert reference_for(QUICK, "hopper-medium-v2") is None
    assert evaluation_score(QUICK, success_rate=0.5, return_mean=7.0) == 50.0
    assert evaluation_score(get("quick-return"), success_rate=0.5, return_mean=7.0) == 7.0


@pytest.mark.parametrize(
    "dataset",
    [
        "cube-double-play-v0",
        "maze2d-umaze-dense-v0",
        "maze2d-umaze-v0",
        "hoppers-v2",
        "hopper-mine.hdf5",
        "pen-human-v9",
        "antmaze-large-navigate-singletask-task1-v0",
    ],
)
def test_data_without_references_are_not_normalised(dataset):
    for protocol in ("d4rl", "minari"):
        with pytest.raises(InputError, match=r"no reference scores of dataset .* 'quick-return'"):
            reference_for(get(protocol), dataset)
    with pytest.raises(InputError, match="give the reference scores"):
        evaluation_score(get("d4rl"), success_rate=0.0, return_mean=1.0)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (float("-inf"), 0.0), (0.0, np.nan)])
def test_references_that_are_not_apart_are_refused(bounds):
    with pytest.raises(InputError, match="between which nothing lies"):
        Reference(min=bounds[0], max=bounds[1], scale=1.0, source="metadata")


# Goals.

GOAL = dataclasses.replace(get("ogbench-goal"), episodes=2, slots=5)
MAZE = f"{GOALS_PREFIX}pointmaze-medium-v0"


def test_every_goal_has_equally_many_episodes():
    seeds = episode_seeds(get("ogbench-goal"))
    assert len(set(seeds)) == 250
    goals = [goal_of_seed(seed, 5) for seed in seeds]
    assert goals == [1, 2, 3, 4, 5] * 50


def test_there_are_seeds_for_any_number_of_episodes():
    for episodes in (*range(1, 100), MAX_EPISODES):
        protocol = dataclasses.replace(get("ogbench-goal"), episodes=episodes)
        assert len(set(episode_seeds(protocol))) == protocol.episodes_played


def test_an_episodes_goal_is_ogbenchs_task_of_its_seed():
    """Start and goal are within the maze's noise of 1 of the task's cells."""
    env = make(MAZE)
    seeded = SeededEnvironment(env)
    for seed in range(10, 15):
        observation = seeded.reset(seed)
        maze = env.unwrapped
        task = maze.task_infos[goal_of_seed(seed, 5) - 1]
        assert maze.cur_task_id == goal_of_seed(seed, 5)
        assert np.abs(observation[:2] - maze.ij_to_xy(task["init_ij"])).max() <= 1
        assert np.abs(observation[2:] - maze.ij_to_xy(task["goal_ij"])).max() <= 1
        stepped = seeded.step(np.zeros(2, np.float32))[0]
        assert (stepped[2:] == observation[2:]).all()
    seeded.close()


def toward_the_goal(observations, _noise):
    """Straight at the goal: it gets there where no wall is in between."""
    return np.clip(observations[:, 2:] - observations[:, :2], -1, 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_goals_are_scored_each_and_by_their_mean(processes):
    with EnvironmentPool(MAZE, slots=5, processes=processes) as pool:
        line = evaluate(toward_the_goal, pool, GOAL, step=1, policy_name="learned", noise_dim=0)
    of_goal = {goal: [] for goal in range(1, 6)}
    for episode in line["episodes"]:
        of_goal[goal_of_seed(episode["seed"], 5)].append(episode["success"])
    assert line["goal_success_rates"] == [np.mean(of_goal[goal]) for goal in range(1, 6)]
    assert line["score"] == pytest.approx(100 * np.mean(line["goal_success_rates"]))
    assert line["env_id"] == MAZE
    assert json.loads(json.dumps(line)) == line


def test_protocol_and_environment_must_have_the_same_goals():
    with (
        EnvironmentPool("pointmaze-medium-v0", slots=5, processes=1) as pool,
        pytest.raises(InputError, match=r"5 goals .* made for 0; .* named goals:NAME"),
    ):
        evaluate(toward_the_goal, pool, GOAL, step=1, policy_name="learned", noise_dim=0)
    with pytest.raises(InputError, match="no goals to choose of"):
        make(f"{GOALS_PREFIX}pointmaze-medium-singletask-task1-v0")


@pytest.mark.parametrize("protocol", ["ogbench-goal", "d4rl"])
def test_a_run_is_not_scored_by_what_its_policies_or_data_lack(protocol, capsys, tmp_path):
    data = tmp_path / "own.npz"
    rows = {"observations": np.zeros((4, 4)), "actions": np.zeros((4, 2)), "rewards": np.zeros(4)}
    np.savez(data, **rows, terminals=[0, 0, 0, 1])
    arguments = ["--dataset", str(data), "--env", "rollout_environments:Uneven-v0", "--steps", "1"]
    with pytest.raises(SystemExit) as left:
        main(["train", "--protocol", protocol, *arguments, "--runs", str(tmp_path / "runs")])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert ("given a goal" if protocol == "ogbench-goal" else "no reference scores") in said
    assert not (tmp_path / "runs").exists()


def test_progress_is_of_the_episodes_of_all_goals(monkeypatch, tmp_path):
    class Started(SilentReporter):
        def started(self, title, steps):
            seen.append((title, steps))

    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: {})
    monkeypatch.setattr(evaluation, "numpy_policy", lambda *_: None)
    agent = SimpleNamespace(noise_dim=lambda _policy: 1)
    cpu = torch.device("cpu")
    scorer = evaluation.Evaluator(None, get("ogbench-goal"), cpu, overlaps=False)
    scorer.score(agent, RunFolder(tmp_path), 1, ("learned",), Started())
    assert seen == [("scoring learned policy", 250)]
