import dataclasses

import pytest

from tql_offline.errors import InputError
from tql_offline.eval.protocol import episode_seeds, evaluation_steps, get, protocols
from tql_offline.eval.scores import bold, counted_evaluations, run_score

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
    }


def test_names_and_versions_are_unique_keys():
    keys = [(p.name, p.version) for p in protocols()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("name", "version"), [("ogbench", None), ("quick", 9)])
def test_an_unknown_protocol_is_answered_with_the_list(name, version):
    with pytest.raises(InputError, match=r"ogbench-singletask \(version 1\), quick \(version 1\)"):
        get(name, version)


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


def test_episode_seeds_are_distinct_and_repeat():
    seeds = episode_seeds(OGBENCH)
    assert len(set(seeds)) == 50
    assert seeds == episode_seeds(dataclasses.replace(QUICK, seeds=8))
    assert not set(seeds) & set(episode_seeds(OGBENCH, base_seed=1))
    assert all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
    assert len(set(episode_seeds(dataclasses.replace(QUICK, episodes=5000)))) == 5000


@pytest.mark.parametrize(
    "change",
    [{"episodes": 0}, {"evaluations": 0}, {"counted": "best"}, {"bold": 95}, {"score": "reward"}],
)
def test_impossible_protocols_are_refused(change):
    with pytest.raises(InputError, match="protocol 'quick'"):
        dataclasses.replace(QUICK, **change)


def lines(scores):
    return [{"step": 100 * i, "score": score} for i, score in enumerate(scores, start=1)]


def test_a_runs_score_counts_the_evaluations_its_protocol_counts():
    evaluations = lines([90.0, 10.0, 20.0, 60.0])
    assert run_score(OGBENCH, evaluations) == 30.0
    assert run_score(QUICK, evaluations[::-1]) == 60.0
    repeated = [*evaluations, {"step": 400, "score": 0.0}]
    assert [line["score"] for line in counted_evaluations(OGBENCH, repeated)] == [10.0, 20.0, 0.0]
    with pytest.raises(InputError, match=r"2 evaluations where .* last 3"):
        run_score(OGBENCH, evaluations[:2])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([100.0, 95.0, 94.9], [True, True, False]),
        ([0.0, 0.0], [True, True]),
        ([-100.0, -104.0, -106.0], [True, True, False]),
        ([float("nan"), 1.0], [False, True]),
        ([], []),
    ],
)
def test_bold_is_near_the_best(scores, expected):
    assert bold(scores, 0.95) == expected
