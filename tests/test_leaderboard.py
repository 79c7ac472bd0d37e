"""Leaderboards: a paper as printed, only like runs compared, what their sentences claim."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_runs import (
    PROTOCOLS,
    TASKS,
    boards_of,
    by_size,
    make_run,
    part_of,
    played_in,
    several,
    write_lines,
    write_result,
)

from tql_offline.config import Config
from tql_offline.eval import leaderboard_notes
from tql_offline.eval.averages import average, domains, mean_ranks, summaries
from tql_offline.eval.leaderboard import BOLD, Board, make_boards, reported_label, reported_scores
from tql_offline.eval.leaderboard_files import as_json, as_latex
from tql_offline.eval.leaderboard_page import board_section
from tql_offline.eval.measured import Measured, Setting, measured
from tql_offline.eval.protocol import episode_seeds, get, protocols
from tql_offline.eval.published import published_scores, published_sizes
from tql_offline.eval.report import write_report
from tql_offline.eval.report_scores import scores_of
from tql_offline.eval.run_records import read_result, read_run
from tql_offline.eval.scaling import scaling_of
from tql_offline.eval.scaling_page import trend_sentences
from tql_offline.eval.variants import differing, effective

pytestmark = pytest.mark.usefixtures("panels_drawn_once")


# A paper's table.


@pytest.fixture(scope="module")
def paper():
    rows = published_scores()
    return Board(
        setting=Setting(rows[0].protocol),
        tasks=tuple(dict.fromkeys(row.task for row in rows)),
        measured=(),
        reported=tuple(dict.fromkeys(map(reported_label, rows))),
        scores=reported_scores(rows),
        fraction=BOLD,
        notes=(),
    )


def test_averages_are_as_printed(paper):
    """Table 1 of arXiv 2602.01439: mean over 25 tasks, in whole percents."""
    printed = {
        "BC": 2, "IQL": 10, "ReBRAC": 18, "FBRAC": 17, "IFQL": 18, "FQL": 27, "floq": 34,
        "Q-Transformer": 2, "PAC": 24, "TQL": 40,
    }  # fmt: skip
    assert len(paper.tasks) == 25
    means = {label.split(" (")[0]: average(paper, label, paper.tasks)[0] for label in paper.labels}
    for name, value in printed.items():
        assert round(means[name]) == value, (name, means)
    deviations = {
        n: round(average(paper, f"{n} (reported)", paper.tasks)[1]) for n in ("FQL", "TQL")
    }
    assert deviations == {"FQL": 4, "TQL": 7}
    by_domain = [round(average(paper, "TQL (reported)", t)[0]) for t in domains(paper).values()]
    assert by_domain == [67, 61, 32, 31, 7]


def test_bold_cells_are_within_95_percent_of_a_rows_best(paper):
    """Cube-double task 1, by hand: the best is 88, and 0.95·88 = 83.6."""
    row = dict(zip(paper.labels, paper.row(TASKS[0]), strict=True))
    best = max(row.values())
    marked = {label for label, mark in zip(paper.labels, paper.bold(TASKS[0]), strict=True) if mark}
    assert marked == {label for label, value in row.items() if value >= 0.95 * best}
    assert 1 <= len(marked) < len(row)


def test_ranks_are_those_of_an_independent_count(paper):
    labels = paper.complete()
    by_hand = dict.fromkeys(labels, 0.0)
    for task in paper.tasks:
        values = {label: paper.scores[task, label].mean for label in labels}
        for label, value in values.items():
            above = sum(other > value for other in values.values())
            level = sum(other == value for other in values.values())
            by_hand[label] += (above + (level + 1) / 2) / len(paper.tasks)
    assert mean_ranks(paper, labels) == pytest.approx(by_hand)
    assert min(by_hand, key=by_hand.get) == "TQL (reported)"


def test_the_papers_scaling_claim_is_kept_as_printed():
    tql = {p.parameters: p.mean for p in published_sizes() if p.method == "TQL"}
    assert tql[max(tql)] / tql[min(tql)] == pytest.approx(1.43, abs=0.05)


def test_what_is_reported_stands_beside_runs_of_its_protocol(tmp_path):
    paths = [write_result(tmp_path / f"{i}-result.json", task=t) for i, t in enumerate(TASKS)]
    (board,), _ = boards_of(paths, published_scores())
    assert board.labels == ("TQL tiny", *board.reported)
    assert "TQL (reported)" in board.reported
    assert board.scores[TASKS[0], "TQL tiny"].mean == pytest.approx(40)
    reported = board.scores[TASKS[0], "TQL (reported)"]
    assert reported.runs == ()
    assert math.isnan(board.interval(reported).low)
    assert any("1.1.0" in note for note in board.notes)  # what makes it another measurement


# Which runs are compared.


@pytest.mark.parametrize(
    "other",
    [
        {"mujoco": "3.3.6"},
        {"protocol": PROTOCOLS["ogbench-singletask"] | {"version": 2}},
        {"timing": "post"},
    ],
)
def test_unlike_runs_are_on_boards_of_their_own(tmp_path, other):
    first = write_result(tmp_path / "a" / "result.json")
    timing = other.pop("timing", None)
    second = write_result(tmp_path / "b" / "result.json", **other)
    document = json.loads(second.read_text())
    for line in document["evaluations"]:
        line["protocol"] = document["protocol"]
    if timing:
        document["provenance"]["environment"]["success_timing"] = timing
    second.write_text(json.dumps(document))
    boards, warnings = boards_of([first, second])
    assert len(boards) == 2
    assert warnings == []
    assert boards[0].setting != boards[1].setting


@pytest.mark.parametrize(
    ("dataset", "suite"),
    [
        ("cube-double-play-singletask-v0", "ogbench"),
        ("hopper-medium-v2", "d4rl"),
        ("mujoco/hopper/medium-v0", "minari"),
        ("mine.npz", "own"),
    ],
)
def test_suites_share_no_board(tmp_path, dataset, suite):
    paths = [
        played_in(write_result(tmp_path / f"{i}-result.json"), dataset=name)
        for i, name in enumerate((dataset, "visual-cube-single-play-singletask-task1-v0"))
    ]
    boards, warnings = boards_of(paths)
    assert {board.setting.suite for board in boards} == {suite, "ogbench-visual"}
    assert any(f"ogbench-singletask v1, {suite} data, " in str(b.setting) for b in boards)
    assert warnings == []


def test_a_task_with_two_contents_of_its_data_has_two_rows(tmp_path):
    paths = [
        write_result(tmp_path / "a" / "result.json"),
        write_result(tmp_path / "b" / "result.json", dataset_sha256="6b" * 32),
    ]
    (board,), _ = boards_of(paths)
    assert board.tasks == (f"{TASKS[0]}, data 5a5a5a5a", f"{TASKS[0]}, data 6b6b6b6b")


REFERENCE = {"min": 0.0, "max": 3.0, "scale": 1.0, "source": "metadata of /home/a/data"}


@pytest.mark.parametrize(
    ("first", "second", "rows"),
    [
        ({"env_id": "Hopper-v4"}, {"env_id": "Hopper-v5"},
         ("environment Hopper-v4", "environment Hopper-v5")),
        ({"max_episode_steps": 100}, {"max_episode_steps": 200},
         ("step limit 100", "step limit 200")),
        ({"reference": REFERENCE}, {"reference": REFERENCE | {"max": 4.0}},
         ("reference 0 is 0 and 3 is 1", "reference 0 is 0 and 4 is 1")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_scores_of_unlike_environments_are_rows_of_their_own(tmp_path, first, second, rows, seeds):
    paths = [
        played_in(write_result(tmp_path / f"{i}-result.json", seed=seed), **facts)
        for i, (seed, facts) in enumerate(zip(seeds, (first, second), strict=True))
    ]
    (board,), warnings = boards_of(paths)
    assert board.tasks == tuple(f"hopper-medium-v2, {row}" for row in rows)
    assert [len(score.runs) for score in board.scores.values()] == [1, 1]
    assert warnings == []


def test_an_environment_that_was_not_recorded_is_no_other_one(tmp_path):
    paths = [write_result(tmp_path / f"{seed}-result.json", seed=seed, task="t") for seed in (0, 1)]
    played_in(paths[0], reference=REFERENCE, dataset="t")
    (board,), _ = boards_of(paths)
    assert board.tasks == ("t",)
    paths.append(played_in(write_result(tmp_path / "2-result.json", seed=2), dataset="t",
                           reference=REFERENCE | {"min": 1.0}))  # fmt: skip
    (board,), _ = boards_of(paths)
    assert "t, reference unknown" in board.tasks
    assert len(board.tasks) == 3


def test_two_machines_folders_of_one_minari_dataset_are_one_row(tmp_path):
    name, paths = "mujoco/hopper/medium-v0", []
    given = ((name, name), ("/home/a/data", "/home/a/data"), (f"minari:{name}", "/b"))
    for seed, (dataset, folder) in enumerate(given):
        path = write_result(tmp_path / f"{seed}-result.json", seed=seed)
        document = json.loads(path.read_text()) | {"task": f"minari:{folder}"}
        document["provenance"]["dataset"]["name"] = name
        path.write_text(json.dumps(document))
        reference = REFERENCE | {"source": f"metadata of Minari dataset {folder}"}
        facts = {"env_id": f"minari:{folder}", "reference": reference}
        paths.append(played_in(path, dataset=dataset, **facts))
    (board,), _ = boards_of(paths)
    assert board.tasks == (name,)
    assert len(board.scores[name, "TQL tiny"].runs) == 3


def test_a_run_played_in_two_environments_has_no_score(tmp_path):
    path = played_in(write_result(tmp_path / "result.json"), slice(2), env_id="Hopper-v4")
    assert "cannot be compared (environment differs)" in measured(read_result(path))


def test_sizes_are_compared_within_a_row(tmp_path):
    """Tiny in two environments, large in one: what they have in common is that one."""
    paths = [
        played_in(write_result(tmp_path / f"{i}-result.json", size=size), env_id=env_id)
        for i, (size, env_id) in enumerate([("tiny", "A-v0"), ("tiny", "B-v0"), ("large", "B-v0")])
    ]
    (board,), _ = boards_of(paths)
    (scaling,) = scaling_of(board, np.random.default_rng(0))
    assert scaling.tasks == ("hopper-medium-v2, environment B-v0",)


def test_updates_a_second_and_hours_of_a_size_agree(tmp_path):
    """All updates over all time: the mean of runs' rates would say 6 of these."""
    found = measured(read_result(write_result(tmp_path / "r.json")))
    runs = [
        replace(found, size=size, parameters=count, seed=seed, updates=100, seconds=seconds)
        for size, count in (("tiny", 107_458), ("small", 419_714))
        for seed, seconds in enumerate((10.0, 50.0))
    ]
    (board,), _ = make_boards(runs)
    (scaling,) = scaling_of(board, np.random.default_rng(0))
    for point in scaling.points:
        assert point.updates_per_second == pytest.approx(200 / 60)
        assert 100 / point.updates_per_second == pytest.approx(3600 * point.hours)


def test_a_default_task_is_the_task_that_it_is(tmp_path):
    paths = []
    for seed, task in enumerate(("-task2", "", "-task1")):
        path = write_result(tmp_path / f"{seed}-result.json", seed=seed)
        dataset, env_id = (f"cube-double{kind}-singletask{task}-v0" for kind in ("-play", ""))
        paths.append(played_in(path, dataset=dataset, env_id=env_id))
    (board,), _ = boards_of(paths, published_scores())
    assert board.tasks == TASKS[:2]
    assert len(board.scores[TASKS[1], "TQL tiny"].runs) == 2
    assert board.scores[TASKS[1], "TQL (reported)"].runs == ()


def test_a_domain_short_of_tasks_says_so(tmp_path):
    """Two tasks of five, one of them in two rows, then all five."""
    paths = [
        played_in(write_result(tmp_path / f"{i}-result.json"), dataset=task, env_id=env_id)
        for i, (task, env_id) in enumerate([(TASKS[0], "A-v0"), (TASKS[1], "A-v0"),
                                            (TASKS[1], "B-v0")])
    ]  # fmt: skip
    (board,), _ = boards_of(paths)
    section = board_section(board, "b")
    assert (
        part_of(section, "Score by task").tables[1].rows[0][0].text
        == "cube-double-play (3 rows of 2 of 5 tasks)"
    )
    assert "cube-double-play (3 rows of 2 of 5 tasks)" in as_latex([section])
    (document,) = json.loads(as_json([section]))["boards"]
    assert [(a["domain"], a["tasks"]) for a in document["averages"]] == [
        ("cube-double-play", 2),
        ("all", 2),
    ]
    paths = [write_result(tmp_path / f"{task}-result.json", task=task) for task in TASKS]
    (board,), _ = boards_of(paths)
    assert (
        part_of(board_section(board, "b"), "Score by task").tables[1].rows[0][0].text
        == "cube-double-play"
    )


def test_a_seed_counts_once(tmp_path):
    paths = [
        write_result(tmp_path / name / "result.json", run=name, successes=(k, k, k))
        for name, k in (("b", 20), ("a", 10))
    ]
    (board,), (warning,) = boards_of(paths)
    assert board.scores[TASKS[0], "TQL tiny"].runs == (20.0,)
    assert warning.startswith("b: ")
    assert "another run of seed 0" in warning


def test_a_single_run_has_no_deviation_anywhere(tmp_path):
    files = write_report(
        [], tmp_path / "out", merged=several(tmp_path, seeds=(0,)), published=False
    )
    page, tex = files.markdown.read_text(), files.boards[2].read_text()
    assert "| 20 (1) |" in page.replace("**", "")
    assert "± 0" not in page
    assert "20 (1)" in tex
    assert r"20 $\pm$ 0" not in tex
    (row, *_) = csv.DictReader(files.boards[0].read_text().splitlines())
    assert [row["sd"]] == [""]
    files = write_report([], tmp_path / "two", merged=several(tmp_path / "more"), published=False)
    assert r"21 $\pm$ 1 (2)" in files.boards[2].read_text()


def test_too_few_evaluations_are_no_score(tmp_path):
    """Of a protocol that counts the last three."""
    path = write_result(tmp_path / "result.json", successes=(10, 20))
    assert measured(read_result(path)) == ("has 2 planned evaluations where its protocol counts 3")


def test_early_evaluations_are_no_score_of_a_finished_run(tmp_path):
    path = write_result(tmp_path / "result.json", successes=(10, 20, 30), updates=1_000_000)
    assert measured(read_result(path)) == (
        "has no score of update 800000, 900000, 1000000, which its protocol counts"
    )
    folder = make_run(tmp_path / "runs" / "early", successes=(44, 3))
    lines = folder.evaluations.read_text().splitlines(keepends=True)
    folder.evaluations.write_text(lines[0])
    other = make_run(tmp_path / "runs" / "whole", successes=(44, 3), seed=1)
    report = write_report([folder, other], tmp_path / "report", published=False)
    assert "early" not in report.boards[0].read_text()
    (score,) = json.loads(report.boards[1].read_text())["boards"][0]["scores"]
    assert score["runs"] == 1, "the other's"
    assert (
        f"early: quick v1 counts the score at update 10,000, which is missing; "
        f"`tql-offline eval {folder.path} --missing` adds it"
    ) in report.warnings
    text = report.markdown.read_text()
    assert "44/50 successes at update 5 000 (" in text
    assert "44/50 (88 %, 76–94 %), update 5 000 |" in text
    assert "3/50 successes (" in text


def of_protocol(path, name, episodes, evaluations=slice(None), **other):
    """A result of a named protocol whose evaluations claim a number of episodes."""
    known = get(name)
    protocol = {"name": name, "version": 1, "counted": known.counted}
    write_result(path, protocol=protocol, **other)
    document = json.loads(path.read_text())
    for row in document["evaluations"][evaluations]:
        row["episodes"] = episodes
        row["score"] = row["return_mean"] if known.score == "return" else row["score"]
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "protocol",
    [*protocols(), *map(get, ("quick:5", "quick:200", "ogbench-goal:3", "d4rl:20@1000"))],
    ids=lambda protocol: protocol.name,
)
def test_as_many_episodes_as_the_protocol_has_are_a_score(tmp_path, protocol):
    number = len(episode_seeds(protocol))
    path = of_protocol(tmp_path / "result.json", protocol.name, number, updates=300_000)
    run = read_result(path)
    assert {e.episodes for e in run.evaluations} == {number}
    assert run.warnings == ()
    assert isinstance(measured(run), Measured)
    of_protocol(path, protocol.name, number + 1, updates=300_000)
    assert read_result(path).evaluations == ()


@pytest.mark.parametrize(
    ("evaluations", "other", "said"),
    [
        ([], {}, "is not scored yet (`tql-offline eval RUN --missing` scores it)"),
        ([("behaviour", 300_000)], {}, "is not scored yet (`tql-offline eval RUN --missing` scor"),
        ([("learned", 150_001)], {}, "has no score that its own protocol plans (`tql-offline eval"),
        ([("learned", 300_000)], {"seed": None}, "has a result without a seed"),
        ([("learned", 300_000)], {"dataset": "", "task": ""}, "has a result without a task"),
    ],
)
def test_a_run_without_a_score_is_told_its_cause_and_mend(tmp_path, evaluations, other, said):
    path = write_result(tmp_path / "r.json")
    document = json.loads(path.read_text())
    line = document["evaluations"][-1]
    lines = [line | {"policy": policy, "step": step} for policy, step in evaluations]
    path.write_text(json.dumps(document | {"evaluations": lines} | other))
    run = read_result(path)
    assert str(measured(replace(run, provenance={}))).startswith(said)


def test_results_of_another_number_of_episodes_are_left_out(tmp_path, capsys):
    runs = [
        make_run(tmp_path / "runs" / f"r{s}", protocol="ogbench-singletask", seed=s) for s in (0, 1)
    ]
    path = of_protocol(tmp_path / "merged" / "result.json", "ogbench-singletask", 100, method="F")
    sentence = (
        "result.json has 3 evaluations of 100 episodes where ogbench-singletask v1 has 50, left out"
    )
    files = write_report(runs, tmp_path / "out", merged=[path])
    assert files.warnings == (f"{path}: {sentence}",)
    assert "F tiny" not in files.html.read_text()
    # Some evaluations alone, none of which counts: named, and the rest is a score.
    of_protocol(path, "quick", 49, evaluations=slice(0, 1), method="F", updates=300_000)
    (warning,) = write_report(runs, tmp_path / "out", merged=[path]).warnings
    assert warning == (
        f"{path}: result.json has 1 evaluation of 49 episodes where quick v1 has 50, left out"
    )


def test_episodes_of_another_number_are_left_out_of_a_run(tmp_path):
    """Nor does the result stand in for them: it is of the same episodes, whatever it says."""
    folder = make_run(tmp_path / "r")
    lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    short = [line | {"episodes": line["episodes"][:40], "success_rate": None} for line in lines]
    write_lines(folder.evaluations, short)
    run = read_run(folder)
    assert run.evaluations == ()
    assert run.warnings == (
        "evaluations.jsonl has 5 evaluations of 40 episodes where quick v1 has 50, left out",
    )
    write_lines(folder.evaluations, [*lines, *short])
    assert read_run(folder).evaluations == tuple(read_run(make_run(tmp_path / "s")).evaluations)


def test_initial_states_are_claimed_of_recorded_seeds_alone(tmp_path):
    """Of the protocol's own seeds, in all runs; a result.json has none."""
    runs = [make_run(tmp_path / f"r{seed}", seed=seed) for seed in (0, 1)]
    claim = "all played from the protocol's own initial states"

    def claims(merged=()):
        page = write_report(runs, tmp_path / "out", merged=merged).markdown.read_text()
        assert "95 % intervals over training runs" in page
        return claim in page

    assert not claims(), "seeds that are not the protocol's"
    seeds = episode_seeds(get("quick"))
    for folder in runs:
        lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
        for line in lines:
            for episode, seed in zip(line["episodes"], seeds, strict=True):
                episode["seed"] = seed
        write_lines(folder.evaluations, lines)
    assert claims()
    document = json.loads(runs[0].result.read_text())
    other = tmp_path / "other-result.json"
    other.write_text(json.dumps(document | {"run": "other", "seed": 2}))
    assert not claims([other])


def test_an_evaluation_asked_for_beside_changes_no_score(tmp_path):
    path = write_result(tmp_path / "result.json", successes=(10, 20, 30))
    document = json.loads(path.read_text())
    extra = document["evaluations"][-1] | {"step": 250_000, "score": 100.0, "success_rate": 1.0}
    document["evaluations"].append(extra)
    path.write_text(json.dumps(document))
    run = read_result(path)
    assert measured(run).score == pytest.approx(40)
    (score,) = scores_of(run)
    assert [e.step for e in score.evaluations] == [100_000, 200_000, 300_000]


def test_a_score_is_of_the_versions_that_it_was_played_with(tmp_path):
    path = write_result(tmp_path / "result.json", mujoco="3.3.5")
    document = json.loads(path.read_text())
    for line in document["evaluations"]:
        line["versions"] = {"mujoco": "3.9.0"}
    path.write_text(json.dumps(document))
    assert measured(read_result(path)).setting.mujoco == "3.9.0"
    del document["evaluations"][0]["versions"]
    path.write_text(json.dumps(document))
    assert "cannot be compared (" in measured(read_result(path))


def with_settings(path, **settings):
    document = json.loads(path.read_text()) | {"settings": settings}
    path.write_text(json.dumps(document))
    return path


def test_runs_of_unlike_settings_are_columns_of_their_own(tmp_path):
    """Of seeds 0 and 1 on one task; on another task a third value is no difference."""
    common = {"steps": 300_000, "execution": {"compile": "on"}}
    paths = [
        with_settings(
            write_result(tmp_path / f"{task}-{seed}-result.json", task=TASKS[task], seed=seed),
            **common, seed=seed, flow={"alpha": alpha}, device="cuda" if seed else "cpu",
            keep_checkpoints=seed,
        )
        for task, seed, alpha in ((0, 0, 300.0), (0, 1, 3.0), (1, 0, 3.0), (1, 1, 3.0))
    ]  # fmt: skip
    (board,), warnings = boards_of(paths)
    assert board.measured == ("TQL (flow.alpha 3.0) tiny", "TQL (flow.alpha 300.0) tiny")
    assert len(board.scores[TASKS[0], "TQL (flow.alpha 3.0) tiny"].runs) == 1
    assert len(board.scores[TASKS[1], "TQL (flow.alpha 3.0) tiny"].runs) == 2
    assert warnings == []
    (board,), _ = boards_of([paths[0], paths[2]])
    assert board.measured == ("TQL tiny",)


@pytest.mark.parametrize("larger", [1, 10])
def test_an_odd_run_is_named_where_a_setting_goes_by_task_and_size(larger, tmp_path):
    """As α does by presets: the other runs stay one column, and its sizes stay compared."""
    paths = [
        with_settings(
            write_result(tmp_path / f"{task}-{size}-{seed}.json", task=TASKS[task], seed=seed,
                         size=size),
            flow={"alpha": alpha * (larger if size == "small" else 1)}, steps=300_000,
        )
        for task, alpha in enumerate((300.0, 90.0)) for size in ("tiny", "small")
        for seed in range(3)
    ]  # fmt: skip
    odd = write_result(tmp_path / "odd.json", task=TASKS[0], seed=7)
    (board,), _ = boards_of([*paths, with_settings(odd, flow={"alpha": 10.0}, steps=300_000)])
    assert board.measured == ("TQL tiny", "TQL small", "TQL (flow.alpha 10.0) tiny")
    (scaling,) = scaling_of(board, np.random.default_rng(0))
    assert (scaling.method, scaling.tasks) == ("TQL", TASKS[:2])
    assert scaling.differing == (("flow.alpha",) if larger > 1 else ())


def test_long_settings_are_compared_whole(tmp_path):
    targets = [[1.4, 1.1], [1.4, 1.1], [1.4, 1.1], [1.4, 1.1]]
    paths = [
        with_settings(
            write_result(tmp_path / f"{seed}.json", seed=seed),
            entropy={"mode": "layerwise", "targets_nats": [*targets, last]},
        )
        for seed, last in enumerate(([1.4, 1.1], [0.1, 0.1]))
    ]
    (board,), _ = boards_of(paths)
    assert len(board.measured) == 2
    assert all("entropy.targets_nats [[1.4, 1.1]" in label for label in board.measured)


def test_runs_of_unknown_settings_are_told_apart_by_their_updates(tmp_path):
    paths = [
        write_result(tmp_path / f"{seed}.json", seed=seed, updates=updates, protocol=protocol)
        for seed, updates in enumerate((300_000, 100_000))
        for protocol in [{"name": "other", "version": 1, "episodes": 50, "counted": "last"}]
    ]
    (board,), _ = boards_of(paths)
    assert board.measured == ("TQL (steps 100000) tiny", "TQL (steps 300000) tiny")


def test_a_score_of_an_unknown_protocol_has_no_unit_and_no_average(tmp_path):
    kinds = {"other v1": "", "quick-return v99": "return", "ogbench-singletask v99": "success"}
    (board,), _ = boards_of([write_result(tmp_path / "a.json")])
    for label, kind in kinds.items():
        found = replace(board, setting=board.setting._replace(protocol=label))
        assert (found.kind, found.may_be_rate, found.is_rate) == (kind, kind == "success", False)
        assert found.averages(TASKS) == (kind == "success")
        assert found.averages(TASKS[:1])
    unknown = replace(board, setting=board.setting._replace(protocol="other v1"))
    assert unknown.unit == "score as recorded"
    wide = replace(unknown, tasks=TASKS[:2])
    assert "Scores of an unknown protocol may be on each task's own scale" in str(
        [*leaderboard_notes.without_average(wide, [])]
    )


def test_ranks_are_of_methods_with_runs(tmp_path):
    paths = [
        write_result(tmp_path / f"{method}-{task}-{seed}.json", method=method, task=task, seed=seed,
                     successes=(score + seed,) * 3)
        for method, score in (("TQL", 20), ("FQL", 10)) for task in TASKS for seed in range(5)
    ]  # fmt: skip
    (board,), _ = boards_of(paths, published_scores())
    assert board.reported
    found = {s.label: s.rank for s in summaries(board.core(), np.random.default_rng(0))}
    assert (found["TQL tiny"].value, found["FQL tiny"].value) == (1, 2)
    assert math.isnan(found[board.reported[0]].value)
    caption = part_of(board_section(board, "b"), "Methods over all tasks").tables[0].caption
    assert caption.endswith("ranks are of methods with runs")


def test_as_many_successes_rank_alike(tmp_path):
    """3 of 450 each, in one run or one in each."""
    spread = {"TQL": [(1, 0, 0)] * 3, "FQL": [(3, 0, 0), (0, 0, 0), (0, 0, 0)]}
    paths = [
        write_result(tmp_path / f"{method}-{seed}.json", method=method, seed=seed, successes=each)
        for method, runs in spread.items()
        for seed, each in enumerate(runs)
    ]
    (board,), _ = boards_of(paths)
    assert mean_ranks(board, board.measured) == {"FQL tiny": 1.5, "TQL tiny": 1.5}
    assert board.bold(TASKS[0]) == [False, False]


def test_sizes_of_an_unknown_number_of_parameters_are_told(tmp_path):
    paths = [
        write_result(tmp_path / f"{size}.json", size=size, parameters=None)
        for size in ("tiny", "small")
    ]
    (board,), _ = boards_of(paths)
    (sentence,) = leaderboard_notes.without_scaling(board, [])
    assert sentence.startswith("TQL, small, tiny: not all of these runs record the number of")


def test_rates_of_several_devices_are_told(tmp_path):
    paths = [write_result(tmp_path / f"{size}.json", size=size) for size in ("tiny", "small")]
    (board,), _ = boards_of(paths)
    scalings = scaling_of(board, np.random.default_rng(0))
    for devices, said in ((("CPU", "CPU"), 0), (("CPU", "H200"), 1)):
        timed = [
            replace(run, seconds=5.0, device=device)
            for run, device in zip(board.runs, devices, strict=True)
        ]
        found = [*leaderboard_notes.unlike_devices(scalings, replace(board, runs=tuple(timed)))]
        assert len(found) == said
    assert found[0].startswith("Updates/s and hours of TQL are of several devices (CPU, H200)")


def test_d4rl_scores_have_the_decimal_that_papers_print(tmp_path):
    (board,), _ = boards_of([write_result(tmp_path / f"{s}.json", seed=s) for s in (0, 1)])
    d4rl = replace(board, setting=board.setting._replace(protocol="d4rl v1"))
    assert (board.decimals, d4rl.decimals) == (0, 1)
    shown = [
        part_of(board_section(each, "b"), "Score by task").tables[0].rows[0][1].text
        for each in (board, d4rl)
    ]
    assert shown == ["40 ± 0 (2)", "40.0 ± 0.0 (2)"]


def test_choosing_among_settings_by_the_scores_shown_is_warned_of(tmp_path):
    """Three α of one size on one task; one α per task, or settings not known, are no choice."""

    def results(folder, *cells):
        return [
            with_settings(
                write_result(
                    tmp_path / folder / f"{i}-result.json", task=TASKS[task], size=size, seed=i
                ),
                **({"flow": {"alpha": alpha}} if alpha else {}),
            )
            for i, (task, size, alpha) in enumerate(cells)
        ]  # fmt: skip

    (board,), _ = boards_of(
        results("a", *((0, s, a) for s in ("tiny", "large") for a in (1, 3, 9)))
    )
    section = board_section(board, "b")
    (note,) = [sentence for sentence in section.sentences if "biased" in sentence]
    assert note.startswith("Several settings are shown of TQL tiny, TQL large. The best of them")
    assert "docs/selection.md" in note
    for folder, cells in {
        "b": ((0, "tiny", 1), (0, "large", 3), (1, "tiny", 3)),
        "c": ((0, "tiny", 1), (0, "tiny", 1)),
    }.items():
        (board,), _ = boards_of(results(folder, *cells))
        assert board.notes == ()
    cells = (0, "large", 1), (0, "large", 3), (0, "tiny", 1), (0, "tiny", None)
    (board,), _ = boards_of(results("d", *cells))
    assert board.notes[0].startswith("Several settings are shown of TQL large. The best of them")


@pytest.mark.parametrize(
    ("cells", "unknown"),
    [
        ((("tiny", 1), ("tiny", None), ("tiny", None)), 2),
        ((("tiny", 1), ("small", None)), 1),  # sizes are compared
        ((("tiny", 1), ("tiny", 1)), 0),
        ((("tiny", None), ("tiny", None)), 0),
        ((("tiny", 1), ("tiny", 3), ("tiny", None)), 0),  # that one has a column of its own
    ],
)
def test_runs_of_unknown_settings_among_known_ones_are_told(tmp_path, cells, unknown):
    paths = []
    for seed, (size, alpha) in enumerate(cells):
        paths.append(write_result(tmp_path / f"{seed}-result.json", seed=seed, size=size))
        if alpha:
            with_settings(paths[-1], flow={"alpha": alpha})
    (board,), _ = boards_of(paths)
    said = (
        f"Settings of {unknown} of {len(cells)} runs of TQL are not recorded; they are taken as "
        "the others'."
    )
    assert [s for s in board_section(board, "b").sentences if "recorded" in s] == [said][:unknown]


def test_a_trend_is_claimed_at_5_percent_over_both_directions_and_all_methods(tmp_path):
    (board,), _ = boards_of(by_size(tmp_path, {}))
    (scaling,) = scaling_of(board, np.random.default_rng(0))

    def sentences(*p_values):
        trends = (replace(scaling.trend, p_rise=p, p_fall=1 - p, least_p=0.0) for p in p_values)
        return list(trend_sentences([replace(scaling, trend=trend) for trend in trends]))

    assert ["scores rise" in s for s in sentences(0.024)] == [True]
    assert ["scores rise" in s for s in sentences(0.026)] == [False]
    assert ["scores rise" in s for s in sentences(0.024, 0.5)] == [False, False]
    assert ["scores fall" in s for s in sentences(0.99, 0.5)] == [True, False]


def test_runs_whose_perfect_order_is_likely_are_too_few(tmp_path):
    """Three runs each of two sizes: 1 of C(6, 3) = 20 deals puts all large ones on top."""
    paths = [
        write_result(
            tmp_path / f"{size}-{seed}-result.json",
            size=size, seed=seed, successes=(k + seed,) * 3,
        )
        for size, k in (("tiny", 5), ("large", 40))
        for seed in range(3)
    ]  # fmt: skip
    (board,), _ = boards_of(paths)
    (sentence,) = trend_sentences(scaling_of(board, np.random.default_rng(0)))
    assert "too few runs to show a trend with size, whatever their order" in sentence
    assert "two-sided p = 0.100)" in sentence
    assert "] (not" not in sentence, "one method"
    assert sentence.endswith("]. A trend can show from 4 runs of each size on.")
    assert "no trend" not in sentence


def test_a_board_without_a_method_on_every_task_has_no_ranks(tmp_path):
    paths = [
        write_result(tmp_path / f"{task}-{method}-result.json", task=TASKS[task], method=method)
        for task, method in ((0, "A"), (1, "B"))
    ]
    page = write_report([], tmp_path / "out", merged=paths, published=False).markdown.read_text()
    assert "A tiny" in page
    assert "mean rank" not in page


def test_a_run_of_another_method_and_task_ends_no_comparison(tmp_path):
    paths = [*several(tmp_path), *several(tmp_path, methods=("C",), tasks=(2,), seeds=(0,))]
    page = write_report([], tmp_path / "out", merged=paths, published=False).markdown.read_text()
    assert "Over 2 tasks, 95 % intervals" in page
    assert "averaged over 2 tasks" in page
    assert (
        "cover the 2 of 3 tasks and 2 of 3 methods for which every method has every task; "
        f"left out: {TASKS[2]}, C tiny."
    ) in page
    (board,), _ = boards_of(paths)
    assert {s.label for s in summaries(board.core(), np.random.default_rng(0))} == {
        "A tiny",
        "B tiny",
    }


def test_all_tasks_are_compared_over_where_two_columns_have_them(tmp_path):
    paths = [*several(tmp_path, tasks=(0, 1, 2)), *several(tmp_path, methods=("C",), tasks=(0,))]
    (board,), _ = boards_of(paths)
    core = board.core()
    assert core.tasks == board.tasks
    assert core.measured == ("A tiny", "B tiny")
    (alone,), _ = boards_of(several(tmp_path / "alone", methods=("A",)))
    assert alone.core() == alone


def test_a_papers_columns_are_not_what_runs_are_compared_with_alone(tmp_path):
    paths = [
        *several(tmp_path, methods=("A",), tasks=(0, 1, 2)),
        *several(tmp_path, methods=("B", "C"), tasks=(0, 1)),
    ]
    (board,), _ = boards_of(paths, published_scores())
    assert board.reported, "which have every task"
    core = board.core()
    assert core.measured == ("A tiny", "B tiny", "C tiny")
    assert core.tasks == (TASKS[0], TASKS[1])
    assert core.reported == board.reported


def test_a_size_that_was_begun_ends_no_comparison_of_sizes(tmp_path):
    whole = several(tmp_path, methods=("A",), sizes=("tiny", "small"), tasks=(0, 1))
    begun = several(tmp_path, methods=("A",), sizes=("large",), tasks=(2,), seeds=(0,))
    (board,), _ = boards_of([*whole, *begun])
    (found,) = scaling_of(board, np.random.default_rng(0))
    assert [point.size for point in found.points] == ["tiny", "small"]
    assert found.tasks == (TASKS[0], TASKS[1])
    assert found.left_out == ("large",)
    (sentence,) = trend_sentences([found])
    assert "over the 2 tasks that these sizes share (large lacks some)" in sentence
    # One that has half of the tasks is compared on these.
    more = several(tmp_path, methods=("A",), sizes=("large",), tasks=(1,))
    (board,), _ = boards_of([*whole, *more])
    (found,) = scaling_of(board, np.random.default_rng(0))
    assert [point.size for point in found.points] == ["tiny", "small", "large"]
    assert (found.tasks, found.left_out) == ((TASKS[1],), ())


def test_two_names_of_one_size_are_no_scaling(tmp_path):
    paths = [write_result(tmp_path / "a-result.json", seed=0)]
    paths.append(write_result(tmp_path / "b-result.json", seed=1))
    paths[1].write_text(paths[1].read_text().replace('"size": "tiny"', '"size": "large"'))
    (board,), _ = boards_of(paths)
    assert scaling_of(board, np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({"objective": "implicit", "flow": {"alpha": 1.0}}, 1),
        ({"objective": "flow", "flow": {"alpha": 1.0}}, 2),
        ({"objective": "flow", "critic": {"kind": "mlp"}, "entropy": {"mode": "none"}}, 1),
        ({"objective": "flow", "critic": {"kind": "transformer"}, "entropy": {"target": 0.1}}, 2),
        ({"objective": "implicit", "implicit": {"expectile": 0.1}}, 2),
        ({"objective": "flow", "implicit": {"expectile": 0.1}}, 1),
        ({"objective": "floq", "flow": {"alpha": 1.0}}, 2),
        ({"objective": "floq", "floq": {"steps": 4}}, 2),
        ({"objective": "flow", "floq": {"steps": 4}}, 1),
    ],
)
def test_settings_without_a_use_make_no_column(tmp_path, settings, columns):
    default = Config().model_dump(mode="json")
    changed = {
        key: value | settings.get(key, {}) if isinstance(value, dict) else settings.get(key, value)
        for key, value in default.items()
    }
    plain = default | {"objective": settings["objective"]}
    plain["critic"] = default["critic"] | settings.get("critic", {})
    paths = [
        with_settings(write_result(tmp_path / f"{seed}-result.json", seed=seed), **table)
        for seed, table in enumerate((plain, changed))
    ]
    (board,), _ = boards_of(paths)
    assert len(board.measured) == columns, board.measured


def test_the_length_of_a_schedule_that_is_constant_changes_nothing():
    table = {"optimizer.warmup": 0, "optimizer.schedule": "constant"}
    runs = [effective(table | {"optimizer.schedule_steps": n}, "flow") for n in (0, 5)]
    assert differing(runs) == ()
    table |= {"optimizer.warmup": 2}
    runs = [effective(table | {"optimizer.schedule_steps": n}, "flow") for n in (0, 5)]
    assert differing(runs) == ("optimizer.schedule_steps",)


def test_mlps_as_large_as_transformers_of_other_depths_are_other_critics(tmp_path):
    """Their width goes by that transformer's parameters."""
    default = Config().model_dump(mode="json") | {"entropy": {"mode": "none"}}
    paths = []
    for depth in (2, 4):
        file = write_result(tmp_path / f"{depth}-result.json", seed=depth, method="FQL")
        critic = default["critic"] | {"kind": "mlp", "depth": depth}
        paths.append(with_settings(file, **default | {"critic": critic}))
    (board,), _ = boards_of(paths)
    assert board.measured == ("FQL (critic.depth 2) tiny", "FQL (critic.depth 4) tiny")


def test_less_than_a_full_result_is_told(tmp_path):
    (board,), _ = boards_of(by_size(tmp_path, {}))
    told = " ".join(board_section(board, "b").sentences).replace("\u00a0", " ")
    assert "8 seeds of 1 000 000 updates: of 4 cells, 4 have fewer seeds and 4 have shorter" in told


def test_numbers_of_ones_own_know_no_full_result(tmp_path):
    found = measured(read_result(write_result(tmp_path / "r.json")))
    for protocol, is_told in (("quick:20@200 v1", False), ("quick v1", True)):
        setting = found.setting._replace(protocol=protocol)
        (board,), _ = make_boards([replace(found, setting=setting, updates=10)])
        told = any("A full result of" in s for s in board_section(board, "b").sentences)
        assert told == is_told


def test_sizes_of_unlike_settings_are_told(tmp_path):
    paths = [
        with_settings(
            write_result(tmp_path / f"{size}-{seed}-result.json", size=size, seed=seed), steps=steps
        )
        for size, steps in (("tiny", 300_000), ("large", 1_000_000))
        for seed in range(2)
    ]
    page = write_report([], tmp_path / "out", merged=paths, published=False)
    text = page.markdown.read_text()
    assert "these runs also differ in steps, so size is not the only difference: " in text


def test_an_interval_needs_two_runs_of_every_task(tmp_path):
    paths = [
        write_result(
            tmp_path / f"{task}-{seed}-{k}-result.json",
            task=TASKS[task], seed=seed, method=f"M{k}", successes=(10 + k + seed,) * 3,
        )
        for k in range(2)
        for task, seeds in ((0, 5), (1, 1 + 4 * k))
        for seed in range(seeds)
    ]  # fmt: skip
    (board,), _ = boards_of(paths)
    found = {s.label: s for s in summaries(board, np.random.default_rng(0))}
    for label, has in (("M0 tiny", False), ("M1 tiny", True)):
        for estimate in found[label].estimates.values():
            assert np.isfinite([estimate.low, estimate.high]).all() == has
        # A rank is among all columns: of one's single run nothing is known.
        assert math.isnan(found[label].rank.low)


def test_ranks_of_runs_that_agree_leave_room_for_others(tmp_path):
    """Five seeds at 100 % may miss a share of failures that would make their method the second."""
    table = {("A", 0): 5 * (50,), ("B", 0): (47, 48, 47, 48, 47)}
    table |= {("A", 1): (30, 31, 32, 33, 34), ("B", 1): (10, 11, 12, 13, 14)}
    paths = [
        write_result(
            tmp_path / f"{method}-{task}-{seed}-result.json",
            task=TASKS[task], seed=seed, method=method, successes=3 * (count,),
        )
        for (method, task), counts in table.items()
        for seed, count in enumerate(counts)
    ]  # fmt: skip
    (board,), _ = boards_of(paths)
    rank = {s.label: s.rank for s in summaries(board, np.random.default_rng(0))}
    assert (rank["A tiny"].low, rank["A tiny"].value, rank["A tiny"].high) == (1, 1, 1.5)
    assert (rank["B tiny"].low, rank["B tiny"].value, rank["B tiny"].high) == (1.5, 2, 2)
    unknown = replace(board, setting=board.setting._replace(protocol="another v1"))
    rank = {s.label: s.rank for s in summaries(unknown, np.random.default_rng(0))}
    assert (rank["A tiny"].low, rank["A tiny"].high) == (1, 1)


def test_scores_between_0_and_1_keep_their_figures(tmp_path):
    found = measured(read_result(write_result(tmp_path / "r.json")))
    setting = found.setting._replace(protocol="minari v1")
    runs = [replace(found, setting=setting, seed=s, score=0.55 + 0.05 * s) for s in range(2)]
    (board,), _ = make_boards(runs)
    section = board_section(board, "b")
    assert part_of(section, "Score by task").tables[0].rows[0][1].text == "0.5750 ± 0.0250 (2)"
    assert r"0.5750 $\pm$ 0.0250" in as_latex([section])


def test_summaries_of_a_known_table(tmp_path):
    """Method A scores 2 and 4 less than B on two tasks, in every seed."""
    paths = [
        write_result(
            tmp_path / f"{task}-{seed}-{method}-result.json",
            task=TASKS[task], seed=seed, method=method, successes=(k,) * 3,
        )
        for task, lower in enumerate((1, 2))
        for seed, base in enumerate(range(20, 26))
        for method, k in (("A", base - lower), ("B", base))
    ]  # fmt: skip
    (board,), _ = boards_of(paths)
    best, worst = summaries(board, np.random.default_rng(0))
    assert (best.label, worst.label) == ("B tiny", "A tiny")
    assert best.mean == pytest.approx(45)
    assert worst.mean == pytest.approx(42)
    assert best.rank.value == 1
    assert 1 <= best.rank.low <= best.rank.high <= 2
    assert best.estimates["optimality gap"].value == pytest.approx(55)


# One's own data.


def own(path, dataset, *, sha256="5a" * 32, env_id="mine:Point-v0", recorded=True, **other):
    """A result on one's own file; older ones did not record what the data are called."""
    write_result(path, dataset_sha256=sha256, **other)
    document = json.loads(path.read_text()) | {"dataset": dataset, "task": env_id}
    facts = document["provenance"]["dataset"]
    facts["name"] = Path(dataset).stem
    if not recorded:
        del facts["name"]
    for line in document["evaluations"]:
        line["env_id"] = env_id
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("recorded", [True, False])
def test_ones_own_data_are_one_row_however_their_path_is_spelled(tmp_path, recorded):
    spelled = (
        "moved/../og.npz",
        "og.npz",
        "/home/a/og.npz",
        *([] if recorded else ["D:\\d\\og.npz"]),
    )
    paths = [
        own(tmp_path / f"{seed}-result.json", name, seed=seed, recorded=recorded)
        for seed, name in enumerate(spelled)
    ]
    (board,), warnings = boards_of(paths)
    assert board.tasks == ("og",)
    assert len(board.scores["og", "TQL tiny"].runs) == len(spelled)
    assert (warnings, board.notes) == ([], ())


def test_ones_own_data_of_one_name_and_two_contents_are_two_rows(tmp_path):
    given = [("og.npz", "5a"), ("a/og.npz", "5a"), ("og.hdf5", "6b")]
    paths = [
        own(tmp_path / f"{seed}-result.json", name, seed=seed, sha256=digest * 32)
        for seed, (name, digest) in enumerate(given)
    ]
    (board,), _ = boards_of(paths)
    assert board.tasks == ("og, data 5a5a5a5a", "og, data 6b6b6b6b")
    assert [len(score.runs) for score in board.scores.values()] == [2, 1]
    (told,) = board.notes
    assert "2 contents are called og" in told
    assert told.endswith("SHA-256: 5a5a5a5a (og.npz), 6b6b6b6b (og.hdf5).")
    assert told in board_section(board, "b").sentences


def test_a_copy_of_ones_own_data_is_the_same_task_in_the_same_environment(tmp_path):
    given = [("og.npz", "A-v0"), ("og.npz", "A-v0"), ("copy.npz", "A-v0"), ("copy.npz", "B-v0")]
    paths = [
        own(tmp_path / f"{seed}-result.json", name, seed=seed, env_id=env_id)
        for seed, (name, env_id) in enumerate(given[:3])
    ]
    (board,), _ = boards_of(paths)
    assert board.tasks == ("og",)
    assert board.notes == ("Files of one content (copy.npz, og.npz) are one task, here called og.",)
    name, env_id = given[3]
    (board,), _ = boards_of([*paths, own(tmp_path / "3-result.json", name, seed=3, env_id=env_id)])
    assert [len(score.runs) for score in board.scores.values()] == [3, 1]
    assert board.tasks[1].endswith("environment B-v0")


def test_a_file_that_is_called_as_a_published_task_is_ones_own(tmp_path):
    paths = [own(tmp_path / "a-result.json", f"mine/{TASKS[0]}.npz")]
    paths.append(write_result(tmp_path / "b-result.json", seed=1))
    boards, _ = boards_of(paths, published_scores())
    assert {board.setting.suite: bool(board.reported) for board in boards} == {
        "own": False,
        "ogbench": True,
    }
