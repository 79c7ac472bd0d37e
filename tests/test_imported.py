"""Scores from elsewhere stand beside a leaderboard's columns, and nothing compares them."""

import csv
import json
from pathlib import Path

import pytest
from command_line import command
from report_runs import make_run

from tql_offline.errors import InputError
from tql_offline.eval import imported
from tql_offline.eval.imported import read_scores
from tql_offline.eval.report import write_report

pytestmark = pytest.mark.usefixtures("panels_drawn_once")

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
HEADER = "method,task,seed,score,source"


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path / f"{size}-{seed}", size=size, seed=seed)
        for size in ("tiny", "large")
        for seed in (0, 1)
    ]


def scores_file(folder, *lines, header=HEADER):
    path = folder / "mine.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def mine(tmp_path):
    return scores_file(
        tmp_path,
        f'IQL,{TASK},0,99.0,"CORL, table 3"',
        f'IQL,{TASK},1,97.0,"CORL, table 3"',
        f"TQL tiny,{TASK},,100,",
    )


def rows_of(text, name):
    """The cells of the first Markdown table row that starts with a name."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_pages_example_is_read(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    (example,) = (b for b in page.split("```\n") if b.startswith(HEADER))
    (tmp_path / "mine.csv").write_text(example, encoding="utf-8")
    read = read_scores([tmp_path / "mine.csv"])
    assert [(score.method, score.seed) for score in read] == [
        ("IQL", 0),
        ("IQL", 1),
        ("ReBRAC", None),
    ]


def test_imported_scores_stand_beside_ones_runs_in_every_file(runs, mine, tmp_path):
    """Mean 98, deviation 1, of 2 seeds; a score without a seed is of an unknown number."""
    files = write_report(runs, tmp_path / "out", published=False, scores=[mine])
    page = files.markdown.read_text()
    assert rows_of(page, "task")[-2:] == ["IQL (imported)", "TQL tiny (imported)"]
    assert rows_of(page, TASK)[-2:] == ["98 ± 1 (2)", "100"]
    html = files.html.read_text()
    note = (
        "Imported, by protocols that are not known, so in no average, rank, interval, test or "
        "choice of bold scores: IQL (CORL, table 3); TQL tiny (mine.csv)."
    )
    assert note in page
    assert note in html
    assert "IQL (imported)" in html
    table, document, tex = (path.read_text() for path in files.boards)
    lines = [row for row in csv.DictReader(table.splitlines()) if row["origin"] == "imported"]
    assert [(row["method"], row["runs"], row["mean"], row["sd"]) for row in lines] == [
        ("IQL", "2", "98.0", "1.0"),
        ("TQL tiny", "", "100.0", ""),
    ]
    assert {row["low"] + row["high"] for row in lines} == {""}
    (board,) = json.loads(document)["boards"]
    iql = next(score for score in board["scores"] if score["origin"] == "imported")
    assert (iql["method"], iql["scores"], iql["bold"]) == ("IQL", [99.0, 97.0], False)
    assert r"& IQL (imported) & TQL tiny (imported) \\" in tex
    assert r"98 $\pm$ 1 (2) & 100 \\" in tex
    widths = {line.count("&") for line in tex.splitlines() if line.endswith(r"\\")}
    assert widths == {4}
    (comment,) = [line for line in tex.splitlines() if "CORL, table 3" in line]
    assert comment.startswith("% Imported, by protocols that are not known")


def test_imported_scores_change_nothing_else(runs, mine, tmp_path):
    """They would be the best of the row, and a method with every task."""

    def board(*scores):
        files = write_report(runs, tmp_path / "out", scores=scores)
        (found,) = json.loads(files.boards[1].read_text())["boards"]
        found["scores"] = [row for row in found["scores"] if row["origin"] != "imported"]
        found["notes"] = [note for note in found["notes"] if not note.startswith("Imported")]
        page = files.markdown.read_text()
        return found, page.split("Overview")[0].count("(imported)")

    (without, none), (with_them, shown) = board(), board(mine)
    assert with_them == without
    assert (none, shown) == (0, 2), "only the head of the table of scores names them"


def test_a_single_run_is_shown_beside_imported_scores(runs, mine, tmp_path):
    files = write_report(runs[:1], tmp_path / "out", published=False, scores=[mine])
    assert rows_of(files.markdown.read_text(), "task")[1:] == [
        *("TQL tiny", "IQL (imported)", "TQL tiny (imported)")
    ]


def test_tasks_of_no_leaderboard_are_named_and_left_out(runs, tmp_path, capsys):
    path = scores_file(tmp_path, f"IQL,{TASK},0,1,", "IQL,hopper,0,2,", "FQL,hopper,0,3,")
    arguments = ["report", *(str(run.path) for run in runs), "--out", str(tmp_path / "out")]
    code, printed = command([*arguments, "--scores", str(path)], capsys)
    assert code == 0
    assert " ".join(printed.err.split()) == (
        f"warning: {path}: scores of hopper are left out, as no leaderboard has such a row "
        f"(they have {TASK})"
    )
    assert "FQL (imported)" not in (tmp_path / "out" / "report.md").read_text()


def test_a_task_that_is_like_a_row_is_asked_for(runs, tmp_path):
    like = TASK.replace("medium", "medum")
    path = scores_file(tmp_path, "IQL,hopper,0,2,", f"IQL,{like},0,3,")
    (warning,) = write_report(runs, tmp_path / "out", scores=[path]).warnings
    assert warning.endswith(f"(they have {TASK}); for {like}, did you mean {TASK}?")


def test_a_task_without_its_number_is_the_default_one(runs, tmp_path):
    alias = TASK.replace("-task1", "")
    path = scores_file(tmp_path, f"IQL,{alias},0,12,")
    files = write_report(runs, tmp_path / "out", published=False, scores=[path])
    assert files.warnings == ()
    assert rows_of(files.markdown.read_text(), TASK)[-1] == "12 (1)"
    with pytest.raises(InputError, match=f"line 3 repeats seed 0 of IQL on {TASK}"):
        read_scores([scores_file(tmp_path, f"IQL,{alias},0,12,", f"IQL,{TASK},0,12,")])


def test_several_files_are_read_in_their_order(tmp_path):
    first = scores_file(tmp_path, "B,t,0,1,")
    second = tmp_path / "more.csv"
    second.write_bytes(b"\xef\xbb\xbfScore, seed,task,method\r\n-2.5e1, 3 ,u,A\r\n\r\n")
    scores = read_scores([first, second])
    assert [(s.method, s.task, s.seed, s.score) for s in scores] == [
        ("B", "t", 0, 1.0),
        ("A", "u", 3, -25.0),
    ]
    with pytest.raises(InputError, match=r"mine.csv line 2 repeats seed 0 of B on t, which "):
        read_scores([first, first])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["A,t,0,nan,"], "line 2 has the score 'nan'; write a finite number"),
        (["A,t,0,1e999,"], "line 2 has the score '1e999'"),
        (["A,t,0,1_0,"], "line 2 has the score '1_0'"),
        (["A,t,0,٣,"], "line 2 has the score"),
        (["A,t,0,,"], "line 2 has the score ''"),
        (["A,t,-1,1,"], "line 2 has the seed '-1'; write a whole number"),
        (["A,t,0,1,", "A,t,0,2,"], "line 3 repeats seed 0 of A on t, which .*line 2 has; keep one"),
        (["A,t,,1,", "A,t,1,2,"], "line 3 and .*line 2 are both of A on t, and not both have"),
        (["A,t,,1,", "A,t,,2,"], "line 3 and .*line 2 are both of A on t"),
        (["A,t,0,1,", "A,t,1,2,", "A,t,,3,"], "line 4 and .*line 2 are both of A on t"),
        ([",t,0,1,"], "line 2 has no method; write one"),
        (["A,,0,1,"], "line 2 has no task"),
        (["A\x1b[2J,t,0,1,"], r"line 2 has the method 'A\\x1b\[2J'; write at most 60 printable"),
        (["A,t\u202e,0,1,"], "line 2 has the task"),
        ([f"{'A' * 61},t,0,1,"], "line 2 has the method 'AAA"),
        ([f"A,t,0,1,{'s' * 201}"], "line 2 has the source 'sss"),
        (["A,t,0,1,x,y"], "line 2 has 6 fields where the header has 5; quote"),
        (['A,t,0,1,"x'], "is not CSV"),
        ([f"A,t,0,1,{'x' * 200_000}"], "is not CSV"),
        ([], "has no scores; write the line method,task,seed,score,source and below"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, lines, said):
    with pytest.raises(InputError, match=said) as error:
        read_scores([scores_file(tmp_path, *lines)])
    assert str(error.value).startswith(str(tmp_path / "mine.csv"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "header", ["method,task,score", "method,task,seed,score,sd", "A,t,0,1", ""]
)
def test_a_header_with_other_columns_is_refused(tmp_path, header):
    with pytest.raises(InputError, match="line . is .* where the header is method,task,seed,score"):
        read_scores([scores_file(tmp_path, "A,t,0,1", header=header)])


def test_what_is_no_file_of_scores_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mine.csv"
    with pytest.raises(InputError, match="cannot be read"):
        read_scores([path])
    with pytest.raises(InputError, match="is a folder"):
        read_scores([tmp_path])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_scores([path])
    path.write_bytes(b"x" * (imported.MAX_BYTES + 1))
    with pytest.raises(InputError, match="is larger than"):
        read_scores([path])
    monkeypatch.setattr(imported, "MAX_METHODS", 1)
    with pytest.raises(InputError, match="have 2 methods where a page shows 1"):
        read_scores([scores_file(tmp_path, "A,t,0,1,", "B,t,0,1,")])
