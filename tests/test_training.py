"""Runs from end to end: same seed same bits, checkpoints, results, the command line's manners."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import command
from stand_ins import Noting, raising

from tql_offline.agents import make_agent, numpy_policy
from tql_offline.agents.flow_q import FlowQ
from tql_offline.cli import tables
from tql_offline.config import OBJECTIVES, resolve
from tql_offline.datasets import load as loading
from tql_offline.datasets.arrays import from_arrays
from tql_offline.datasets.convert import convert
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.eval.measured import measured
from tql_offline.eval.run_records import read_run
from tql_offline.eval.workers import EnvironmentFailedError
from tql_offline.files import read_json, read_jsonl, write_json
from tql_offline.runs import RunFolder, claimed, claimed_for_scoring
from tql_offline.training import checkpoint, evaluation, notes, rescoring
from tql_offline.training.metrics import MetricsWindow
from tql_offline.training.new_run import new_run_folder
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.rescoring import evaluate_run
from tql_offline.training.result import open_run
from tql_offline.training.resume import resume
from tql_offline.training.run import run, run_seeds

pytestmark = pytest.mark.usefixtures("short_protocols")

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
MAZE = "pointmaze-medium-singletask-task1-v0"
TINY = {
    "critic": {"size": "tiny"},
    "flow": {"hidden": [16, 16], "flow_steps": 2},
    "steps": 20,
    "batch_size": 16,
    "log_every": 5,
    "checkpoint_every": 10,
    "evaluation": {"processes": 1},
}
SMALL = [
    *("--size", "tiny", "--batch-size", "16", "--set", "flow.hidden=[16,16]"),
    *("--set", "flow.flow_steps=2", "--set", "evaluation.processes=1"),
]
"""Its networks, batches and processes as flags."""
UNSCORED = {"evaluation": {"protocol": "quick"}}
"""Scores at four steps, which data without an environment leave for later."""


@pytest.fixture(scope="module")
def own(data, tmp_path_factory):
    """The same rows as a file of one's own, without an environment: nothing is scored."""
    episodes = data.episodes
    starts = np.zeros(len(episodes.observations), dtype=bool)
    starts[episodes.start_rows()] = True
    terminals = ~starts

    def spread(column):
        wide = np.zeros((len(starts), *column.shape[1:]), dtype=np.float32)
        wide[starts] = column
        return wide

    path = tmp_path_factory.mktemp("own") / "mine.npz"
    np.savez(
        path,
        observations=episodes.observations,
        actions=spread(episodes.actions),
        rewards=spread(episodes.rewards),
        masks=spread(episodes.masks),
        terminals=terminals,
    )
    return path


def train_own(own, runs, **overrides):
    config = resolve(TINY | {"dataset": {"name": str(own)}} | overrides)
    return run(config, load(str(own)), runs, "", SilentReporter())


@pytest.fixture(scope="module")
def trained(own, tmp_path_factory):
    """A whole run on the file, of which nothing is scored."""
    return train_own(own, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of it."""
    return RunFolder(shutil.copytree(trained.path, tmp_path / trained.path.name))


@pytest.fixture(scope="module")
def scored(data, tmp_path_factory):
    """A whole run with evaluation."""
    config = resolve(TINY | {"dataset": {"name": TASK}})
    return run(config, data, tmp_path_factory.mktemp("runs"), "", SilentReporter())


@pytest.mark.parametrize("policy", ["gaussian", "flow"])
def test_behaviour_cloning_has_no_critic_to_report(own, tmp_path, policy):
    folder = train_own(own, tmp_path, objective="cloning", cloning={"policy": policy})
    result = read_json(folder.result)
    critic = {key: result[key] for key in ("critic", "entropy", "size", "parameters")}
    assert critic == {"critic": "none", "entropy": "none", "size": "", "parameters": 0}
    assert {p.stem for p in (folder.checkpoints / "20").iterdir()} == {
        "policy",
        "normaliser",
        "optimizers",
        "random",
        "state",
        "window",
    }


def test_run_folder_holds_the_contract(scored):
    result = read_json(scored.result)
    assert result["schema"] == "tql-offline/result/1"
    assert result["parameters"] == pytest.approx(0.1e6, rel=0.1)
    assert [(e["policy"], e["step"]) for e in result["evaluations"]] == [
        ("learned", 5),
        ("learned", 10),
        ("learned", 15),
        ("learned", 20),
        ("behaviour", 20),
    ]
    assert all(e["episodes"] == 2 for e in result["evaluations"])
    for line in result["evaluations"]:
        played = [line[k] for k in ("env_id", "max_episode_steps", "success_timing")]
        assert played == [result["task"], 30, "pre"]
    assert result["provenance"]["dataset"]["sha256"] == result["dataset_sha256"]
    assert result["provenance"]["environment"]["success_timing"] == "pre"
    assert [line["step"] for line in read_jsonl(scored.metrics)] == [5, 10, 15, 20]
    assert scored.checkpoint_steps() == [5, 10, 15, 20], "of every evaluation, too"
    keys = set(next(read_jsonl(scored.metrics)))
    assert {"critic_loss", "q_mean", "entropy", "entropy_target", "temperature"} <= keys
    assert not keys & {"seconds", "updates_per_second"}


def test_a_run_without_an_environment_is_scored_in_one_given_later(folder, capsys):
    score = ["eval", str(folder.path), "--policy", "learned"]
    before = folder.provenance.read_bytes(), folder.result.read_bytes()
    for env, said in (
        ("", "no environment to score policies in; give --env"),
        ("rollout_environments:Even-v0", "2 observation dims where rollout_environments:Even-v0"),
        ("NoSuch-v0", "'NoSuch-v0' cannot be made"),
        (":x", "':x' cannot be made"),
        ("rollout_environments:Unmakeable-v0", "cannot be made (no room)"),
        ("rollout_environments:FailsAtOnce-v0", "fails in an episode of zero actions (no maze)"),
        ("rollout_environments:IsNotFinite-v0", "(its reward is NaN or infinite)"),
        ("rollout_environments:LosesItsPlace-v0", "(its observation is NaN or infinite)"),
        ("rollout_environments:ShortMaze-v0", "a run of 20 updates has 1, so"),
    ):
        code, output = command([*score, "--env", env], capsys)
        assert (code, said in output.err) == (2, True), output.err
    assert (folder.provenance.read_bytes(), folder.result.read_bytes()) == before
    maze = "rollout_environments:ShortMaze-v0"
    planned = ["--protocol", "ogbench-singletask"]
    assert command([*score, "--env", maze, *planned], capsys)[0] == 0
    code, output = command([*score, "--protocol", "quick-return"], capsys)
    assert code == 0, "its record has it now"
    assert "judged by its own protocol, 'ogbench-singletask'" in " ".join(output.out.split())
    result = read_json(folder.result)
    assert result["task"] == maze
    assert result["provenance"]["environment"]["env_id"] == maze
    assert [(e["policy"], e["step"], e["env_id"]) for e in result["evaluations"]] == [
        ("learned", 20, maze)
    ]
    first, second = read_jsonl(folder.evaluations)
    assert first["episodes"] == second["episodes"]
    code, output = command([*score, "--env", TASK], capsys)
    assert code == 2
    assert "scores in " in output.err
    assert "another task; leave --env out" in output.err


def test_seeds_end_in_their_mean(own, tmp_path, capsys):
    maze = ["--env", "rollout_environments:ShortMaze-v0", "--protocol", "quick-return:1@2"]
    place = ["--dataset", str(own), "--runs", str(tmp_path), "--name", "r"]
    code, output = command(
        ["train", *place, *SMALL, "--steps", "2", *maze, "--seeds", "0-1"], capsys
    )
    assert code == 0, output.err
    said = " ".join(output.out.split())
    assert "over 2 seeds, learned policy at the last update: -30 ± 0 score" in said
    assert said.count("seed ┃ policy ┃ updates ┃") == said.count("Scores") == 1
    assert re.findall(r"│ (\d) │ (\w+) │ 2 │", said) == [
        *(("0", "learned"), ("0", "behaviour"), ("1", "learned"), ("1", "behaviour"))
    ]
    assert said.count("run folder: ") == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--runs", "file"], "there can be no folder of runs file, since "),
        (["--runs", "file/runs"], "there can be no folder of runs file/runs, since "),
        (["--objective", "no_such:MineQ"], "cannot be imported (No module named 'no_such')"),
        (["--objective", "test_training:NoQ"], "has no class 'NoQ'"),
        (["--name", "r", "--seeds", "0-1"], "run folder runs/r-s1 exists already"),
    ],
)
def test_what_would_end_a_run_is_refused_before_its_data_are_loaded(
    flags, said, own, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "runs" / "r-s1").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(loading, "load", raising(AssertionError("loaded")))
    code, output = command(["train", "--dataset", str(own), *flags], capsys)
    assert (code, said in output.err) == (2, True), output.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_whose_method_is_gone_is_refused_before_its_data_are_loaded(
    own, tmp_path, monkeypatch, capsys
):
    folder = train_own(own, tmp_path, steps=2, objective="test_training:MineQ")
    folder.result.unlink()
    for file in (folder.config, folder.provenance):  # as if it had had that name
        file.write_text(file.read_text().replace("MineQ", "GoneQ"))
    monkeypatch.setattr(loading, "load", raising(AssertionError("loaded")))
    code, output = command(["train", "--resume", str(folder.path)], capsys)
    assert (code, "has no class 'GoneQ'" in output.err) == (2, True), output.err


def test_lines_of_metrics_name_their_seed_where_there_are_several(
    own, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tables, "PLAIN_SECONDS", 0.0)
    place = ["--dataset", str(own), "--runs", str(tmp_path), "--no-eval"]
    train = ["train", *place, *SMALL, "--steps", "2", "--set", "log_every=1"]
    _, several = command([*train, "--seeds", "0,3"], capsys)
    found = re.findall(r"^seed (\d), update (\d) ", several.out, re.MULTILINE)
    assert sorted(found) == [("0", "1"), ("0", "2"), ("3", "1"), ("3", "2")]
    _, one = command([*train, "--seeds", "5"], capsys)
    assert re.search(r"^update 1 ", one.out, re.MULTILINE)


def test_a_run_that_nothing_scores_keeps_what_scores_are_made_of(own, tmp_path, capsys):
    protocol = {"protocol": "quick-return:2@10"}
    evaluation = TINY["evaluation"] | protocol
    folder = train_own(own, tmp_path, keep_checkpoints=1, evaluation=evaluation)
    assert folder.checkpoint_steps() == [10, 20]
    maze = "rollout_environments:ShortMaze-v0"
    assert command(["eval", str(folder.path), "--env", maze, "--missing"], capsys)[0] == 0
    assert [line["step"] for line in read_jsonl(folder.evaluations)] == [10, 20, 20]


def test_a_run_without_an_environment_is_judged_by_its_first_protocol(folder, capsys):
    maze = "rollout_environments:ShortMaze-v0"
    score = ["eval", str(folder.path), "--env", maze, "--protocol", "quick-return:2"]
    code, output = command(score, capsys)
    assert code == 0, output.err
    assert "judged by its own protocol" not in output.out
    assert read_json(folder.result)["protocol"]["name"] == "quick-return:2"
    assert measured(read_run(folder)).setting.protocol == "quick-return:2 v1"
    code, output = command(["eval", str(folder.path), "--policy", "learned"], capsys)
    assert code == 0, output.err
    assert [line["protocol"]["name"] for line in read_jsonl(folder.evaluations)] == [
        "quick-return:2"
    ] * 3, "the run's own, from then on"
    code, output = command(["eval", str(folder.path), "--protocol", "quick:2"], capsys)
    said = " ".join(output.out.split())
    assert "judged by its own protocol, 'quick-return:2'" in said
    assert read_json(folder.result)["protocol"]["name"] == "quick-return:2"


def test_runs_may_be_named_by_a_text(own, tmp_path):
    with pytest.raises(InputError, match=r"run folder .*there/taken exists"):
        (tmp_path / "there" / "taken").mkdir(parents=True)
        run_seeds(
            resolve({"dataset": {"name": str(own)}, "evaluation": {"enabled": False}}),
            (0,), load(str(own)), str(tmp_path / "there"), "taken", SilentReporter(),
        )  # fmt: skip


def test_a_given_environment_stands_once_something_is_scored_in_it(folder, monkeypatch):

    def score(env_id, protocol=""):
        evaluate_run(
            folder.path, step=None, protocol=protocol, policies=("learned",), device="cpu",
            reporter=SilentReporter(), env_id=env_id,
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            score(MAZE, "ogbench-singletask")
    assert read_json(folder.provenance)["environment"]["env_id"] == MAZE
    score("rollout_environments:ShortMaze-v0", "quick-return:1")
    assert read_json(folder.result)["protocol"]["name"] == "quick-return:1"
    with pytest.raises(InputError, match="another task"):
        score(MAZE)
    assert read_json(folder.result)["task"] == "rollout_environments:ShortMaze-v0"


def test_the_protocol_of_a_first_scoring_that_failed_is_no_runs_own(folder, monkeypatch):
    maze = "rollout_environments:ShortMaze-v0"
    given = {"policies": ("learned",), "device": "cpu", "reporter": SilentReporter()}
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(folder.path, protocol="quick:1", env_id=maze, **given)
    evaluate_run(folder.path, protocol="quick-return:1", env_id=maze, **given)
    assert read_json(folder.result)["protocol"]["name"] == "quick-return:1"
    evaluate_run(folder.path, protocol="quick:1", **given)
    assert read_json(folder.result)["protocol"]["name"] == "quick-return:1"


def test_the_environment_that_a_run_was_trained_with_is_not_replaced(scored, tmp_path, capsys):
    folder = RunFolder(shutil.copytree(scored.path, tmp_path / "r"))
    folder.evaluations.unlink()
    folder.result.unlink()
    code, output = command(["eval", str(folder.path), "--env", MAZE], capsys)
    assert code == 2
    assert "another task; leave --env out" in output.err


def test_an_unfinished_run_is_given_no_environment(folder, capsys):
    shutil.rmtree(folder.checkpoints / "20")
    folder.result.unlink()
    before = folder.provenance.read_bytes()
    code, output = command(["eval", str(folder.path), "--env", TASK], capsys)
    assert code == 2
    assert "is not finished" in output.err
    assert "--resume" in output.err
    assert folder.provenance.read_bytes() == before


@pytest.fixture(scope="module")
def unscored(data, tmp_path_factory):
    """The same run with its scores left for later."""
    evaluation = {"processes": 1, "enabled": False}
    config = resolve(TINY | {"dataset": {"name": TASK}, "evaluation": evaluation})
    noted = Noting()
    folder = run(config, data, tmp_path_factory.mktemp("later"), "", noted)
    return folder, noted.sentences


def test_a_run_finds_its_data_from_another_folder(own, tmp_path, monkeypatch, capsys):
    """Its config has the path as it was given, relative to where it was begun."""
    (tmp_path / "begun").mkdir()
    (tmp_path / "else").mkdir()
    shutil.copy(own, tmp_path / "begun" / "mine.npz")
    monkeypatch.chdir(tmp_path / "begun")
    folder = train_own("mine.npz", tmp_path / "runs", steps=2)
    kept = folder.result.read_bytes()
    monkeypatch.chdir(tmp_path / "else")
    folder.result.unlink()
    look = ["eval", str(folder.path), "--ope", "fqe", "--ope-updates", "1", "--policy", "learned"]
    assert command(["train", "--resume", str(folder.path)], capsys)[0] == 0
    assert command(look, capsys)[0] == 0
    assert folder.result.read_bytes() == kept
    np.savez(tmp_path / "else" / "mine.npz", nothing=np.zeros(3))
    assert command(look, capsys)[0] == 0, "the run's own file, not this"
    (tmp_path / "else" / "mine.npz").unlink()
    (tmp_path / "begun" / "mine.npz").unlink()
    code, output = command(look, capsys)
    said = f"{str(tmp_path / 'begun' / 'mine.npz')!r}, is not there any more; move it back, name"
    assert (code, said in output.err) == (2, True)
    assert "in a folder where mine.npz is the file" in output.err
    np.savez(tmp_path / "else" / "mine.npz", nothing=np.zeros(3))
    code, output = command(look, capsys)
    assert code == 2
    assert "mine.npz has sha256" in output.err, "that folder's file is taken"


def test_data_that_were_moved_are_named_by_their_new_place(own, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    first, moved = tmp_path / "mine.npz", tmp_path / "there" / "its new name.npz"
    shutil.copy(own, first)
    folder = train_own(str(first), tmp_path / "runs", steps=2)
    config, result = folder.config.read_bytes(), folder.result.read_bytes()
    folder.result.unlink()
    first.rename(moved)
    path, asked = ["--path", str(moved)], str(folder.path)
    commands = (
        ["train", "--resume", asked],
        ["eval", asked, "--ope", "fqe", "--ope-updates", "1"],
        ["inspect", asked, "--grid", "2", "--states", "0"],
    )
    for words in commands:
        assert command(words, capsys)[0] == 2
        assert command([*words, *path], capsys)[0] == 0
    assert (folder.config.read_bytes(), folder.result.read_bytes()) == (config, result)
    np.savez(moved, **dict(np.load(own)) | {"rewards": np.zeros(len(np.load(own)["rewards"]))})
    for words, said in (
        ([*commands[1], *path], "restore that file"),
        ([*commands[2], "--path", "nowhere.npz"], "nowhere.npz, given by --path as the data of"),
        (["eval", asked, *path], "--path is of --ope"),
        ([*commands[0], *path, "--slices", "3"], "except --path"),
        ([*commands[0], "--set", f"dataset.path={moved}"], "except --path"),
    ):
        code, output = command(words, capsys)
        assert (code, said in " ".join(output.err.split())) == (2, True), output.err


def test_a_file_that_is_not_the_runs_is_told_as_that_whatever_else_is_wrong(
    own, trained, tmp_path, capsys
):
    kept, other = dict(np.load(own)), tmp_path / "other.npz"
    words = ["inspect", str(trained.path), "--grid", "2", "--path", str(other)]
    for faulty in (kept | {"actions": 9 * kept["actions"]}, {"nothing": np.zeros(3)}):
        np.savez(other, **faulty)
        code, output = command(words, capsys)
        assert (code, "other.npz has sha256" in output.err) == (2, True), output.err


def test_a_moved_minari_folder_is_found_by_its_new_place(own, tmp_path, capsys):
    first, moved = tmp_path / "there" / "mine", tmp_path / "mine"
    first.parent.mkdir()
    convert(own, first)
    folder = train_own(str(first), tmp_path / "runs", steps=2)
    folder.result.unlink()
    first.rename(moved)
    assert command(["train", "--resume", str(folder.path)], capsys)[0] == 2
    code, output = command(["train", "--resume", str(folder.path), "--path", str(moved)], capsys)
    assert code == 0, output.err


def test_data_scaled_otherwise_than_the_settings_say_are_refused(own, tmp_path, monkeypatch):
    bounded = TINY | {"dataset": {"name": str(own), "action_bounds": [-2, 2]}, "steps": 2}
    with pytest.raises(InputError, match="action_bounds are -2 to 2 and .* scaled by none"):
        run(resolve(bounded), load(str(own)), tmp_path, "r", SilentReporter())
    halved = load(str(own), action_bounds=[-2, 2])
    with pytest.raises(InputError, match="action_bounds are none and .* scaled by -2 to 2"):
        run(
            resolve(TINY | {"dataset": {"name": str(own)}}), halved, tmp_path, "r", SilentReporter()
        )
    folder = run(resolve(bounded), halved, tmp_path, "r", SilentReporter())
    folder.result.unlink()
    with pytest.raises(InputError, match="scaled otherwise than those"):
        resume(folder.path, lambda _config: load(str(own)), SilentReporter())


def test_settings_of_other_data_are_refused(data, own, tmp_path):
    """They may be of another family's preset, and every result names the config's data."""
    for config, loaded in (
        (resolve(TINY), load(str(own))),
        (resolve(TINY | {"dataset": {"name": "mine2.npz"}}), load(str(own))),
        (resolve(TINY | {"dataset": {"name": str(own)}}), data),
        (resolve(TINY | {"dataset": {"name": "hopper-medium-v2"}}), data),
    ):
        with pytest.raises(InputError, match=r"the settings are of dataset .* and the data of"):
            run(config, loaded, tmp_path, "r", SilentReporter())
    assert not (tmp_path / "r").exists()


def test_an_objective_of_ones_own_trains_saves_and_acts(own, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "mine", "test_training:MineQ")
    folder = train_own(own, tmp_path, objective="mine", steps=2)
    assert read_json(folder.result)["method"] == "mine-transformer"
    agent = make_agent(open_run(folder.path)[1], 2, 2, torch.device("cpu"))
    checkpoint.load_networks(folder.checkpoints / "2", agent)
    assert isinstance(agent, MineQ)


class MineQ(FlowQ):
    """A method of one's own, outside of the package."""


def test_scores_left_for_later_are_those_of_a_run_that_was_scored(unscored, scored, tmp_path):
    folder, noted = unscored
    told = [sentence for sentence in noted if f"`tql-offline eval {folder.path} --miss" in sentence]
    assert len(told) == 1
    assert read_json(folder.result)["evaluations"] == []
    assert read_json(folder.result)["task"] == read_json(scored.result)["task"]
    assert folder.checkpoint_steps() == [5, 10, 15, 20]
    assert folder.metrics.read_bytes() == scored.metrics.read_bytes()

    folder = RunFolder(shutil.copytree(folder.path, tmp_path / "r"))
    evaluate_run(folder.path, missing=True, reporter=SilentReporter())
    assert folder.evaluations.read_bytes() == scored.evaluations.read_bytes()
    results = [read_json(each.result) for each in (folder, scored)]
    assert results[0]["evaluations"] == results[1]["evaluations"]
    assert results[0]["task"] == results[1]["task"]
    noting = Noting()
    evaluate_run(folder.path, missing=True, reporter=noting)
    assert folder.evaluations.read_bytes() == scored.evaluations.read_bytes(), "nothing is missing"
    assert any(
        "already has every score for which there is a checkpoint" in s for s in noting.sentences
    )


def test_two_processes_do_not_score_one_run(unscored, tmp_path):
    """Each would play everything, and write it."""
    folder = RunFolder(shutil.copytree(unscored[0].path, tmp_path / "r"))
    said = f"another process is scoring run {folder.path}; wait for its end"
    for options in ({"missing": True}, {"policies": ("learned",)}):
        with claimed_for_scoring(folder), pytest.raises(InputError, match=re.escape(said)):
            evaluate_run(folder.path, reporter=SilentReporter(), **options)
    assert not folder.evaluations.exists()
    with claimed(folder):  # in training
        evaluate_run(folder.path, policies=("learned",), reporter=SilentReporter())
    assert len(list(read_jsonl(folder.evaluations))) == 1


def test_an_environment_that_fails_leaves_a_run_that_can_go_on(own, tmp_path, monkeypatch, capsys):
    maze = "rollout_environments:ShortMaze-v0"
    flags = [*SMALL, "--env", maze, "--protocol", "quick:1@10", "--steps", "20", "--name", "r"]
    monkeypatch.setattr(evaluation, "evaluate", raising(EnvironmentFailedError("boom in step")))
    line = ["train", "--dataset", str(own), "--runs", str(tmp_path), *flags]
    code, output = command(line, capsys)
    assert code == 2
    last = output.err.splitlines()[-1]
    assert last.startswith("tql-offline: boom in step; last checkpoint ")
    assert last.endswith(f"10, `tql-offline train --resume {tmp_path / 'r'}` goes on")
    monkeypatch.undo()
    assert command(["train", "--resume", str(tmp_path / "r")], capsys)[0] == 0


@pytest.mark.parametrize("left", ["", "half"])
def test_scores_that_a_result_alone_holds_are_not_dropped(scored, tmp_path, left):
    folder = RunFolder(shutil.copytree(scored.path, tmp_path / "r"))
    lines = folder.evaluations.read_text().splitlines(keepends=True)
    folder.evaluations.write_text("".join(lines[: len(lines) // 2 if left else 0]))
    before = folder.result.read_bytes()
    with pytest.raises(
        InputError, match=r"scores of update .*15.* that .* lacks, and scoring would"
    ):
        evaluate_run(folder.path, protocol="quick:1", reporter=SilentReporter())
    assert folder.result.read_bytes() == before
    for text in ('{"evaluations": [{"policy": [], "step": {}}]}', '{"cut', None):
        folder.result.unlink() if text is None else folder.result.write_text(text)
        evaluate_run(folder.path, protocol="quick:1", reporter=SilentReporter())
        assert read_json(folder.result)["schema"]


@pytest.mark.parametrize(
    ("device", "precision", "want"),
    [
        ("cuda", "tf32", ["high"]),
        ("cuda", "float32", ["highest"]),
        ("cuda", "bfloat16", ["highest"]),
        ("cpu", "tf32", []),
    ],
)
def test_policies_are_scored_in_the_precision_that_they_were_scored_in_while_training(
    scored, tmp_path, monkeypatch, device, precision, want
):
    folder, used = RunFolder(shutil.copytree(scored.path, tmp_path / "r")), []
    text = folder.config.read_text()
    folder.config.write_text(text.replace('precision = "float32"', f'precision = "{precision}"'))
    facts = read_json(folder.provenance)
    facts["settings"]["execution.precision"] = precision
    write_json(folder.provenance, facts)
    monkeypatch.setattr(rescoring, "pick_device", lambda _device: torch.device(device))
    monkeypatch.setattr(checkpoint, "load_agent", raising(InputError("no such device here")))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", used.append)
    with pytest.raises(InputError, match="no such device"):
        evaluate_run(folder.path, reporter=SilentReporter())
    assert used == want


def test_checkpoints_of_scores_left_for_later_are_kept(data, tmp_path):
    evaluation = {"processes": 1, "enabled": False}
    some = {"keep_checkpoints": 1, "checkpoint_every": 3, "evaluation": evaluation}
    config = resolve(TINY | {"dataset": {"name": TASK}} | some)
    folder = run(config, data, tmp_path, "r", SilentReporter())
    assert folder.checkpoint_steps() == [5, 10, 15, 20]


@pytest.mark.parametrize(
    "kept", [{}, {"keep_checkpoints": 2}, UNSCORED, UNSCORED | {"keep_checkpoints": 1}]
)
def test_a_run_says_what_its_checkpoints_will_take_where_there_is_no_room(
    own, tmp_path, monkeypatch, kept
):
    monkeypatch.setattr(notes, "disk_usage", lambda _path: SimpleNamespace(free=0))
    some = {"dataset": {"name": str(own)}, "steps": 8, "checkpoint_every": 3}
    config = resolve(TINY | some | kept)
    noting = Noting()
    folder = run(config, load(str(own)), tmp_path, "r", noting)
    (told,) = [s for s in noting.sentences if "checkpoints will take" in s]
    tensors = folder.checkpoints.rglob("*.safetensors")
    taken = sum(file.stat().st_size for file in tensors) / 1e9
    assert float(told.split()[4]) == pytest.approx(taken, rel=0.1)
    assert f"0 GB are free in {folder.path}" in told


def test_an_environment_that_cannot_score_is_refused_though_nothing_is_scored(own, tmp_path):
    for env_id, said in (("Typo-v0", "cannot be made"), ("Pendulum-v1", "observation dims")):
        config = resolve(TINY | {"dataset": {"name": str(own)}, "evaluation": {"enabled": False}})
        with pytest.raises(InputError, match=said):
            run(config, load(str(own), env_id=env_id), tmp_path, "r", SilentReporter())
    assert not (tmp_path / "r").exists()


def test_a_missing_score_without_a_checkpoint_is_spoken_of(unscored, tmp_path):
    folder = RunFolder(shutil.copytree(unscored[0].path, tmp_path / "r"))
    for step in ("5", "15"):
        shutil.rmtree(folder.checkpoints / step)
    noting = Noting()
    evaluate_run(folder.path, missing=True, reporter=noting)
    assert any("scores of step 5, 15, for which there is no" in s for s in noting.sentences)
    assert {line["step"] for line in read_jsonl(folder.evaluations)} == {10, 20}


@pytest.mark.parametrize("damaged", [(5, 15), (15, 20)])
def test_a_damaged_checkpoint_keeps_no_other_from_its_scores(unscored, tmp_path, damaged):
    folder = RunFolder(shutil.copytree(unscored[0].path, tmp_path / "r"))
    for step in damaged:
        file = folder.checkpoints / str(step) / "policy.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
    said = rf"2 checkpoints of run .*/r cannot be scored \(.*/{damaged[0]}/policy.*, the others are"
    with pytest.raises(InputError, match=said):
        evaluate_run(folder.path, missing=True, reporter=SilentReporter())
    sound = {5, 10, 15, 20} - {*damaged}
    assert {line["step"] for line in read_jsonl(folder.evaluations)} == sound
    assert {row["step"] for row in read_json(folder.result)["evaluations"]} == sound


def test_a_run_is_scored_in_the_environment_of_its_data_alone(unscored, tmp_path, capsys):
    folder = RunFolder(shutil.copytree(unscored[0].path, tmp_path / "r"))
    code, output = command(["eval", str(folder.path), "--env", MAZE], capsys)
    assert (code, "another task; leave --env out" in output.err) == (2, True)
    assert not folder.evaluations.exists()


def test_missing_scores_are_all_of_them(unscored, capsys):
    run_ = ["eval", str(unscored[0].path), "--missing"]
    for flags in (["--checkpoint", "5"], ["--policy", "learned"], ["--video"]):
        code, output = command([*run_, *flags], capsys)
        assert (code, "leave --checkpoint, --policy and --video out" in output.err) == (2, True)


def test_policies_see_the_same_initial_states(scored):
    lines = list(read_jsonl(scored.evaluations))
    seeds = [[episode["seed"] for episode in line["episodes"]] for line in lines]
    assert all(s == seeds[0] for s in seeds)
    assert len(set(seeds[0])) == 2


def test_same_seed_same_metrics_and_weights(own, trained, tmp_path):
    folders = [trained, train_own(own, tmp_path / "again")]
    other = train_own(own, tmp_path / "other", seed=1)
    texts = [f.metrics.read_bytes() for f in (*folders, other)]
    assert texts[0] == texts[1] != texts[2]
    for name in ("critic", "policy", "optimizers", "random"):
        file = f"checkpoints/20/{name}.safetensors"
        assert (folders[0].path / file).read_bytes() == (folders[1].path / file).read_bytes()


def test_checkpoint_restores_policies_and_training_state(own, trained, tmp_path):
    config = resolve(TINY | {"dataset": {"name": str(own)}})
    device = torch.device("cpu")
    agent = make_agent(config.model_copy(update={"seed": 9}), 2, 2, device)
    path = trained.checkpoints / "20"
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((5, 2), dtype=np.float32) for _ in range(2)]
    before = numpy_policy(agent, "learned", device)(*inputs)
    checkpoint.load_networks(path, agent)
    after = numpy_policy(agent, "learned", device)(*inputs)
    assert not np.array_equal(before, after)

    generator = torch.Generator()
    checkpoint.load_training_state(path, agent, generator, MetricsWindow())
    state = checkpoint.State(step=20, observation_dim=2, action_dim=2)
    again = checkpoint.save(tmp_path / "again", agent, generator, state, MetricsWindow())
    for file in path.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(
    "name", ["critic.safetensors", "optimizers.safetensors", "random.safetensors", "state.json"]
)
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_damaged_checkpoints_are_named(folder, name, damage):
    file = folder.checkpoints / "20" / name
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\x00\xff" * 20)
    agent = make_agent(resolve(TINY), 2, 2, torch.device("cpu"))
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        checkpoint.read_state(file.parent)
        checkpoint.load_networks(file.parent, agent)
        checkpoint.load_training_state(file.parent, agent, torch.Generator(), MetricsWindow())
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_size_is_refused(trained):
    agent = make_agent(resolve(TINY | {"critic": {"size": "small"}}), 2, 2, torch.device("cpu"))
    with pytest.raises(InputError, match=r"critic\.safetensors does not fit"):
        checkpoint.load_networks(trained.checkpoints / "20", agent)


def test_diverging_run_stops_with_step_and_checkpoint(own, tmp_path):
    with pytest.raises(InputError, match=r"by update \d+.*checkpoint"):
        train_own(own, tmp_path, optimizer={"critic_lr": 1e30, "policy_lr": 1e30, "warmup": 0})


def test_run_names(tmp_path):
    config = resolve(TINY)
    first, second = (new_run_folder(tmp_path, config, "") for _ in range(2))
    assert second.path.name == f"{first.path.name}-2"
    new_run_folder(tmp_path, config, "mine")
    with pytest.raises(InputError, match="exists already"):
        new_run_folder(tmp_path, config, "mine")
    for name in ("../out", "a/b", ".hidden"):
        with pytest.raises(InputError, match="plain folder name"):
            new_run_folder(tmp_path, config, name)
    (tmp_path / "link").symlink_to("nowhere")  # no name in it is taken
    with pytest.raises(InputError, match=r"link/.* cannot be created .*choose another --runs"):
        new_run_folder(tmp_path / "link", config, "")


def bad_commands(data, tmp_path):
    cut = tmp_path / "cut.npz"
    cut.write_bytes(data.path.read_bytes()[:1000])
    ant = "antmaze-medium-navigate-singletask-task1-v0"
    config = tmp_path / "bad.toml"
    config.write_text("stepz = 3\n")
    return {
        "unknown size": ["train", "--size", "huge"],
        "unknown dataset": ["train", "--dataset", "pointmaze-tiny-navigate-singletask-task1-v0"],
        "unknown flag": ["train", "--sise", "xl"],
        "unknown config key": ["train", "--config", str(config)],
        "unknown set key": ["train", "--set", "flow.beta=1"],
        "missing file": ["train", "--dataset", str(tmp_path / "none.npz")],
        "truncated file": ["train", "--dataset", TASK, "--path", str(cut)],
        "mislabelled file": ["train", "--dataset", ant, "--path", str(data.path)],
        "unknown protocol": [
            "train",
            "--dataset",
            TASK,
            "--path",
            str(data.path),
            "--protocol",
            "none",
        ],
        "no gpu": ["train", "--dataset", TASK, "--path", str(data.path), "--device", "cuda"],
        "no run": ["eval", str(tmp_path)],
        "no report": ["report", str(tmp_path / "none")],
        "unknown command": ["trian"],
        "uncollectable": ["collect", "antmaze-large-navigate-v0"],
    }


CASES = [
    "unknown size", "unknown dataset", "unknown flag", "unknown config key", "unknown set key",
    "missing file", "truncated file", "mislabelled file", "unknown protocol", "no gpu", "no run",
    "no report", "unknown command", "uncollectable",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_and_exit_2_and_writes_nothing(
    case, data, tmp_path, capsys, monkeypatch
):
    if case == "no gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    arguments = bad_commands(data, inputs)[case]
    code, output = command(arguments, capsys)
    assert code == 2
    assert output.err.startswith("tql-offline: ")
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err
    assert list(work.iterdir()) == []


def test_all_cases_are_listed(data, tmp_path):
    assert sorted(bad_commands(data, tmp_path)) == sorted(CASES)


def test_train_eval_and_report_by_command(data, short_maze, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = ["--dataset", TASK, "--path", str(data.path)]
    code, output = command(["train", *place, "--steps", "1", *SMALL], capsys)
    assert code == 0
    assert "learned" in output.out
    assert "behaviour" in output.out
    (folder,) = (tmp_path / "runs").iterdir()
    lines = len(list(read_jsonl(RunFolder(folder).evaluations)))
    code, output = command(["eval", str(folder), "--policy", "behaviour"], capsys)
    assert code == 0
    again = list(read_jsonl(RunFolder(folder).evaluations))
    assert len(again) == lines + 1
    # The same checkpoint, protocol and seeds: the same episodes, to the last bit.
    assert json.dumps(again[-1]["episodes"]) == json.dumps(again[-2]["episodes"])
    code, output = command(["report", "runs", "--out", "report"], capsys)
    assert code == 0
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    assert "behaviour" in (tmp_path / "report" / "report.md").read_text()


def test_eval_names_a_missing_checkpoint(scored, capsys):
    code, output = command(["eval", str(scored.path), "--checkpoint", "7"], capsys)
    assert code == 2
    assert "5, 10, 15, 20" in output.err
    code, output = command(["eval", str(scored.path), "--policy", "best"], capsys)
    assert code == 2
    assert "learned, behaviour" in output.err


def test_rewards_are_judged_as_training_sees_them(own, tmp_path):
    columns = dict(np.load(own))
    np.savez(tmp_path / "large.npz", **columns | {"rewards": 1e6 * columns["rewards"] - 1e6})
    for scale, is_large in ((1.0, True), (1e-6, False)):
        noted = Noting()
        data = {"name": str(tmp_path / "large.npz"), "reward_scale": scale}
        config = resolve(TINY | {"dataset": data, "steps": 1})
        run(config, load(data["name"]), tmp_path / "runs", "", noted)
        assert any("training sees rewards as large" in s for s in noted.sentences) == is_large


def test_a_run_on_arrays_is_for_python_alone(own, tmp_path, capsys):
    columns = {name: column for name, column in np.load(own).items() if name != "masks"}
    data = from_arrays(columns, "mine", layout="ogbench")
    config = resolve(TINY | {"dataset": {"name": "mine"}, "steps": 2, "checkpoint_every": 1})
    folder = run(config, data, tmp_path / "runs", "", SilentReporter())
    folder.result.unlink()
    for words in (["train", "--resume"], ["inspect"], ["eval", "--ope", "fqe"]):
        code, output = command([*words, str(folder.path)], capsys)
        said = "was trained on arrays from Python, which no command has"
        assert (code, said in " ".join(output.err.split())) == (2, True)
    resume(folder.path, lambda _config: data, SilentReporter())
    assert folder.result.exists()
    assert command(["report", str(folder.path), "--out", str(tmp_path / "out")], capsys)[0] == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "# from Python, on the same arrays, with the settings of" in page
    assert "train --config" not in page


def test_a_method_of_ones_own_is_trained_and_used_by_its_modules_name(own, tmp_path, capsys):
    method = ["--objective", "test_training:MineQ"]
    quick = ["--dataset", str(own), "--steps", "4", *SMALL]
    runs = ["--runs", str(tmp_path / "runs")]
    assert command(["train", *method, *quick, *runs], capsys)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "mine-MineQ-tiny-s0"
    assert read_json(folder / "result.json")["method"] == "MineQ-transformer"
    (folder / "result.json").unlink()
    for words in (["train", "--resume"], ["inspect", "--grid", "2", "--states", "0"], ["report"]):
        assert command([*words, str(folder)], capsys)[0] == 0
    for objective, said in (
        ("no_such:MineQ", "cannot be imported (No module named 'no_such')"),
        ("test_training:NoQ", "has no class 'NoQ'; choose one of its agents: MineQ"),
        ("os:system", "no subclass of tql_offline.agents.Agent"),
        ("os.path", "must be one of flow"),
        ("os:system('x')", "must be one of flow"),
    ):
        code, output = command(["train", "--objective", objective, *quick, *runs], capsys)
        assert (code, said in " ".join(output.err.split())) == (2, True), output.err
    assert len(list((tmp_path / "runs").iterdir())) == 1
