"""Faults of data: each that users met is planted and named with its episode and row."""

import functools
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from tql_offline.cli import app
from tql_offline.config import resolve
from tql_offline.datasets import checks, checks_of_numbers
from tql_offline.datasets.arrays import from_arrays
from tql_offline.datasets.blocks import row_blocks
from tql_offline.datasets.check_dataset import check_dataset
from tql_offline.datasets.checks import check, check_spaces, quick_check
from tql_offline.datasets.checks_of_numbers import find_actions, large_dims
from tql_offline.datasets.findings import SHOWN
from tql_offline.datasets.load import WITHOUT_MASKS, load
from tql_offline.datasets.views import AS_STEPS, view_of, view_of_columns, view_of_flat
from tql_offline.errors import InputError
from tql_offline.runs import RunFolder
from tql_offline.training import run as training
from tql_offline.training.notes import opening_notes
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.setup import Begun, set_up

LENGTHS = (60, 40, 50, 70)
ENDS = np.cumsum(np.array(LENGTHS) + 1) - 1
"""Each episode's last row."""


def good(seed=0):
    """Episodes that walk through a plane from random places; the task ends with each."""
    rng = np.random.default_rng(seed)
    rows = sum(LENGTHS) + len(LENGTHS)
    starts = [rng.uniform(-5, 5, (1, 2)) for _ in LENGTHS]
    walks = [
        np.cumsum(np.concatenate([start, rng.normal(0, 0.05, (length, 2))]), axis=0)
        for start, length in zip(starts, LENGTHS, strict=True)
    ]
    terminals = np.zeros(rows, bool)
    terminals[ENDS] = True
    masks = np.ones(rows, np.float32)
    masks[ENDS - 1] = 0
    return {
        "observations": np.concatenate(walks).astype(np.float32),
        "actions": rng.uniform(-0.9, 0.9, (rows, 2)).astype(np.float32),
        "terminals": terminals,
        "rewards": (1 - masks).astype(np.float32),
        "masks": masks,
    }


def kinds(columns, **options):
    return [f.kind for f in check(view_of_columns(columns, "mine"), **options)]


def only(columns):
    (finding,) = check(view_of_columns(columns, "mine"))
    assert "\n" not in finding.sentence
    return finding


def test_good_data_have_no_finding():
    assert not kinds(good())


def test_a_missing_end_is_a_jump_at_its_row():
    columns = good()
    columns["terminals"][ENDS[1]] = False
    columns["masks"][ENDS[1] - 1] = 1
    finding = only(columns)
    assert (finding.level, finding.kind) == ("warning", "jump")
    assert f"episode 1, row {ENDS[1]}:" in finding.sentence


def test_the_jumps_of_teleports_are_not_looked_for():
    columns = good()
    columns["terminals"][ENDS[1]] = False
    columns["masks"][ENDS[1] - 1] = 1
    assert not kinds(columns, jumps=False)


def test_an_angle_that_wraps_is_no_jump():
    columns = good()
    turning = np.arange(len(columns["terminals"])) * 0.1
    angle = (turning + np.pi) % (2 * np.pi) - np.pi
    columns["observations"] = np.column_stack([columns["observations"], angle])
    assert not kinds(columns)


def turning(columns, rng):
    """Angles that turn on and on, one for each row."""
    return np.cumsum(rng.normal(0.05, 0.02, len(columns["terminals"])))


def degrees(angle):
    return np.degrees(angle)[:, None] % 360


def phase(angle):
    return (angle / 4)[:, None] % 1


def quaternion(angle):
    """Rotations about a fixed axis, of the two that are one the one with w ≥ 0."""
    half = angle[:, None] / 2
    whole = np.concatenate([np.cos(half), np.sin(half) * [[0.6, 0.64, 0.48]]], axis=1)
    return whole * np.where(whole[:, :1] < 0, -1, 1)


@pytest.mark.parametrize("written", [degrees, phase, quaternion])
def test_what_can_be_written_in_two_ways_does_not_jump(written):
    columns = good()
    seen = written(turning(columns, np.random.default_rng(0)))
    columns["observations"] = np.column_stack([columns["observations"], seen])
    assert "jump" not in kinds(columns)
    columns["terminals"][ENDS[1]] = False  # what jumps, too, is found beside it
    columns["masks"][ENDS[1] - 1] = 1
    (jump,) = [f for f in check(view_of_columns(columns, "mine")) if f.kind == "jump"]
    assert f"episode 1, row {ENDS[1]}:" in jump.sentence


def test_the_tasks_end_in_last_rows_is_lost():
    columns = good()
    columns["masks"][ENDS - 1], columns["masks"][ENDS] = 1, 0
    columns["rewards"] = 1 - columns["masks"]
    found = check(view_of_columns(columns, "mine"))
    assert f"episode 0 has mask 0 in its last row, {ENDS[0]}," in found[0].sentence
    assert "every reward other than 0 is in an episode's last row" in found[4].sentence


@pytest.mark.parametrize("what", ["repeats the one before", "is 0"])
def test_made_up_last_observations(what):
    columns = good()
    columns["masks"][ENDS - 1] = 1
    before = columns["observations"][ENDS - 1]
    columns["observations"][ENDS] = before if "repeats" in what else 0
    found = [f for f in check(view_of_columns(columns, "mine")) if f.kind == "last-row"]
    assert len(found) == 1
    assert what in found[0].sentence
    assert f"row {ENDS[0]}" in found[0].sentence


def test_last_observations_after_the_tasks_end_may_be_made_up():
    """As D4RL's layout is read: a step that ends the task needs no observation after it."""
    columns = good()
    columns["observations"][ENDS] = columns["observations"][ENDS - 1]
    columns["masks"][ENDS - 1] = 0
    assert "last-row" not in {f.kind for f in check(view_of_columns(columns, "mine"))}


def test_images_that_training_refuses_are_a_warning():
    columns = good()
    columns["observations"] = np.zeros((len(columns["masks"]), 8, 8, 3), np.uint8)
    (found,) = [f for f in check(view_of_columns(columns, "mine")) if "images" in f.sentence]
    assert found.level == "warning"
    assert found.sentence.startswith("observations are images of 8x8x3, for which there is no enc")


def test_numbers_that_are_none():
    columns = good()
    columns["observations"][ENDS[1] + 3, 1] = np.nan
    columns["rewards"][2] = np.inf
    sentences = [f.sentence for f in check(view_of_columns(columns, "mine"))]
    assert any(
        f"'observations' is not finite in episode 2, row {ENDS[1] + 3};" in s for s in sentences
    )
    assert any("'rewards' is not finite in episode 0, row 2;" in s for s in sentences)


def test_many_findings_of_a_kind_are_counted():
    columns = good()
    rows = np.arange(sum(LENGTHS) + len(LENGTHS))
    columns["terminals"] = rows % 8 == 7
    columns["terminals"][-1] = True
    columns["masks"][:] = 1
    columns["observations"][::8] = np.nan
    found = [f for f in check(view_of_columns(columns, "mine")) if f.kind == "not-finite"]
    assert len(found) == SHOWN + 1
    assert f"{len(rows) // 8 - SHOWN} more" in found[-1].sentence


def test_actions_constant_saturated_unscaled():
    columns = good()
    columns["actions"][:, 0] = 0.5
    assert "dim 0 of the actions is 0.5 in every transition" in only(columns).sentence
    columns = good()
    columns["actions"][:, 1] = np.sign(columns["actions"][:, 1])
    finding = only(columns)
    assert finding.level == "note"
    assert "dim 1 of the actions is at its bound in 100 %" in finding.sentence
    columns = good()
    columns["actions"][7, 1] = -3
    assert "dim 1 of the actions is -3 in episode 0, row 7, outside" in only(columns).sentence
    columns = good()
    columns["actions"] = np.abs(columns["actions"])
    assert "[0, 1]" in only(columns).sentence


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_actions_that_are_choices(kind):
    columns = good()
    columns["actions"] = (columns["actions"] > 0).astype(kind)
    said = [str(f) for f in check(view_of_columns(columns, "x")) if "whole number" in f.sentence]
    assert len(said) == 1
    assert "(0 to 1); policies here need continuous actions" in said[0]
    clipped = columns["actions"] * (1 - 1e-5)  # as they are when they are loaded
    assert "actions" in kinds(columns | {"actions": clipped})
    columns["actions"] = columns["actions"].astype(float)
    columns["actions"][7, 0] = 0.5
    assert not any("whole" in f.sentence for f in check(view_of_columns(columns, "x")))


def test_rewards_all_zero_warn_and_all_equal_are_noted():
    columns = good()
    columns["rewards"][:] = 0
    assert only(columns).level == "warning"
    columns["rewards"][:] = -1
    finding = only(columns)
    assert finding.level == "note"
    assert "never solved" in finding.sentence


@pytest.mark.parametrize("kind", [np.float32, np.int16])
@pytest.mark.parametrize(("worst", "scale"), [(-20_000, "0.0001"), (1001, "0.001")])
def test_rewards_beyond_a_critics_reach_are_noted(kind, worst, scale):
    columns = good()
    columns["rewards"] = columns["rewards"].astype(kind)
    columns["rewards"][7] = 1000
    assert not kinds(columns)
    columns["rewards"][ENDS[0] + 5] = worst
    finding = only(columns)
    assert (finding.level, finding.kind) == ("note", "rewards")
    assert f"the reward is {worst:g} in episode 1, row {ENDS[0] + 5}," in finding.sentence
    assert finding.sentence.endswith(f"--set dataset.reward_scale={scale}")
    resolve({"dataset": {"reward_scale": float(scale)}})


def test_dims_of_observations_that_never_change_are_noted(monkeypatch):
    monkeypatch.setattr(
        checks_of_numbers, "row_blocks", functools.partial(row_blocks, block_bytes=256)
    )
    columns = good()
    still = np.tile(np.arange(10, dtype=np.float32), (len(columns["terminals"]), 1))
    still[-1, 9] = 0  # changes in the last row alone
    columns["observations"] = np.column_stack([columns["observations"], still])
    finding = only(columns)
    assert (finding.level, finding.kind) == ("note", "observations")
    assert "row 0 on: 2, 3, 4, 5, 6, 7, 8, 9, … (9 of 12); drop those" in finding.sentence
    images = np.zeros((len(still), 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(still))
    assert "observations" not in kinds(columns | {"observations": images})


def test_marks_and_rewards_may_be_booleans():
    columns = good()
    columns["masks"], columns["rewards"] = (columns[name] != 0 for name in ("masks", "rewards"))
    assert not kinds(columns)


def test_masks_inside_inverted_unsaid_and_no_masks():
    columns = good()
    columns["masks"][5] = 0
    assert (
        "1 episode continues after the task ended (first episode 0, row 5,"
        in only(columns).sentence
    )
    assert not kinds(columns, goes_on=True)
    columns["masks"] = 1 - good()["masks"]
    assert "almost nothing bootstraps" in only(columns).sentence
    columns["masks"][:] = 1
    assert "no mask is 0 although episodes have 40 to 70" in only(columns).sentence
    columns["masks"][3] = 0.5
    assert "has 0.5 in episode 0, row 3;" in only(columns).sentence


def test_duplicate_episodes_and_rows():
    columns = good()
    twice = {
        name: np.concatenate([column, column[: ENDS[0] + 1]]) for name, column in columns.items()
    }
    assert "episode 4 has the same observations as episode 0;" in only(twice).sentence
    columns["observations"][10:20] = columns["observations"][10]
    columns["actions"][10:20] = columns["actions"][10]
    assert "9 transitions repeat" in only(columns).sentence
    assert "(first episode 0, row 11)" in only(columns).sentence


def flat():
    """The same data in D4RL's layout."""
    columns = good()
    is_last = columns["terminals"]
    terminals = np.zeros(len(is_last), bool)
    terminals[ENDS - 1] = True
    names = ("observations", "actions", "rewards")
    rows = {name: columns[name][~is_last] for name in names}
    after = columns["observations"][1:][~is_last[:-1]]
    return rows | {
        "terminals": terminals[~is_last],
        "timeouts": np.zeros((~is_last).sum(), bool),
        "next_observations": after,
    }


def test_d4rl_rows_with_their_last_observations_have_no_finding():
    assert not check(view_of_flat(flat(), "mine"))


def test_d4rl_rows_without_them_lost_one_an_episode(tmp_path):
    columns, path = flat(), tmp_path / "mine.npz"
    del columns["next_observations"]
    np.savez(path, **columns)
    assert not check_dataset(str(path)), "ends of the task need none"
    columns["terminals"], columns["timeouts"] = columns["timeouts"], columns["terminals"].copy()
    columns["terminals"][np.cumsum(LENGTHS)[0] - 1] = True
    columns["timeouts"][np.cumsum(LENGTHS)[0] - 1] = False
    np.savez(path, **columns)
    (finding,) = check_dataset(str(path))
    assert (finding.level, finding.kind) == ("note", "last-row")
    row = np.cumsum(LENGTHS)[1] - 1
    assert f"3 transitions at cuts of episodes (first row {row}) have no next" in finding.sentence
    assert load(str(path)).notes == (finding.sentence,)


def test_an_end_that_d4rl_rows_lack_is_told_once_and_cut_as_in_training(tmp_path):
    columns = flat()
    columns["terminals"][np.cumsum(LENGTHS)[1] - 1] = False
    columns["rewards"][np.cumsum(LENGTHS)[2] - 1] = 5000
    np.savez(tmp_path / "mine.npz", **columns)
    jump, large = check_dataset(str(tmp_path / "mine.npz"))
    assert (jump.level, jump.kind) == ("warning", "jump")
    row = np.cumsum(LENGTHS)[1] - 1
    assert f"at 1 row of mine.npz (first {row}) the next observation is not" in jump.sentence
    assert f"5000 in episode 2, row {np.cumsum(LENGTHS)[2] - 1}" in large.sentence


def test_d4rl_marks_that_contradict_or_miss():
    columns = flat()
    columns["timeouts"] = columns["terminals"].copy()
    (finding,) = check(view_of_flat(columns, "mine"))
    assert finding.level == "note", "the task's ends, marked twice"
    assert "4 transitions are both terminal and timeout" in finding.sentence
    columns["timeouts"][LENGTHS[0] - 1] = False
    (finding,) = check(view_of_flat(columns, "mine"))
    assert finding.level == "warning", "done is stored: no limit bootstraps"
    row = LENGTHS[0] + LENGTHS[1] - 1
    said = f"each of the 3 timeouts is a terminal, too (first episode 1, row {row})"
    assert said in finding.sentence
    columns["timeouts"] = columns["terminals"].copy()
    ends_alone = columns | {"masks": np.ones(len(columns["rewards"]), np.float32)}
    assert "timeout" not in str(check(view_of_flat(ends_alone, "mine"))), "nothing ends the task"
    columns["timeouts"] &= np.cumsum(columns["terminals"]) == 1
    found = " ".join(map(str, check(view_of_flat(columns, "mine"))))
    assert "note: 1 transition is both terminal and timeout (first episode 0, row 59)" in found
    columns = flat()
    columns["terminals"][:] = False
    assert "neither 'terminals' nor 'timeouts'" in str(check(view_of_flat(columns, "mine")))


def test_terminals_that_only_end_episodes_are_marks_all_the_same():
    columns = flat()
    columns["masks"] = np.ones(len(columns["rewards"]))
    assert [f.level for f in check(view_of_flat(columns, "mine"))] == ["note"], "no mask is 0"
    columns["masks"][[3, 4]] = 0
    (finding,) = check(view_of_flat(columns, "mine"))
    assert (finding.level, finding.kind) == ("note", "masks")
    assert "1 episode continues after the task ended (first episode 0, row 3, mask 0)" in str(
        finding
    )


@pytest.mark.parametrize("shape", [(220, 3), (220, 1), (220,), (220, 2, 1)])
def test_next_observations_of_another_shape_are_refused_and_the_rest_is_checked(tmp_path, shape):
    columns = flat() | {"next_observations": np.zeros(shape)}
    columns["rewards"][:] = 0
    np.savez(tmp_path / "mine.npz", **columns)
    refused, rewards = check_dataset(str(tmp_path / "mine.npz"))
    assert refused.sentence.startswith("training refuses it: column 'next_observations' of")
    assert "is 0, so there is nothing to learn" in rewards.sentence


@pytest.mark.parametrize("shape", [(220,), (220, 2, 1), (220, 4, 4, 3)])
def test_observations_of_a_shape_that_training_refuses_are_checked(tmp_path, shape):
    observations = np.random.default_rng(0).normal(size=shape)
    after = np.roll(observations, -1, axis=0)
    columns = flat() | {"observations": observations, "next_observations": after}
    np.savez(tmp_path / "mine.npz", **columns)
    found = check_dataset(str(tmp_path / "mine.npz"))
    assert "training refuses it: column 'observations' of" in str(found)


NUMBERS = (
    lambda rng, shape: rng.normal(size=shape),
    lambda rng, shape: np.cumsum(rng.normal(size=shape), axis=0),
    lambda rng, shape: rng.normal(size=shape) * 1e38,
    lambda rng, shape: np.where(rng.random(shape) < 0.1, np.nan, rng.normal(size=shape)),
    lambda rng, shape: np.where(rng.random(shape) < 0.1, np.inf, rng.normal(size=shape)),
    lambda rng, shape: rng.integers(-5, 5, shape),
    lambda rng, shape: rng.integers(0, 255, shape).astype(np.uint8),
    lambda rng, shape: rng.random(shape) < 0.5,
    lambda rng, shape: 0 * rng.integers(9, size=shape),
)


def strange(rng):
    """Columns of any numbers, marks and shapes."""
    rows, dims = int(rng.integers(1, 80)), int(rng.integers(1, 5))

    def some(*shape):
        return NUMBERS[rng.integers(len(NUMBERS))](rng, shape)

    optional = {
        "timeouts": rng.random(rows) < rng.choice([0, 0.1, 0.5]),
        "next_observations": some(rows, int(rng.choice([dims, dims, 3]))),
        "masks": some(rows),
    }
    columns = {
        "observations": some(rows, dims),
        "actions": some(rows, int(rng.integers(1, 4))),
        "rewards": some(rows),
        "terminals": rng.random(rows) < rng.choice([0.02, 0.3, 0.9]),
    }
    if rng.random() < 0.3:
        optional["next_observations"] = np.roll(columns["observations"], -1, axis=0)
    return columns | {name: column for name, column in optional.items() if rng.random() < 0.5}


@pytest.mark.parametrize("view", [view_of_flat, view_of_columns])
@pytest.mark.filterwarnings("error")
def test_the_checks_take_any_numbers(view):
    rng, checked = np.random.default_rng(0), 0
    for _ in range(400):
        try:
            for goes_on in (False, True):
                check(view(strange(rng), "mine"), goes_on=goes_on)
                checked += 1
        except InputError:
            pass
    assert checked > 100


def at_a_limit(columns, longest=60):
    """`good` with its episodes cut to a length, all of which end the task."""
    lasts = [ENDS[e] - LENGTHS[e] + min(LENGTHS[e], longest) for e in range(len(LENGTHS))]
    kept = np.zeros(len(columns["terminals"]), bool)
    for last, end, length in zip(lasts, ENDS, LENGTHS, strict=True):
        kept[end - length : last + 1] = True
    columns["terminals"][lasts] = True
    columns["masks"][:] = 1
    columns["masks"][np.array(lasts) - 1] = 0
    return {name: column[kept] for name, column in columns.items()}


def test_the_longest_episodes_that_all_end_the_task_may_be_cut_off():
    finding = only(at_a_limit(good(), 50))
    assert (finding.level, finding.kind) == ("note", "masks")
    assert "the 3 longest episodes (first 0) all have 50 transitions and end" in finding.sentence
    assert not kinds(at_a_limit(good(), 60)), "two are too few"
    assert not kinds(at_a_limit(good(), 50), goes_on=True)
    cut = at_a_limit(good(), 50)
    cut["masks"][49] = 1
    assert not kinds(cut)


def test_limits_alone_that_are_stored_as_ends_are_a_warning():
    columns = flat()
    ends = np.arange(len(columns["rewards"])) % 20 == 19
    columns |= {"terminals": ends, "timeouts": ends}
    del columns["next_observations"]
    found = [f for f in check(view_of_flat(columns, "mine"), jumps=False) if f.kind == "timeouts"]
    assert [f.level for f in found] == ["warning"]


@pytest.mark.parametrize(("others", "told"), [([4, 6, 2], True), ([6, 5, 6], False)])
def test_a_length_that_others_come_near_is_no_limit(others, told):
    lengths = np.array([7, 7, 7, *others])
    terminals = np.zeros(lengths.sum(), bool)
    terminals[np.cumsum(lengths) - 1] = True
    numbers = np.random.default_rng(0).uniform(-0.9, 0.9, (len(terminals), 2))
    columns = {"observations": numbers, "actions": numbers, "rewards": numbers[:, 0]}
    data = from_arrays(columns | {"terminals": terminals}, "mine", layout="steps")
    assert told == ("3 longest episodes (first 0)" in str(quick_check(data.episodes)))


def resetting(same_step, seed=0):
    """What a loop over one of Gymnasium's vector environments records of `flat`'s episodes."""
    columns = flat()
    columns["terminals"], columns["timeouts"] = columns["timeouts"], columns["terminals"]
    starts = np.cumsum(LENGTHS)[:-1]
    if same_step:
        columns["next_observations"][starts - 1] = columns["observations"][starts]
        return columns
    put_in = {
        "observations": columns["next_observations"][starts - 1],
        "next_observations": columns["observations"][starts],
    }
    return {
        name: np.insert(column, starts, put_in.get(name, 0), axis=0)
        for name, column in columns.items()
    }


@pytest.mark.parametrize("same_step", [True, False])
def test_resets_that_are_recorded_as_steps_are_noted(tmp_path, same_step):
    np.savez(tmp_path / "mine.npz", **resetting(same_step))
    found = check_dataset(str(tmp_path / "mine.npz"))
    (reset,) = [f for f in found if f.kind == "reset"]
    assert reset.level == "note"
    assert "the last observation of 3 of 4 episodes (first 0) is the next one's" in reset.sentence
    assert ("final_obs" in reset.sentence) == same_step
    assert ("leave out the row after each end" in reset.sentence) == (not same_step)
    assert reset in quick_check(load(str(tmp_path / "mine.npz")).episodes)


def test_what_is_no_reset_is_no_finding():
    """A long episode in pieces goes on where it was; no step follows the task's end."""
    columns = flat()
    columns["terminals"][:] = False
    rows = np.arange(len(columns["rewards"]))
    walk = np.cumsum(np.random.default_rng(0).normal(0, 0.05, (len(rows) + 1, 2)), axis=0)
    columns["observations"], columns["next_observations"] = walk[:-1], walk[1:]
    columns["timeouts"] = rows % 20 == 19
    assert not {f.kind for f in check(view_of_flat(columns, "mine"))} & {"reset", "jump"}
    step = np.where(rows % 20 == 19, 2, 1)[:, None] * [[0.05, 0.0]]  # a long last step of each
    walk = np.cumsum(np.concatenate([walk[:1], np.diff(walk, axis=0) + step]), axis=0)
    columns["observations"], columns["next_observations"] = walk[:-1], walk[1:]
    assert "reset" not in {f.kind for f in check(view_of_flat(columns, "mine"))}
    ended = resetting(same_step=True)
    ended["terminals"], ended["timeouts"] = ended["timeouts"], ended["terminals"]
    assert "reset" not in {f.kind for f in check(view_of_flat(ended, "mine"))}


def test_rows_of_a_flat_file_are_the_files():
    """Last observations that are put in between shift nothing."""
    columns = flat()
    row = int(np.cumsum(LENGTHS)[1]) + 2
    columns["rewards"][row] = np.nan
    columns["observations"][row + 1] = np.nan
    columns["actions"][row + 2] = 2
    said = " ".join(map(str, check(view_of_flat(columns, "mine"))))
    assert f"'rewards' is not finite in episode 2, row {row};" in said
    assert f"'observations' is not finite in episode 2, row {row + 1};" in said
    assert f"in episode 2, row {row + 2}, outside [-1, 1]" in said
    columns = flat()
    columns["next_observations"][LENGTHS[0] - 1] = np.nan
    said = " ".join(map(str, check(view_of_flat(columns, "mine"))))
    assert f"'observations' is not finite in episode 0, row {LENGTHS[0] - 1};" in said


def test_a_quick_look_names_the_row_that_it_saw(monkeypatch):
    monkeypatch.setattr(checks, "QUICK_ROWS", 64)
    columns = good()
    at = len(columns["actions"]) // 3
    columns["actions"][at:, 0] = 1
    view = view_of_columns(columns, "mine")
    (quick,) = find_actions(checks._part(view))
    row = int(re.search(r"row (\d+)", quick.sentence)[1])
    assert columns["actions"][row, 0] == 1
    assert row - at < len(columns["actions"]) / 32


def test_dims_against_the_environment():
    view = view_of_columns(good(), "mine")
    env = "pointmaze-medium-singletask-task1-v0"
    assert check_spaces(view, env) == []
    columns = good()
    columns["actions"] = columns["actions"][:, :1]
    (finding,) = check_spaces(view_of_columns(columns, "mine"), env)
    assert "1 action dims" in finding.sentence


@pytest.mark.parametrize("column", ["observations", "actions", "terminals"])
def test_a_missing_column_is_one_sentence(column):
    columns = good()
    del columns[column]
    with pytest.raises(InputError, match=f"'{column}'"):
        view_of_columns(columns, "mine")


def test_quick_check_finds_what_check_finds_in_small_data(tmp_path):
    columns = good()
    columns["terminals"][ENDS[1]] = False
    columns["masks"][ENDS[1] - 1] = 1
    columns["rewards"][:] = 5
    still = np.zeros((len(columns["terminals"]), 1), np.float32)
    columns["observations"] = np.column_stack([columns["observations"], still])
    np.savez(tmp_path / "mine.npz", **columns)
    episodes = load(str(tmp_path / "mine.npz")).episodes
    found = quick_check(episodes)
    assert [f.kind for f in found] == ["jump", "rewards", "observations"]
    assert found == check(view_of(episodes))


class Listener(SilentReporter):
    """Keeps what is noted."""

    def __init__(self):
        self.sentences = []

    def noted(self, sentence):
        self.sentences.append(sentence)


def test_a_run_says_and_records_what_a_quick_look_finds(tmp_path):
    columns = good()
    columns["rewards"][:] = 0
    np.savez(tmp_path / "mine.npz", **columns)
    settings = {
        "critic": {"size": "tiny"},
        "flow": {"hidden": [8, 8]},
        "dataset": {"name": str(tmp_path / "mine.npz")},
        **{"steps": 2, "batch_size": 4, "log_every": 1, "checkpoint_every": 2},
    }
    listener = Listener()
    data = load(settings["dataset"]["name"])
    folder = training.run(resolve(settings), data, tmp_path / "runs", "", listener)
    recorded = json.loads(folder.provenance.read_text())["data_findings"]
    assert len(recorded) == 1
    assert recorded[0].startswith("warning: the reward of all 220 transitions")
    assert recorded[0] in listener.sentences


def test_a_run_in_an_environment_without_a_step_limit_says_so(tmp_path):
    columns = good()
    columns["observations"] = np.tile(columns["observations"], 2)  # the environment has 4 dims
    np.savez(tmp_path / "mine.npz", **columns)
    env_id = "rollout_environments:Uneven-v0"
    settings = {
        "critic": {"size": "tiny"},
        "flow": {"hidden": [8, 8]},
        "dataset": {"name": str(tmp_path / "mine.npz"), "env_id": env_id},
        "evaluation": {"protocol": "quick-return", "processes": 1},
        **{"steps": 1, "batch_size": 4},
    }
    listener = Listener()
    data = load(settings["dataset"]["name"], env_id=env_id)
    training.run(resolve(settings), data, tmp_path / "runs", "", listener)
    assert "has no step limit" in " ".join(listener.sentences)


REFUSED = {
    "rewards": lambda c: c.pop("rewards"),
    "outside": lambda c: c.update(actions=np.full((len(c["rewards"]), 2), 9)),
    "shape": lambda c: c.update(rewards=np.stack([c["rewards"]] * 2, axis=1)),
    "end of an episode": lambda c: c["terminals"].fill(False),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_training_refuses_is_a_warning(tmp_path, words):
    columns = good()
    REFUSED[words](columns)
    np.savez(tmp_path / "mine.npz", **columns)
    result = run(tmp_path / "mine.npz")
    assert result.exit_code == 1
    assert "warning: training refuses it: " in result.output
    assert words in " ".join(result.output.split())


def test_a_file_without_masks_is_told_that_no_mask_is_0(tmp_path):
    columns = good()
    del columns["masks"]
    np.savez(tmp_path / "mine.npz", **columns)
    done = run(tmp_path / "mine.npz")
    said = " ".join(done.output.split())
    assert done.exit_code == 0, "they are optional"
    assert "note: no mask is 0" in said
    assert f"note: {WITHOUT_MASKS}" in said


def steps_of(columns):
    """The rows of the steps alone, marked at the last one as d3rlpy does, with dense rewards."""
    steps = {name: column[~columns["terminals"]] for name, column in columns.items()}
    steps["terminals"] = steps.pop("masks") == 0
    steps["rewards"] = np.linspace(0, 1, len(steps["terminals"]), dtype=np.float32)
    return steps


def test_rows_that_seem_to_be_steps_are_a_warning(tmp_path):
    np.savez(tmp_path / "mine.npz", **steps_of(good()))
    done = run(tmp_path / "mine.npz")
    said = " ".join(done.output.split())
    assert done.exit_code == 1
    assert f"warning: {WITHOUT_MASKS}; the marked rows have actions and rewards of" in said
    assert "episodes have 39 to 69 transitions, which speaks for that" in said


def with_episode_of_one_row(columns):
    """The steps of `steps_of` with their second episode cut down to its last."""
    ends = np.flatnonzero(columns["terminals"])
    kept = np.ones(len(columns["terminals"]), bool)
    kept[ends[0] + 1 : ends[1]] = False
    return {name: column[kept] for name, column in columns.items()}


def test_an_episode_of_one_step_gets_the_advice_on_layouts(tmp_path):
    columns = with_episode_of_one_row(steps_of(good()))
    np.savez(tmp_path / "mine.npz", **columns)
    row = np.flatnonzero(columns["terminals"])[1]
    done = run(tmp_path / "mine.npz")
    assert isinstance(done.exception, InputError)
    assert f"ends at row {row} in OGBench's layout, while rows" in str(done.exception)
    assert f"{AS_STEPS}; otherwise leave it out" in str(done.exception)
    with pytest.raises(InputError, match=rf"ends at row {row} has no .*timeouts', 1 where an"):
        load(str(tmp_path / "mine.npz"))
    with pytest.raises(InputError, match=r"of their own; give layout='steps' if each row is"):
        from_arrays(columns, "mine", layout="ogbench")
    assert from_arrays(columns, "mine", layout="steps").episodes.lengths[1] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["actions"].__setitem__(c["terminals"], 0),
        lambda c: c["rewards"].__setitem__(c["terminals"], 0),
        lambda c: c.pop("rewards"),
    ],
)
def test_a_row_without_a_step_of_its_own_is_to_be_left_out(change):
    columns = with_episode_of_one_row(steps_of(good()))
    change(columns)
    with pytest.raises(InputError, match=r"which ends at row \d+; leave it out"):
        view_of_columns(columns, "mine")


def equally_long(columns):
    """The first two episodes' rows as two of one length."""
    rows = 2 * (ENDS[0] + 1)
    columns |= {name: column[:rows] for name, column in columns.items()}
    columns["terminals"][:] = np.arange(rows) % (ENDS[0] + 1) == ENDS[0]


def fill_rows(column, value):
    column[ENDS] = value


@pytest.mark.parametrize(
    "change",
    [
        lambda c: fill_rows(c["actions"], 0),
        lambda c: fill_rows(c["actions"], c["actions"][ENDS - 1]),
        lambda c: fill_rows(c["rewards"], 0),
        lambda c: fill_rows(c["rewards"], c["rewards"][ENDS - 1]),
        lambda c: c.pop("rewards"),
        equally_long,
    ],
)
def test_rows_filled_for_a_last_observation_are_not_taken_for_steps(change, tmp_path):
    columns = good() | {"rewards": np.linspace(0, 1, len(good()["rewards"]), dtype=np.float32)}
    del columns["masks"]
    np.savez(tmp_path / "mine.npz", **columns)
    assert "speaks for that" in run(tmp_path / "mine.npz").output
    assert "speaks for that" in str(load(str(tmp_path / "mine.npz")).found)
    change(columns)
    np.savez(tmp_path / "mine.npz", **columns)
    assert "speaks for that" not in run(tmp_path / "mine.npz").output
    if "rewards" in columns:
        assert "speaks for that" not in str(load(str(tmp_path / "mine.npz")).found)


def run(*arguments):
    return CliRunner().invoke(app, ["datasets", "check", *map(str, arguments)])


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (lambda _: None, 0, "0 warnings, 0 notes"),
        (lambda c: c["rewards"].fill(-1), 0, "note: the reward"),
        (lambda c: c["rewards"].fill(0), 1, "warning: the reward"),
    ],
)
def test_exit_codes(tmp_path, spoil, code, says):
    columns = good()
    spoil(columns)
    np.savez(tmp_path / "mine.npz", **columns)
    done = run(tmp_path / "mine.npz")
    assert done.exit_code == code
    assert says in done.output.replace("\n", " ")


def test_a_single_column_of_observations_is_one_sentence(tmp_path):
    columns = good()
    columns["observations"] = columns["observations"][:, 0]
    np.savez(tmp_path / "mine.npz", **columns)
    done = run(tmp_path / "mine.npz", "--env", "pointmaze-medium-singletask-task1-v0")
    (warning, count) = done.output.splitlines()
    assert done.exit_code == 1
    assert "'observations' of" in warning
    assert "has shape (224,) where (rows, dims) is needed" in warning
    assert count == "1 warning, 0 notes"


def test_an_unreadable_file_is_an_input_error(tmp_path):
    (tmp_path / "mine.npz").write_bytes(b"no zip")
    assert isinstance(run(tmp_path / "mine.npz").exception, (InputError, SystemExit))


def test_observations_too_large_for_networks_are_noted_unless_normalised(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "observations": rng.normal(0, 1, (200, 3)) * [1e-3, 1.0, 1e5],
        "actions": rng.uniform(-1, 1, (200, 1)),
        "rewards": rng.normal(size=200),
        "terminals": np.arange(200) == 199,
    }
    data = from_arrays(columns, "mine", layout="ogbench")
    assert large_dims(data.episodes.observations) == [2]
    (found,) = [f for f in check(view_of(data.episodes)) if "mostly beyond" in f.sentence]
    assert found.level == "note"
    assert "2 (1 of 3); train with --set dataset.normalise=true" in found.sentence
    told = {}
    (tmp_path / "r").mkdir()
    for normalise in (False, True):
        config = resolve({"dataset": {"name": "mine", "normalise": normalise}, "steps": 1})
        begun = Begun(setup=set_up(config, data), folder=RunFolder(tmp_path / "r"))
        told[normalise] = [s for s in opening_notes([begun]) if "mostly beyond ±100 in dim 2" in s]
    assert (len(told[False]), told[True]) == (1, [])


def test_an_action_beyond_the_environments_own_bounds_is_to_be_clipped(tmp_path):
    """Not to be given the bounds that were given already, nor others, which training refuses."""
    columns = good()
    columns["actions"] = 2 * columns["actions"][:, :1]
    columns["actions"][17] = 5
    np.savez(tmp_path / "mine.npz", **columns)
    done = run(tmp_path / "mine.npz", "--action-bounds=-2,2", "--env", "Pendulum-v1")
    said = " ".join(done.output.split())
    assert "has 5 at row 17, dim 0, outside the given bounds [-2, 2]; clip that action" in said


def test_info_takes_bounds_of_actions(tmp_path):
    columns = good()
    columns["actions"] *= 2
    np.savez(tmp_path / "mine.npz", **columns)
    runner = CliRunner()
    refused = runner.invoke(app, ["datasets", "info", str(tmp_path / "mine.npz")])
    assert "name their bounds by --action-bounds LOW,HIGH" in str(refused.exception)
    taken = runner.invoke(
        app, ["datasets", "info", str(tmp_path / "mine.npz"), "--action-bounds=-2,2"]
    )
    assert taken.exit_code == 0
    assert "action dims" in taken.output
