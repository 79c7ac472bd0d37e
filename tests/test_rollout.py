import dataclasses
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from contextlib import closing
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import rollout_environments
from marks import slowly
from rollouts import rollout

from tql_offline.config import resolve
from tql_offline.datasets.names import with_task
from tql_offline.errors import InputError
from tql_offline.eval import protocol, workers
from tql_offline.eval.environments import SeededEnvironment, _success, describe, make, quiet
from tql_offline.eval.evaluation_records import parse_evaluation
from tql_offline.eval.rollout import evaluate, run_episodes
from tql_offline.eval.stepping import failure
from tql_offline.eval.workers import EnvironmentFailedError, EnvironmentPool
from tql_offline.files import append_jsonl
from tql_offline.runs import RunFolder
from tql_offline.training.environment import fitting_environment
from tql_offline.training.result import read_evaluations

UNEVEN = "rollout_environments:Uneven-v0"
POINTMAZE = "pointmaze-medium-singletask-v0"
SEEDS = [11, 12, 13, 14, 15, 16, 17]


def row_policy(observations, noise):
    """Each row depends on that row alone, in a way that shows every mix-up."""
    return np.stack([np.tanh(observations[:, 0] - noise[:, 0]), np.sin(observations[:, 3])], axis=1)


def noise_policy(observations, noise):
    return noise


def play(
    env_id=UNEVEN, policy=row_policy, *, seeds=SEEDS, slots=3, processes=1, noise_dim=2, **more
):
    return rollout(
        policy, env_id, seeds=seeds, noise_dim=noise_dim, slots=slots, processes=processes, **more
    )


class Recorder:
    """A policy that keeps what it was shown."""

    def __init__(self, policy):
        self.policy, self.observations, self.noise = policy, [], []

    def __call__(self, observations, noise):
        self.observations.append(observations)
        self.noise.append(noise)
        return self.policy(observations, noise)


# Episodes are functions of their seeds.


def trajectory(environment, seed, steps=25):
    actions = np.random.default_rng(seed)
    rows = [environment.reset(seed)]
    for _ in range(steps):
        action = actions.uniform(-1, 1, environment.action_dim).astype(np.float32)
        observation, *outcome = environment.step(action)
        rows.append(np.append(observation, outcome))
    return np.concatenate(rows)


@pytest.mark.parametrize(
    "env_id",
    [
        POINTMAZE,
        "pointmaze-teleport-v0",
        "cube-single-singletask-v0",
        slowly("scene-singletask-v0"),
        slowly("puzzle-3x3-singletask-v0"),
    ],
)
def test_an_episode_depends_on_its_seed_alone(env_id):
    fresh = trajectory(SeededEnvironment(make(env_id)), 5)
    used = SeededEnvironment(make(env_id))
    other = SeededEnvironment(make(env_id))
    for seed in (6, 7):
        trajectory(used, seed, 60)
        np.random.seed(seed)  # noqa: NPY002
        trajectory(other, seed)
    again = trajectory(used, 5)
    assert np.array_equal(fresh, again, equal_nan=True)
    assert not np.array_equal(fresh, trajectory(used, 6), equal_nan=True)


def test_environments_in_one_process_do_not_disturb_each_other():
    alone = trajectory(SeededEnvironment(make(UNEVEN)), 5, steps=10)
    first, second = SeededEnvironment(make(UNEVEN)), SeededEnvironment(make(UNEVEN))
    rows = [first.reset(5)]
    second.reset(9)
    actions = np.random.default_rng(5)
    for _ in range(10):
        second.step(np.zeros(2, dtype=np.float32))
        observation, *outcome = first.step(actions.uniform(-1, 1, 2).astype(np.float32))
        rows.append(np.append(observation, outcome))
    assert np.array_equal(alone, np.concatenate(rows))


def test_the_callers_global_generator_is_left_alone():
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.randn(4)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    first = np.random.randn()  # noqa: NPY002  (leaves a second normal in the cache)
    play()
    assert np.array_equal(expected, [first, *np.random.randn(3)])  # noqa: NPY002


# Making environments.


@pytest.mark.parametrize(
    "family",
    [
        *("pointmaze-medium", "antsoccer-arena", "scene"),
        *map(
            slowly,
            [
                *("antmaze-large", "humanoidmaze-medium", "cube-double", "puzzle-3x3"),
                *("puzzle-4x4", "puzzle-4x5", "puzzle-4x6"),
            ],
        ),
    ],
)
def test_default_tasks_are_ogbenchs(family):
    with closing(make(f"{family}-singletask-v0")) as env, quiet():
        env.reset()
        task = env.unwrapped.cur_task_id
    assert with_task(f"{family}-singletask-v0") == f"{family}-singletask-task{task}-v0"


def test_success_timing_reaches_the_environment():
    assert describe(POINTMAZE)["success_timing"] == "pre"
    assert describe(POINTMAZE, "post")["success_timing"] == "post"


def test_a_description_says_what_scores_depend_on():
    assert describe("cube-single-singletask-v0") == {
        "env_id": "cube-single-singletask-v0",
        "max_episode_steps": 200,
        "success_timing": "pre",
        "goals": 0,
        "observation_dim": 28,
        "action_dim": 5,
        "versions": {
            "ogbench": importlib.metadata.version("ogbench"),
            "mujoco": mujoco.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }


def test_a_description_says_what_observations_are_flattened_from():
    inner = "Box(-inf, inf, (1,), float64)"
    pair = "Tuple(Box(-inf, inf, (1, 2), float64), Discrete(3))"
    nested = describe("reader_environments:CountingDict-v0")
    assert nested["flattened"] == f"Dict('a': Dict('y': {inner}), 'b': {pair}, 'z': {inner})"
    assert "flattened" not in describe("reader_environments:Counting-v0")


def test_a_description_has_the_code_of_ones_own_environment():
    """The class's file, or that of the module which registers a class of a package."""
    import reader_environments

    for env_id, name in (
        ("rollout_environments:Uneven-v0", "rollout_environments.py"),
        ("reader_environments:ShortHopper-v0", "reader_environments.py"),
    ):
        file = Path(reader_environments.__file__).with_name(name)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert describe(env_id)["code"] == {"file": name, "sha256": digest}
    assert "code" not in describe("Pendulum-v1")


def test_a_success_that_is_not_reported_is_none(tmp_path):
    short = protocol.get("quick-return:2")
    env_id = "rollout_environments:Silent-v0"
    with EnvironmentPool(env_id, slots=short.slots, processes=1) as pool:
        line = evaluate(noise_policy, pool, short, step=1, policy_name="learned", noise_dim=2)
    assert {episode["success"] for episode in line["episodes"]} == {None}
    assert line["success_rate"] is None
    folder = RunFolder(tmp_path)
    append_jsonl(folder.evaluations, line)
    assert read_evaluations(folder) == [line]
    assert parse_evaluation(line).successes is None


@pytest.mark.parametrize(
    ("env_id", "timing", "message"),
    [
        ("cube-sextuple-v0", None, "'cube-sextuple-v0' cannot be made"),
        ("no_such_module:Env-v0", None, "cannot be made .*no_such_module.*PYTHONPATH="),
        (POINTMAZE, "late", "success timing 'late' is unknown"),
        (UNEVEN, "post", "has no success timing; leave"),
        (
            "powderworld-easy-v0",
            None,
            r"observations of Box.*\(32, 32, 6\).* choose an environment",
        ),
    ],
)
def test_unusable_environments_are_named(env_id, timing, message):
    with pytest.raises(InputError, match=message):
        describe(env_id, timing)


# Rollouts.


@pytest.fixture
def global_generator():
    before = np.random.get_bit_generator()
    yield
    np.random.set_bit_generator(before)


def test_episodes_equal_a_plain_gymnasium_loop(global_generator):
    """pointmaze needs one care: its draws from the global generator, seeded as in the rollout."""

    def push(observations, noise):
        return 3 * noise  # beyond [-1, 1], so that clipping shows

    episodes = play(POINTMAZE, push, seeds=[3, 4, 5], slots=2, processes=2)
    for seed, episode in zip([3, 4, 5], episodes, strict=True):
        shared, _unseeded, _space = np.random.SeedSequence(seed).spawn(3)
        noise = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2**32 - 1,)))
        np.random.set_bit_generator(np.random.MT19937(shared))
        env = gymnasium.make(POINTMAZE, disable_env_checker=True)
        env.reset(seed=seed)
        total, length, ended = 0.0, 0, False
        while not ended:
            action = np.clip(3 * noise.standard_normal(2, dtype=np.float32), -1, 1)
            _, reward, terminated, truncated, info = env.step(action)
            total, length, ended = total + reward, length + 1, terminated or truncated
        assert (episode.seed, episode.return_, episode.length) == (seed, total, length)
        assert episode.success == bool(info["success"])
        assert (episode.terminated, episode.truncated) == (terminated, truncated)


@pytest.fixture(scope="module")
def in_process():
    return play()


@pytest.mark.parametrize("processes", [2, 3])
def test_results_do_not_depend_on_the_number_of_processes(processes, in_process):
    assert play(processes=processes) == in_process


@pytest.mark.parametrize("slots", [1, 7, 10])
def test_results_do_not_depend_on_the_slots_of_a_row_wise_policy(slots, in_process):
    assert play(slots=slots) == in_process


def test_unequal_episodes_are_all_counted_in_order(in_process):
    assert [e.seed for e in in_process] == SEEDS
    lengths = [e.length for e in in_process]
    assert max(lengths) == 60
    assert min(lengths) <= 2
    assert {e.success for e in in_process} == {True, False}
    assert all(e.success == e.terminated != e.truncated for e in in_process)


def test_the_batch_has_one_shape_and_idle_rows_keep_their_values(in_process):
    recorder = Recorder(row_policy)
    play(policy=recorder, slots=10)
    assert {o.shape for o in recorder.observations} == {(10, 4)}
    assert {n.shape for n in recorder.noise} == {(10, 2)}
    last = recorder.observations[-1]
    assert last.dtype == np.float32
    assert not last[7:].any()
    for k, episode in enumerate(in_process):
        assert last[k, 3] == min(episode.length, 59)


def test_all_policies_see_the_same_starts_and_noise():
    """In one slot the first tick of an episode is the one whose step count is zero."""
    seen = []
    for policy in (row_policy, noise_policy):
        recorder = Recorder(policy)
        play(policy=recorder, slots=1)
        batches = zip(recorder.observations, recorder.noise, strict=True)
        seen.append([np.append(o, n) for o, n in batches if o[0, 3] == 0])
    assert len(seen[0]) == len(SEEDS)
    assert np.array_equal(*seen)
    assert len({row[4] for row in seen[0]}) == len(SEEDS)


@pytest.mark.parametrize("mischief", ["CrashOnce", "HangOnce"])
def test_lost_processes_are_replaced_and_nothing_is_dropped(mischief, in_process, marker):
    env_id = f"rollout_environments:{mischief}-v0"
    timeouts = {"step_timeout": 0.5, "start_timeout": 30}
    with EnvironmentPool(env_id, slots=3, processes=2, **timeouts) as pool:
        episodes = run_episodes(row_policy, pool, seeds=SEEDS, noise_dim=2)
    assert marker.exists()
    assert episodes == in_process


@pytest.fixture
def marker(private_home, monkeypatch):
    """Where `rollout_environments` does its mischief once."""
    path = private_home / "marker"
    monkeypatch.setenv(rollout_environments.MARKER, str(path))
    return path


@pytest.fixture
def starts(monkeypatch):
    """Times at which worker processes were started."""
    times: list[float] = []
    start = workers.worker_start.start
    monkeypatch.setattr(
        workers.worker_start, "start", lambda *task: times.append(time.time()) or start(*task)
    )
    return times


def play_even(env_id, seeds, *, policy=row_policy, **timeouts):
    """In four slots, a group each: of slots 0 and 1 in one worker, of 2 and 3 in another."""
    with EnvironmentPool(
        f"rollout_environments:{env_id}-v0", slots=4, processes=2, **timeouts
    ) as p:
        return run_episodes(policy, p, seeds=seeds, noise_dim=2)


@pytest.mark.parametrize("mischief", ["EvenCrashOnce", "EvenHangOnce"])
def test_only_the_episodes_that_a_lost_process_was_at_are_played_again(mischief, marker, starts):
    """Slot 0 loses its process in its second of three episodes, of seed 14."""
    seeds = [*range(10, 22)]
    episodes = play_even(mischief, seeds, step_timeout=0.5)
    assert marker.exists()
    log = marker.with_suffix(".log")
    begun = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    # 15 is in slot 1, the other group of the process; what both had finished is kept.
    assert Counter(seed for seed, _ in begun) == {seed: 1 + (seed in (14, 15)) for seed in seeds}
    played_by = {slot: {pid for seed, pid in begun if (seed - 10) % 4 == slot} for slot in range(4)}
    assert played_by[0] == played_by[1]
    assert played_by[2] == played_by[3]
    assert (len(starts), len(played_by[0]), len(played_by[2])) == (3, 2, 1)
    assert episodes == play("rollout_environments:Even-v0", seeds=seeds, slots=4)


def test_a_hanging_process_is_replaced_when_its_time_is_over(marker, starts):
    play_even("EvenHangOnce", [*range(10, 18)], step_timeout=0.8)
    waited = starts[2] - marker.stat().st_mtime
    # It was asked a moment before it left the marker.
    assert 0.7 < waited < 5


def test_waiting_for_the_other_group_is_no_hanging(starts):
    """Orders lie up to twice as long in a worker as a step may take: each has its own time."""
    play_even("Slow", [1, 2, 3, 4], step_timeout=1.0)
    assert len(starts) == 2


def test_a_policy_may_take_longer_than_a_step(starts, monkeypatch):
    """While it is at some groups' answers those of others come, and lie until they are late."""
    monkeypatch.setattr(workers._Pace, "quorum", lambda *_: 1)
    calls = []

    def slow(observations, noise):
        calls.append(time.sleep(2.0 if len(calls) in (6, 7, 8) else 0))
        return row_policy(observations, noise)

    play_even("Even", [1, 2, 3, 4], policy=slow, step_timeout=1.6)
    assert len(calls) > 9
    assert len(starts) == 2


def test_a_process_that_always_dies_is_given_up(starts):
    with pytest.raises(EnvironmentFailedError, match=r"slots \[.*CrashAlways.*exit code 17"):
        play("rollout_environments:CrashAlways-v0", processes=2)
    assert len(starts) <= 2 * workers.MAX_LOSSES
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_environments_error_is_raised_here(processes):
    with pytest.raises(EnvironmentFailedError, match="ValueError: the gripper is on fire"):
        play("rollout_environments:Raises-v0", processes=processes)
    assert not multiprocessing.active_children()


def test_a_pool_survives_a_failed_rollout(in_process):
    def broken(observations, noise):
        return np.full((len(observations), 2), np.nan)

    def too_few(observations, noise):
        return noise[:2]

    def too_wide(observations, noise):
        return observations

    with EnvironmentPool(UNEVEN, slots=3, processes=2) as pool:
        for bad, message in [
            (broken, "not finite .* in environment"),
            (too_few, r"actions of shape \(2, 2\) for 3"),
            (too_wide, "4 numbers where environment .* takes 2"),
        ]:
            with pytest.raises(InputError, match=message):
                run_episodes(bad, pool, seeds=SEEDS, noise_dim=2)
        assert run_episodes(row_policy, pool, seeds=SEEDS, noise_dim=2) == in_process
        assert run_episodes(row_policy, pool, seeds=SEEDS[:2], noise_dim=2) == in_process[:2]
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_an_interrupt_leaves_no_processes():
    def interrupted(observations, noise):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(policy=interrupted, processes=2)
    assert not multiprocessing.active_children()


def test_worker_settings_stay_in_the_workers(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    play(processes=2, seeds=[1, 2])
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed -1 is negative"):
        play(seeds=[3, -1])


def test_progress_ends_at_the_number_of_episodes():
    reports: list[int] = []
    play(progress=reports.append)
    assert reports == sorted(reports)
    assert reports[-1] == len(SEEDS)


def test_neither_torch_nor_warnings_come_with_the_environments():
    code = (
        "import sys, tql_offline.eval.rollout as r\n"
        "from tql_offline.eval.environments import describe\n"
        "describe('cube-single-singletask-v0')\n"
        "assert not {'torch', 'tql_offline.agents', 'tql_offline.training'} & set(sys.modules)\n"
    )
    python = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        # As on a server: without a display, and with nothing said about rendering.
        env={k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY")},
        check=False,
    )
    assert (python.returncode, python.stderr) == (0, "")


# Evaluations.


def small(score):
    return dataclasses.replace(protocol.get("quick"), episodes=7, slots=3, score=score)


def test_an_evaluation_is_a_line_that_can_be_checked_against_its_episodes():
    quick = small("success")
    with EnvironmentPool(UNEVEN, slots=3, processes=1) as pool:
        line = evaluate(row_policy, pool, quick, step=40, policy_name="learned", noise_dim=2)
        other = evaluate(noise_policy, pool, quick, step=0, policy_name="behaviour", noise_dim=2)
    expected = play(seeds=protocol.episode_seeds(quick))
    assert [e["return"] for e in line["episodes"]] == [e.return_ for e in expected]
    assert [e["seed"] for e in line["episodes"]] == [e["seed"] for e in other["episodes"]]
    successes = [e["success"] for e in line["episodes"]]
    assert line["success_rate"] == sum(successes) / 7
    assert line["score"] == 100 * line["success_rate"]
    assert line["return_mean"] == pytest.approx(sum(e.return_ for e in expected) / 7)
    assert line["protocol"] == {"name": "quick", "version": 1, "episodes": 7, "counted": "last"}
    assert (line["step"], line["policy"], line["env_id"]) == (40, "learned", UNEVEN)
    assert json.loads(json.dumps(line)) == line


def test_a_return_that_is_no_number_ends_the_evaluation():
    env_id = "rollout_environments:Unrewarded-v0"
    with (
        EnvironmentPool(env_id, slots=3, processes=1) as pool,
        pytest.raises(InputError, match=r"Unrewarded-v0' gives the return nan in the episode of"),
    ):
        evaluate(row_policy, pool, small("return"), step=1, policy_name="learned", noise_dim=2)


def test_a_missing_success_is_not_taken_for_failure():
    with EnvironmentPool("rollout_environments:Silent-v0", slots=3, processes=1) as pool:
        arguments = {"step": 1, "policy_name": "learned", "noise_dim": 2}
        with pytest.raises(InputError, match="reports no success"):
            evaluate(row_policy, pool, small("success"), **arguments)
        line = evaluate(row_policy, pool, small("return"), **arguments)
        assert line["score"] == line["return_mean"]
        best = evaluate(row_policy, pool, small("return"), **{**arguments, "policy_name": "best"})
        assert best == line | {"policy": "best"}, "a policy of one's own method"
        with pytest.raises(InputError, match="pool has 3 slots"):
            evaluate(row_policy, pool, protocol.get("quick"), **arguments)


@pytest.mark.parametrize(
    ("flag", "success"),
    [(None, math.nan), (np.nan, math.nan), (np.float32("nan"), math.nan),
     (np.array(np.nan), math.nan), (True, 1), (np.False_, 0), (1.0, 1), (0, 0),
     (np.array([True]), 1)],
)  # fmt: skip
def test_a_flag_that_is_not_known_is_no_success(flag, success):
    assert _success(flag) == pytest.approx(success, nan_ok=True)


def test_what_an_environment_tells_instead_of_success_is_named():
    config = resolve({"evaluation": {"protocol": "quick:4"}})
    for name, has in (("Unknown", "it has: 'success', 'is_success'"), ("Silent", "it is empty")):
        env_id = f"rollout_environments:{name}-v0"
        with pytest.raises(InputError) as error:
            fitting_environment(env_id, config, 4, 2, whose="mine")
        assert str(error.value) == (
            f"the info of environment {env_id!r} tells no 'success' in an episode of zero actions "
            f"({has}), which protocol 'quick:4' scores; report it under that name at every step, "
            "or give --protocol quick-return:4, which scores the return"
        )


def test_an_observation_that_is_not_finite_is_not_the_policys_fault():
    env_id = "rollout_environments:Dark-v0"
    with (
        EnvironmentPool(env_id, slots=3, processes=1) as pool,
        pytest.raises(InputError, match=r"Dark-v0' gives an observation that is not"),
    ):
        policy = lambda observations, _: observations[:, :2]  # noqa: E731
        evaluate(policy, pool, small("return"), step=1, policy_name="learned", noise_dim=2)


def test_a_reward_with_a_shape_is_named():
    class Shaped(gymnasium.Wrapper):
        def step(self, action):
            observation, reward, *others = self.env.step(action)
            return observation, np.array([reward]), *others

    env = SeededEnvironment(Shaped(make(UNEVEN)))
    env.reset(0)
    with pytest.raises(ValueError, match=r"^its reward has shape \(1,\); give one number$"):
        env.step(np.zeros(2, np.float32))


def test_all_lines_of_an_environments_error_are_told():
    told = failure("e", RuntimeError("motor fault\nsecond line")).message
    assert told.splitlines()[0] == "environment 'e' failed: RuntimeError: motor fault second line"


def test_construction_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for env_id in (POINTMAZE, "puzzle-4x4-singletask-v0", "antmaze-medium-singletask-v0"):
            describe(env_id)
            SeededEnvironment(make(env_id)).reset(0)
