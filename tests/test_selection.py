"""Choosing by online episodes: the bandit a pull at a time, unbiased values, pools of like runs."""

import dataclasses
import inspect
import json
import math
import shutil

import numpy as np
import pytest
import tomli_w
from command_line import command
from report_runs import make_run

from tql_offline.cli.select import _print, _table, select
from tql_offline.config import read_toml
from tql_offline.eval.run_records import read_run
from tql_offline.eval.selection import (
    ARMS,
    PULLS,
    REPEATS,
    Pool,
    _chosen,
    _half,
    pools,
    selection_curve,
    shown_pulls,
)
from tql_offline.eval.statistics import t_interval
from tql_offline.runs import find_runs


def pool(*episodes, bounds=(0.0, 100.0)):
    return Pool(
        task="maze",
        setting="quick v1",
        method="TQL",
        size="tiny",
        unit="success %",
        runs=tuple(f"r{k}" for k in range(len(episodes))),
        episodes=tuple(np.asarray(row, float) for row in episodes),
        bounds=bounds,
    )


def noise(runs, episodes, rate=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return pool(*(100.0 * (rng.random((runs, episodes)) < rate)))


class Uniforms:
    """Gives numbers in [0, 1) that were drawn before."""

    def __init__(self, drawn):
        self.drawn = iter(drawn)

    def random(self, count):
        return np.array([next(self.drawn) for _ in range(count)])


@pytest.mark.parametrize("seed", range(5))
def test_the_bandit_is_ucb1_pull_by_pull(seed):
    """Against one choice at a time, with sums over lists of what each arm gave."""
    rng = np.random.default_rng(seed)
    made = pool(*(rng.normal(50, 20, rng.integers(10, 30)) for _ in range(6)), bounds=(-10, 110))
    half, picks, uniforms = _half(made, 0), np.array([[4, 0, 2]]), rng.random(40).tolist()
    got = _chosen(half, picks, 40, Uniforms(uniforms))[0].tolist()

    gave = {run: [] for run in (4, 0, 2)}
    for pull, uniform in enumerate(uniforms):
        bounds = [
            math.inf if not rewards else
            sum(rewards) / len(rewards) + math.sqrt(2 * math.log(pull) / len(rewards))
            for rewards in gave.values()
        ]  # fmt: skip
        run = list(gave)[bounds.index(max(bounds))]
        mine = made.episodes[run][0::2]
        gave[run].append((mine[int(uniform * len(mine))] + 10) / 120)
        means = {run: sum(r) / len(r) for run, r in gave.items() if r}
        assert got[pull] == max(means, key=means.__getitem__)


def test_a_clearly_better_arm_is_found_and_valued():
    made = pool([0.0] * 20, [0.0] * 20, [100.0] * 20, [0.0] * 20)
    curve = selection_curve(made, np.random.default_rng(0), arms=4, pulls=30, repeats=400)
    assert curve.blind == 25.0
    assert curve.mean[0] == pytest.approx(25.0, abs=8), "the first arm is any"
    np.testing.assert_array_equal(curve.mean[3:], 100.0)
    assert curve.by_all == 100.0


def test_of_some_arms_the_best_is_not_always_there():
    made = pool([0.0] * 20, [0.0] * 20, [100.0] * 20, [0.0] * 20)
    curve = selection_curve(made, np.random.default_rng(0), arms=2, pulls=10, repeats=4000)
    assert curve.mean[-1] == pytest.approx(50.0, abs=3)


def test_runs_that_are_all_the_same_are_worth_the_same_however_they_are_chosen():
    """Choosing among noise gains nothing; valued by the episodes of the choice it would gain 15."""
    gains = []
    for seed in range(20):
        made = noise(8, 20, seed=seed)
        curve = selection_curve(made, np.random.default_rng(seed), pulls=100, repeats=100)
        gains.append([curve.mean[-1] - curve.blind, curve.by_all - curve.blind])
    mean, error = np.mean(gains, axis=0), np.std(gains, axis=0) / math.sqrt(len(gains))
    assert (abs(mean) < 3 * error).all(), (mean, error)
    naive = [noise(8, 20, seed=seed).episodes for seed in range(20)]
    assert np.mean([max(map(np.mean, rows)) - np.mean(rows) for rows in naive]) > 10


def test_fewer_than_two_runs_an_arm_have_no_interval():
    for runs, arms, has in ((4, 2, True), (3, 2, False), (8, 8, False)):
        curve = selection_curve(noise(runs, 20), np.random.default_rng(0), arms=arms, pulls=4)
        assert np.isfinite([curve.low, curve.high]).all() == has
    curve = selection_curve(noise(4, 20), np.random.default_rng(0), arms=2, pulls=4, repeats=1)
    assert np.isnan(curve.low).all(), "every choice had the same runs"


@pytest.mark.parametrize(
    "rows",
    [
        [[100.0] * 20] * 4,
        [[0.0, 100.0, 100.0] * 4, [100.0, 0.0, 100.0] * 4, [100.0, 100.0, 0.0] * 4] * 2,
    ],
)
def test_runs_that_score_the_same_have_no_interval(rows):
    """Their spread of nothing does not tell what other runs would do."""
    curve = selection_curve(pool(*map(np.array, rows)), np.random.default_rng(0), arms=2, pulls=4)
    assert np.isnan([curve.low, curve.high]).all()
    assert np.isfinite(curve.mean).all()


def test_blind_the_interval_is_that_of_the_runs_mean():
    """After one pull the arm is any; a U-statistic of order 1 has the jackknife of a mean."""
    rng = np.random.default_rng(0)
    made = pool(*(100.0 * (rng.random(400) < rate) for rate in rng.random(40)))
    curve = selection_curve(made, rng, arms=2, pulls=1, repeats=40_000)
    low, high = t_interval([row.mean() for row in made.episodes])
    assert curve.low[0] == pytest.approx(low, abs=1.5)
    assert curve.high[0] == pytest.approx(high, abs=1.5)


@pytest.mark.slow
@pytest.mark.parametrize(("few_are_good", "covered"), [(False, 0.9), (True, 0.78)])
def test_intervals_cover(few_are_good, covered):
    """20 runs, 8 arms. Where one run in five is good, a choice's score is skewed: covered less."""
    rng = np.random.default_rng(1)

    def curve():
        rates = np.where(rng.random(20) < 0.2, 0.8, 0.1) if few_are_good else rng.random(20)
        made = pool(*(100.0 * (rng.random(200) < rate) for rate in rates))
        return selection_curve(made, rng, pulls=60, repeats=2000)

    curves = [curve() for _ in range(150)]
    truth = np.mean([each.mean for each in curves], axis=0)
    covers = np.mean([(each.low <= truth) & (truth <= each.high) for each in curves], axis=0)
    assert covers.min() > covered


def test_an_interval_of_successes_ends_at_100():
    made = pool(*([0.0] * 20, *([100.0] * 20 for _ in range(7))))
    curve = selection_curve(made, np.random.default_rng(0), arms=2, pulls=2)
    assert curve.mean[0] < curve.high[0] == 100.0
    scores = dataclasses.replace(made, unit="normalised score")
    assert selection_curve(scores, np.random.default_rng(0), arms=2, pulls=2).high[0] > 100


def test_same_seed_same_curve():
    curves = [selection_curve(noise(5, 20), np.random.default_rng(3), repeats=20) for _ in "ab"]
    np.testing.assert_array_equal(curves[0].mean, curves[1].mean)
    np.testing.assert_array_equal(curves[0].low, curves[1].low)


def test_a_table_has_powers_of_two_and_the_last():
    assert [list(shown_pulls(n)) for n in (1, 2, 8, 9)] == [
        [1], [1, 2], [1, 2, 4, 8], [1, 2, 4, 8, 9],
    ]  # fmt: skip


# From run folders.


def test_pools_are_of_one_task_method_and_size(tmp_path):
    made = [
        make_run(tmp_path / "a0", seed=0, successes=(3, 10)),
        make_run(tmp_path / "a1", seed=1, successes=(3, 40)),
        make_run(tmp_path / "b0", seed=0, size="small"),
        make_run(tmp_path / "b1", seed=1, size="small", sha256="aa" * 32),
        make_run(tmp_path / "c", seed=2, finished=False),
    ]
    (found,), left = pools(map(read_run, made))
    assert (found.runs, found.method, found.size) == (("a0", "a1"), "TQL", "tiny")
    assert [row.mean() for row in found.episodes] == [20.0, 80.0]
    assert found.unit == "success %"
    assert {sentence.split()[0] for sentence in left} == {"b0", "b1", "c"}


def test_pools_that_differ_in_conditions_are_told_apart(tmp_path, capsys):
    for sha in ("aa" * 32, "bb" * 32):
        for seed in (0, 1):
            name = f"{sha[:2]}{seed}"
            make_run(tmp_path / "runs" / name, seed=seed, sha256=sha, successes=(10 * seed + 5,))
    found, left = pools(map(read_run, find_runs([tmp_path / "runs"])))
    assert left == []
    assert [pool.task.rpartition(", ")[2] for pool in found] == ["data aaaaaaaa", "data bbbbbbbb"]
    code, output = command(["select", str(tmp_path / "runs"), "--repeats", "9"], capsys)
    assert code == 0
    assert "data bbbbbbbb: success %" in " ".join(output.out.split())


def test_a_copy_of_a_run_is_no_second_run(tmp_path):
    first = make_run(tmp_path / "a", seed=0)
    shutil.copytree(first.path, tmp_path / "b")
    make_run(tmp_path / "c", seed=1)
    (found,), left = pools(map(read_run, find_runs([tmp_path])))
    assert found.runs == ("a", "c")
    assert left == ["b has the seed, settings and score of a: a copy"]


def test_a_success_that_is_not_known_is_no_failure(tmp_path):
    for seed in (0, 1):
        folder = make_run(tmp_path / f"r{seed}", seed=seed)
        lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
        for line in lines:
            line["episodes"][3]["success"] = None
        folder.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, left = pools(map(read_run, find_runs([tmp_path])))
    assert found == []
    assert all("not known whether it succeeded" in sentence for sentence in left)


def test_more_episodes_of_the_last_policy_are_taken(tmp_path):
    folders = [make_run(tmp_path / f"r{seed}", seed=seed) for seed in (0, 1)]
    for folder in folders:
        *_, last = (
            json.loads(line)
            for line in folder.evaluations.read_text().splitlines()
            if '"learned"' in line
        )
        last["protocol"] = {"name": "unifloral:200", "version": 1, "counted": "last"}
        last["episodes"] = last["episodes"] * 4
        last["score"] = last["return_mean"]
        with folder.evaluations.open("a") as file:
            file.write(json.dumps(last) + "\n")
    (found,), _ = pools(map(read_run, folders))
    assert list(map(len, found.episodes)) == [200, 200]
    assert found.unit == "success %", "of the runs' own protocol"
    assert found.setting.startswith("unifloral:200 v1, ogbench data"), "of the episodes"


def test_a_pools_setting_names_every_protocol_that_was_played(tmp_path, capsys):
    """The runs' own is quick@5000; one of them has more episodes of another protocol."""
    for seed in (0, 1):
        folder = make_run(tmp_path / "runs" / f"r{seed}", seed=seed, behaviour=None)
        own = {"name": "quick@5000", "version": 1, "counted": "last"}
        lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
        for line in lines:
            line["protocol"] = own
        if seed:
            more = {"name": "unifloral:100", "version": 1, "counted": "last"}
            played = {"episodes": lines[-1]["episodes"] * 2, "score": lines[-1]["return_mean"]}
            lines.append(lines[-1] | {"protocol": more} | played)
        folder.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = json.loads(folder.result.read_text())
        folder.result.write_text(json.dumps(result | {"protocol": own}))
    (found,), _ = pools(map(read_run, find_runs([tmp_path / "runs"])))
    assert found.setting.startswith("quick@5000 v1 and unifloral:100 v1, ogbench data")
    code, output = command(["select", str(tmp_path / "runs"), "--repeats", "9"], capsys)
    assert code == 0
    printed = " ".join(output.out.split())
    assert "episodes (quick@5000 v1 and unifloral:100 v1, ogbench data" in printed
    assert "all 2 of a pool's runs are the arms where it has fewer than --arms 8" in printed


def test_episodes_of_other_versions_are_in_no_pool_of_theirs(tmp_path):
    """Two of four runs were played again, longer and under another simulator."""
    for seed in range(4):
        folder = make_run(tmp_path / f"r{seed}", seed=seed, behaviour=None)
        lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
        if seed > 1:
            played = {
                "protocol": {"name": "quick:100", "version": 1, "counted": "last"},
                "episodes": lines[-1]["episodes"] * 2,
                "versions": {"mujoco": "3.9.0"},
                "success_timing": "post",
            }
            lines.append(lines[-1] | played)
        folder.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, left = pools(map(read_run, find_runs([tmp_path])))
    assert left == []
    assert [pool.runs for pool in found] == [("r0", "r1"), ("r2", "r3")]
    assert "judged 'pre', ogbench 1.2.2, mujoco 3.3.5" in found[0].setting
    assert "judged 'post', ogbench 1.2.2, mujoco 3.9.0" in found[1].setting


def test_episodes_of_another_step_limit_are_a_pool_of_their_own(tmp_path):
    for seed in range(4):
        folder = make_run(tmp_path / f"r{seed}", seed=seed, behaviour=None)
        lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
        more = {"name": "quick:100", "version": 1, "counted": "last"}
        limit = {"max_episode_steps": 2000 if seed > 1 else 1000}
        lines.append(lines[-1] | {"protocol": more, "episodes": lines[-1]["episodes"] * 2} | limit)
        folder.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, _ = pools(map(read_run, find_runs([tmp_path])))
    assert [pool.runs for pool in found] == [("r0", "r1"), ("r2", "r3")]
    assert [pool.task.rpartition(", ")[2] for pool in found] == [
        "step limit 1000",
        "step limit 2000",
    ]


def test_scores_of_a_small_scale_have_more_decimals(tmp_path, capsys):
    for seed in range(4):
        folder = make_run(tmp_path / "runs" / f"r{seed}", seed=seed, behaviour=None)
        protocol = {"name": "minari:50", "version": 1, "counted": "last"}
        lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
        for line in lines:
            line.update(protocol=protocol, reference={"min": 0.0, "max": 1000.0, "scale": 1.0})
            for episode in line["episodes"]:
                episode["return"] = 860.0 + 10 * seed
            line["score"] = 0.86 + 0.01 * seed
        folder.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = json.loads(folder.result.read_text())
        folder.result.write_text(json.dumps(result | {"protocol": protocol}))
    flags = ["--arms", "2", "--pulls", "2", "--repeats", "9"]
    code, output = command(["select", str(tmp_path / "runs"), *flags], capsys)
    assert code == 0, output.err
    assert "0.875" in output.out


@pytest.mark.parametrize(
    ("reference", "unit", "scores", "bounds"),
    [
        ({"min": -100.0, "max": 100.0, "scale": 100.0}, "normalised score", [50, 75], (0, 100)),
        (None, "return", [0, 50], (-5, 55)),
        ({"min": 1.0, "max": 1.0, "scale": 100.0}, "return", [0, 50], (-5, 55)),
        ({"min": 0.0, "max": 1e-310, "scale": 100.0}, "return", [0, 50], (-5, 55)),
        ({"min": "0", "max": None}, "return", [0, 50], (-5, 55)),
    ],
)
def test_returns_are_normalised_where_there_are_references(
    tmp_path, reference, unit, scores, bounds
):
    folders = [make_run(tmp_path / f"r{seed}", seed=seed, behaviour=None) for seed in (0, 1)]
    name = "d4rl:50" if reference else "quick-return"
    protocol = {"name": name, "version": 1, "counted": "last"}
    for folder, mean in zip(folders, (0.0, 50.0), strict=True):
        lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
        for line in lines:
            line.update(protocol=protocol, reference=reference)
            for episode in line["episodes"]:
                episode["return"] = mean
            line["episodes"][0]["return"] = mean - 5
            line["episodes"][1]["return"] = mean + 5
            line["score"] = (mean + 100) / 2 if unit == "normalised score" else mean
        folder.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = json.loads(folder.result.read_text())
        folder.result.write_text(json.dumps(result | {"protocol": protocol}))
    (found,), left = pools(map(read_run, folders))
    assert (found.unit, left) == (unit, [])
    assert [row.mean() for row in found.episodes] == pytest.approx(scores, abs=0.1)
    assert found.bounds == pytest.approx(bounds)


def test_the_commands_defaults_are_the_protocols():
    given = {name: p.default for name, p in inspect.signature(select).parameters.items()}
    assert (given["arms"], given["pulls"], given["repeats"]) == (ARMS, PULLS, REPEATS)


def test_the_command_prints_a_table_and_writes_the_curves(tmp_path, capsys):
    for seed in range(6):
        make_run(tmp_path / "runs" / f"r{seed}", seed=seed, successes=(5 + 8 * seed,))
    flags = ["--arms", "3", "--pulls", "20", "--repeats", "50", "--out", str(tmp_path / "s.json")]
    code, output = command(["select", str(tmp_path / "runs"), *flags], capsys)
    assert code == 0, output.err
    assert "6 runs × 50" in output.out
    assert "a pool's runs" not in output.out, "it has more than --arms"
    document = json.loads((tmp_path / "s.json").read_text())
    (curve,) = document["curves"]
    assert document["schema"] == "tql-offline/selection/1"
    assert len(curve["mean"]) == len(curve["low"]) == 20
    assert curve["blind"] < curve["mean"][-1] <= 90
    shown = f"{curve['mean'][-1]:.1f} ({curve['low'][-1]:.1f} to {curve['high'][-1]:.1f})"
    assert shown in output.out
    again = command(["select", str(tmp_path / "runs"), *flags], capsys)[1]
    assert again.out == output.out


@pytest.mark.parametrize(
    ("counts", "told"), [((20, 60), "2 runs × 20 to 60"), ((20, 20), "2 runs × 20")]
)
def test_the_number_of_episodes_is_that_of_all_runs(counts, told, capsys):
    found = pool(*(np.zeros(count) for count in counts))
    curve = selection_curve(found, np.random.default_rng(0), arms=2, pulls=4, repeats=5)
    _print(*_table(found), [(found, curve)])
    assert f"{told} " in capsys.readouterr().out


def test_more_pulls_than_memory_are_refused(tmp_path, capsys):
    make_run(tmp_path / "runs" / "r0")
    flags = ["--pulls", "10000", "--repeats", "100000"]
    code, output = command(["select", str(tmp_path / "runs"), *flags], capsys)
    assert (code, "lower one" in output.err) == (2, True)


def test_nothing_to_choose_among_is_said(tmp_path, capsys):
    make_run(tmp_path / "runs" / "r0")
    code, output = command(["select", str(tmp_path / "runs")], capsys)
    assert code == 2
    assert "r0 is the only run of TQL tiny" in output.err
    assert "no method has two usable runs" in output.err


def test_files_of_one_content_are_one_pool_whatever_they_are_called(tmp_path):
    for seed, name in enumerate(("a.npz", "there/a.npz", "b.npz", "b.npz")):
        folder = make_run(tmp_path / str(seed), seed=seed, successes=(3, 10 * seed))
        document = json.loads(folder.result.read_text()) | {"dataset": name}
        document["provenance"]["dataset"]["name"] = name.removeprefix("there/")[0]
        folder.result.write_text(json.dumps(document))
        folder.provenance.write_text(json.dumps(document["provenance"]))
        settings = read_toml(folder.config)
        settings["dataset"]["name"] = name
        folder.config.write_text(tomli_w.dumps(settings))
    (found,), left = pools(map(read_run, find_runs([tmp_path])))
    assert (found.task, found.runs, left) == ("a", ("0", "1", "2", "3"), [])
