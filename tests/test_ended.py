"""Runs that diverged or that a rule stopped: kept, named, and not forgotten by comparisons."""

import json
from dataclasses import replace

import pytest
from command_line import command
from own_data import write_own
from report_runs import make_run

from tql_offline.config import resolve
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.eval.ended import WITHOUT_SCORE, ended_on, ended_runs
from tql_offline.eval.measured import measured
from tql_offline.eval.report import write_report
from tql_offline.eval.report_scores import state_of
from tql_offline.eval.run_records import read_run
from tql_offline.files import read_json
from tql_offline.runs import RunFolder
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

pytestmark = pytest.mark.usefixtures("panels_drawn_once")

STOPPED = {"step": 700, "rule": "exploding_q", "sentence": "Q explodes at update 700"}


def ended_run(path, document=STOPPED, **options):
    folder = make_run(path, finished=False, **options)
    folder.ended.write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("log_every", [1, 9])
def test_a_run_that_diverges_leaves_a_folder_that_says_so(tmp_path, log_every):
    """Also one that diverges before it has a checkpoint or a line of metrics."""
    path = write_own(tmp_path / "mine.npz", (30, 20), 3)
    settings = {
        "critic": {"size": "tiny"},
        "flow": {"hidden": [16]},
        "steps": 9,
        "batch_size": 8,
        "log_every": log_every,
        "dataset": {"name": str(path), "reward_scale": 1e36},
    }
    with pytest.raises(InputError, match="critic_loss became"):
        run(resolve(settings), load(str(path)), tmp_path, "r", SilentReporter())
    folder = RunFolder(tmp_path / "r")
    document = read_json(folder.ended)
    assert document["rule"] == "diverged"
    assert document["step"] == log_every
    found = read_run(folder)
    assert measured(found) == "diverged"
    assert state_of(found).startswith(f"ended by update {log_every}: critic_loss became ")


def test_comparisons_say_that_they_are_of_survivors(tmp_path):
    runs = [make_run(tmp_path / f"{size}{s}", size=size, seed=s) for size in ("tiny", "small")
            for s in range(3)]  # fmt: skip
    ended = [ended_run(tmp_path / f"ended{s}", size="small", seed=s) for s in (3, 4)]
    ended.append(ended_run(tmp_path / "other", size="small", protocol="ogbench-singletask"))
    files = write_report([*runs, *ended], tmp_path / "out")
    without = "ended without a score, by diverging or by a rule of watch"
    said = f" These are survivors: 2 of small's 5 runs {without}."
    note = f"2 runs (2 of TQL small) {without}; all numbers here are of the others"
    page = files.markdown.read_text()
    assert page.count(said) == files.html.read_text().count(said.replace("'", "&#39;")) == 2
    assert note in page
    (board,) = read_json(files.markdown.parent / "leaderboard.json")["boards"]
    assert note in board["notes"]
    assert board["scaling"][0]["ended"] == {"small": 2}
    assert board["scaling"][0]["points"][1]["runs"] == 3
    (warning,) = [w for w in files.warnings if "on no leaderboard" in w]
    assert warning.startswith("each of 3 runs was stopped by watch.exploding_q, so ")


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "quick-return"},
        {"protocol": "quick:5"},
        {"protocol": "quick@2000"},
        {"protocol": ""},
        {"method": "IQL"},
        {"method": ""},
        {"task": "cube-single-play-singletask-task1-v0"},
        {"suite": "D4RL"},
    ],
)
def test_an_ended_run_is_of_its_own_board_method_and_task_alone(tmp_path, other):
    scores = measured(read_run(make_run(tmp_path / "r")))
    (found,) = ended_runs([read_run(ended_run(tmp_path / "e"))])
    for method in ("TQL", "TQL (α 30)"):
        place = (scores.setting, [scores.task, f"{scores.task}, data 5a5a"], [method])
        assert ended_on([found], *place) == (found,)
        assert ended_on([replace(found, **other)], *place) == ()


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"step": -1, "rule": "<b>", "sentence": 3}', '{"step": "x", "rule": []}', "{}"],
)
def test_a_strange_file_of_an_ended_run_is_read_or_named(tmp_path, text):
    folder = ended_run(tmp_path / "r")
    folder.ended.write_text(text)
    found = read_run(folder)
    if found.ended is None:
        assert any(s.startswith("ended.json ") for s in found.warnings)
        assert measured(found) == "is unfinished"
    else:
        assert (found.ended.step, found.ended.rule) == (0, "")
        assert measured(found) == "diverged"
    write_report([folder], tmp_path / "out")


def test_a_finished_run_has_not_ended_early(tmp_path):
    folder = make_run(tmp_path / "r")
    folder.ended.write_text(json.dumps(STOPPED))
    assert read_run(folder).ended is None


def test_choosing_among_runs_says_that_they_are_survivors(tmp_path, capsys):
    for seed in (0, 1):
        make_run(tmp_path / f"r{seed}", seed=seed, successes=(30 + seed,))
    ended_run(tmp_path / "ended", seed=2)
    ended_run(tmp_path / "other", size="small", seed=2)
    code, output = command(["select", str(tmp_path), "--pulls", "2", "--repeats", "2"], capsys)
    assert code == 0
    said = " ".join(output.out.split())
    assert f"1 run (1 of TQL tiny) {WITHOUT_SCORE}; all numbers here are of the others" in said
