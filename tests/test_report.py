"""The report: what it says, that it repeats, and that no run folder can break it."""

import itertools
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser

import matplotlib as mpl
import pytest
from report_runs import PROTOCOLS, make_run, write_lines, write_result

from tql_offline.errors import InputError
from tql_offline.eval import plots, report, report_scores
from tql_offline.eval.leaderboard import make_boards
from tql_offline.eval.leaderboard_page import board_section
from tql_offline.eval.measured import measured
from tql_offline.eval.plots import Line, Panel, panel_svg
from tql_offline.eval.report import write_report
from tql_offline.eval.run_records import read_run
from tql_offline.runs import RunFolder, find_runs

pytestmark = pytest.mark.usefixtures("panels_drawn_once")

GARBAGE = {
    "empty": b"",
    "no text": b"\xff\xfe\x00\x80",
    "an array": b"[]\n",
    "null": b"null\n",
    "an empty object": b"{}\n",
    "nested too deep": b"[" * 200_000,
    "tables in tables": b'{"step":' * 700 + b"1" + b"}" * 700,
    "lists in lists": b'{"step": 1, "schema": ' + b"[" * 700 + b"]" * 700 + b"}",
    "numbers no float holds": b'{"step": 1e999, "critic_loss": 1' + b"0" * 400 + b"}\n",
    "a lone surrogate": b'{"step": 1, "policy": "\\ud800", "schema": "\\ud800", "a": "\\ud800"}\n',
    "wrong types": b'{"step": "1", "episodes": {"a": 1}, "evaluations": [3], "entropy": [[]]}\n',
    "odd episodes": b'{"step": 1, "policy": "learned", "episodes": [{"success": "yes"}, 3]}\n',
}
# Odd, but nothing of it is lost: an empty file, or keys that nothing asks for.
SILENT = {
    *(("empty", name) for name in ("config", "metrics")),
    *(("odd episodes", name) for name in ("provenance", "metrics")),
    *(("a lone surrogate", name) for name in ("provenance", "metrics")),
    *((garbage, "provenance") for garbage in ("an empty object", "wrong types")),
    ("numbers no float holds", "provenance"),
}
FILES = ("config", "provenance", "metrics", "evaluations", "result")


class Outline(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "tiny-s0", steps=2000)


def written(runs, folder):
    files = write_report(runs, folder)
    return files.html.read_text(encoding="utf-8"), files.markdown.read_text(encoding="utf-8")


def rows(markdown, caption):
    """Cells of the table under a Markdown heading, its header first."""
    lines = markdown.split(f"# {caption}\n")[1].strip().splitlines()
    table = [line for line in lines[: lines.index("")] if not line.startswith("| ---")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in table]


def test_answer_is_one_sentence_with_intervals(run, tmp_path):
    html, markdown = written([run], tmp_path / "out")
    answer = (
        "TQL tiny: 49/50 successes (98 %, 95 % Wilson interval 90–100 %); "
        "behaviour flow of the same data: 0/50 (0 %, 0–7 %)."
    )
    assert answer in html.replace("\u00a0", " ")
    assert answer in markdown


def test_score_row_holds_counts_means_and_identity(run, tmp_path):
    _, markdown = written([run], tmp_path / "out")
    header, learned, behaviour = rows(markdown, "Scores")
    row = {name.strip(): cell.strip() for name, cell in zip(header, learned, strict=True)}
    lines = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    lengths = [episode["length"] for episode in lines[3]["episodes"]]
    assert row["success (95 % interval)"] == "49/50 (98 %, 90–100 %)"
    assert (row["run"], row["method"], row["size"]) == ("tiny-s0", "TQL", "tiny")
    assert (row["parameters"], row["step"], row["episodes"]) == ("106 434", "2 000", "50")
    assert (row["policy"], row["protocol"]) == ("learned", "quick v1")
    assert row["dataset"] == "pointmaze-medium-navigate-singletask-task1-v0"
    assert float(row["mean length"]) == pytest.approx(sum(lengths) / 50, abs=0.05)
    assert float(row["mean return"]) == pytest.approx(-sum(lengths) / 50, abs=0.05)
    assert behaviour[1].strip() == "behaviour"


def learned_cells(markdown):
    """Last, last three and best score of the first run's learned policy."""
    head, *found = rows(markdown, "Scores")
    at = [cell.strip() for cell in head].index("last")
    return found[0][at : at + 3]


def test_the_references_of_a_normalised_score_are_told(run, tmp_path):
    lines = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    reference = {"min": 96.262799, "max": 3076.8331017826877, "scale": 100, "source": "d4rl/infos"}
    write_lines(run.evaluations, [line | {"reference": reference} for line in lines])
    _, markdown = written([run], tmp_path / "out")
    assert "96.2628 is 0 and 3076.83 is 100, from d4rl/infos" in markdown


@pytest.mark.parametrize("with_own", [False, True])
def test_a_board_of_merged_results_tells_formula_and_references(run, tmp_path, with_own):
    reference = {"min": -20.0, "max": 3234.0, "scale": 100, "source": "d4rl/infos"}
    paths = [
        write_result(
            tmp_path / f"{seed}-result.json", task="hopper-medium-v2", seed=seed, successes=(1,),
            updates=100_000, protocol={"name": "d4rl:50", "version": 1, "counted": "last"},
        )
        for seed in (0, 1)
    ]  # fmt: skip
    for path in paths:
        document = json.loads(path.read_text())
        row = document["evaluations"][0]
        row["reference"] = reference
        row["score"] = 100 * (row["return_mean"] + 20) / 3254
        path.write_text(json.dumps(document))
    files = write_report([run] if with_own else [], tmp_path / "out", merged=paths)
    for page in (files.html.read_text(), files.markdown.read_text()):
        board = page.split("d4rl:50 v1, d4rl data")[1]
        assert "d4rl:50 v1: score = scale × (mean return - min) / (max - min)" in board
        assert "counted: the last evaluation" in board
        told = "hopper-medium-v2: of the mean return, -20 is 0 and 3234 is 100, from d4rl/infos."
        assert board.count(told) == 1


def test_last_three_evaluations_are_pooled_where_the_protocol_counts_them(tmp_path):
    run = make_run(tmp_path / "r", successes=(1, 10, 20, 45), protocol="ogbench-singletask")
    _, markdown = written([run], tmp_path / "out")
    # The interval counts the 50 initial states, from which all three were played.
    assert [float(cell) for cell in learned_cells(markdown)] == pytest.approx([90, 50, 90])
    pooled = "75/150 successes in the last 3 evaluations (50 %, 95 % Wilson interval 37–63 %)"
    assert pooled in markdown.replace("\u00a0", " ")
    learned, behaviour = rows(markdown, "Scores")[1:]
    assert learned[3].strip() == "200 000–400 000 (3)"
    assert float(learned[7]) == pytest.approx(50)
    assert behaviour[3].strip() == "400 000–400 000 (1 of 3)"
    assert "counted: the last 3 evaluations" in markdown


def test_same_runs_give_the_same_bytes_whatever_matplotlib_is_set_to(
    run, tmp_path, panels_drawn_once
):
    once = write_report([run], tmp_path / "once")
    panels_drawn_once.clear()
    with mpl.rc_context({"xtick.labelsize": 30, "axes.ymargin": 0.4, "svg.hashsalt": None}):
        again = write_report([run], tmp_path / "again")
    assert once.html.read_bytes() == again.html.read_bytes()
    assert once.markdown.read_bytes() == again.markdown.read_bytes()


def test_page_needs_nothing_else_and_is_well_formed(run, tmp_path):
    other = make_run(tmp_path / "runs" / "large-s0", size="large", steps=2000)
    html, _ = written([run, other], tmp_path / "out")
    page = Outline(html)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert not any("src" in attributes for _, attributes in page.tags)
    assert len(page.named("main")) == 1
    ids = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert set(ids.values()) == {1}
    asked = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html)
    assert {first or second for first, second in asked} == set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_plot_is_described_and_follows_the_pages_colours(run, tmp_path):
    html, _ = written([run], tmp_path / "out")
    drawings = Outline(html).named("svg")
    assert len(drawings) == len(re.findall("<figcaption>", html)) == 10
    assert all(d["role"] == "img" and len(d["aria-label"]) > 20 for d in drawings)
    inside = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}|<style|<metadata|DejaVu", inside)
    assert "var(--c1)" in inside
    assert "var(--c2)" in inside


def test_entropy_is_shown_against_its_target_and_maximum(run, tmp_path):
    html, markdown = written([run], tmp_path / "out")
    assert "ln L = 1.79" in html
    table = [[cell.strip() for cell in row] for row in rows(markdown, "Attention, last logged")]
    assert [row[:2] for row in table[1:]] == [
        ["1", r"\[VALUE\] query"],
        ["1", "other queries"],
        ["2", r"\[VALUE\] query"],
        ["2", "other queries"],
    ]
    assert [row[3] for row in table[1:]] == ["1.433", "1.433", "1.165", "1.165"]


def in_mode(run, mode):
    """The run, as if it had been trained in another entropy mode."""
    run.config.write_text(run.config.read_text().replace("layerwise", mode))
    run.result.write_text(run.result.read_text().replace("layerwise", mode))
    return run


@pytest.mark.parametrize(
    ("mode", "columns", "words"),
    [
        ("layerwise", ["target, nats", "temperature"], "grows while its entropy is below target"),
        ("fixed", ["temperature"], "all are held at 1."),
        ("none", [], ""),
    ],
)
def test_a_target_or_temperature_that_does_nothing_is_not_shown(
    run, tmp_path, mode, columns, words
):
    html, markdown = written([in_mode(run, mode)], tmp_path / "out")
    header = [cell.strip() for cell in rows(markdown, "Attention, last logged")[0]]
    assert header[2:] == ["entropy, nats", *columns]
    assert ("its target" in html) == ("target of" in html) == (mode == "layerwise")
    assert ("Temperature" in html) == (mode != "none")
    assert words in html


def test_overview_and_size_plot_come_with_runs_of_several_sizes(run, tmp_path):
    large = make_run(tmp_path / "runs" / "large-s0", size="large", steps=2000)
    twin = make_run(tmp_path / "runs" / "tiny-s1", seed=1, steps=2000)
    alone, _ = written([run], tmp_path / "one")
    same, _ = written([run, twin], tmp_path / "same")
    both, markdown = written([run, large], tmp_path / "both")
    assert "Overview" not in alone
    assert "Overview" in same
    assert "Score by size" not in same
    assert "Score by size" in both
    assert [row[0].strip() for row in rows(markdown, "Overview")] == ["run", "tiny-s0", "large-s0"]


def test_runs_that_cannot_be_compared_are_named(run, tmp_path):
    other = make_run(tmp_path / "runs" / "b", steps=2000, mujoco="3.4.0", sha256="ab" * 32)
    _, markdown = written([run, other], tmp_path / "out")
    assert "The runs differ in mujoco (3.3.5, 3.4.0)" in markdown
    assert "content of dataset pointmaze-medium-navigate-singletask-task1-v0" in markdown
    assert "differ in gymnasium" not in markdown


@pytest.mark.parametrize("played", ["3.3.5", "3.9.0"])
def test_versions_are_compared_as_they_were_played_with(tmp_path, played):
    """Runs that began with one version and were scored with another, as boards have it."""
    runs = [make_run(tmp_path / f"{n}", mujoco="3.9.0", seed=n) for n in (0, 1)]
    lines = [json.loads(line) for line in runs[0].evaluations.read_text().splitlines()]
    write_lines(runs[0].evaluations, [line | {"versions": {"mujoco": played}} for line in lines])
    _, markdown = written(runs, tmp_path / "out")
    assert ("The runs differ in mujoco (3.3.5, 3.9.0)" in markdown) == (played == "3.3.5")


def test_runs_in_environments_of_other_code_are_named(tmp_path):
    runs = [make_run(tmp_path / f"s{seed}", seed=seed, steps=200) for seed in range(3)]
    for folder, env_id, digest in zip(runs, ("a", "a", "b"), ("1", "2", "3"), strict=True):
        facts = json.loads(folder.provenance.read_text())
        facts["environment"] |= {"env_id": f"my:{env_id}-v0", "code": {"sha256": 64 * digest}}
        folder.provenance.write_text(json.dumps(facts))
    _, markdown = written(runs, tmp_path / "out")
    assert f"differ in code of environment my:a-v0 ({12 * '1'}, {12 * '2'})" in markdown
    assert "code of environment my:b-v0" not in markdown


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [make_run(tmp_path / d / "tiny", steps=200, successes=(1,)) for d in ("a", "b")]
    _, markdown = written(runs, tmp_path / "out")
    names = [row[0].strip() for row in rows(markdown, "Overview")[1:]]
    assert [name.split("/")[-2:] for name in names] == [["a", "tiny"], ["b", "tiny"]]


def test_unfinished_run_is_shown_as_such(tmp_path):
    begun = make_run(tmp_path / "begun", steps=2000, finished=False)
    begun.evaluations.unlink()
    text = begun.config.read_text()
    begun.config.write_text(text.replace("\nsteps = 2000", "\nsteps = 9000"))
    html, markdown = written([begun], tmp_path / "out")
    assert "(unfinished, 2 000 of 9 000 updates): no evaluation yet." in markdown
    assert "There is no evaluation yet." in html
    assert "warning</h2>" not in html
    assert "Attention entropy" in html


def test_a_stopped_run_is_as_far_as_its_checkpoint_and_has_its_methods_name(tmp_path):
    begun = make_run(tmp_path / "begun", steps=2000, successes=(3,), finished=False)
    begun.config.write_text(begun.config.read_text().replace("\nsteps = 2000", "\nsteps = 9000"))
    saved = begun.checkpoints / "2094"
    saved.mkdir(parents=True)
    (saved / "state.json").touch()
    _, markdown = written([begun], tmp_path / "out")
    assert "TQL tiny (unfinished, 2 094 of 9 000 updates)" in markdown


def test_facts_of_an_unfinished_run_are_those_of_their_own_settings(tmp_path):
    """Cloning has no critic whose size it could name, and 8 steps of floq's are no 8 updates."""
    cloned = make_run(tmp_path / "cloned", steps=2000, finished=False)
    text = cloned.config.read_text()
    text = text.replace('objective = "flow"', 'objective = "cloning"').replace("\nsteps = 2000", "")
    cloned.config.write_text(text + "\n[floq]\nsteps = 8\n")
    _, markdown = written([cloned], tmp_path / "out")
    assert "BC (unfinished, 2 000 updates)" in markdown


def test_updates_that_a_stop_left_untimed_count_as_fast_as_the_rest(tmp_path):
    """Of 400 updates 307 were timed, in 11.5 s."""
    folder = make_run(tmp_path / "stopped")
    lines = ((200, 4.0, 107 / 4), (400, 7.5, 200 / 7.5))
    keys = ("step", "seconds", "updates_per_second")
    write_lines(folder.timing, [dict(zip(keys, line, strict=True)) for line in lines])
    assert read_run(folder).seconds == pytest.approx(11.5 * 400 / 307)
    write_lines(folder.timing, [{"step": 200, "seconds": 4.0}])
    assert read_run(folder).seconds == 4


def test_a_later_report_takes_an_earlier_ones_leaderboard_away(tmp_path):
    runs = [make_run(tmp_path / f"r{seed}", seed=seed) for seed in (0, 1)]
    first = write_report(runs, tmp_path / "out")
    assert all(path.is_file() for path in first.boards)
    assert len(first.boards) == 3
    other = tmp_path / "out" / "leaderboard.md"
    other.touch()
    begun = make_run(tmp_path / "begun", finished=False)
    second = write_report([begun], tmp_path / "out")
    assert not second.boards
    assert not any(path.exists() for path in first.boards)
    assert other.exists()


def test_ones_own_runs_that_are_on_no_leaderboard_are_named(tmp_path):
    whole = [make_run(tmp_path / f"r{seed}", seed=seed) for seed in (0, 1)]
    begun = [make_run(tmp_path / f"b{seed}", seed=seed, finished=False) for seed in range(7)]
    report = write_report([*whole, *begun], tmp_path / "out")
    said = "each of 7 runs is unfinished, so they are on no leaderboard: b0, b1, b2, b3, b4, …"
    assert report.warnings == (said,)
    assert said in report.markdown.read_text()
    report = write_report([*whole, begun[0]], tmp_path / "out")
    assert report.warnings == ("b0 is unfinished, so it is on no leaderboard",)
    assert write_report([begun[0]], tmp_path / "out").warnings == ()


def test_a_finished_run_whose_result_cannot_be_used_is_not_called_unfinished(tmp_path):
    runs = [make_run(tmp_path / f"r{seed}", seed=seed) for seed in range(4)]
    runs[1].result.write_text(runs[1].result.read_text()[:99])
    runs[2].result.write_text('{"schema": "tql-offline/result/9"}')
    runs[3].result.rename(tmp_path / "elsewhere.json")
    runs[3].result.symlink_to(tmp_path / "elsewhere.json")
    report = write_report(runs, tmp_path / "out")
    assert report.warnings[:3] == (
        "r1 has a result.json that is not a valid JSON object (`train --resume` writes it again), "
        "so it is on no leaderboard",
        "r2 has a result.json that is of schema 'tql-offline/result/9', so it is on no leaderboard",
        "r3 has a result.json that is a link, so it is on no leaderboard",
    )
    page = report.markdown.read_text()
    assert "unfinished" not in page
    assert all(f"r{k}: TQL tiny (without a usable result, " in page for k in (1, 2, 3))


def test_a_run_without_others_like_it_is_on_the_page_and_in_the_files(tmp_path):
    protocols = ("quick", "ogbench-singletask")
    runs = [make_run(tmp_path / name, protocol=name) for name in protocols]
    files = write_report(runs, tmp_path / "out", published=False)
    html, markdown = files.html.read_text(), files.markdown.read_text()
    assert "<h2>Runs without others like them</h2>" in html
    table = [[cell.strip() for cell in row] for row in alone_rows(markdown)]
    assert [row[0] for row in table[1:]] == ["ogbench-singletask", "quick"]
    assert [row[3] for row in table[1:]] == ["76", "98"]
    assert table[2][5].startswith("quick v1, ogbench data, ")
    assert "## Leaderboard" not in markdown
    assert len(files.boards[0].read_text().splitlines()) == 3
    assert len(json.loads(files.boards[1].read_text())["boards"]) == 2
    twin = make_run(tmp_path / "twin", seed=1)
    assert len(alone_rows(written([*runs, twin], tmp_path / "more")[1])) == 2


def alone_rows(markdown):
    return rows(markdown.replace("Scores of one run each:", "# alone"), "alone")


def test_the_page_of_one_run_has_no_leaderboard_but_the_files_have(run, tmp_path):
    files = write_report([run], tmp_path / "out", published=False)
    page = files.markdown.read_text()
    assert "without others" not in page
    assert "Leaderboard" not in page
    (score,) = json.loads(files.boards[1].read_text())["boards"][0]["scores"]
    assert (score["runs"], score["mean"]) == (1, 98)


def test_only_a_runs_own_protocol_can_lack_scores(tmp_path):
    """One evaluation of an early checkpoint by another protocol, which plans four."""
    run = make_run(tmp_path / "a b", steps=20_000)
    lines = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    other = lines[0] | {"protocol": PROTOCOLS["quick"] | {"name": "quick:5"}}
    other["episodes"] = other["episodes"][:5]
    other["success_rate"] = sum(episode["success"] for episode in other["episodes"]) / 5
    other["score"] = 100 * other["success_rate"]
    write_lines(run.evaluations, [*lines, other])
    files = write_report([run], tmp_path / "out")
    assert files.warnings == ()
    assert "quick:5 v1" in files.markdown.read_text()
    write_lines(run.evaluations, [*lines[:3], other])
    (warning,) = write_report([run], tmp_path / "out").warnings
    assert warning == (
        "a b: quick v1 counts the score at update 20,000, which is missing; "
        f"`tql-offline eval '{run.path}' --missing` adds it"
    )


def leave_out_success(folder):
    """Make a run's evaluations those of an environment that reports none."""
    lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    for line in lines:
        line["episodes"] = [{**episode, "success": None} for episode in line["episodes"]]
        line["success_rate"] = None
    write_lines(folder.evaluations, lines)
    folder.result.unlink(missing_ok=True)


def test_scores_of_different_updates_are_named_by_them(tmp_path):
    """A run stopped between evaluations, whose behaviour policy was scored where it stopped."""
    folder = make_run(tmp_path / "stopped", steps=2000, finished=False)
    lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    logged = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join(logged[:6]))
    write_lines(folder.evaluations, [lines[0], lines[-1] | {"step": 600}])
    for page in written([folder], tmp_path / "out"):
        said = page.replace("\u00a0", " ")
        assert "TQL tiny (unfinished, 600 of 2 000 updates): 3/50 successes at update 500 (" in said
        assert "of the same data: 0/50 at update 600 (" in page
    leave_out_success(folder)
    for page in written([folder], tmp_path / "out"):
        assert "over 50 episodes at update 500; behaviour flow" in page


def test_wilson_intervals_are_explained_only_beside_success_rates(run, tmp_path):
    twin = make_run(tmp_path / "twin", steps=2000, seed=1)
    for page in written([run, twin], tmp_path / "rates"):
        assert page.count("Intervals are 95 % Wilson intervals") == 1
    for folder in (run, twin):
        leave_out_success(folder)
    for page in written([run, twin], tmp_path / "returns"):
        assert "Wilson" not in page


def test_the_answers_of_boards_come_first(tmp_path):
    runs = [
        make_run(tmp_path / f"{size}{seed}", size=size, seed=seed, successes=(k + seed,))
        for size, k in (("tiny", 3), ("small", 30))
        for seed in range(2)
    ]
    html, markdown = written(runs, tmp_path / "out")
    for page in (html, markdown):
        assert page.index("TQL, tiny to small, over ") < page.index("tiny0")
        assert page.count("TQL, tiny to small, over ") == 2
        assert page.count("Jonckheere") == 1, "where the board is"
    assert "runs one by one" not in html
    assert "Score by size" in html
    assert html.count("<figcaption>Success rate, %</figcaption>") <= 1 + len(runs)
    more = [
        make_run(tmp_path / f"more{seed}", seed=seed, successes=(5 + seed,)) for seed in (2, 3, 4)
    ]
    html, _ = written([*runs, *more], tmp_path / "with-more")
    assert html.index("TQL, tiny to small") < html.index("<summary>7 runs one by one")
    assert html.index("<summary>7 runs one by one") < html.index("tiny0")


def told_of_behaviour(tmp_path, *runs):
    """What the board says of scores below the behaviour's: `(size, learned, behaviour)` per run."""
    folders = [
        make_run(tmp_path / f"r{i}", size=size, seed=i, successes=(learned,), behaviour=behaviour)
        for i, (size, learned, behaviour) in enumerate(runs)
    ]
    return told_of(folders)


def told_of(folders):
    """What the board of these runs says of scores below the behaviour's."""
    (board,), _ = make_boards(map(measured, map(read_run, folders)))
    sentences = board_section(board, "b").sentences
    return [sentence for sentence in sentences if "behaviour" in sentence]


BELOW = "below the behaviour policy cloned from the same data, in the same episodes"
MAZE = "pointmaze-medium-navigate-singletask-task1-v0"


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ([("tiny", 10, 11), ("tiny", 3, 5)], f"TQL: all 2 runs score {BELOW}."),
        ([("tiny", 10, 11)], f"TQL: the one run scores {BELOW}."),
        (
            [("tiny", 10, 11), ("tiny", 3, 5), ("tiny", 3, None)],
            f"TQL: all 2 runs score {BELOW} (1 more has no score of it).",
        ),
        (
            [("tiny", 10, 11), ("tiny", 9, 11), ("small", 12, 11), ("small", 1, 11)],
            f"TQL: all 2 runs of tiny on {MAZE} score {BELOW}.",
        ),
        (
            [("tiny", 10, 11), ("small", 12, None)],
            f"TQL: the one run of tiny on {MAZE} scores {BELOW}.",
        ),
        ([("tiny", 10, 11), ("tiny", 11, 11)], None),
        ([("tiny", 10, None), ("tiny", 11, None)], None),
    ],
)
def test_methods_that_score_below_their_datas_behaviour_are_told(tmp_path, runs, told):
    assert told_of_behaviour(tmp_path, *runs) == [told] * (told is not None)


@pytest.mark.parametrize(
    ("told", "is_compared"),
    [
        ({}, True),
        ({"versions": {"mujoco": "3.3.5"}}, True),  # as it began with
        ({"versions": {"mujoco": "3.9.0"}}, False),
        ({"max_episode_steps": 500}, False),
    ],
)
def test_what_was_played_under_other_conditions_is_not_taken_with_the_score(
    tmp_path, told, is_compared
):
    folder = make_run(tmp_path / "r", successes=(50, 50, 40, 10), behaviour=20)
    lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    *earlier, last, behaviour = lines
    write_lines(folder.evaluations, [*earlier, last | told, behaviour])
    assert told_of([folder]) == [f"TQL: the one run scores {BELOW}."] * is_compared
    found = measured(read_run(folder))
    assert found.score == 20
    assert found.best == (100 if is_compared else 20)
    assert math.isnan(found.last_three) != is_compared
    assert len(found.curve) == (4 if is_compared else 1)


def test_behaviour_of_other_episodes_is_not_compared_with(tmp_path):
    folder = make_run(tmp_path / "r", successes=(10,), behaviour=20)
    assert measured(read_run(folder)).behaviour == 40.0
    lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    for change in (
        {"protocol": {"name": "quick:9", "version": 1, "counted": "last"}},
        {"episodes": lines[1]["episodes"][::2]},
        {"episodes": [e | {"seed": e["seed"] + 50} for e in lines[1]["episodes"]]},
        {"env_id": "another-v0"},
    ):
        write_lines(folder.evaluations, [lines[0], lines[1] | change])
        assert math.isnan(measured(read_run(folder)).behaviour)
    folder.evaluations.unlink()
    assert measured(read_run(folder)).behaviour == 40.0, "by result.json, without seeds"


def without_seeds(line, most=50):
    """A line of evaluations.jsonl of which the first episodes have no seed."""
    episodes = [e | {"seed": None} for e in line["episodes"][:most]]
    return line | {"episodes": [*episodes, *line["episodes"][most:]]}


@pytest.mark.parametrize(
    "unrecorded",
    [
        lambda lines: [without_seeds(line) for line in lines],
        lambda lines: [lines[0], without_seeds(lines[1])],
        lambda lines: [without_seeds(line, 1) for line in lines],
        lambda _: [],  # only result.json, without episodes
    ],
    ids=["all", "the behaviour's", "of one episode", "no episodes"],
)
def test_the_same_episodes_are_claimed_of_recorded_seeds_alone(tmp_path, unrecorded):
    folders = [make_run(tmp_path / f"r{i}", seed=i, successes=(10,), behaviour=20) for i in (0, 1)]
    lines = [json.loads(line) for line in folders[0].evaluations.read_text().splitlines()]
    assert told_of(folders) == [f"TQL: all 2 runs score {BELOW}."]
    write_lines(folders[0].evaluations, unrecorded(lines))
    assert measured(read_run(folders[0])).behaviour == 40.0
    assert told_of(folders) == [f"TQL: all 2 runs score {BELOW.partition(',')[0]}."]


def test_the_same_episodes_are_claimed_of_all_evaluations_that_count(tmp_path):
    folder = make_run(
        tmp_path / "r", protocol="ogbench-singletask", successes=(9, 10, 11), behaviour=20
    )
    assert told_of([folder]) == [f"TQL: the one run scores {BELOW}."]
    lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    write_lines(folder.evaluations, [without_seeds(lines[0]), *lines[1:]])
    assert told_of([folder]) == [f"TQL: the one run scores {BELOW.partition(',')[0]}."]


def test_many_runs_have_no_sections_of_their_own(tmp_path, monkeypatch):
    runs = [make_run(tmp_path / f"r{seed}", seed=seed) for seed in range(3)]
    monkeypatch.setattr(report, "MAX_DETAILED_RUNS", 2)
    monkeypatch.setattr(report, "MAX_LISTED_RUNS", 2)
    html, markdown = written(runs, tmp_path / "out")
    for page in (html, markdown):
        assert "With more than 2 runs, there are no sections per run" in page
        assert "Repeat" not in page
        assert page.count("Wilson interval 89") == 0, "no list of answers"
        assert "Overview" in page
    assert 'href="#run-1"' not in html


def test_folder_with_only_a_config_is_reported(tmp_path):
    folder = RunFolder(tmp_path / "bare")
    folder.path.mkdir()
    folder.config.write_text("seed = 3\n")
    _, markdown = written([folder], tmp_path / "out")
    assert "no evaluation yet" in markdown
    assert "bare: provenance.json is missing and was left out" in markdown


def test_broken_lines_are_named_and_the_rest_is_kept(run, tmp_path):
    with run.evaluations.open("a") as file:
        file.write('{"step": 4}\n{"step": 5, "pol')
    with run.metrics.open("a") as file:
        file.write('oops\n{"critic_loss": 1.0}\n' + "x\n" * report.MAX_LISTED_WARNINGS)
    html, markdown = written([run], tmp_path / "out")
    assert "## 24 warnings" in markdown
    assert "tiny-s0: evaluations.jsonl line 6 has no list of episodes and was left out" in markdown
    assert "tiny-s0: evaluations.jsonl line 7 is not a JSON object and was left out" in markdown
    assert "tiny-s0: metrics.jsonl line 22 has no count" in markdown
    assert "4 more, not listed" in markdown
    assert "49/50 successes" in markdown
    assert "critic loss" in html


def test_a_rate_its_episodes_do_not_bear_out_is_named_and_not_shown(run, tmp_path):
    lines = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    lines[3]["success_rate"] = 1.0
    write_lines(run.evaluations, lines)
    document = json.loads(run.result.read_text())
    document["evaluations"][3]["success_rate"] = 1.0
    run.result.write_text(json.dumps(document))
    warnings = read_run(run).warnings
    assert [w.split(" ")[0] for w in warnings] == ["evaluations.jsonl", "result.json"]
    assert all("49/50" in w for w in warnings)
    assert "49/50 successes" in written([run], tmp_path / "out")[1]


def test_an_evaluation_played_again_replaces_the_first(run):
    lines = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    write_lines(run.evaluations, [*lines, lines[3]])
    assert read_run(run).warnings == ()
    assert len(read_run(run).evaluations) == 5
    changed = lines[0] | {"step": lines[3]["step"]}
    run.result.unlink()
    write_lines(run.evaluations, [*lines, changed])
    assert "repeats step 2000 (learned) with another outcome" in read_run(run).warnings[0]
    assert [e.successes for e in read_run(run).evaluations if e.step == 2000] == [3, 0]


def test_scores_come_from_the_result_where_the_episodes_are_gone(run, tmp_path):
    run.evaluations.unlink()
    _, markdown = written([run], tmp_path / "out")
    assert "49/50 successes" in markdown
    assert "the scores are result.json's" in markdown
    assert rows(markdown, "Scores")[1][6].strip() == "—"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_one_file_never_raises(name, garbage, tmp_path):
    run = make_run(tmp_path / "r", steps=200, successes=(1,))
    getattr(run, name).write_bytes(GARBAGE[garbage])
    found = read_run(run)
    assert len(found.evaluations) == (0 if name == "evaluations" and not found.result else 2)
    assert bool(found.warnings) != ((garbage, name) in SILENT)


def test_a_run_that_lost_its_settings_is_not_passed_over(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"r{seed}", seed=seed)
    (tmp_path / "runs" / "r1" / "config.toml").unlink()
    found = find_runs([tmp_path / "runs"])
    assert [run.path.name for run in found] == ["r0", "r1"]
    files = write_report(found, tmp_path / "out")
    assert any("r1: config.toml cannot be used" in warning for warning in files.warnings)


def test_runs_of_nothing_but_garbage_make_a_report(tmp_path):
    runs = []
    for number, garbage in enumerate(GARBAGE.values()):
        run = RunFolder(tmp_path / f"run-{number}")
        run.path.mkdir()
        for name in FILES:
            getattr(run, name).write_bytes(garbage)
        runs.append(run)
    html, markdown = written(runs, tmp_path / "out")
    assert html.count("no evaluation yet.</li>") == len(GARBAGE)
    assert markdown.count("no evaluation yet.") >= len(GARBAGE)


def test_texts_of_a_run_are_escaped(tmp_path):
    evil = "a|b\n<script>alert(1)<script> `x` *y* [z](javascript:1) $v$"
    run = make_run(tmp_path / evil, steps=200, successes=(1,), method=evil)
    html, markdown = written([run, make_run(tmp_path / "plain", steps=200)], tmp_path / "out")
    assert html.count("<script>") == 1
    outside_code = re.sub(r"^```$.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside_code)
    table = rows(markdown, "Scores")
    assert {len(row) for row in table} == {16}
    assert table[1][0].strip() == (
        r"a\|b \<script\>alert(1)\<script\> \`x\` \*y\* \[z\](javascript:1) \$v\$"
    )


def test_command_block_survives_backticks_in_the_path(tmp_path):
    run = make_run(tmp_path / "```x y", steps=200, successes=(1,))
    _, markdown = written([run], tmp_path / "out")
    block = re.search(
        r"^````\n(tql-offline train --config '.*```x y/config.toml')\n````$", markdown, re.M
    )
    assert block


def test_without_success_the_return_is_the_answer(run, tmp_path):
    leave_out_success(run)
    html, markdown = written([run], tmp_path / "out")
    assert "mean return -322 over 50 episodes" in markdown
    assert rows(markdown, "Scores")[1][2].strip() == "—"
    assert "Success rate, %" not in html


@pytest.mark.parametrize(
    ("name", "counted", "expected"),
    [
        *(("mine", counted, 3 if counted == "last-3" else 1) for counted in ("last-3", "best", 7)),
        ("quick", "last-3", 1),
        ("ogbench-singletask", "last", 3),
    ],
)
def test_what_a_protocol_counts_is_read_from_files_of_unknown_ones_alone(
    run, name, counted, expected
):
    lines = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    for line in lines:
        line["protocol"] = {**PROTOCOLS["quick"], "name": name, "counted": counted}
    write_lines(run.evaluations, lines)
    learned = report_scores.scores_of(read_run(run))[0]
    assert learned.counted == expected


def test_progress_counts_the_runs(run, tmp_path):
    seen: list[int] = []
    write_report([run, run], tmp_path / "out", progress=seen.append)
    assert seen == [1, 2]


def test_no_run_and_no_place_are_input_errors(run, tmp_path):
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "out")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"cannot be written to .*file"):
        write_report([run], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_panel_leaves_gaps_and_keeps_its_ids_apart():
    gap = Line(label="loss", x=[0, 1, 2, 3, 4], y=[1.0, 2.0, float("nan"), 2.0, 1.0])
    panel = Panel(title="Loss", lines=(gap,))
    first, second = panel_svg(panel, "a"), panel_svg(panel, "b")
    assert (
        first.replace('"#a-', '"#b-').replace('id="a-', 'id="b-').replace("(#a-", "(#b-") == second
    )
    drawn = re.search(r'd="([^"]+)"[^>]+stroke: var\(--c1\)', first)
    assert drawn
    assert drawn[1].count("M") == 2
    assert "Loss against updates. loss: 1." in first


def test_a_single_point_is_seen():
    alone = Panel(title="Loss", lines=(Line(label="loss", x=[100], y=[2.0]),))
    assert re.search(r"<use [^>]+fill: var\(--c1\)", panel_svg(alone, "a"))


def test_long_curves_keep_their_ends_and_lose_points():
    kept = plots._thinned(100_000)
    assert len(kept) == plots.MAX_POINTS
    assert (kept[0], kept[-1]) == (0, 99_999)
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [([1.0, 1000.0], True), ([1.0, 50.0], False), ([-1.0, 1000.0], False), ([float("nan")], False)],
)
def test_axis_is_logarithmic_only_where_it_must_be(values, logarithmic):
    assert plots.spans_decades(values) is logarithmic
