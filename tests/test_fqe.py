"""Fitted Q evaluation on data of known answers, and as a command."""

import json
import shutil
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from command_line import command
from stand_ins import raising

from tql_offline.config import resolve
from tql_offline.datasets.episodes import Episodes
from tql_offline.errors import InputError
from tql_offline.files import read_jsonl
from tql_offline.training import fqe
from tql_offline.training.fqe import (
    Fit,
    Fitting,
    Transitions,
    Worth,
    continues,
    evaluate_offline,
    fitted_q_evaluation,
    is_d4rls_ant_maze,
    usual_fit,
)
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

CPU = torch.device("cpu")
SHORT = Fit(updates=200, batch_size=128, members=2, hidden=(32, 32), lr=5e-3, polyak=0.1)

TWO = Fit(updates=2, batch_size=4, members=2, hidden=(4,))


class Policy:
    """A fixed policy of one action dim, in place of an agent."""

    action_dim = 1

    def __init__(self, of):
        self.of = of

    def noise_dim(self, _policy):
        return 1

    def act(self, _policy, observations, noise):
        return self.of(observations, noise).clamp(-1, 1)


def walk(episodes, length, *, reward, ends=lambda _s, _a: False, start=None):
    """Uniform actions; the next observation is the action."""
    rng = np.random.default_rng(0)
    columns = {"observations": [], "actions": [], "rewards": [], "masks": []}
    lengths = []
    for _ in range(episodes):
        state = rng.uniform(-1, 1) if start is None else start
        observations = [state]
        for _ in range(length):
            action = rng.uniform(-1, 1)
            columns["actions"].append([action])
            columns["rewards"].append(reward(state, action))
            columns["masks"].append(float(not ends(state, action)))
            state = action
            observations.append(state)
            if not columns["masks"][-1]:
                break
        lengths.append(len(observations) - 1)
        columns["observations"] += [[o] for o in observations]
    arrays = {name: np.array(column, np.float32) for name, column in columns.items()}
    return Episodes(**arrays, lengths=np.array(lengths))


def test_many_first_observations_are_acted_on_in_parts(monkeypatch):
    """Best-of-n asks the run's critic n times a row."""
    episodes = walk(10, 3, reward=lambda _s, _a: 1.0)
    sizes = []

    def policy(observations, noise):
        sizes.append(len(observations))
        return 0.5 * observations + 0.1 * noise

    def values():
        data = Transitions.of(episodes, discount=0.9, device=CPU)
        return Fitting(Policy(policy), "learned", data, TWO).values()

    want = values()
    monkeypatch.setattr(fqe, "_ROWS_AT_ONCE", 4)
    sizes.clear()
    assert torch.equal(values(), want)
    assert set(sizes) == {4, 2}


def worth(policy, episodes, discount=0.8, fit=SHORT):
    data = Transitions.of(episodes, discount=discount, device=CPU)
    return fitted_q_evaluation(Policy(policy), "learned", data, fit=fit, reporter=SilentReporter())


def test_a_policy_that_turns_back_is_worth_what_its_states_are():
    """r = s, s' = a, from ½ on: a = -s gives ½ - γ/2 + ... = ½/(1 + γ), and a = s ½/(1 - γ)."""
    data = walk(60, 40, reward=lambda s, _a: s, start=0.5)
    found = worth(lambda s, _z: -s, data)
    assert found.value == pytest.approx(0.28, abs=0.6)
    assert found.starts == 60
    assert worth(lambda s, _z: s, data).value == pytest.approx(2.5, abs=0.6)


def test_the_end_of_the_task_is_worth_nothing_more_and_a_cut_is_no_end():
    """A reward of 1 a step, and the task ends with a positive action."""
    data = walk(400, 10, reward=lambda _s, _a: 1.0, ends=lambda _s, a: a > 0)
    assert worth(lambda s, _z: 0 * s - 0.5, data).value == pytest.approx(5.0, rel=0.15)
    assert worth(lambda s, _z: 0 * s + 0.5, data).value == pytest.approx(1.0, abs=0.25)


def corridor(walks, length, goal):
    """Walks by twentieths from 0 on; each step at the goal is marked as the task's end."""
    episodes, lengths, masks = [], [], []
    for _ in range(walks):
        begin = 0
        for step in range(length):
            if step >= goal or step == length - 1:
                places = np.minimum(np.arange(begin, step + 2), goal) / 20
                episodes.append(places)
                lengths.append(step + 1 - begin)
                masks += [1.0] * (step - begin) + [float(step < goal)]
                begin = step + 1
    observations = np.concatenate(episodes)[:, None].astype(np.float32)
    masks = np.array(masks, np.float32)
    actions = np.full((len(masks), 1), 0.5, np.float32)
    return Episodes(
        observations=observations,
        actions=actions,
        rewards=1 - masks,
        masks=masks,
        lengths=np.array(lengths),
    )


def test_rows_that_go_on_at_the_goal_are_no_beginnings():
    """Ten walks reach the goal and stay there, as D4RL's ants do, and one is cut before."""
    data = corridor(10, 30, goal=20)
    assert data.num_episodes == 100
    assert np.flatnonzero(~continues(data)).tolist() == list(range(0, 100, 10))
    found = Transitions.of(data, discount=0.9, device=CPU, may_continue=True)
    assert found.episode.tolist() == np.repeat(range(10), 30).tolist()
    assert found.buffer.observations[found.first_rows].unique().tolist() == [0.0]
    assert not continues(corridor(10, 15, goal=20)).any()


def test_in_other_data_every_episode_begins_anew(trained, data, tmp_path, monkeypatch):
    """Some may happen to begin near the goal where the one before ended."""
    assert (
        len(Transitions.of(corridor(10, 30, goal=20), discount=0.9, device=CPU).first_rows) == 100
    )
    for name, may in (
        ("antmaze-large-diverse-v2", True),
        ("antmaze-large-navigate-singletask-task1-v0", False),
        ("hopper-medium-v2", False),
        ("antmaze.hdf5", False),
    ):
        assert is_d4rls_ant_maze(name) == may
    asked = []
    monkeypatch.setattr(fqe, "is_d4rls_ant_maze", lambda name: asked.append(name) or True)
    monkeypatch.setattr(fqe, "continues", lambda episodes: np.arange(episodes.num_episodes) > 0)
    shutil.copytree(trained.path, tmp_path / "run")
    (line, _) = evaluate_offline(
        tmp_path / "run",
        fit=replace(SHORT, updates=2),
        load_dataset=lambda _config: data,
        reporter=SilentReporter(),
    )
    assert line["starts"] == 1
    assert asked == ["pointmaze-medium-navigate-singletask-task1-v0"]


def test_an_episode_after_a_cut_is_one_of_its_own():
    """One walk, stored in 40 pieces."""
    data = corridor(1, 400, goal=400)
    masks = np.ones_like(data.masks)
    observations = np.repeat(data.observations, 1 + (np.arange(401) % 10 == 0), axis=0)[1:-1]
    lengths = np.full(40, 10)
    pieces = replace(data, observations=observations, masks=masks, lengths=lengths)
    assert not continues(pieces).any()


def test_an_episode_that_begins_far_from_the_last_end_is_one_of_its_own():
    data = corridor(10, 21, goal=20)
    assert (data.masks == 0).sum() == 10
    assert not continues(data).any()


def test_a_policy_with_noise_is_worth_its_mean_in_the_unit_of_the_rewards():
    """r = 1000 a: with a = 0.4 ± 0.5 by the sign of the noise, 400 / (1 - γ)."""
    data = walk(60, 40, reward=lambda _s, a: 1000 * a)
    longer = Fit(**(vars(SHORT) | {"updates": 400}))
    found = worth(lambda s, z: 0 * s + 0.4 + 0.5 * z.sign(), data, fit=longer)
    assert found.value == pytest.approx(2000, rel=0.25)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_estimate_scales_with_the_rewards(unit):
    fit = Fit(**(vars(SHORT) | {"updates": 30}))
    plain, scaled = (
        worth(lambda s, _z: s, walk(10, 20, reward=lambda s, _a, c=c: c * s), fit=fit)
        for c in (1.0, unit)
    )
    assert scaled.value == pytest.approx(unit * plain.value, rel=1e-3)
    assert scaled.high == pytest.approx(unit * plain.high, rel=1e-3)


def test_rewards_of_nothing_but_0_are_worth_about_0():
    data = walk(10, 10, reward=lambda _s, _a: 0.0)
    assert abs(worth(lambda s, _z: s, data, fit=Fit(**(vars(SHORT) | {"updates": 5}))).value) < 5


@pytest.mark.parametrize(("updates", "traced"), [(1, 1), (7, 7), (10, 10), (19, 10), (101, 10)])
def test_a_fit_is_traced_by_tenths(updates, traced):
    fit = Fit(updates=updates, batch_size=4, members=2, hidden=(4,))
    found = worth(lambda s, _z: s, walk(3, 5, reward=lambda s, _a: s), fit=fit)
    assert len(found.trace) == traced
    assert found.trace[-1] == pytest.approx(found.value)


def test_each_member_has_a_bootstrap_of_the_episodes():
    data = walk(30, 3, reward=lambda s, _a: s)
    transitions = Transitions.of(data, discount=0.8, device=CPU)
    weights = Fitting(Policy(lambda s, _z: s), "learned", transitions, SHORT).weights
    assert weights.shape == (30, SHORT.members)
    assert weights.sum(dim=0).tolist() == [30.0, 30.0]
    assert (weights == 0).any()
    assert not torch.equal(weights[:, 0], weights[:, 1])


def test_a_member_learns_from_its_own_episodes_and_begins_at_theirs(monkeypatch):
    """Two episodes, of rewards 1 and -1, one for each member."""
    data = walk(2, 30, reward=lambda _s, _a: 1.0)
    data.rewards[30:] = -1.0
    weights = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    monkeypatch.setattr(Fitting, "_bootstrap", lambda *_: weights)
    fit = Fit(**(vars(SHORT) | {"updates": 150}))
    policy = Policy(lambda s, _z: s)
    transitions = Transitions.of(data, discount=0.1, device=CPU)
    fitting = Fitting(policy, "learned", transitions, fit)
    for step in range(1, fit.updates + 1):
        fitting.update(step)
    assert fitting.values().tolist() == pytest.approx([1 / 0.9, -1 / 0.9], abs=0.3)


def test_few_episodes_make_a_wide_interval():
    """Rewards that an episode decides: 4 episodes know less of them than 100."""

    def noisy(count):
        data = walk(count, 10, reward=lambda _s, _a: 0.0)
        of_episode = np.random.default_rng(1).normal(0, 1, count)
        data.rewards[:] = np.repeat(of_episode, data.lengths)
        fit = Fit(**(vars(SHORT) | {"updates": 200, "members": 6}))
        return worth(lambda s, _z: -s, data, discount=0.1, fit=fit)

    few, many = noisy(4), noisy(100)
    assert few.high - few.low > 2 * (many.high - many.low) > 0
    assert many.low < many.value < many.high


def test_same_seed_same_bits():
    data, fit = walk(10, 10, reward=lambda s, _a: s), Fit(**(vars(SHORT) | {"updates": 30}))
    first, again = (worth(lambda s, _z: -s, data, fit=fit) for _ in range(2))
    assert first == again
    assert worth(lambda s, _z: -s, data, fit=Fit(**(vars(fit) | {"seed": 1}))) != first


@pytest.mark.parametrize(
    ("trace", "settled"),
    [((5.0, 1.0, 1.1, 1.0), True), ((0.0, 0.0, 0.5, 1.0), False), ((1.0,), True)],
)
def test_a_fit_that_still_moves_is_not_settled(trace, settled):
    made = Worth(value=trace[-1], low=0.0, high=2.0, trace=trace, starts=1)
    assert made.is_settled == settled


def test_a_fit_of_fewer_updates_than_a_value_takes_is_not_settled():
    """Of γ 0.9, 3 times 10 steps at a rate of 0.5 take 60 updates; one that ends the task 6."""
    for length, ends, updates, lasted in (
        (30, False, 59, False),
        (30, False, 60, True),
        (4, False, 59, False),  # after a cut a value goes on
        (4, True, 6, True),
        (4, True, 5, False),
    ):
        data = walk(4, length, reward=lambda s, _a: s, ends=lambda _s, _a, ends=ends: ends)
        fit = Fit(**(vars(SHORT) | {"updates": updates, "polyak": 0.5}))
        assert worth(lambda s, _z: -s, data, discount=0.9, fit=fit).lasted == lasted


def stand(episodes, length, spread):
    """One state and action; the reward, 1 on average, is the episode's."""
    count = episodes * length
    of_episode = np.random.default_rng(1).normal(1, spread, episodes)
    return Episodes(
        observations=np.zeros((count + episodes, 1), np.float32),
        actions=np.zeros((count, 1), np.float32),
        rewards=np.repeat(of_episode + 1 - of_episode.mean(), length).astype(np.float32),
        masks=np.ones(count, np.float32),
        lengths=np.full(episodes, length),
    )


@pytest.mark.slow
def test_an_interval_that_is_called_settled_holds_the_value():
    """100 at γ 0.99. Targets lag by 500 updates, after which a third of the way is left."""
    data = stand(20, 20, spread=0.5)
    fit = Fit(batch_size=64, members=5, hidden=(64,), lr=1e-3, polyak=0.2)
    for updates, settled in ((500, False), (750, False), (1500, True)):
        found = worth(lambda s, _z: 0 * s, data, discount=0.99, fit=replace(fit, updates=updates))
        assert (found.low <= 100 <= found.high) == settled
        assert found.is_settled == settled
        assert found.within


def test_the_usual_fit_has_the_updates_that_a_value_takes():
    assert usual_fit(100) == usual_fit(200) == Fit()
    assert usual_fit(1000) == Fit(updates=150_000)


def test_values_that_the_rewards_do_not_allow_are_no_estimate():
    """Rewards in [-1, 1] allow ±5; a rate of 10 takes networks far beyond."""
    data = walk(20, 20, reward=lambda s, _a: s)
    sound = worth(lambda s, _z: -s, data)
    assert sound.within
    assert sound.bounds == pytest.approx((-5, 5), rel=0.05)
    wild = worth(lambda s, _z: s, data, fit=Fit(**(vars(SHORT) | {"lr": 10.0})))
    assert not wild.within
    assert not wild.is_settled


@pytest.mark.parametrize("reward", [-1.0, 0.0])
def test_a_value_may_lie_on_a_bound(reward):
    """Of a task that is never solved, or never rewarded, whatever the policy."""
    found = worth(lambda s, _z: -s, walk(20, 20, reward=lambda _s, _a: reward))
    assert found.value == pytest.approx(5 * reward, abs=0.4)
    assert found.within


def test_values_of_short_tasks_are_fitted_in_the_unit_of_their_returns():
    """In that of endless ones, 100 times the reward, networks err by as much as values are."""
    data = walk(400, 1, reward=lambda s, _a: s, ends=lambda _s, _a: True, start=0.5)
    found = worth(lambda s, _z: s, data, discount=0.99)
    assert found.value == pytest.approx(0.5, abs=0.05)
    assert found.high - found.low < 1
    assert found.bounds == pytest.approx((0, 50))  # another policy's episodes may be longer


def test_bounds_hold_an_end_of_the_task():
    data = walk(4, 5, reward=lambda _s, _a: 2.0)
    assert worth(lambda s, _z: s, data, fit=TWO, discount=0.5).bounds == (0, 4)
    assert worth(lambda s, _z: s, data, fit=TWO, discount=1.0).bounds == (0, 10)


def test_a_fit_that_diverges_is_an_error():
    data = walk(10, 10, reward=lambda s, _a: s)
    with pytest.raises(InputError, match="diverged"):
        worth(lambda s, _z: s * float("nan"), data)


# As a command.


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A short run on a few hundred rows of a real maze, not scored."""
    tiny = {"critic": {"size": "tiny"}, "flow": {"hidden": [16, 16]}, "batch_size": 16}
    config = resolve(tiny | {"steps": 10, "evaluation": {"enabled": False}})
    return run(config, data, tmp_path_factory.mktemp("runs"), "r", SilentReporter())


def test_estimates_are_recorded_beside_the_run(trained, data):
    fit = Fit(updates=20, batch_size=16, members=2, hidden=(8,))
    lines = evaluate_offline(
        trained.path, fit=fit, load_dataset=lambda _config: data, reporter=SilentReporter()
    )
    assert json.loads(json.dumps(lines)) == list(read_jsonl(trained.off_policy))
    assert [(line["policy"], line["step"], line["discount"]) for line in lines] == [
        ("learned", 10, 0.995),
        ("behaviour", 10, 0.995),
    ]
    assert lines[0]["value"] != lines[1]["value"]
    assert len(lines[0]["trace"]) == 10
    assert (lines[0]["starts"], lines[0]["method"]) == (3, "fqe")
    assert lines[0]["fit"]["hidden"] == (8,)


def test_without_settings_the_usual_fit_is_made(trained, data, monkeypatch):
    asked = []
    monkeypatch.setattr(fqe, "usual_fit", lambda horizon: asked.append(horizon) or TWO)
    (line,) = evaluate_offline(
        trained.path,
        policies=("learned",),
        load_dataset=lambda _config: data,
        reporter=SilentReporter(),
    )
    assert asked == pytest.approx([200])
    assert line["fit"]["updates"] == 2
    assert (line["needed"], line["lasted"]) == (30_000, False)


def test_the_command_says_what_the_number_is_of(trained, data, monkeypatch, capsys):
    monkeypatch.setattr("tql_offline.cli.eval.load_and_say", lambda _config: data)
    asked = ["eval", str(trained.path), "--ope", "fqe", "--policy", "learned"]
    code, output = command([*asked, "--ope-updates", "3"], capsys)
    assert code == 0, output.err
    said = " ".join(output.out.split())
    assert "discounted by 0.995, from the first observations of 3 episodes of the data" in said
    assert "policies can at best be ranked" in said
    assert "diverged" not in said


def test_a_folder_that_takes_no_file_is_told_before_the_fit(trained, data, monkeypatch):
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    monkeypatch.setattr("tql_offline.training.fqe.fitted_q_evaluation", raising(AssertionError()))
    with pytest.raises(InputError, match="nothing can be written to .*, where the result would go"):
        evaluate_offline(
            trained.path, fit=TWO, load_dataset=lambda _c: data, reporter=SilentReporter()
        )


def test_the_command_says_that_a_fit_diverged(trained, data, monkeypatch, capsys):
    """A rate that takes values beyond ±1, where the data's rewards lie within ±200."""
    monkeypatch.setattr("tql_offline.cli.eval.load_and_say", lambda _config: data)
    wild = partial(Fit, lr=1e3, hidden=(8,), polyak=1.0)
    monkeypatch.setattr("tql_offline.training.fqe.Fit", wild)
    asked = ["eval", str(trained.path), "--ope", "fqe", "--policy", "learned"]
    diverged = "the fit diverged, for the data's rewards allow values from -200 to 0 alone"
    outside = "to 0 alone, which networks did not keep to; this is no estimate"
    few = "30 updates are too few to tell, where a value takes 600; raise --ope-updates"
    for updates, told in (("600", [diverged]), ("30", [outside, few])):
        code, output = command([*asked, "--ope-updates", updates], capsys)
        assert code == 0, output.err
        said = " ".join(output.out.split())
        assert [note for note in (diverged, outside, few) if note in said] == told


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ope", "wis"], "--ope 'wis' is not known; give fqe"),
        (["--ope", "fqe", "--video"], "--video is of episodes"),
        (["--ope", "fqe", "--env", "X-v0", "--missing"], "--missing, --env is of episodes"),
        (["--ope", "fqe", "--policy", "other"], "no policy 'other'"),
        (["--ope", "fqe", "--checkpoint", "9"], "no checkpoint of step 9"),
        (["--ope", "fqe", "--ope-updates", "0"], "ope-updates"),
        (["--ope-updates", "9"], "--ope-updates is of --ope"),
    ],
)
def test_what_does_not_go_with_it_is_refused(trained, data, monkeypatch, flags, said, capsys):
    monkeypatch.setattr("tql_offline.cli.eval.load_and_say", lambda _config: data)
    before = trained.off_policy.read_bytes() if trained.off_policy.exists() else b""
    code, output = command(["eval", str(trained.path), *flags], capsys)
    assert (code, said in " ".join(output.err.split())) == (2, True), output.err
    after = trained.off_policy.read_bytes() if trained.off_policy.exists() else b""
    assert after == before


def test_other_data_than_the_runs_are_refused(trained, data):
    other = Future()
    other.set_result("00" * 32)
    with pytest.raises(InputError, match="restore that file"):
        evaluate_offline(
            trained.path,
            fit=SHORT,
            load_dataset=lambda _config: replace(data, digest=other),
            reporter=SilentReporter(),
        )
