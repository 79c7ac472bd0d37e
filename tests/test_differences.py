"""Differences between methods of equal size: the test of each pair, and what is said of them."""

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction
from statistics import fmean

import numpy as np
import pytest
from report_runs import make_run, part_of, write_result
from scipy import stats

from benchmarks import coverage
from tql_offline.cli import main
from tql_offline.errors import InputError
from tql_offline.eval import report
from tql_offline.eval.differences import MAX_METHODS, compare_methods
from tql_offline.eval.leaderboard import make_boards
from tql_offline.eval.leaderboard_files import as_json
from tql_offline.eval.leaderboard_page import board_section
from tql_offline.eval.measured import measured
from tql_offline.eval.report import write_report
from tql_offline.eval.run_records import read_result
from tql_offline.eval.statistics import estimate_difference
from tql_offline.eval.trends import holm

pytestmark = pytest.mark.usefixtures("panels_drawn_once")

HIGH, LOW = (60, 61, 62, 63, 64), (40, 41, 42, 43, 44)


@pytest.fixture
def board_of(tmp_path):
    """A board of scores by method, size and task: `{"A tiny": {"t1": (40.0, 42.0)}}`."""
    found = measured(read_result(write_result(tmp_path / "template.json")))

    def board(scores, protocol="ogbench-singletask v1", **settings):
        runs = [
            replace(
                found, setting=found.setting._replace(protocol=protocol), task=task, seed=seed,
                method=label.split()[0], size="".join(label.split()[1:]), score=float(score),
                parameters={"tiny": 1, "small": 2}.get("".join(label.split()[1:])),
                settings={"objective": "flow"} | settings.get(label.split()[0], {}),
            )
            for label, tasks in scores.items()
            for task, each in tasks.items()
            for seed, score in enumerate(each)
        ]  # fmt: skip
        (board,), _ = make_boards(runs)
        return board

    return board


def compared(board, baseline="", **kwargs):
    return compare_methods(board, np.random.default_rng(0), baseline, **kwargs)


def answers(board, baseline=""):
    return list(board_section(board, "b", baseline=baseline).answers)


# The test of a pair.


def every_concordance(first, second):
    """Of one task: share of wins less that of losses, observed and in every deal, one by one."""

    def wins(one, other):
        return Fraction(sum((a > b) - (a < b) for a in one for b in other), len(one) * len(other))

    pooled = [*first, *second]
    chosen = itertools.combinations(range(len(pooled)), len(first))
    return wins(first, second), [
        wins([pooled[i] for i in own], [s for i, s in enumerate(pooled) if i not in own])
        for own in chosen
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"t1": (7, 8, 9, 6)}, {"t1": (1, 2, 3, 4)}),
        ({"t1": (5, 1, 5, 9)}, {"t1": (5, 2, 2, 0)}),
        ({"t1": (5, 1, 5)}, {"t1": (5, 2), "t2": (4,)}),
        ({"t1": (3, 3, 1), "t2": (8, 2, 2)}, {"t1": (1, 3), "t2": (9, 2, 2, 1)}),
    ],
)
def test_a_pairs_p_value_is_that_of_all_deals_within_tasks(board_of, first, second):
    tasks = [task for task in first if task in second]
    observed, deals = zip(*(every_concordance(first[t], second[t]) for t in tasks), strict=True)
    dealt = [sum(deal) for deal in itertools.product(*deals)]
    shares = [fmean(sum(observed) <= d for d in dealt), fmean(sum(observed) >= d for d in dealt)]
    board = board_of({"A tiny": first, "B tiny": second})
    (exact,) = compared(board).found
    assert exact.p == pytest.approx(min(1, 2 * min(shares)), rel=1e-12)


def test_where_deals_are_drawn_a_p_value_is_near_and_never_none(board_of):
    board = board_of({"A tiny": {"t": (9, 3, 8, 6, 4)}, "B tiny": {"t": (1, 5, 2, 0, 7)}})
    (exact,), (drawn,) = (compared(board, permutations=n).found for n in (252, 251))
    assert exact.p != drawn.p == pytest.approx(exact.p, abs=0.05)
    (sure,) = compared(
        board_of({"A tiny": {"t": HIGH}, "B tiny": {"t": LOW}}), permutations=20
    ).found
    assert sure.p >= 2 / 101  # of a hundred at least


def test_many_pairs_have_enough_permutations_to_show_a_difference(board_of):
    """Ten runs on one task: with 20 permutations, p would be 0.1 times the pairs at least."""
    scores = {f"M{i} tiny": {"t": np.arange(10) + 40 * (i == 3)} for i in range(7)}
    found = compared(board_of(scores), permutations=20).found
    assert [d.is_shown for d in found] == ["M3 tiny" in (d.first, d.second) for d in found]


def test_one_tasks_p_value_is_mann_and_whitneys(board_of):
    first, second = (31, 45, 12, 80, 77), (5, 33, 9, 20, 13, 60)
    (pair,) = compared(board_of({"A tiny": {"t": first}, "B tiny": {"t": second}})).found
    expected = stats.mannwhitneyu(first, second, method="exact")
    assert pair.p == pytest.approx(expected.pvalue)


def test_a_difference_is_welchs_over_the_tasks(board_of):
    first, second = {"a": (40, 50, 60), "b": (70, 72)}, {"a": (30, 31), "b": (60, 66, 63)}
    board = board_of({"A tiny": first, "B tiny": second})
    (pair,) = compared(board).found
    assert pair.difference == estimate_difference(
        list(first.values()), list(second.values()), is_rate=True
    )
    assert pair.difference.value == pytest.approx((50 + 71) / 2 - (30.5 + 63) / 2)
    assert (pair.more, pair.less) == (2, 0)
    (pair,) = compared(board_of({"A tiny": {"a": (100, 0)}, "B tiny": {"a": (0, 50)}})).found
    assert pair.difference.high == 100, "no more than a full score"


def test_runs_of_one_seed_are_no_pairs(board_of):
    """Each seed of A scores one more than B's: sure if seeds were pairs, nothing among all runs."""
    seeds = np.arange(8) * 10.0
    for order in (seeds, seeds[::-1]):
        (pair,) = compared(board_of({"A tiny": {"t": seeds + 1}, "B tiny": {"t": order}})).found
        assert pair.p > 0.5


def test_pairs_are_of_one_size_and_corrected_together(board_of):
    runs = {f"{m} {s}": {"t": np.arange(5) + 10 * i} for s in ("tiny", "small")
            for i, m in enumerate("ABC")}  # fmt: skip
    runs["B small"]["t"][0] = 0
    found = compared(board_of(runs)).found
    assert [(d.size, d.first, d.second) for d in found] == [
        (size, f"{a} {size}", f"{b} {size}") for size in ("tiny", "small") for a, b in
        (("A", "B"), ("A", "C"), ("B", "C"))
    ]  # fmt: skip
    by_hand = [
        stats.mannwhitneyu(runs[d.first]["t"], runs[d.second]["t"], method="exact").pvalue
        for d in found if d.first != "A small" or d.second != "B small"
    ]  # fmt: skip
    assert by_hand == pytest.approx([2 / math.comb(10, 5)] * 5)
    tied = compared(board_of({n: runs[n] for n in ("A small", "B small")})).found[0].p
    assert [d.p for d in found] == pytest.approx(
        holm([*by_hand[:3], tied, *by_hand[3:]])
    )  # fmt: skip


def test_a_claim_where_nothing_differs_is_rare_and_large_differences_are_found():
    """Under 5 % of boards of three like methods, and nearly all pairs 6 points apart."""
    random, draws = np.random.default_rng(0), 150
    false = [bool(coverage.shown_differences(coverage.ALIKE, 3, random)) for _ in range(draws)]
    # 5 % of 150 is 7.5, and 14 has a chance of 1 %.
    assert sum(false) <= 14
    found = [coverage.shown_differences(coverage.MEANS, 8, random) for _ in range(30)]
    assert np.mean(["ac" in pairs and not pairs["ac"] for pairs in found]) == 0
    assert np.mean([pairs.get("ac", False) for pairs in found]) > 0.9


# What is said.

CLAIM = "A tiny scores more than B tiny: +20.0 [+17.7, +22.3], p = 0.008 on t."


def test_a_certain_difference_is_a_sentence(board_of):
    """Welch's by hand: 20 ± 2.306 · √(2.5/5 + 2.5/5); 2 of C(10, 5) = 252 deals."""
    board = board_of({"A tiny": {"t": HIGH}, "B tiny": {"t": LOW}})
    assert answers(board) == [CLAIM]
    board = board_of({"B tiny": {"t": LOW}, "A tiny": {"t": HIGH}})
    assert answers(board) == answers(board, "B") == [CLAIM]
    assert answers(board, "A") == [
        "B tiny scores less than A tiny: -20.0 [-22.3, -17.7], p = 0.008 on t."
    ]


def test_several_certain_differences_are_one_sentence(board_of):
    """Four methods far apart: six pairs, of which those of the best method are told."""
    scores = {f"{m} tiny": {t: np.arange(5) + 10 * i for t in "ab"} for i, m in enumerate("ABCD")}
    (answer,) = answers(board_of(scores))
    assert answer.count("D tiny scores more than") == 3
    assert answer.startswith("D tiny scores more than A tiny: +30.0 [")
    assert "p = 0.001 over 2 tasks; " in answer
    assert answer.endswith("; 3 more of 6 pairs differ, which the table shows. P-values are "
                           "Holm-corrected for 6 pairs, intervals are not.")  # fmt: skip


def test_many_methods_are_in_the_table_alone(board_of):
    scores = {f"{m} tiny": {"a": np.arange(5) + 9 * i, "b": np.arange(5) + 9 * i}
              for i, m in enumerate("ABCDEFG")}  # fmt: skip
    section = board_section(board_of(scores), "b")
    assert section.answers == (
        "At size tiny, 21 of 21 pairs of methods differ by more than chance explains (p < 0.05, "
        "Holm-corrected for 21 pairs), which the table shows.",
    )
    (table,) = part_of(section, "Methods of equal size").tables
    assert table.caption.startswith("Differences between methods of equal size, success in percent")
    assert len(table.rows) == 21


def test_methods_that_are_too_many_are_not_compared_without_a_baseline(board_of):
    names = [f"M{i} tiny" for i in range(MAX_METHODS + 1)]
    board = board_of({name: {"t": (1, 2)} for name in names})
    section = board_section(board, "b")
    assert section.comparisons.found == ()
    assert section.answers == ()
    (note,) = [s for s in section.sentences if "--baseline" in s]
    assert note.startswith("At size tiny, there are 9 methods, 36 pairs: too many")
    assert len(compared(board, "M0").found) == MAX_METHODS


def test_differences_by_chance_are_none(board_of):
    like = {"t": (1, 5, 9, 13, 17)}
    board = board_of({"A tiny": like, "B tiny": {"t": (2, 4, 10, 12, 18)}})
    assert answers(board) == [
        "A tiny and B tiny do not differ by more than chance explains on t; the first less the "
        "second: -0.2 [-9.5, +9.1], p = 1.000."
    ]
    board = board_of({f"{m} tiny": dict.fromkeys("abc", (1, 5, 9)) for m in "ABC"})
    assert answers(board) == [
        "At size tiny, no difference between any two of 3 methods is more than chance explains "
        "(smallest p = 1.000, Holm-corrected for 3 pairs)."
    ]
    assert answers(board, "B") == [
        "At size tiny, no difference between B and any of 2 methods is more than chance explains "
        "(smallest p = 1.000, Holm-corrected for 2 pairs)."
    ]


def test_too_few_runs_are_told_with_how_many_are_enough(board_of):
    """Three runs each: 2 of C(6, 3) = 20 deals at best; of three pairs 3 · 2 / C(10, 5) < 0.05."""
    scores = {f"{m} tiny": {"t": np.arange(3) + 30 * i} for i, m in enumerate("ABC")}
    section = board_section(board_of(scores), "b")
    assert section.answers == (
        "At size tiny, the runs are too few to show a difference between any two of 3 methods, "
        "whatever their scores. A difference can show from 5 runs of each method on.",
    )
    assert [row[4].text for row in part_of(section, "Methods of equal size").tables[0].rows] == [
        "0.300 (too few runs)"
    ] * 3
    scores.pop("C tiny")
    assert answers(board_of(scores)) == [
        "A tiny and B tiny: too few runs to show a difference on t, whatever their scores; "
        "the first less the second: -30.0 [-32.3, -27.7]. "
        "A difference can show from 4 runs of each method on."
    ]


def test_single_runs_can_show_nothing_but_over_many_tasks(board_of):
    (answer,) = answers(board_of({"A tiny": {"t": (90,)}, "B tiny": {"t": (10,)}}))
    assert answer == (
        "A tiny and B tiny: too few runs to show a difference on t, whatever their scores; "
        "the first less the second: +80.0. A difference can show from 4 runs of each method on."
    )
    tasks = "abcdef"  # of 2⁶ = 64 deals, one is as good and one as bad
    board = board_of({"A tiny": dict.fromkeys(tasks, (90,)), "B tiny": dict.fromkeys(tasks, (10,))})
    assert answers(board) == ["A tiny scores more than B tiny: +80.0, p = 0.031 over 6 tasks."]


def test_equal_scores_are_not_called_few_runs(board_of):
    full, other = {"t": (100,) * 6}, {"t": (100,) * 5 + (98,)}
    board = board_of({f"{m} tiny": full for m in "AB"})
    assert answers(board) == [
        "A tiny and B tiny: all runs of a task score the same, so no difference can show on t."
    ]
    (answer,) = answers(board_of({"A tiny": full, "B tiny": other}))
    assert answer.startswith("A tiny and B tiny: too many equal scores to show a difference on t")
    assert "can show from" not in answer
    (answer,) = answers(board_of({f"{m} tiny": full for m in "ABC"}))
    assert answer == (
        "At size tiny, all runs of a task score the same, so no difference between methods can "
        "show."
    )
    (answer,) = answers(board_of({"A tiny": full, "B tiny": full, "C tiny": other}))
    assert answer.startswith("At size tiny, too many scores are equal to show a difference")


def test_an_interval_that_holds_0_beside_ranks_that_differ_is_told(board_of):
    """All runs of B score less, one of them by far."""
    board = board_of({"A tiny": {"t": range(60, 65)}, "B tiny": {"t": (0, *range(53, 57))}})
    (answer,) = answers(board)
    told = "A tiny scores more than B tiny by the ranks of runs, though the interval of their "
    assert answer.startswith(f"{told}means' difference holds 0: +18.")


def test_a_mean_against_the_ranks_is_told(board_of):
    """Seven runs of A are better than all of B's, and one fails."""
    board = board_of({"A tiny": {"t": (0, *range(61, 68))}, "B tiny": {"t": range(53, 61)}})
    (answer,) = answers(board)
    assert answer.startswith(
        "runs of A tiny mostly score more than those of B tiny, though its mean is not higher: -0.5"
    )


def test_only_tasks_that_both_have_count_and_others_are_named(board_of):
    board = board_of({
        "A tiny": {"a": HIGH, "b": (0,) * 5}, "B tiny": {"a": LOW, "c": (90,) * 5},
    })  # fmt: skip
    section = board_section(board, "b")
    assert section.answers == (CLAIM.replace("on t.", "on a, the only one of 3 that both have."),)
    assert part_of(section, "Methods of equal size").tables[0].rows[0][8].text == "b, c"
    board = board_of({"A tiny": dict.fromkeys("abc", HIGH), "B tiny": dict.fromkeys("ab", LOW)})
    assert answers(board)[0].endswith("over the 2 of 3 tasks that both have.")


def test_methods_that_cannot_be_compared_are_named(board_of):
    board = board_of({"A tiny": {"a": HIGH}, "B tiny": {"b": LOW}})
    assert answers(board) == ["Not compared, since they share no task: A tiny and B tiny."]
    board = board_of({"A tiny": {"a": HIGH}, "B small": {"a": LOW}})
    assert answers(board) == [
        "No two methods have a size in common, so a difference between methods cannot be told from "
        "one of size."
    ]
    board = board_of({"A tiny": {"a": HIGH}, "B tiny": {"a": LOW}, "B small": {"a": LOW}})
    section = board_section(board, "b")
    assert "Not compared, since no other method has this size: B small." in section.sentences
    assert answers(board_of({"A tiny": {"a": HIGH}, "A small": {"a": HIGH}}))[1:] == []


def test_a_method_without_a_critic_is_compared_at_every_size(board_of):
    board = board_of({name: {"t": HIGH} for name in ("BC", "DT", "A tiny", "A small")})
    found = compared(board).found
    assert [(d.size, d.first, d.second) for d in found] == [
        ("", "BC", "DT"),
        *((size, f"A {size}", other) for size in ("tiny", "small") for other in ("BC", "DT")),
    ]
    assert [d.first for d in compared(board, "BC").found] == ["DT", "A tiny", "A small"]


def test_settings_that_differ_are_in_the_table(board_of):
    board = board_of(
        {"A tiny": {"t": HIGH}, "B tiny": {"t": LOW}}, A={"steps": "5"}, B={"steps": "9"}
    )
    assert (
        part_of(board_section(board, "b"), "Methods of equal size").tables[0].rows[0][9].text
        == "steps"
    )


def test_returns_of_unlike_tasks_have_no_mean_but_a_test(board_of):
    first, second = dict.fromkeys("acde", HIGH), dict.fromkeys("acde", LOW)
    board = board_of(
        {"A tiny": {**first, "b": (-900, -901)}, "B tiny": {**second, "b": (-800, -802)}},
        protocol="quick-return v1",
    )
    (pair,) = compared(board).found
    assert math.isnan(pair.difference.value)
    (answer,) = answers(board)
    assert answer.startswith("A tiny scores more than B tiny: more on 4 of 5 tasks, and less on 1")


# A baseline, and the files.


def test_with_a_baseline_fewer_pairs_are_corrected_for(board_of):
    scores = {f"{m} tiny": {"t": np.arange(5) + 9 * i} for i, m in enumerate("ABCD")}
    board = board_of(scores | {"C small": {"t": HIGH}})
    found = compared(board, "B").found
    assert [(d.first, d.second) for d in found] == [(f"{m} tiny", "B tiny") for m in "ACD"]
    assert [d.p for d in found] == pytest.approx([3 * 2 / 252] * 3)
    section = board_section(board, "b", baseline="B")
    assert "Not compared, since B has no runs of this size: C small." in section.sentences


def test_the_answer_is_at_the_head_and_in_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_DETAILED_RUNS", 1)  # plots of each run take seconds
    runs = [
        make_run(tmp_path / f"{method}{seed}", method=method, seed=seed, successes=(k + seed,))
        for method, k in (("TQL", 30), ("FQL", 10))
        for seed in range(5)
    ]
    files = write_report(runs, tmp_path / "out", published=False)
    said = "TQL tiny scores more than FQL tiny: +40.0 ["
    for page in (files.html.read_text(), files.markdown.read_text().replace("\\", "")):
        assert page.count(said) == 2
        assert page.index(said) < page.index("Leaderboard")
    (difference,) = json.loads(files.boards[1].read_text())["boards"][0]["differences"]
    assert difference["p"] == pytest.approx(2 / 252)
    assert difference["difference"]["value"] == pytest.approx(-40)
    files = write_report(runs, tmp_path / "other", published=False, baseline="FQL")
    assert said in files.html.read_text()


def test_the_files_hold_no_number_that_is_none(board_of):
    board = board_of({"A tiny": {"t": (1,)}, "B tiny": {"t": (2,)}})
    (difference,) = json.loads(as_json([board_section(board, "b")]))["boards"][0]["differences"]
    assert difference["difference"] == {"value": -1.0, "low": None, "high": None}


def test_a_baseline_of_several_settings_names_them(tmp_path):
    runs = []
    for number, alpha in enumerate((1.0, 3.0)):
        runs.append(make_run(tmp_path / "runs" / f"r{number}"))
        text = runs[-1].config.read_text()
        runs[-1].config.write_text(text.replace("alpha = 30.0", f"alpha = {alpha}"))
    said = r"'TQL' alone, since .*: 'TQL \(flow.alpha 1.0\)', 'TQL \(flow.alpha 3.0\)'$"
    with pytest.raises(InputError, match=said):
        write_report(runs, tmp_path / "out", baseline="TQL")


def test_a_baseline_that_no_run_is_of_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "runs" / "a")
    with pytest.raises(InputError, match="baseline 'FQ'; name one of these: 'TQL'"):
        write_report([run], tmp_path / "out", baseline="FQ")
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run.path), "--out", str(tmp_path / "out"), "--baseline", "FQ"])
    assert stop.value.code == 2
    assert "name one of these: 'TQL'" in capsys.readouterr().err
