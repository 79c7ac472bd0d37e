"""docs/python.md, whose blocks run one after the other as one program; arrays as datasets."""

import inspect
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import command

from tql_offline.config import OBJECTIVES
from tql_offline.datasets.arrays import from_arrays
from tql_offline.datasets.load import WITHOUT_MASKS, load
from tql_offline.errors import InputError
from tql_offline.files import read_json
from tql_offline.training.setup import findings_of

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    monkeypatch.setitem(sys.modules, "my_methods", page)
    known = dict(OBJECTIVES)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), page.__dict__)
    result = read_json(tmp_path / "runs" / "my-run" / "result.json")
    assert (result["dataset"], result["updates"]) == ("mine", 30)
    cautious = read_json(tmp_path / "runs" / "cautious" / "result.json")
    assert cautious["method"] == "CautiousQ-transformer"
    assert "(5, 2)" in capsys.readouterr().out
    assert known == OBJECTIVES, "a run of a name that this process alone knows opens in no other"
    code, _ = command(["export", "runs/cautious", "--out", "model", "--no-onnx"], capsys)
    assert code == 0


def columns(rows=40):
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "actions": rng.uniform(-0.9, 0.9, size=(rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.arange(rows) % 10 == 9,
    }


@pytest.mark.parametrize(
    "added",
    [
        {},
        {"masks": np.ones(40)},
        {"timeouts": np.zeros(40)},
        {"masks": (np.arange(40) % 10 != 4).astype(float)},
    ],
)
def test_arrays_are_what_a_file_of_them_is(tmp_path, added):
    made = columns() | added
    np.savez(tmp_path / "mine.npz", **made)
    from_file = load(str(tmp_path / "mine.npz"))
    from_memory = from_arrays(made, "mine", layout=None if added else "ogbench")
    for name in ("observations", "actions", "rewards", "masks", "lengths"):
        ours, theirs = (getattr(d.episodes, name) for d in (from_memory, from_file))
        np.testing.assert_array_equal(ours, theirs)
    assert from_memory.notes == from_file.notes
    assert findings_of(from_memory) == findings_of(from_file)
    assert (WITHOUT_MASKS in from_memory.notes) == (not added)


@pytest.mark.parametrize(
    ("name", "source", "warned"),
    [
        ("mine", "arrays", True),
        ("minari:mujoco/hopper/medium-v0", "downloaded", True),
        ("hopper-medium-v2", "downloaded", True),
        ("cube-double-play-singletask-task1-v0", "downloaded", False),
    ],
)
def test_only_ogbenchs_episodes_go_on_after_the_tasks_end(name, source, warned):
    data = from_arrays(columns() | {"masks": np.zeros(40)}, "mine")
    found = " ".join(findings_of(replace(data, name=name, source=source)))
    assert ("of all transitions have mask 0" in found) == warned


def test_the_page_names_every_option_of_arrays():
    options = inspect.signature(from_arrays).parameters.values()
    names = [option.name for option in options if option.kind is option.KEYWORD_ONLY]
    page = PAGE.read_text(encoding="utf-8")
    assert "action_bounds" in names
    assert [name for name in names if f"{name}=" not in page] == []


def test_arrays_of_other_bounds_are_scaled():
    made = columns() | {"actions": 4 * columns()["actions"]}
    data = from_arrays(made, "mine", action_bounds=np.array([-4.0, 4.0]), layout="ogbench")
    plain = from_arrays(columns(), "mine", layout="ogbench").episodes.actions
    np.testing.assert_allclose(data.episodes.actions, plain, rtol=1e-6)
    assert data.action_bounds == ([-4.0, -4.0], [4.0, 4.0])
    made["actions"] = 5 + 2 * columns()["actions"]
    scaled = from_arrays(made, "mine", action_bounds=[3, 7], layout="ogbench")
    np.testing.assert_allclose(scaled.episodes.actions, plain, atol=1e-6)


@pytest.mark.parametrize("layout", ["steps", "ogbench"])
def test_actions_outside_are_refused_with_the_argument_to_give(layout):
    made = columns() | {"actions": 4 * columns()["actions"]}
    with pytest.raises(InputError) as refused:
        from_arrays(made, "mine", layout=layout)
    assert "name their bounds by action_bounds=(LOW, HIGH), here and" in str(refused.value)
    assert "--set" not in str(refused.value)


@pytest.mark.parametrize("bounds", [[2], [-1, 1, 2], [1, -1], [0, np.inf]])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(InputError, match="are not the least and the greatest action"):
        from_arrays(columns(), "mine", action_bounds=bounds)


def test_arrays_are_left_as_they_were_and_named_by_their_numbers():
    made = columns() | {"masks": np.ones(40)}
    before = {name: column.copy() for name, column in made.items()}
    digests = [from_arrays(made, "mine").sha256, from_arrays(made, "other").sha256]
    for name, column in made.items():
        np.testing.assert_array_equal(column, before[name])
    made["rewards"][3] += 1
    digests.append(from_arrays(made, "mine").sha256)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: c.pop("rewards"), "mine has no column 'rewards'"),
        (lambda c: c["actions"].fill(3), "'actions' of mine has 3 at row 0"),
        (lambda c: c["observations"].fill(np.nan), "not finite at row 0"),
        (lambda c: c.update(observations=np.full((40, 3), 1e300)), "not finite at row 0"),
        (lambda c: c.update(rewards=np.ones(7)), "7 rows where 'observations' has 40"),
        (lambda c: c.update(actions=[["a"]] * 40), "where rows of numbers are needed"),
        (lambda c: c.update(observations=[[1.0, 2.0], [3.0]]), "'observations' is no array"),
    ],
)
def test_arrays_that_are_no_data_are_refused(spoil, said):
    made = columns()
    spoil(made)
    with pytest.raises(InputError, match=said):
        from_arrays(made, "mine", layout="ogbench")


def test_arrays_that_may_be_of_two_layouts_are_read_with_a_warning():
    with pytest.warns(
        UserWarning, match="no transition ends the task; give layout='steps'"
    ) as said:
        warned = from_arrays(columns(), "mine")
    assert said[0].filename == __file__
    assert warned.episodes.lengths.tolist() == [9] * 4
    assert not (warned.episodes.masks == 0).any()
    same = from_arrays(columns(), "mine", layout="ogbench")
    assert (same.sha256, same.notes) == (warned.sha256, warned.notes)


def test_rows_may_be_steps_as_d3rlpy_has_them():
    """Every row is a transition; each terminal ends the task, and what follows the last is cut."""
    made = columns()
    made["terminals"][-1] = False
    data = from_arrays(made, "mine", layout="steps")
    assert data.episodes.lengths.tolist() == [10, 10, 10, 9]
    assert np.flatnonzero(data.episodes.masks == 0).tolist() == [9, 19, 29]
    np.testing.assert_array_equal(data.episodes.actions, made["actions"][:-1])
    assert data.sha256 == from_arrays(made | {"timeouts": np.zeros(40)}, "mine").sha256
    assert data.sha256 != from_arrays(columns(), "mine", layout="ogbench").sha256
    cut = from_arrays(made | {"timeouts": np.arange(40) == 4}, "mine", layout="steps")
    assert cut.episodes.lengths.tolist() == [4, 5, 10, 10, 9]


def test_a_layout_that_is_not_the_columns_is_refused():
    with pytest.raises(InputError, match="layout 'd4rl' is unknown; give one of steps, ogbench"):
        from_arrays(columns(), "mine", layout="d4rl")
    with pytest.raises(InputError, match="'timeouts' says that each row is a step"):
        from_arrays(columns() | {"timeouts": np.zeros(40)}, "mine", layout="ogbench")
    with pytest.raises(InputError, match="no column 'terminals'"):
        from_arrays({k: v for k, v in columns().items() if k != "terminals"}, "m", layout="steps")
