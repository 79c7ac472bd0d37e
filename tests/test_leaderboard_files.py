"""A leaderboard's files and the command: bad results named and skipped, foreign text inert."""

import csv
import html
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import command
from report_runs import (
    TASKS,
    boards_of,
    make_run,
    part_of,
    played_in,
    several,
    write_result,
)

from tql_offline.cli import report as cli_report
from tql_offline.config import resolve
from tql_offline.errors import InputError
from tql_offline.eval.leaderboard import make_boards
from tql_offline.eval.leaderboard_files import RECORDED, as_csv, as_json, as_latex
from tql_offline.eval.leaderboard_page import board_section
from tql_offline.eval.measured import Setting, measured
from tql_offline.eval.report import write_report
from tql_offline.eval.run_records import read_result
from tql_offline.eval.variants import settings_of
from tql_offline.runs import find_results

pytestmark = pytest.mark.usefixtures("panels_drawn_once")


def broken(folder):
    """Result files that are none, and what the report says of each."""
    folder.mkdir()
    texts = {
        "cut-result.json": ('{"schema": ', "not a valid JSON object"),
        "list-result.json": ("[]", "not a valid JSON object"),
        "older-result.json": ('{"schema": "tql-offline/result/0"}', "has schema"),
        "deep-result.json": ("[" * 100_000, "not a valid JSON object"),
        "binary-result.json": ("\0\1", "not a valid JSON object"),
        "nothing-result.json": ("", "not a valid JSON object"),
    }
    for name, (text, _) in texts.items():
        (folder / name).write_text(text)
    with (folder / "huge-result.json").open("wb") as file:
        file.truncate(65 * 2**20)
    odd = write_result(folder / "odd-result.json")
    odd.write_text(odd.read_text().replace('"score": 20.0', '"score": "<b>"'))
    return {name: words for name, (_, words) in texts.items()} | {
        "huge-result.json": "larger than 8 MiB"
    }


def test_bad_results_are_named_and_skipped(tmp_path):
    expected = broken(tmp_path / "others")
    good = write_result(tmp_path / "others" / "good" / "result.json", task=TASKS[1])
    paths = find_results([tmp_path / "others"])
    assert good in paths
    files = write_report([], tmp_path / "report", merged=paths)
    page = files.markdown.read_text()
    warnings = [line for line in page.splitlines() if "left out" in line]
    for name, words in expected.items():
        (line,) = [line for line in warnings if name.split("-")[0] in line]
        assert words in line, line
    assert TASKS[1].replace("-", "") in page.replace("-", "").replace("\\", "")
    assert f"## {len(warnings)} warnings" in page


def test_a_page_of_results_alone_has_its_heading_once(tmp_path):
    paths = [write_result(tmp_path / f"{s}-result.json", seed=s) for s in range(2)]
    files = write_report([], tmp_path / "alone", merged=paths)
    html, markdown = files.html.read_text(), files.markdown.read_text()
    assert re.findall(r"<h\d>(Leaderboard)</h\d>", html) == ["Leaderboard"]
    assert re.findall(r"^#+ Leaderboard$", markdown, re.M) == ["# Leaderboard"]
    assert "<h2>ogbench-singletask v1, ogbench data, success judged" in html
    run = make_run(tmp_path / "runs" / "mine", protocol="ogbench-singletask")
    html = write_report([run], tmp_path / "both", merged=paths).html.read_text()
    assert html.count("<h2>Leaderboard</h2>") == 1
    assert html.count("<h1>mine</h1>") == 1


def test_two_reports_of_the_same_results_are_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "runs" / "mine", protocol="ogbench-singletask")
    paths = [
        write_result(tmp_path / f"{s}-{z}-result.json", seed=s, size=z)
        for s in range(3)
        for z in ("tiny", "large")
    ]
    texts = []
    for out in (tmp_path / "one", tmp_path / "two"):
        files = write_report([run], out, merged=paths)
        every = (files.html, files.markdown, *files.boards)
        texts.append([path.read_bytes() for path in every])
        assert [p.name for p in files.boards] == [
            f"leaderboard.{e}" for e in ("csv", "json", "tex")
        ]
    assert texts[0] == texts[1]


HOSTILE = "=cmd|'/C calc'!A0 <script>alert(1)</script> \\input{/etc/passwd} % & $x^2$ _"


def test_foreign_text_stays_text_in_every_file(tmp_path):
    paths = [write_result(tmp_path / f"{s}-result.json", method=HOSTILE, seed=s) for s in (0, 1)]
    files = write_report([], tmp_path / "report", merged=paths)
    table, document, tex = (path.read_text() for path in files.boards)
    row = next(r for r in csv.DictReader(table.splitlines()) if r["origin"] == "measured")
    assert row["method"].startswith("'=")
    assert json.loads(document)["boards"][0]["scores"]
    assert "\\input" not in tex
    assert "\\textbackslash{}input\\{/etc/passwd\\}" in tex
    assert "\\%" in tex
    html = files.html.read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_numbers_of_every_file_agree(tmp_path):
    paths = [
        write_result(tmp_path / f"{s}-result.json", seed=s, successes=(k, k, k))
        for s, k in enumerate((10, 15, 20))
    ]
    files = write_report([], tmp_path / "report", merged=paths, published=False)
    (row,) = csv.DictReader(files.boards[0].read_text().splitlines())
    (score,) = json.loads(files.boards[1].read_text())["boards"][0]["scores"]
    assert float(row["mean"]) == score["mean"] == 30
    assert score["scores"] == [20, 30, 40]
    # Student's t with 2 degrees of freedom, by hand: 4.303·10/√3.
    assert (score["low"], score["high"]) == pytest.approx((30 - 24.84, 30 + 24.84), abs=0.01)
    assert "30 $\\pm$ 8" in files.boards[2].read_text()
    assert "30 ± 8 (3)" in files.markdown.read_text()


def test_files_give_no_binary_noise(tmp_path):
    found = measured(read_result(write_result(tmp_path / "r.json")))
    runs = [replace(found, score=100 * rate, seed=i) for i, rate in enumerate((0.55, 0.57))]
    assert repr(runs[0].score) == "55.00000000000001"
    (board,), _ = make_boards(runs)
    section = board_section(board, "b")
    (document,) = json.loads(as_json([section]))["boards"]
    assert document["scores"][0]["scores"] == [55, 57]
    assert "0000000001" not in as_json([section]) + as_csv([section])


def test_a_score_alone_in_its_row_is_not_bold(tmp_path):
    """Method B lacks the second task."""
    paths = [
        write_result(
            tmp_path / f"{method}-{task}-result.json",
            task=TASKS[task], method=method, successes=(k, 20, 30),
        )
        for method, task, k in (("A", 0, 10), ("A", 1, 10), ("B", 0, 9))
    ]  # fmt: skip
    (board,), _ = boards_of(paths)
    section = board_section(board, "b")
    marks = [
        [cell.bold for cell in row[1:]] for row in part_of(section, "Score by task").tables[0].rows
    ]
    assert marks == [[True, True], [False, False]]
    assert as_latex([section]).count(r"\textbf") == 2
    rows = csv.DictReader(as_csv([section]).splitlines())
    assert [row["bold"] for row in rows] == ["True", "True", "False"]


def test_a_row_is_printed_to_one_number_of_decimals(tmp_path):
    found = measured(read_result(write_result(tmp_path / "r.json")))
    runs = [
        replace(found, setting=Setting("quick-return v1"), method=method, seed=seed, score=score)
        for method, scores in (("A", (-8.02, -8.20)), ("B", (-11.8, -13.1)))
        for seed, score in enumerate(scores)
    ]
    (board,), _ = make_boards(runs)
    section = board_section(board, "b")
    assert [cell.text for cell in part_of(section, "Score by task").tables[0].rows[0][1:]] == [
        *("-8.11 ± 0.09 (2)", "-12.45 ± 0.65 (2)")
    ]
    assert r"-8.11 $\pm$ 0.09 (2)} & -12.45 $\pm$ 0.65 (2)" in as_latex([section])


def test_updates_that_runs_of_a_task_differ_in_are_told(tmp_path):
    """Beside which a score says little of a method."""
    found = measured(read_result(write_result(tmp_path / "r.json")))
    runs = [
        replace(found, method=method, seed=seed, updates=updates)
        for method, seed, updates in (("A", 0, 4000), ("A", 1, 4000), ("B", 0, 20))
    ]
    (board,), _ = make_boards(runs)
    told = "Runs of one task differ in their updates: 20 of B tiny; 4\xa0000 of A tiny."
    assert told in board_section(board, "b").notes
    others = [replace(found, method=f"M{n}", updates=150) for n in range(9)]
    (board,), _ = make_boards([*others, replace(found, method="M9", updates=151)])
    (told,) = [s for s in board_section(board, "b").notes if "in their updates" in s]
    assert told.startswith("Runs of one task differ in their updates: 151 of M9 tiny; 150 of M0")
    (board,), _ = make_boards(runs[:2])
    assert not any("differ in their updates" in s for s in board_section(board, "b").notes)


def test_bold_is_told_by_the_distance_from_a_best_that_may_be_negative(tmp_path):
    found = measured(read_result(write_result(tmp_path / "r.json")))
    for protocol, words in (
        ("quick-return v1", "bold: at least the row's best less 5 % of its size"),
        ("quick v1", "bold: at least 95 % of the row's best"),
    ):
        (board,), _ = make_boards([replace(found, setting=Setting(protocol))])
        caption = part_of(board_section(board, "b"), "Score by task").tables[0].caption
        assert caption.endswith(f"{words}, unless the row's are all equal")


def test_averages_in_latex_have_a_heading_and_repeat_no_row(tmp_path):
    tasks = (TASKS[0], TASKS[1], "scene-play-singletask-task2-v0")
    paths = [write_result(tmp_path / f"{task}-result.json", task=task) for task in tasks]
    (board,), _ = boards_of(paths)
    lines = as_latex([board_section(board, "b")]).splitlines()
    heading = lines.index(r"\multicolumn{2}{l}{averages over} \\")
    assert lines[heading - 1] == r"\midrule"
    assert [line.partition(" & ")[0] for line in lines[heading + 1 : -2]] == [
        "cube-double-play (2 of 5 tasks)",
        "all 3 tasks",
    ]
    (alone,), _ = boards_of(paths[:1])
    assert "averages" not in as_latex([board_section(alone, "b")])


def test_a_score_tells_what_its_runs_were_made_of(tmp_path):
    paths = [
        played_in(
            write_result(
                tmp_path / f"{seed}-result.json",
                seed=seed,
                updates=300_000,
                successes=(10, 20, 30),
            ),
            dataset=TASKS[1],
            env_id=f"cube-double-singletask{task}-v0",
        )
        for seed, task in enumerate(("", "-task2", ""))
    ]
    document = json.loads(paths[1].read_text())
    document["provenance"]["tql_offline"] = None
    paths[1].write_text(json.dumps(document))
    files = write_report([], tmp_path / "report", merged=paths)
    rows = list(csv.DictReader(files.boards[0].read_text().splitlines()))
    told = {row["origin"]: [row[name] for name in (*RECORDED, "score_unit")] for row in rows}
    environments = "cube-double-singletask-v0;cube-double-singletask-task2-v0"
    unit = "success in percent"
    assert told["measured"] == ["5a" * 32, environments, "300000", "0.1.0", unit]
    assert told["reported"] == ["", "", "", "", unit]
    (board,) = json.loads(files.boards[1].read_text())["boards"]
    assert [300_000] in [score["updates"] for score in board["scores"]]


# The command.


def test_the_command_merges(tmp_path, capsys):
    write_result(tmp_path / "others" / "alice-result.json")
    code, printed, _ = reported(capsys, "--merge", tmp_path / "others", "--out", tmp_path / "out")
    assert code == 0
    for name in ("report.html", "report.md", "leaderboard.csv", "leaderboard.json"):
        assert (tmp_path / "out" / name).is_file()
        assert name in printed.replace("\n", "")


def test_the_command_prints_the_answers_before_the_files(tmp_path, capsys, monkeypatch):
    several(tmp_path, sizes=("tiny", "small"))
    arguments = ("--no-published", "--merge", tmp_path, "--out", tmp_path / "out")
    _, printed, _ = reported(capsys, *arguments)
    *answers, first, _, _, _, _ = printed.splitlines()
    assert first == str(tmp_path / "out" / "report.html")
    page = (tmp_path / "out" / "report.html").read_text()
    assert answers
    for answer in answers:
        assert f'<p class="answer">{html.escape(answer)}</p>' in page
    monkeypatch.setattr(cli_report, "MOST_ANSWERS", 1)
    _, printed, _ = reported(capsys, *arguments)
    assert printed.splitlines()[:2] == [
        answers[0],
        f"{len(answers) - 1} more answers are in the report",
    ]


def test_of_one_run_the_command_prints_what_it_reached(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    _, printed, _ = reported(capsys, run.path, "--out", tmp_path / "out")
    assert printed.startswith("TQL tiny: 49/50 successes")


def reported(capsys, *arguments):
    """Exit code, output and error lines of `report`."""
    code, printed = command(["report", *map(str, arguments)], capsys)
    return code, printed.out, printed.err.splitlines()


def test_the_command_says_what_it_leaves_out(tmp_path, capsys):
    others, out = tmp_path / "others", tmp_path / "out"
    write_result(others / "alice-result.json")
    (others / "bob\x1b-result.json").write_text("no JSON")
    code, _, lines = reported(capsys, "--merge", others, "--out", out)
    assert code == 0
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: {others}/bob\\x1b-result.json: ")
    for number in range(12):
        (others / f"z{number}-result.json").write_text("no JSON")
    code, _, lines = reported(capsys, "--merge", others, "--out", out)
    assert code == 0
    assert len(lines) == 11
    assert lines[-1] == "and 3 more"


def test_a_damaged_run_is_warned_of(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    run.provenance.write_text("no JSON")
    code, _, lines = reported(capsys, run.path, "--out", tmp_path / "out")
    assert code == 0
    assert [line for line in lines if line.startswith("warning: run: provenance.json")]


@pytest.mark.parametrize(("files", "more"), [(1, ""), (3, "; nor can 2 more")])
def test_results_of_which_none_can_be_used_are_refused(tmp_path, capsys, files, more):
    paths = [tmp_path / f"{number}.npz" for number in range(files)]
    for path in paths:
        path.write_bytes(b"PK")
    merge = [part for path in paths for part in ("--merge", path)]
    code, out, lines = reported(capsys, *merge, "--out", tmp_path / "out")
    assert (code, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith(f"tql-offline: nothing to report: no result can be used ({paths[0]}")
    assert f"{more}); name run folders" in lines[0]
    assert not (tmp_path / "out").exists()


def test_runs_of_equal_names_are_told_by_their_files(tmp_path, capsys):
    paths = [write_result(tmp_path / who / "result.json") for who in ("alice", "bob")]
    lines = write_report([], tmp_path / "out", merged=paths).warnings
    (line,) = [line for line in lines if "has another run of seed 0" in line]
    assert line.startswith(f"result ({paths[1]}): ")
    assert f"result ({paths[0]}), which is the one that counts" in line


def test_of_a_run_and_its_copy_the_run_counts(tmp_path):
    run = make_run(tmp_path / "mine", protocol="ogbench-singletask")
    copy = tmp_path / "copy-result.json"
    copy.write_bytes(run.result.read_bytes())
    lines = write_report([run], tmp_path / "out", merged=[copy]).warnings
    (line,) = [line for line in lines if "has another run of seed" in line]
    assert line.startswith(f"mine ({copy}): ")
    assert ", mine, which is the one that counts" in line


@pytest.mark.parametrize("wrong", [[], ["--merge", "nowhere"], ["--merge", "."]])
def test_nothing_to_merge_is_a_sentence(tmp_path, monkeypatch, capsys, wrong):
    monkeypatch.chdir(tmp_path)
    code, _, said = reported(capsys, *wrong)
    assert code == 2
    assert len(said) <= 3
    assert not (tmp_path / "report").exists()


def test_results_are_found_by_the_end_of_their_names(tmp_path):
    wanted = [
        write_result(tmp_path / "a" / "result.json"),
        write_result(tmp_path / "bob-result.json"),
    ]
    (tmp_path / "provenance.json").write_text("{}")
    (tmp_path / "a" / "._result.json").write_bytes(b"by macOS")
    assert find_results([tmp_path]) == sorted(wanted)
    assert find_results([tmp_path / "provenance.json"]) == [tmp_path / "provenance.json"]
    with pytest.raises(InputError, match="no file named like"):
        find_results([tmp_path / "a", Path(tmp_path / "empty").mkdir() or tmp_path / "empty"])


def test_a_thousand_results_take_seconds(tmp_path):
    paths = [
        write_result(
            tmp_path / f"{task}-{method}-{seed}-result.json",
            task=f"cube-double-play-singletask-task{task}-v0", method=f"M{method}", seed=seed,
        )
        for task in range(25)
        for method in range(5)
        for seed in range(8)
    ]  # fmt: skip
    started = time.process_time()
    write_report([], tmp_path / "report", merged=paths)
    assert time.process_time() - started < 60  # about 10; quadratic work would take minutes


def test_older_results_of_minari_keep_their_datasets_apart(tmp_path):
    """Which recorded no name beside the dataset's, and end alike."""
    names = ("minari:D4RL/pen/human-v2", "minari:D4RL/hammer/human-v2")
    paths = []
    for seed, name in enumerate(names):
        path = write_result(tmp_path / f"{seed}-result.json", seed=seed)
        document = json.loads(path.read_text()) | {
            "dataset": name,
            "dataset_sha256": f"{seed}" * 64,
        }
        document["provenance"]["dataset"].pop("name")
        path.write_text(json.dumps(document))
        paths.append(path)
    (board,), _ = boards_of(paths)
    assert board.tasks == tuple(sorted(names))
    assert not board.notes


def test_runs_of_a_version_without_a_setting_are_no_seeds_of_todays():
    """Before, policies did not decay, so that complete settings without that one mean 0."""
    now = resolve({}).model_dump(mode="json")
    then = now | {"optimizer": dict(now["optimizer"])}
    del then["optimizer"]["policy_weight_decay"]
    without = {"policy_weight_decay": 0.0}
    runs = [
        SimpleNamespace(result={"settings": settings}, config={}, provenance={})
        for settings in (now, then, now | {"optimizer": then["optimizer"] | without})
    ]
    of_now, of_then, of_none = map(settings_of, runs)
    assert of_now["optimizer.policy_weight_decay"] == "0.01"
    assert of_then == of_none
    assert of_then["optimizer.policy_weight_decay"] == "0.0"
