"""What is said of the published claim is what the published scores and the runs give."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import write_result
from scipy import stats

from benchmarks import claim
from tql_offline.config import resolve
from tql_offline.datasets.catalogue import find
from tql_offline.documents import flatten
from tql_offline.eval.claim import claim_sentences
from tql_offline.eval.leaderboard import make_boards
from tql_offline.eval.leaderboard_page import board_section
from tql_offline.eval.measured import measured
from tql_offline.eval.published import published_scores, published_sizes
from tql_offline.eval.run_records import read_result
from tql_offline.eval.variants import effective
from tql_offline.networks import MLPCritic

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "table", ["deviations", "assumptions", "changes", "contrasts", "by_seeds", "precision"]
)
def test_the_page_has_what_the_script_prints(table):
    page = (ROOT / "docs" / "claim.md").read_text(encoding="utf-8")
    assert "\n".join(getattr(claim, table)()) in page, "run `python benchmarks/claim.py`"


def test_scores_have_the_printed_mean_and_deviation():
    for seeds in (2, 3, 8):
        scores = claim.runs(40.0, 7.0, seeds)
        assert len(scores) == seeds
        assert (scores.mean(), scores.std()) == pytest.approx((40.0, 7.0))


def ends(method="TQL"):
    sizes = claim.methods()[method]
    return sizes[0], sizes[-1]


def test_an_interval_of_means_is_welchs():
    """Of the printed numbers alone, by the formula."""
    small, large = ends()
    assert (small.mean, small.sd, large.mean, large.sd) == (28, 11, 40, 7)
    variances = np.array([large.sd, small.sd]) ** 2 * 8 / 7 / 8
    freedom = variances.sum() ** 2 / (variances**2 / 7).sum()
    half = stats.t.isf(0.025, freedom) * np.sqrt(variances.sum())
    have = claim.estimate_difference(
        claim.spread_of_means(large, 8), claim.spread_of_means(small, 8)
    )
    assert (have.low, have.high) == pytest.approx((12 - half, 12 + half))


def test_the_mean_of_the_tasks_deviations_is_the_printed_one():
    _, large = ends()
    table = claim.spread_of_tasks(large, 8)
    assert len(table) == 25
    assert np.mean([task.std() for task in table]) == pytest.approx(large.sd)
    printed = [score.sd for score in published_scores() if score.method == "TQL"]
    assert np.round(np.mean(printed)) == large.sd, "which is why ± is read so"


def test_the_difference_of_two_changes_has_the_error_of_four_means():
    """TQL's against the transformer without control, ± a deviation of means, by the formula."""
    points = [*ends(), *ends("Transformer without entropy control")]
    variances = np.array([point.sd for point in points]) ** 2 * 8 / 7 / 8
    freedom = variances.sum() ** 2 / (variances**2 / 7).sum()
    half = stats.t.isf(0.025, freedom) * np.sqrt(variances.sum())
    row = next(line for line in claim.contrasts() if "without entropy" in line)
    low, high = 14 - half, 14 + half
    assert row.split("|")[4].strip() == f"{low:+.1f} to {high:+.1f}"


def test_the_fewest_seeds_are_the_first_without_chance():
    small, large = ends()
    assert claim.fewest_seeds(small, large, claim.spread_of_means) == "9"
    small, large = (replace(p, sd=p.sd + 0.5) for p in (small, large))
    for seeds, sure in ((8, False), (9, True)):
        change = claim.estimate_difference(
            claim.spread_of_means(replace(large, mean=39.5), seeds),
            claim.spread_of_means(replace(small, mean=28.5), seeds),
        )
        assert (change.low > 0) is sure


# A verdict beside measured runs.

CLAIMED = {"tiny": 107_458, "small": 419_714, "xl": 26_295_298}


def settings_of(task, size, method):
    made_by = {
        "TQL": {},
        "TQL-none": {"entropy": {"mode": "none"}},
        "FQL": {"preset": "fql"},
        "floq": {"preset": "floq"},
        "PAC": {"preset": "pac"},
    }
    config = resolve({"dataset": {"name": task}, "critic": {"size": size}} | made_by[method])
    return effective(flatten(config.model_dump(mode="json")), config.objective)


def claim_of(*where, **runs):
    """What is said of the printed change beside the runs of `board_of`."""
    return list(claim_sentences(board_of(*where, **runs), published_sizes()))


def board_of(
    tmp_path, change=12.0, tasks=25, more=0, seeds=2, timing="post", method="TQL",
    changed=(), of_xl=(), **other,
):  # fmt: skip
    """Runs whose xl scores `change` more than small, and tiny 20 less."""
    found = measured(read_result(write_result(tmp_path / "r.json")))
    found = replace(found, setting=found.setting._replace(success_timing=timing), method=method)
    names = list(dict.fromkeys(p.task for p in published_scores()))[:tasks]
    names += [f"cube-single-play-singletask-task{n}-v0" for n in range(1, 1 + more)]
    runs = []
    for task, (size, parameters), seed in product(names, CLAIMED.items(), range(seeds)):
        gains = {"tiny": -20.0, "small": 0.0, "xl": 60.0 if "cube-single" in task else change}
        facts = {
            "task": task,
            "seed": seed,
            "size": size,
            "parameters": parameters,
            "updates": 1_000_000,
            "dataset_sha256": find(task).files[0].sha256 or "5a" * 32,
            "name": f"{task}-{size}-{seed}",
            "score": 28.0 + seed + gains[size],
            "settings": settings_of(task, size, method) | dict(changed if size == "xl" else ()),
        }
        runs.append(replace(found, **(facts | other | dict(of_xl if size == "xl" else ()))))
    (board,), _ = make_boards(runs, published_scores())
    return board


def test_a_measured_change_stands_beside_the_printed_one(tmp_path):
    (sentence,) = claim_of(tmp_path)
    assert sentence.startswith(
        "Printed for TQL from 0.4M to 26M: 28 to 40 %, +12 points (+43 %). "
        "Measured over the same tasks: +12.0 [+11.7, +12.3] points, a rise; this differs "
        "from the printed change by +0.0 ± "
    )
    assert "no more than seeds and rounding explain" in sentence
    assert sentence.endswith("over 8 seeds).")
    assert sentence in board_section(board_of(tmp_path), "b", published_sizes()).sentences


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (5.0, "a rise; this differs from the printed change by -7.0 ± 2.8, more than seeds"),
        (9.5, "a rise; this differs from the printed change by -2.5 ± 2.8, no more than seeds"),
        (14.5, "a rise; this differs from the printed change by +2.5 ± 2.8, no more than seeds"),
        (18.0, "a rise; this differs from the printed change by +6.0 ± 2.8, more than seeds"),
        (-4.0, "a fall; this differs from the printed change"),
        (0.1, "neither a rise nor a fall; this differs from the printed change"),
        (-0.1, "neither a rise nor a fall; this differs from the printed change"),
    ],
)
def test_both_the_runs_and_what_is_printed_are_in_doubt(tmp_path, change, said):
    (sentence,) = claim_of(tmp_path, change=change)
    assert said in sentence


def test_tasks_that_the_paper_has_not_do_not_count(tmp_path):
    assert claim_of(tmp_path, more=5) == claim_of(tmp_path)


def test_precision_is_no_setting_of_the_papers(tmp_path):
    changed = {"execution.precision": "bfloat16"}
    assert claim_of(tmp_path, changed=changed) == claim_of(tmp_path)


def test_the_method_that_is_printed_to_fall_furthest_is_judged_too(tmp_path):
    (sentence,) = claim_of(tmp_path, change=-6.0, method="floq")
    assert sentence.startswith("Printed for floq from 0.4M to 26M: 33 to 27 %, -6 points (-18 %). ")
    assert "a fall; this differs from the printed change by +0.0" in sentence


def test_every_method_of_the_figure_is_judged(tmp_path):
    for printed in published_sizes():
        assert claim_of(tmp_path, method=printed.called_here), printed.method


def test_of_an_unknown_timing_nothing_is_said(tmp_path):
    assert claim_of(tmp_path, timing="") == claim_of(tmp_path)


def test_methods_have_the_papers_other_names(tmp_path):
    (sentence,) = claim_of(tmp_path, change=-2.0, method="TQL-none", timing="pre")
    assert sentence.startswith("Printed for Transformer without entropy control from 0.4M to 26M: ")
    assert "-2 points (-7 %)" in sentence
    assert sentence.endswith(
        "Success was not judged as in ogbench 1.1.0 (`post`), which the paper's tables follow."
    )
    (sentence,) = claim_of(tmp_path, change=-3.0, method="FQL")
    assert "from the printed change by +0.0 ± " in sentence


SIZES_OF_THE_FIGURE = ("small", "medium", "large", "xl")
BY_MEMBER = {"critic.counted": "member"}


def by_member(tmp_path, **other):
    """Runs of FQL that fall as printed, whose sizes count one of two members."""
    board = board_of(tmp_path, change=-3.0, method="FQL", **other)
    runs = [
        replace(run, parameters=2 * run.parameters, settings=run.settings | BY_MEMBER)
        for run in board.runs
    ]
    return runs, board


def test_sizes_may_count_one_member(tmp_path):
    runs, board = by_member(tmp_path)
    (sentence,) = claim_sentences(replace(board, runs=tuple(runs)), published_sizes())
    assert "Measured over the same tasks with critic.counted member: -3.0 [" in sentence
    assert "from the printed change by +0.0 ± " in sentence
    both, _ = make_boards([*runs, *board.runs], published_scores())
    have = sorted(claim_sentences(both[0], published_sizes()))
    (usual,) = claim_sentences(board, published_sizes())
    named = [
        text.replace(" Measured", f" FQL (critic.counted {counted}): Measured")
        for counted, text in (("ensemble", usual), ("member", sentence))
    ]
    assert have == sorted(named)


def test_the_page_has_the_widths_of_sizes_that_count_one_member():
    page = " ".join((ROOT / "docs" / "claim.md").read_text(encoding="utf-8").split())
    with torch.device("meta"):
        critics = [MLPCritic.of_size(s, 37, 5, counted="member") for s in SIZES_OF_THE_FIGURE]
    *others, last = [str(critic.members[0][0].out_features) for critic in critics]
    assert f"(4 × {', '.join(others)} and {last} for FQL at cube-double)" in page


def test_a_board_says_whose_sizes_count_one_member(tmp_path):
    runs, board = by_member(tmp_path)
    both, _ = make_boards([*runs, *board.runs], published_scores())
    (note,) = [note for note in both[0].notes if "count one member" in note]
    assert note.startswith("Sizes of FQL (critic.counted member) count")
    for alone in (runs, board.runs):
        (one,), _ = make_boards(alone, published_scores())
        assert not any("count one member" in note for note in one.notes)


@pytest.mark.parametrize("sizes", [("tiny", "small", "xl"), ("small",)])
def test_where_no_variant_is_judged_each_says_why(tmp_path, sizes):
    runs, board = by_member(tmp_path, tasks=24)
    some = [run for run in runs if run.size in sizes]
    both, _ = make_boards([*some, *board.runs], published_scores())
    have = list(claim_sentences(both[0], published_sizes()))
    assert len(have) == (2 if "xl" in sizes else 1), "a size alone is no change"
    assert all("No verdict: 1 of its 25 tasks are not covered" in sentence for sentence in have)


@pytest.mark.parametrize("value", ["<b>", "all"])
def test_sizes_counted_in_another_way_are_not_judged(tmp_path, value):
    board = board_of(tmp_path, change=-3.0, method="FQL")
    changed = {"critic.counted": value}
    runs = [replace(run, settings=run.settings | changed) for run in board.runs]
    (sentence,) = claim_sentences(replace(board, runs=tuple(runs)), published_sizes())
    assert sentence.endswith("differ from the paper's settings (critic.counted).")


@pytest.mark.parametrize("members", ["0", "two", ""])
def test_an_unknown_number_of_members_counts_nothing(tmp_path, members):
    runs, board = by_member(tmp_path)
    runs = [replace(run, settings=run.settings | {"critic.ensemble": members}) for run in runs]
    assert list(claim_sentences(replace(board, runs=tuple(runs)), published_sizes())) == []


def test_both_ends_count_alike(tmp_path):
    runs, board = by_member(tmp_path)
    mixed = [run for run in runs if run.size == "xl"]
    mixed += [run for run in board.runs if run.size != "xl"]
    (sentence,) = claim_sentences(replace(board, runs=tuple(mixed)), published_sizes())
    assert sentence.endswith("differ from the paper's settings (critic.counted).")


def test_of_variants_those_with_the_papers_settings_are_judged(tmp_path):
    board = board_of(tmp_path)
    others = [
        replace(run, settings=run.settings | {"polyak": "0.5"}, name=f"{run.name}-5")
        for run in board.runs
    ]
    both, _ = make_boards([*board.runs, *others], published_scores())
    (have,) = claim_sentences(both[0], published_sizes())
    (alone,) = claim_of(tmp_path)
    assert have.replace("TQL (polyak 0.005): ", "") == alone


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"tasks": 24}, "1 of its 25 tasks are not covered by runs of both sizes"),
        ({"updates": 999_999}, "it is for 1,000,000 updates, unlike some of these runs"),
        ({"updates": 2_000_000}, "it is for 1,000,000 updates, unlike some of these runs"),
        ({"seeds": 1}, "a task with a single run gives no interval"),
        ({"settings": {}}, "the settings of some of these runs are not known"),
        ({"of_xl": {"dataset_sha256": "5a" * 32}}, "on data other than the published"),
        ({"of_xl": {"size": "my own"}}, "the settings of some of these runs are not known"),
        ({"changed": {"flow.alpha": "10.0"}}, "differ from the paper's settings (flow.alpha)"),
        (
            {"changed": {"n_step": "5", "discount": "0.9"}},
            "from the paper's settings (discount, n_step)",
        ),
    ],
)
def test_no_verdict_is_given_on_what_was_not_repeated(tmp_path, how, said):
    (sentence,) = claim_of(tmp_path, **how)
    assert "No verdict: " in sentence
    assert said in sentence
    assert "differs by" not in sentence


@pytest.mark.parametrize(
    ("other", "judged"),
    [
        ({"size": "xl"}, False),
        ({"size": "small"}, False),
        ({"size": "large"}, True),
        ({"size": "xl", "method": "TQL (flow.alpha 3.0)"}, True),
        ({"size": "xl", "task": "cube-single-play-singletask-task1-v0, data 5a5a5a5a"}, True),
    ],
)
def test_survivors_alone_give_no_verdict(tmp_path, other, judged):
    board = board_of(tmp_path)
    lost = replace(board.runs[0], **other)
    (sentence,) = claim_sentences(replace(board, ended=(lost,)), published_sizes())
    assert ("No verdict: runs of these sizes diverged" not in sentence) == judged


def test_of_what_is_not_printed_nothing_is_said(tmp_path):
    assert claim_of(tmp_path, parameters=5_000_000) == []
