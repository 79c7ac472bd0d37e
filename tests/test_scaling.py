"""Scores by size: tables, tests and plots, each against a known answer."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from report_runs import (
    TASKS,
    boards_of,
    by_size,
    part_of,
    several,
    titles_of,
    write_result,
)

from tql_offline.eval.leaderboard import make_boards
from tql_offline.eval.leaderboard_files import as_json, as_latex
from tql_offline.eval.leaderboard_page import board_section
from tql_offline.eval.measured import measured
from tql_offline.eval.published import published_sizes
from tql_offline.eval.report import write_report
from tql_offline.eval.run_records import read_result
from tql_offline.eval.scaling import scaling_of
from tql_offline.eval.scaling_page import printed_table, trend_sentences

pytestmark = pytest.mark.usefixtures("panels_drawn_once")


def test_scaling_by_size_of_a_known_table(tmp_path):
    paths = [
        write_result(
            tmp_path / f"{size}-{seed}-{task}-result.json",
            size=size, seed=seed, task=TASKS[task], successes=(10, 10 + seed, k + seed),
        )
        for size, k in (("tiny", 13), ("small", 22), ("large", 40))
        for seed in range(3)
        for task in range(2)
    ]  # fmt: skip
    (board,), _ = boards_of(paths)
    (scaling,) = scaling_of(board, np.random.default_rng(0))
    assert [point.size for point in scaling.points] == ["tiny", "small", "large"]
    assert [point.runs for point in scaling.points] == [6, 6, 6]
    # In percent of 50 episodes: 2·(10 + 10 + s + k + s)/3 over seeds 0, 1, 2.
    expected = [2 * (22 + k) / 3 for k in (13, 22, 40)]
    assert [point.score.value for point in scaling.points] == pytest.approx(expected)
    first, *_, last = scaling.points
    assert last.difference.value == pytest.approx(expected[2] - expected[0])
    assert last.relative.value == pytest.approx(expected[2] / expected[0] - 1)
    assert last.relative.low <= last.relative.value <= last.relative.high
    assert (last.last, last.last_three, last.best) == pytest.approx((82, expected[2], 82))
    assert first.best == pytest.approx(28)
    assert scaling.trend.concordance == pytest.approx(1)
    assert scaling.trend.p_rise < 0.01 < scaling.trend.p_fall


@pytest.mark.parametrize(
    ("scores", "cell"),
    [
        # By Fieller's formula 144 to 283 % and 301 to 22999 %; a full score is +400 and +900 %.
        (((9, 10, 11), (29, 30, 31)), "+200 [+144, +283]"),
        (((3, 5, 7), (38, 40, 42)), "+700 [+301, no upper bound of use]"),
    ],
)
def test_a_relative_change_beyond_a_full_score_has_no_upper_bound(tmp_path, scores, cell):
    paths = [
        write_result(tmp_path / f"{size}-{s}-result.json", size=size, seed=s, successes=(k,) * 3)
        for size, each in zip(("tiny", "large"), scores, strict=True)
        for s, k in enumerate(each)
    ]
    (board,), _ = boards_of(paths)
    (*_, last) = part_of(board_section(board, "b"), "Score by size").tables[-1].rows
    assert last[5].text == cell


def test_several_methods_need_more_runs_for_any_trend(tmp_path):
    """Four runs each of two sizes: 2 of C(8, 4) = 70 deals, 0.03, which is 0.06 of two methods."""
    paths = [
        write_result(
            tmp_path / f"{m}-{size}-{seed}-result.json",
            method=m, size=size, seed=seed, successes=(k + seed,) * 3,
        )
        for m in ("A", "B")
        for size, k in (("tiny", 5), ("large", 40))
        for seed in range(4)
    ]  # fmt: skip
    few = "too few runs to show a trend with size, whatever their order"
    (board,), _ = boards_of(paths)
    scalings = scaling_of(board, np.random.default_rng(0))
    both, alone = trend_sentences(scalings), trend_sentences(scalings[:1])
    for sentence in (*both, *trend_sentences(scalings, brief=True)):
        assert few in sentence
        assert sentence.endswith(
            "large against tiny: +70.0 [+65.5, +74.5] (not corrected for 2 methods). "
            "A trend can show from 5 runs of each size on."
        )
    assert [few in sentence for sentence in alone] == [False]


def test_a_method_beside_a_sure_one_needs_no_more_runs(tmp_path):
    """Of Holm's two tests the second is not corrected: 2 of 70 deals are enough for it."""
    scores = {"tiny": [(5, 1)], "large": [(40, 1)]}
    sure, few = (
        scaling_of(boards_of(paths)[0][0], np.random.default_rng(0))[0]
        for paths in (
            results_of(tmp_path / "a", scores, seeds=8), results_of(tmp_path / "b", scores, seeds=4)
        )
    )  # fmt: skip
    said = list(trend_sentences([sure, few]))
    assert ["scores rise with size" in sentence for sentence in said] == [True, True]
    assert "two-sided p = 0.029, Holm-corrected for 2 methods" in said[1]


def test_scores_that_are_mostly_equal_are_not_called_few_runs(tmp_path):
    """Half of all deals have the one run that differs among the larger: as likely as not."""
    paths = results_of(tmp_path, {"tiny": [(50, 0)], "large": [(50, 0)]})
    write_result(paths[0], successes=(49,) * 3)
    (board,), _ = boards_of(paths)
    (sentence,) = trend_sentences(scaling_of(board, np.random.default_rng(0)))
    assert "too many equal scores to show a trend with size, whatever their order" in sentence


def test_a_falling_order_that_is_rarer_than_the_rising_one_is_a_trend(tmp_path):
    """Four runs of tiny with all episodes, eight of large with none: 2 of C(12, 4) = 495 deals."""
    paths = [
        write_result(
            tmp_path / f"{size}-{seed}-result.json", size=size, seed=seed, successes=(k,) * 3
        )
        for size, k, seeds in (("tiny", 50, 4), ("large", 0, 8))
        for seed in range(seeds)
    ]
    (board,), _ = boards_of(paths)
    (sentence,) = trend_sentences(scaling_of(board, np.random.default_rng(0)))
    assert "scores fall with size" in sentence
    assert "p = 0.004" in sentence
    assert "can show from" not in sentence


def results_of(tmp_path, scores, seeds=6):
    """Results of sizes by their successes of 50 on each task."""
    return [
        write_result(
            tmp_path / f"{size}-{seed}-{task}-result.json",
            size=size, seed=seed, task=TASKS[task], successes=(k + seed * step,) * 3,
        )
        for size, tasks in scores.items()
        for task, (k, step) in enumerate(tasks)
        for seed in range(seeds)
    ]  # fmt: skip


def sentence_of(tmp_path, scores):
    """What is said of sizes by their successes of 50 on two tasks, over six seeds."""
    (board,), _ = boards_of(results_of(tmp_path, scores))
    (sentence,) = trend_sentences(scaling_of(board, np.random.default_rng(0)))
    return sentence


def test_tasks_that_disagree_are_counted(tmp_path):
    sentence = sentence_of(tmp_path, {"tiny": [(5, 1), (40, 1)], "large": [(40, 1), (5, 1)]})
    assert "no trend with size is shown" in sentence
    assert "Scores rise on 1 of these tasks and fall on 1." in sentence


def test_a_size_in_between_that_is_best_is_named(tmp_path):
    scores = {"tiny": [(5, 1)] * 2, "small": [(40, 1)] * 2, "large": [(5, 1)] * 2}
    sentence = sentence_of(tmp_path, scores)
    assert "The best size by these scores is small: +70.0 against tiny, part of which" in sentence
    assert "Scores rise on" not in sentence


def test_runs_at_the_ceiling_are_not_called_few(tmp_path):
    sentence = sentence_of(tmp_path, {"tiny": [(50, 0)] * 2, "large": [(50, 0)] * 2})
    assert "all runs of a task score the same, so no effect of size can show" in sentence
    assert "few" not in sentence


def test_a_small_chance_is_not_printed_as_none(tmp_path):
    sentence = sentence_of(tmp_path, {"tiny": [(5, 1)] * 2, "large": [(40, 1)] * 2})
    assert "scores rise with size" in sentence
    assert "two-sided p < 0.001" in sentence


def test_a_rise_by_ranks_that_means_do_not_show_is_told(tmp_path):
    """Seven of eight small runs score less than all large ones, and the eighth all."""

    def said(small, large):
        folder = tmp_path / f"{small[-1]}-{len(small)}-{large[0]}"
        paths = [
            write_result(
                folder / f"{size}-{seed}-result.json", size=size, seed=seed, successes=(k,) * 3
            )
            for size, runs in (("tiny", small), ("large", large))
            for seed, k in enumerate(runs)
        ]
        (board,), _ = boards_of(paths)
        (sentence,) = trend_sentences(scaling_of(board, np.random.default_rng(0)))
        return sentence

    against = said([5] * 7 + [50], [9] * 8)
    by_ranks = "scores rise with size by the ranks of runs, though "
    assert f"{by_ranks}large's mean is not higher than tiny's" in against
    unsure = said([5] * 7 + [20], [8] * 7 + [9])
    assert f"{by_ranks}the interval of the means' difference holds 0" in unsure
    assert "by the ranks" not in said([5, 6, 7, 8], [40, 41, 42, 43])


def test_scores_stand_against_flops_where_every_run_counted_them(tmp_path):
    flops = {"tiny": 2 * 10**6, "large": 5 * 10**9}
    (board,), _ = boards_of(by_size(tmp_path / "counted", flops))
    (scaling,) = scaling_of(board, np.random.default_rng(0))
    assert [point.flops for point in scaling.points] == [300_000 * flops[s] for s in flops]
    page = write_report([], tmp_path / "a", merged=by_size(tmp_path / "counted", flops))
    html = page.html.read_text()
    assert "Success in percent, by FLOPs" in html
    assert "FLOPs of a run&#39;s updates" in html or "FLOPs of a run's updates" in html
    assert ">600G<" in html
    assert ">1.5P<" in html


def test_older_results_without_flops_show_a_dash(tmp_path):
    page = write_report([], tmp_path / "b", merged=by_size(tmp_path / "older", {}))
    assert "by FLOPs" not in page.html.read_text()
    rows = [line for line in page.markdown.read_text().splitlines() if line.startswith("| tiny |")]
    assert rows[-1].split("|")[-2].strip() == "—"
    (board,) = json.loads((tmp_path / "b" / "leaderboard.json").read_text())["boards"]
    assert [point["flops"] for point in board["scaling"][0]["points"]] == [None, None]


@pytest.mark.parametrize("flops", ["1", -1, 1.5, True, 10**400, None, [], 0])
def test_flops_that_are_none_are_left_out(tmp_path, flops):
    path = write_result(tmp_path / "result.json", flops_per_update=flops)
    assert np.isnan(measured(read_result(path)).flops)


# Performance profiles.


def test_profiles_are_drawn_of_methods_with_several_runs(tmp_path):
    paths = [
        write_result(tmp_path / f"{m}-{s}-result.json", method=m, seed=s, successes=(20 + s,) * 3)
        for m, seeds in (("A", 3), ("B", 2), ("C", 1))
        for s in range(seeds)
    ]
    html = write_report([], tmp_path / "out", merged=paths, published=False).html.read_text()
    group = html.split("Fraction of runs with a score above τ")[1].split("</svg>")[0]
    drawn = re.findall(r"([ABC]) tiny: from 1 at 0 to 0 at 100\.", group)
    assert drawn == ["A", "B"]
    assert "Fraction of runs against success in percent, τ" in group


def test_profiles_of_returns_reach_over_all_runs(tmp_path):
    found = [measured(read_result(write_result(tmp_path / "r.json")))]
    setting = found[0].setting._replace(protocol="quick-return v1")
    runs = [
        replace(found[0], setting=setting, method=m, seed=s, score=-100.0 * s - offset)
        for m, offset in (("A", 10), ("B", 50))
        for s in range(3)
    ]
    (board,), _ = make_boards(runs)
    group = part_of(board_section(board, "b"), "Methods over all tasks").plots
    drawn = group.plots[0].svg
    assert "A tiny: from 1 at -250 to 0 at -10." in drawn
    assert "B tiny: from 0.6667 at -250 to 0 at -10." in drawn  # one of three is at -250, not above


def test_plain_returns_are_averaged_over_no_tasks(tmp_path):
    found = measured(read_result(write_result(tmp_path / "r.json")))
    setting = found.setting._replace(protocol="quick-return v1")
    runs = [
        replace(
            found, setting=setting, task=task, seed=seed, score=-10.0 * seed - lower,
            method=method, size=size, parameters=len(size),
        )
        for task in ("hopper-medium-v2", "hopper-expert-v2")
        for method, lower in (("A", 5), ("B", 0))
        for size in ("tiny", "large")
        for seed in range(3)
    ]  # fmt: skip
    (board,), _ = make_boards(runs)
    section = board_section(board, "b")
    (scores,) = part_of(section, "Score by task").tables
    summary, improvement = part_of(section, "Methods over all tasks").tables
    by_size = part_of(section, "Score by size").tables
    assert scores.caption.startswith("Score by task, return (not normalised): mean")
    assert summary.columns == ("method", "mean rank")
    assert [row[0].text[0] for row in summary.rows] == ["B", "B", "A", "A"]
    assert "Probability" in improvement.caption
    assert "a stratified bootstrap; none where" in summary.caption, "there is no mean"
    assert [len(table.rows) for table in by_size] == [4, 4]
    assert titles_of(section) == (
        [*("Score by size", "Score by task", "Methods over all tasks"),
         *("Methods of equal size", "Learning curves")],
        ["Score by size", "Learning curves"],
    )  # fmt: skip
    assert any(
        s.startswith("Plain returns are on each task's own scale") for s in section.sentences
    )
    assert "average" not in as_latex([section])
    (document,) = json.loads(as_json([section]))["boards"]
    assert document["averages"] == []
    for scaling in document["scaling"]:
        assert {point["score"]["value"] for point in scaling["points"]} == {None}
        assert {point["last"] for point in scaling["points"]} == {None}
    assert {summary["mean"] for summary in document["summaries"]} == {None}
    # On one task alone they are all there.
    (board,), _ = make_boards([run for run in runs if run.task == "hopper-medium-v2"])
    section = board_section(board, "b")
    assert not any("Plain returns" in sentence for sentence in section.sentences)
    overall = part_of(section, "Methods over all tasks")
    assert overall.tables[0].columns[2:5] == ("as printed", "mean", "IQM")
    assert titles_of(section)[1] == ["Score by size", "Methods over all tasks", "Learning curves"]


def returns_of(tmp_path, scores):
    """A board of plain returns by size and task: the first of six seeds' scores, and the step."""
    found = measured(read_result(write_result(tmp_path / "r.json")))
    setting = found.setting._replace(protocol="quick-return v1")
    runs = [
        replace(
            found, setting=setting, task=f"t{task}", seed=seed, score=first + 0.1 * seed,
            method="A", size=size, parameters=parameters,
        )
        for (size, parameters), tasks in scores.items()
        for task, first in enumerate(tasks)
        for seed in range(6)
        if first is not None
    ]  # fmt: skip
    (board,), _ = make_boards(runs)
    return board


def test_sizes_are_compared_by_ranks_where_returns_have_no_common_scale(tmp_path):
    board = returns_of(tmp_path, {("tiny", 1): (-500, 2, 7), ("large", 9): (-90, 3, 6.9)})
    section = board_section(board, "b")
    (answer,) = section.answers
    assert answer == (
        "A, tiny to large, over the 3 tasks that these sizes share: scores rise with size; "
        "large scores more than tiny on 2 of 3 tasks, and less on 1."
    )
    (table,) = part_of(section, "Score by size").tables
    assert "by task and size, on the 3 tasks" in table.caption
    assert [[cell.text for cell in row[:2]] for row in table.rows] == [
        [task, size] for task in ("t0", "t1", "t2") for size in ("tiny", "large")
    ]
    # Six scores 0.1 apart from -500 and -90: by hand, Student's t is 2.571·0.18708/√6 = 0.196.
    assert [row[4].text for row in table.rows[:2]] == [
        "-499.750 [-499.946, -499.554]",
        "-89.750 [-89.946, -89.554]",
    ]
    assert table.rows[1][5].text.startswith("+410.000 [+409.")
    assert [plot.title for plot in part_of(section, "Score by size").plots.plots] == [
        f"{task}: return, by parameters" for task in board.tasks
    ]


def test_a_size_in_between_that_is_best_on_some_tasks_is_counted(tmp_path):
    scores = {("tiny", 1): (0, 0), ("small", 2): (9, 1), ("large", 3): (1, 2)}
    (sentence,) = trend_sentences(
        scaling_of(returns_of(tmp_path, scores), np.random.default_rng(0))
    )
    assert sentence.endswith("large scores more than tiny on 2 of 2 tasks. "
                             "A size in between scores best on 1 task.")  # fmt: skip


def test_printed_scores_are_a_table_of_methods_by_sizes():
    table = printed_table(published_sizes())
    assert table.columns == ("method", "0.4M", "1M", "7M", "26M")
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["TQL"] == ["28 ± 11", "33 ± 8", "36 ± 7", "40 ± 7"]
    assert len(rows) == 5
    (without,) = printed_table(published_sizes()[:1]).rows
    assert len(without) == 2


def test_few_tasks_of_returns_are_drawn(tmp_path):
    scores = {("tiny", 1): range(8), ("large", 3): range(8)}
    group = part_of(board_section(returns_of(tmp_path, scores), "b"), "Score by size").plots
    assert len(group.plots) == 6
    assert group.note.endswith(" 2 more tasks are in the table.")


def test_sizes_that_share_no_task_are_told(tmp_path):
    board = returns_of(tmp_path, {("tiny", 1): (0, None), ("large", 3): (None, 1)})
    section = board_section(board, "b")
    (answer,) = section.answers
    assert answer.startswith("A, tiny, large: no task has runs of two of these sizes, so")
    assert answer in section.sentences
    for sizes in ({("tiny", 1): (0, 1)}, {("tiny", 1): (0, 1), ("small", 1): (0, 1)}):
        assert board_section(returns_of(tmp_path, sizes), "b").answers == ()


def test_one_task_is_named_and_one_cell_is_one(tmp_path):
    (board,), _ = boards_of(several(tmp_path, tasks=(0,)))
    overall = part_of(board_section(board, "b"), "Methods over all tasks")
    captions = [table.caption for table in overall.tables]
    assert any(caption.startswith(f"On {TASKS[0]}, 95 % intervals") for caption in captions)
    assert any(f"one of the column, on {TASKS[0]}, with" in caption for caption in captions)
    (board,), _ = boards_of(several(tmp_path, tasks=(0,), methods=("A",)))
    told = " ".join(board_section(board, "b").sentences)
    assert "of 1 cell, 1 has fewer seeds and 1 has shorter runs." in told
