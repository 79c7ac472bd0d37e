"""Learning curves by method: means over runs at the updates that all of them have."""

import numpy as np
import pytest
from report_runs import make_run, titles_of
from scipy.stats import t

from tql_offline.eval.leaderboard import make_boards
from tql_offline.eval.leaderboard_page import board_section
from tql_offline.eval.learning_curves import _cells, _lines, learning_plots
from tql_offline.eval.line_styles import colours_of, keys_of, line_styles
from tql_offline.eval.measured import measured
from tql_offline.eval.run_records import read_run


@pytest.fixture
def board_of(tmp_path):
    def make(runs):
        """`(method, seed, successes)` of each run."""
        folders = [
            make_run(tmp_path / f"r{i}", method=method, seed=seed, successes=successes, **more)
            for i, (method, seed, successes, *_) in enumerate(runs)
            for more in [{"size": runs[i][3]} if len(runs[i]) > 3 else {}]
        ]
        (board,), _ = make_boards(map(measured, map(read_run, folders)))
        return board

    return make


def lines_of(board):
    styles = line_styles(board, board.measured)
    (task,) = board.tasks
    lines = _lines(_cells(board, board.measured), task, styles, board.is_rate)
    return {line.label: line for line in lines}


def test_a_line_is_the_mean_over_runs_with_students_interval(board_of):
    wins = [(5, 20, 30, 40), (10, 20, 20, 45), (0, 35, 25, 35)]
    board = board_of([("TQL", seed, successes) for seed, successes in enumerate(wins)])
    (line,) = lines_of(board).values()
    scores = 2.0 * np.array(wins)  # of 50 episodes, in percent
    np.testing.assert_allclose(line.y, scores.mean(axis=0))
    half = t.ppf(0.975, 2) * scores.std(axis=0, ddof=1) / np.sqrt(3)
    low, high = np.clip([scores.mean(axis=0) - half, scores.mean(axis=0) + half], 0, 100)
    np.testing.assert_allclose(line.interval, [low, high])
    assert list(line.x) == sorted(line.x)
    assert len(set(line.x)) == 4


def test_a_line_has_the_updates_at_which_every_run_was_scored(board_of):
    board = board_of([("TQL", 0, (5, 20, 30, 40)), ("TQL", 1, (5, 20, 30, 40))])
    first, second = board.runs
    steps = sorted(first.curve)
    del second.curve[steps[1]]
    (line,) = lines_of(board).values()
    assert list(line.x) == [steps[0], *steps[2:]]


def test_a_single_score_is_no_curve(board_of):
    board = board_of([("TQL", 0, (5,)), ("TQL", 1, (7,))])
    assert not lines_of(board)
    assert not learning_plots(board, "b", "success", (0, 100)).plots
    assert "Learning curves" not in titles_of(board_section(board, "b"))[1]


def test_the_best_columns_are_drawn_and_the_others_counted(board_of):
    board = board_of([(f"M{i}", 0, (1, 2, 3, 4 * i)) for i in range(7)])
    group = learning_plots(board, "b", "success in percent", (0, 100))
    assert [key.label for key in group.keys] == [f"M{i} tiny" for i in (6, 5, 4, 3, 2, 1)]
    assert "The 6 with the best scores of 7." in group.note
    assert len(group.plots) == 1
    assert "Learning curves" in titles_of(board_section(board, "b"))[1]


def test_a_method_has_one_colour_in_all_plots_and_a_line_for_each_size(board_of):
    wins = (5, 20, 30, 40)
    board = board_of(
        [(method, 0, wins, size) for method in ("B", "A") for size in ("tiny", "large")]
    )
    styles = line_styles(board, board.measured)
    assert {label: style.line for label, style in styles.items()} == {
        **{"A tiny": "dashed", "A large": "solid", "B tiny": "dashed", "B large": "solid"}
    }
    colours = colours_of(board, ["A", "B"])
    assert all(style.colour == colours[label[0]] for label, style in styles.items())
    assert sorted(colours.values()) == [1, 2]
    assert line_styles(board, ["B large"])["B large"] == styles["B large"]
    assert [key.style for key in keys_of(styles)] == [
        styles[key.label].line for key in keys_of(styles)
    ]
    plots = {part.title: part.plots for part in board_section(board, "b").parts}
    assert {key.label: key.colour for key in plots["Score by size"].keys} == colours
    assert {key.colour for key in plots["Learning curves"].keys} == {1, 2}


def test_columns_that_colours_and_lines_cannot_tell_apart_have_a_colour_each(board_of):
    board = board_of([(f"M{i}", 0, (1, 2, 3, 4 * i)) for i in range(8)])
    shown = board.measured[2:8]
    assert {style.colour for style in line_styles(board, shown).values()} == {1, 2, 3, 4, 5, 6}
    assert {key.style for key in keys_of(line_styles(board, shown))} == {"point"}


def test_more_sizes_of_a_method_than_lines_have_a_colour_each(board_of):
    sizes = ("tiny", "small", "medium", "large")
    board = board_of([("TQL", 0, (5, 20, 30, 40), size) for size in sizes])
    styles = line_styles(board, board.measured)
    assert {style.colour for style in styles.values()} == {1, 2, 3, 4}
    assert {style.line for style in styles.values()} == {"solid"}
    some = list(reversed(board.measured[1:]))
    assert line_styles(board, some) == {label: styles[label] for label in some}
