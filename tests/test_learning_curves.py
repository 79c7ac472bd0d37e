"""Learning curves by method: means over runs at the updates that all of them have."""

import numpy as np
import pytest
from report_runs import make_run
from scipy.stats import t

from tql_offline.eval.leaderboard import make_boards, measured
from tql_offline.eval.leaderboard_page import board_section
from tql_offline.eval.learning_curves import _cells, _lines, learning_plots
from tql_offline.eval.run_records import read_run


@pytest.fixture
def board_of(tmp_path):
    def make(runs):
        """`(method, seed, successes)` of each run."""
        folders = [
            make_run(tmp_path / f"r{i}", method=method, seed=seed, successes=successes)
            for i, (method, seed, successes) in enumerate(runs)
        ]
        (board,), _ = make_boards(map(measured, map(read_run, folders)))
        return board

    return make


def lines_of(board):
    labels = list(board.measured)
    (task,) = board.tasks
    return {line.label: line for line in _lines(_cells(board, labels), task, labels, board.is_rate)}


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
    assert "Learning curves" not in [group.title for group in board_section(board, "b").plots]


def test_the_best_columns_are_drawn_and_the_others_counted(board_of):
    board = board_of([(f"M{i}", 0, (1, 2, 3, 4 * i)) for i in range(7)])
    group = learning_plots(board, "b", "success in percent", (0, 100))
    assert [key.label for key in group.keys] == [f"M{i} tiny" for i in (6, 5, 4, 3, 2, 1)]
    assert "The 6 with the best scores of 7." in group.note
    assert len(group.plots) == 1
    assert "Learning curves" in [group.title for group in board_section(board, "b").plots]
