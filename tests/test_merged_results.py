"""What a file may claim of a run, and what is pooled: other people's results, other versions."""

import json

import numpy as np
import pytest
import tomli_w
from report_runs import boards_of, config, make_run, write_lines, write_result

from tql_offline.eval.averages import average, domain_title, domains
from tql_offline.eval.leaderboard_page import board_section
from tql_offline.eval.measured import measured
from tql_offline.eval.published import published_scores
from tql_offline.eval.report import write_report
from tql_offline.eval.run_records import read_result, read_run
from tql_offline.eval.statistics import estimate_difference

pytestmark = pytest.mark.usefixtures("panels_drawn_once")

TASKS = tuple(f"cube-double-play-singletask-task{n}-v0" for n in range(1, 6))


def changed(path, **facts):
    """A result with other facts; those of every evaluation under `row`."""
    document = json.loads(path.read_text())
    row = facts.pop("row", {})
    document["evaluations"] = [line | row for line in document["evaluations"]]
    path.write_text(json.dumps(document | facts))
    return path


def test_a_score_that_is_not_its_episodes_is_left_out(tmp_path):
    path = changed(write_result(tmp_path / "result.json"), row={"score": 90.0})
    run = read_result(path)
    assert run.evaluations == ()
    assert run.warnings[0] == (
        "result.json evaluation 1 has a score of 90 where its episodes give 20 and was left out"
    )
    folder = make_run(tmp_path / "r", successes=(5,), behaviour=None)
    (line,) = [json.loads(text) for text in folder.evaluations.read_text().splitlines()]
    write_lines(folder.evaluations, [line | {"score": 90.0}])
    changed(folder.result, row={"success_rate": 0.9, "score": 90.0})
    run = read_run(folder)
    assert (
        "evaluations.jsonl line 1 has a score of 90 where its episodes give 10" in run.warnings[0]
    )
    assert run.evaluations == (), "nor is the result taken, which is of the same episodes"


@pytest.mark.parametrize("rounded", [20.0, 20.01, None])
def test_a_score_that_was_rounded_or_has_no_known_scale_is_kept(tmp_path, rounded):
    path = changed(write_result(tmp_path / "result.json", successes=(10,) * 3))
    if rounded is None:
        changed(path, protocol={"name": "mine", "version": 1, "counted": "last"})
    else:
        changed(path, row={"score": rounded})
    assert len(read_result(path).evaluations) == 3


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"success_rate": 2.5, "score": 250.0}, "has a success rate of 2.5, which is not within"),
        ({"success_rate": -0.1, "score": -10.0}, "has a success rate of -0.1, which is not within"),
        ({"success_rate": None, "score": 90.0}, "has a score of success without a success rate"),
    ],
)
def test_a_rate_that_is_none_is_left_out(tmp_path, row, why):
    run = read_result(changed(write_result(tmp_path / "result.json"), row=row))
    assert run.evaluations == ()
    assert why in run.warnings[0]


def test_rows_of_one_task_are_not_counted_as_tasks(tmp_path):
    paths = [
        changed(
            write_result(tmp_path / f"{data}-{size}-{method}-{seed}.json", size=size, seed=seed,
                         method=method, successes=(5 * len(size) + seed,) * 3),
            dataset_sha256=data * 32,
        )
        for data in ("aa", "bb") for size in ("tiny", "small") for method in ("TQL", "FQL")
        for seed in range(4)
    ]  # fmt: skip
    (board,), _ = boards_of(paths)
    section = board_section(board, "b")
    assert "over the 2 rows of 1 task that these sizes share" in " ".join(section.evidence)
    assert any("over 2 rows of 1 task" in sentence for sentence in section.answers)


def test_a_file_does_not_choose_what_its_protocol_counts(tmp_path):
    protocol = {"name": "ogbench-singletask", "version": 1, "counted": "last"}
    path = changed(write_result(tmp_path / "r.json", successes=(0, 0, 50)), protocol=protocol)
    assert measured(read_result(path)).score == pytest.approx(100 / 3)


def test_a_step_that_a_file_repeats_counts_once(tmp_path):
    path = write_result(tmp_path / "result.json", successes=(0, 0, 50))
    document = json.loads(path.read_text())
    document["evaluations"] += document["evaluations"][-1:] * 2
    path.write_text(json.dumps(document))
    run = read_result(path)
    assert measured(run).score == pytest.approx(100 / 3)
    assert run.warnings[0] == (
        "result.json evaluation 4 repeats step 300000 (learned) and was left out"
    )


def test_a_run_whose_data_are_not_recorded_is_no_other_run(tmp_path):
    """Neither another seed, nor of settings that are not compared."""
    known, unknown = (write_result(tmp_path / f"{n}.json") for n in "ab")
    changed(unknown, dataset_sha256=None)
    (board,), (warning,) = boards_of([known, unknown])
    assert board.scores[TASKS[0], "TQL tiny"].runs == (40.0,)
    assert "has another run of seed 0" in warning
    for path, alpha in ((known, 1.0), (unknown, 300.0)):
        changed(path, settings={"flow": {"alpha": alpha}})
    (board,), _ = boards_of([known, unknown])
    assert board.measured == ("TQL (flow.alpha 1.0) tiny", "TQL (flow.alpha 300.0) tiny")


def test_versions_of_an_environments_own_package_are_rows_of_their_own(tmp_path):
    versions = ("1.2.4", "1.4.2")
    paths = [
        changed(
            write_result(tmp_path / f"{number}.json", seed=seed),
            row={"versions": {"gymnasium_robotics": number, "mujoco": "3.3.5"}},
        )
        for seed, number in enumerate(versions)
    ]
    (board,), _ = boards_of(paths)
    assert board.tasks == tuple(f"{TASKS[0]}, gymnasium_robotics {n}" for n in versions)


def test_an_average_over_two_rows_of_a_task_says_so(tmp_path):
    """Of the first task there are two contents of data, on each of which every seed succeeds."""
    paths = [
        write_result(tmp_path / f"{n}.json", task=task, successes=(0 if n else 50,) * 3)
        for n, task in enumerate(TASKS)
    ]
    again = write_result(tmp_path / "again.json", successes=(50,) * 3)
    paths.append(changed(again, dataset_sha256="bb" * 32))
    (board,), _ = boards_of(paths, published_scores())
    ((domain, rows),) = domains(board).items()
    assert domain_title(domain, rows) == "cube-double-play (6 rows of 5 tasks)"
    assert average(board, "TQL tiny", rows)[0] == pytest.approx(100 / 3)
    said = f"Reported scores of {TASKS[0]} are left out, since its runs are in rows that differ."
    assert said in board.notes
    (whole,), _ = boards_of(paths[:-1], published_scores())
    assert not any("left out" in note for note in whole.notes)


def test_a_method_cannot_be_named_as_another_column(tmp_path):
    for method in ("TQL (reported)", "TQL (imported)", "TQL tiny (no size)"):
        path = changed(write_result(tmp_path / "a.json", method=method), size="")
        assert "which is the name of another column" in measured(read_result(path))
    path = changed(write_result(tmp_path / "a.json"), size="b c")
    assert measured(read_result(path)).startswith("has a critic of size 'b c'; the sizes are tiny,")
    of_size = write_result(tmp_path / "b.json", method="FQL", successes=(50,) * 3)
    without = changed(write_result(tmp_path / "c.json", method="FQL tiny", seed=1), size=None)
    (board,), _ = boards_of([of_size, without])
    cells = {label: board.scores[TASKS[0], label].mean for label in board.measured}
    assert cells == {"FQL tiny": 100, "FQL tiny (no size)": 40}


def test_critics_of_one_size_and_unlike_numbers_of_parameters_are_told(tmp_path):
    paths = [
        changed(write_result(tmp_path / f"{seed}.json", seed=seed), parameters=count)
        for seed, count in enumerate((106_434, 26_000_000))
    ]
    (board,), _ = boards_of(paths)
    assert (
        f"Critics of TQL tiny on {TASKS[0]} differ in their number of parameters: 106,434, "
        "26,000,000."
    ) in board.notes


def test_answers_of_several_boards_say_which_they_are_of(tmp_path):
    """By what differs between the boards alone: here the simulator, not the protocol."""
    runs = [
        make_run(tmp_path / f"{mujoco}-{method}-{s}", seed=s, mujoco=mujoco, method=method)
        for mujoco in ("3.3.5", "3.9.0")
        for method in ("TQL", "FQL")
        for s in (0, 1)
    ]
    text = write_report(runs, tmp_path / "several").markdown.read_text()
    heads = text.partition("\n- ")[0].split("\n\n")[1:3]
    assert [line.partition(": ")[0] for line in heads] == ["mujoco 3.3.5", "mujoco 3.9.0"]
    text = write_report(runs[:4], tmp_path / "one").markdown.read_text()
    assert "mujoco 3.3.5: " not in text


def test_as_many_successes_are_the_same_score_in_any_order(tmp_path):
    """100 · (k / 50), as the evaluator has it: 7, 7, 8 and 1, 7, 14 sum to other floats."""
    paths = []
    for seed, order in enumerate(((7, 7, 8), (1, 7, 14), (14, 1, 7))):
        path = write_result(tmp_path / f"{seed}.json", seed=seed, successes=order)
        document = json.loads(path.read_text())
        for row in document["evaluations"]:
            row["score"] = 100.0 * row["success_rate"]
        path.write_text(json.dumps(document))
        paths.append(path)
    (board,), _ = boards_of(paths)
    runs = board.scores[TASKS[0], "TQL tiny"].runs
    assert len(set(runs)) == 1
    got = board.interval(board.scores[TASKS[0], "TQL tiny"])
    assert got.high > 70, "three seeds that agree leave room"
    assert np.isnan(estimate_difference([runs], [runs]).low)


SETTINGS = config("tiny", 0, 20_000, "quick")
CONTRADICTIONS = {
    "seed": ({"seed": 3}, {}, {}, "gives seed 3 where config.toml has 0"),
    "size": ({"size": "small"}, {}, {}, "gives size 'small' where config.toml has 'tiny'"),
    "method": ({"method": "FQL"}, {}, {}, "gives method 'FQL' where config.toml has 'TQL'"),
    "data": ({"dataset": TASKS[0]}, {}, {}, f"gives dataset '{TASKS[0]}' where"),
    "updates": ({"updates": 7}, {}, {}, "gives updates 7 where config.toml has 20000"),
    "an edited config": (
        *({"settings": SETTINGS}, {}, {"flow": {"alpha": 3.0}}),
        "gives flow.alpha 30.0 where config.toml has 3.0",
    ),
    "a foreign one": (
        *({"settings": {"objective": ["flow"]}}, {}, {}),
        "gives objective ['flow'] where config.toml has 'flow'",
    ),
    "a setting left out": (
        *({"settings": SETTINGS}, {}, {"flow": {"hidden": [512, 512, 512, 512]}}),
        "gives flow.alpha 30.0 where config.toml has 300.0",
    ),
    "a result written anew": (
        *({}, {"settings": {"flow.alpha": 300.0, "seed": 0}}, {}),
        "is of a run that began with flow.alpha 300.0 where config.toml has 30.0",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_result_that_is_not_its_configs_is_on_no_board(tmp_path, case):
    claims, facts, settings, said = CONTRADICTIONS[case]
    folder = make_run(tmp_path / "r")
    changed(folder.result, **claims)
    folder.provenance.write_text(json.dumps(json.loads(folder.provenance.read_text()) | facts))
    folder.config.write_text(tomli_w.dumps(SETTINGS | settings))
    found = read_run(folder)
    assert found.finished
    assert measured(found).startswith(f"has a result.json that {said}")
    assert any(s.startswith(f"result.json {said}") for s in found.warnings)
    files = write_report([folder, make_run(tmp_path / "other", seed=1)], tmp_path / "out")
    (left,) = [w for w in files.warnings if "on no leaderboard" in w]
    assert said in left


@pytest.mark.parametrize(
    ("claims", "facts", "settings"),
    [
        ({"settings": {"flow": {"alpha": 30.0}}}, {}, {}),  # of a version with fewer settings
        ({"settings": SETTINGS | {"watch": {"patience": 5}}}, {}, {"log_every": 7}),
        ({"settings": SETTINGS}, {}, {"evaluation": {"protocol": "quick-return"}}),
        ({"settings": "none"}, {"settings": ["foreign"]}, {}),
        ({"settings": {"flow": 3}}, {}, {}),
        ({"dataset": "/there/a.npz"}, {}, {"dataset": {"name": "data/a.npz"}}),  # moved since
        ({"size": "", "method": "BC", "objective": "cloning"}, {}, {"objective": "cloning"}),
        # As of a run that was given more updates.
        (
            {"settings": SETTINGS | {"optimizer": {"schedule_steps": 5_000}}},
            {"settings": {"optimizer.schedule_steps": 5_000}},
            {"optimizer": {"schedule_steps": 5_000}},
        ),
    ],
)
def test_a_result_may_differ_from_its_config_in_what_changes_no_policy(
    tmp_path, claims, facts, settings
):
    folder = make_run(tmp_path / "r")
    changed(folder.result, **claims)
    folder.provenance.write_text(json.dumps(json.loads(folder.provenance.read_text()) | facts))
    folder.config.write_text(tomli_w.dumps(SETTINGS | settings))
    assert not isinstance(measured(read_run(folder)), str)
