"""Runs that diverged or that a rule stopped: kept, named, and not forgotten by comparisons."""

import csv
import json
from pathlib import Path

import pytest
import tomli_w
from command_line import command
from own_data import write_own
from report_runs import make_run, write_lines

from tql_offline.config import resolve
from tql_offline.datasets.load import load
from tql_offline.documents import parse_toml
from tql_offline.errors import InputError
from tql_offline.eval.ended import WITHOUT_SCORE, ended_runs
from tql_offline.eval.leaderboard import make_boards
from tql_offline.eval.leaderboard_page import board_section
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


def changed(folder, *, task="", settings=(), facts=()):
    """The run folder of another task, with other settings and facts of its provenance."""
    config = parse_toml(folder.config.read_bytes())
    began = read_json(folder.provenance)
    if task:
        config["dataset"]["name"] = task
        began["dataset"]["name"] = Path(task).stem
        if folder.result.exists():
            result = read_json(folder.result) | {"dataset": task}
            folder.result.write_text(json.dumps(result))
    for table, key, value in settings:
        config[table][key] = value
    for table, key, value in facts:
        began[table][key] = value
    folder.config.write_text(tomli_w.dumps(config))
    folder.provenance.write_text(json.dumps(began))
    return folder


def boards_of(folders):
    """The boards of run folders."""
    runs = [read_run(folder) for folder in folders]
    return make_boards([measured(r) for r in runs if r.finished], (), ended_runs(runs))[0]


def answers_of(folders):
    """What the head of the only board of these run folders says."""
    (board,) = boards_of(folders)
    return board_section(board, "b").answers


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
    assert board["scaling"][0]["lost"] == {"small": {"ended": 2, "runs": 5}}
    assert board["scaling"][0]["points"][1]["runs"] == 3
    (warning,) = [w for w in files.warnings if "on no leaderboard" in w]
    assert warning.startswith("each of 3 runs was stopped by watch.exploding_q, so ")


TASKS = tuple(f"cube-double-play-singletask-task{n}-v0" for n in (1, 2, 3))


def grid(path, lost, *, seeds=4, tasks=TASKS):
    """Runs of two sizes on some tasks; `lost(task, size, seed)` tells which of them ended."""
    return [
        changed(
            (ended_run if lost(task, size, seed) else make_run)(
                path / f"{task}-{size}-{seed}", size=size, seed=seed, successes=(10 + seed,)
            ),
            task=task,
        )
        for task in tasks
        for size in ("tiny", "small")
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda task, size, _: size == "small" and task == TASKS[1], "4 of small's 12 runs"),
        (lambda task, *_: task == TASKS[2], "4 of tiny's 12, 4 of small's 12 runs"),
        (lambda _, __, seed: seed == 3, "3 of tiny's 12, 3 of small's 12 runs"),
    ],
)
def test_a_task_of_which_a_size_lost_all_its_runs_is_not_forgotten(tmp_path, lost, said):
    (answer,) = answers_of(grid(tmp_path, lost))
    assert f" These are survivors: {said} {WITHOUT_SCORE}." in answer


def test_a_size_that_lost_every_run_is_told_in_the_head_and_the_files(tmp_path):
    folders = grid(tmp_path / "runs", lambda _, size, __: size == "small", tasks=TASKS[:1])
    said = f"TQL small (4 runs): all {WITHOUT_SCORE}, so no comparison has them."
    assert answers_of(folders) == (said,)
    files = write_report(folders, tmp_path / "out", published=False)
    rows = csv.DictReader(files.boards[0].read_text().splitlines())
    found = [(row["task"], row["method"], row["runs"], row["ended"], row["mean"]) for row in rows]
    tiny = (TASKS[0], "TQL tiny", "4", "0", "23.0")
    assert found == [tiny, (TASKS[0], "TQL small", "0", "4", "")]


def test_sizes_that_share_no_task_since_runs_ended_are_told_as_survivors(tmp_path):
    at = {"tiny": TASKS[0], "small": TASKS[1]}
    folders = grid(tmp_path, lambda task, size, _: task != at[size], seeds=2, tasks=TASKS[:2])
    (answer,) = answers_of(folders)
    assert answer.startswith("TQL, tiny, small: no task has runs of two of these sizes")
    assert f"survivors: 2 of tiny's 4, 2 of small's 4 runs {WITHOUT_SCORE}." in answer


def test_a_lone_survivor_is_shown_with_the_number_of_others(tmp_path):
    runs = [make_run(tmp_path / "r", seed=0)]
    runs += [ended_run(tmp_path / f"e{seed}", seed=seed) for seed in (1, 2, 3)]
    page = write_report(runs, tmp_path / "out").markdown.read_text()
    (head,) = [line for line in page.splitlines() if "versions" in line and "| run |" in line]
    assert head.endswith("| others that ended without a score |")
    (row,) = [line for line in page.splitlines() if line.startswith("| r |") and "mujoco" in line]
    assert row.endswith("| 3 |")


def test_a_comparison_of_methods_says_that_it_is_of_survivors(tmp_path):
    folders = [make_run(tmp_path / f"m{s}", seed=s, method="FQL") for s in range(4)]
    folders += [make_run(tmp_path / f"r{s}", seed=s) for s in range(2)]
    folders += [ended_run(tmp_path / f"e{s}", seed=s) for s in (2, 3)]
    (answer,) = answers_of(folders)
    assert answer.startswith("FQL tiny and TQL tiny")
    assert answer.endswith(f" These are survivors: 2 of TQL tiny's 4 runs {WITHOUT_SCORE}.")


@pytest.mark.parametrize(
    ("other", "label"),
    [
        ({}, "TQL tiny"),
        ({"protocol": "quick-return"}, None),
        ({"protocol": "quick:5"}, None),
        ({"protocol": "quick@2000"}, None),
        ({"protocol": ""}, None),
        ({"objective": "unknown"}, None),
        ({"task": TASKS[0]}, "TQL tiny"),
        ({"task": "halfcheetah-medium-v2"}, None),
        ({"settings": [("entropy", "mode", "none")]}, "TQL-none tiny"),
        ({"settings": [("flow", "alpha", 300.0)]}, "TQL (flow.alpha 300.0) tiny"),
    ],
)
def test_an_ended_run_is_of_its_own_board_and_column_alone(tmp_path, other, label):
    """As a run with a score is; here none of its evaluations tells what it was judged by."""
    options = dict(other)
    top = {key: options.pop(key) for key in ("protocol", "objective") if key in options}
    folder = changed(ended_run(tmp_path / "e", seed=9), **options)
    write_lines(folder.evaluations, [])
    config = parse_toml(folder.config.read_bytes())
    config["evaluation"]["protocol"] = top.get("protocol", "quick")
    config["objective"] = top.get("objective", "flow")
    folder.config.write_text(tomli_w.dumps(config))
    (board,) = boards_of([make_run(tmp_path / "r"), folder])
    assert [run.label for run in board.ended] == ([label] if label else [])
    assert board.measured == ("TQL tiny",), "its name is what it would be alone"


def test_variants_lose_their_own_runs_alone(tmp_path):
    """Also a size that lost all of them: it is named by the settings that name the others."""
    folders = [
        changed(
            (ended_run if (alpha, size) == (300.0, "small") else make_run)(
                tmp_path / f"{alpha}{size}{seed}", size=size, seed=seed
            ),
            settings=[("flow", "alpha", alpha)],
        )
        for alpha in (30.0, 300.0)
        for size in ("tiny", "small")
        for seed in range(3)
    ]
    (board,) = boards_of(folders)
    (lost,) = board.lost.items()
    assert lost[0] == "TQL (flow.alpha 300.0) small"
    assert (lost[1].ended, lost[1].runs) == (3, 3)
    answer, *_ = board_section(board, "b").answers
    assert answer.startswith("TQL (flow.alpha 30.0), tiny to small")
    assert "survivors" not in answer


def test_an_ended_run_that_makes_a_setting_usual_stays_in_its_column(tmp_path):
    """Beside it, α 30 is what most have on its task, and the others' names would be the same."""
    double, triple = (f"cube-{n}-play-singletask-task1-v0" for n in ("double", "triple"))
    chosen = [(make_run, double, 30.0), (make_run, double, 3.0), (make_run, triple, 3.0)]
    folders = [
        changed(make(tmp_path / str(i), seed=i), task=task, settings=[("flow", "alpha", alpha)])
        for i, (make, task, alpha) in enumerate([*chosen, (ended_run, double, 30.0)])
    ]
    (board,) = boards_of(folders)
    assert list(board.lost) == ["TQL (flow.alpha 30.0) tiny"]


@pytest.mark.parametrize(
    ("facts", "number"),
    [
        ([("versions", "mujoco", "3.9.0")], [0, 1]),
        ([("versions", "mujoco", "3.3.5")], [1, 0]),
        ([("versions", "mujoco", None)], [1, 1]),
        ([("versions", "mujoco", "4.0.0")], [1, 1]),
        ([("versions", "mujoco", "3.9.0"), ("environment", "success_timing", "")], [0, 1]),
    ],
)
def test_an_ended_run_is_of_the_board_of_its_versions_if_there_is_one(tmp_path, facts, number):
    runs = [make_run(tmp_path / f"a{seed}", seed=seed) for seed in range(3)]
    runs += [make_run(tmp_path / f"b{seed}", seed=seed, mujoco="3.9.0") for seed in range(2)]
    folder = ended_run(tmp_path / "e", seed=9)
    write_lines(folder.evaluations, [])
    boards = boards_of([*runs, changed(folder, facts=facts)])
    assert [board.setting.mujoco for board in boards] == ["3.3.5", "3.9.0"]
    assert [len(board.ended) for board in boards] == number


@pytest.mark.parametrize(("sha256", "row"), [("5a" * 32, "a"), ("6b" * 32, "b")])
def test_an_ended_run_on_a_renamed_file_is_of_the_row_of_its_content(tmp_path, sha256, row):
    runs = [
        changed(make_run(tmp_path / f"r{seed}", seed=seed), task="/there/a.npz") for seed in (0, 1)
    ]
    folder = changed(ended_run(tmp_path / "e", sha256=sha256), task="/here/b.npz")
    (board,) = boards_of([*runs, folder])
    assert [run.task for run in board.ended] == [row]
    assert board.tasks == ("a",)


def test_data_of_another_content_are_another_row(tmp_path):
    folder = ended_run(tmp_path / "e", sha256="6b" * 32)
    (board,) = boards_of([make_run(tmp_path / "r"), folder])
    (task,) = board.tasks
    assert [run.task for run in board.ended] == [f"{task}, data 6b6b6b6b"]


def test_a_copy_of_an_ended_run_is_not_counted_twice(tmp_path):
    ended = [ended_run(tmp_path / name, seed=1) for name in ("e", "copy")]
    (board,) = boards_of([make_run(tmp_path / "r"), *ended])
    assert len(board.ended) == 1


def test_others_runs_that_ended_or_are_unfinished_are_not_forgotten(tmp_path, capsys):
    """Nor their own results merged with them; a folder of ended runs alone can be merged, too."""
    for size in ("tiny", "small"):
        for seed in range(3):
            make_run(tmp_path / "mine" / f"{size}{seed}", size=size, seed=seed)
    ended_run(tmp_path / "others" / "e", size="small", seed=3)
    make_run(tmp_path / "others" / "u", seed=4, finished=False)
    theirs = make_run(tmp_path / "others" / "r", seed=5)
    theirs.result.rename(theirs.path / "alice-result.json")
    model = tmp_path / "others" / "model"  # of `export`
    model.mkdir()
    for name in ("config.toml", "model.json"):
        (model / name).write_text("")
    flags = ["--no-published", "--out", str(tmp_path / "out"), "--merge"]
    mine = ["report", str(tmp_path / "mine")]
    code, output = command([*mine, *flags, str(tmp_path / "others")], capsys)
    assert code == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"These are survivors: 1 of small's 4 runs {WITHOUT_SCORE}." in page
    said = output.err.splitlines()
    assert [line.partition("others/")[2].partition(",")[0] for line in said] == [
        "e was stopped by watch.exploding_q",
        "u is unfinished",
    ]
    code, _ = command([*mine, *flags, str(tmp_path / "others" / "e")], capsys)
    assert code == 0
    assert f"1 of small's 4 runs {WITHOUT_SCORE}." in (tmp_path / "out" / "report.md").read_text()
    code, output = command(["report", *flags, str(tmp_path / "others" / "e")], capsys)
    assert code == 2
    assert "e was stopped by watch.exploding_q" in output.err


def test_ones_own_folders_merged_with_themselves_are_counted_once(tmp_path, capsys):
    runs = tmp_path / "runs"
    make_run(runs / "r", seed=0)
    ended_run(runs / "e", seed=1)
    flags = ["--no-published", "--out", str(tmp_path / "out")]
    code, output = command(["report", str(runs), "--merge", str(runs), *flags], capsys)
    assert code == 0
    assert output.err.count("was stopped by watch.exploding_q") == 1


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
    for folder in tmp_path.iterdir():
        changed(RunFolder(folder), task=f"/there/{'b' if folder.name == 'ended' else 'a'}.npz")
    code, output = command(["select", str(tmp_path), "--pulls", "2", "--repeats", "2"], capsys)
    assert code == 0
    said = " ".join(output.out.split())
    assert f"1 run (1 of TQL tiny) {WITHOUT_SCORE}; all numbers here are of the others" in said
