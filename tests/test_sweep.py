"""Sweeps: what a suite expands to, what is refused, what is trained, skipped and kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from command_line import command
from own_data import write_own
from stand_ins import SilentSweep, raising

from tql_offline.cli.sweep import _outcome
from tql_offline.config import resolve
from tql_offline.cores import usable_cores
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.slices import slices_sha256
from tql_offline.errors import InputError
from tql_offline.files import read_json, write_json
from tql_offline.presets import DEFAULT_DATASET
from tql_offline.runs import RunFolder, claimed
from tql_offline.training import new_run, stopping, sweep
from tql_offline.training import suite as suites
from tql_offline.training.arithmetic import flops_per_update
from tql_offline.training.device import gpu_names
from tql_offline.training.loop import stopping_at_once
from tql_offline.training.provenance import SWEEP_COMMAND, collect_provenance
from tql_offline.training.stopping import ENDS_WITH_INPUT
from tql_offline.training.suite import (
    PlannedRun,
    check_data,
    check_environments,
    cores_each,
    expand,
    find_suite,
    read_suite,
    select,
)
from tql_offline.training.sweep import (
    Ended,
    Share,
    discard,
    first_difference,
    is_taken,
    last_words,
    state_of,
    taken,
    threads_each,
    train_runs,
)
from tql_offline.training.sweep_cost import costs

GRID = """
seeds = [0, 7]

[collect]
cube-single-play-v0 = 100

[settings]
batch_size = 128
steps = 50
evaluation.protocol = "quick"

[axis.task.pointmaze]
dataset.name = "pointmaze-medium-navigate-singletask-task1-v0"
steps = 6000
[axis.task.cube-single]
dataset.name = "cube-single-play-singletask-task1-v0"
[axis.method.flow]
objective = "flow"
[axis.method.ifql]
preset = "ifql"
[axis.size.tiny]
critic.size = "tiny"
"""


@pytest.fixture
def suite(tmp_path):
    """Writes a suite file and reads it."""

    def write(text):
        path = tmp_path / "grid.toml"
        path.write_text(text)
        return read_suite(path)

    return write


def test_a_suite_expands_to_every_combination_and_seed(suite):
    read = suite(GRID)
    assert read.collect == {"cube-single-play-v0": 100}
    runs = {run.name: run.config for run in expand(read, {}, 1)}
    assert list(runs) == [
        "pointmaze-flow-tiny-s0",
        "pointmaze-flow-tiny-s7",
        "pointmaze-ifql-tiny-s0",
        "pointmaze-ifql-tiny-s7",
        "cube-single-flow-tiny-s0",
        "cube-single-flow-tiny-s7",
        "cube-single-ifql-tiny-s0",
        "cube-single-ifql-tiny-s7",
    ]
    common = {"batch_size": 128, "critic": {"size": "tiny"}}
    evaluation = {"protocol": "quick", "processes": usable_cores()}
    assert runs["pointmaze-ifql-tiny-s7"] == resolve(
        common
        | {"preset": "ifql", "seed": 7, "steps": 6000, "evaluation": evaluation}
        | {"dataset": {"name": DEFAULT_DATASET}}
    )
    assert runs["cube-single-flow-tiny-s0"] == resolve(
        common
        | {"objective": "flow", "seed": 0, "steps": 50, "evaluation": evaluation}
        | {"dataset": {"name": "cube-single-play-singletask-task1-v0"}}
    )


def test_a_part_of_a_suite_is_chosen_by_names(suite):
    read = suite(GRID)
    runs = expand(read, {}, 1)
    chosen, collect = select(runs, ["pointmaze-*-s7", "*-ifql-tiny-s0"], read)
    assert [run.name for run in chosen] == [
        "pointmaze-flow-tiny-s7",
        "pointmaze-ifql-tiny-s0",
        "pointmaze-ifql-tiny-s7",
        "cube-single-ifql-tiny-s0",
    ]
    assert collect == {"cube-single-play-v0": 100}
    assert select(runs, ["pointmaze-*"], read)[1] == {}, "of what nothing is trained on"
    with pytest.raises(InputError, match=r"--only 'cube-double\*' matches no run"):
        select(runs, ["pointmaze-*", "cube-double*"], read)


SHIPPED = {"scaling": 25 * 5 * 4 * 8, "ablation": 5 * 4 * 8}


def test_the_readmes_study_is_two_methods_at_two_sizes(tmp_path):
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (tmp_path / "study.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    runs = expand(read_suite(tmp_path / "study.toml"), {}, 1)
    cells = {(run.config.method, run.config.critic.size) for run in runs}
    assert cells == {(m, s) for m in ("TQL", "FQL") for s in ("tiny", "small")}
    assert len(runs) == 5 * len(cells)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_suites_that_come_along_are_the_papers(name):
    runs = expand(read_suite(find_suite(Path(name))), {}, 1)
    assert len(runs) == SHIPPED[name]
    for run in runs:
        config, family = run.config, run.name.split("-task")[0]
        alpha = 1000.0 if family.startswith("puzzle") else 300.0
        targets = ((3.0, 3.0), (2.5, 2.5)) if family == "cube-double" else ((3.5, 3.5), (3.0, 3.0))
        assert (config.steps, config.batch_size) == (1_000_000, 256)
        named = [one for one in ("floq", "pac") if f"-{one}-" in run.name]
        assert config.objective == (named or ["flow"])[0]
        assert (config.flow.alpha, config.entropy.targets_nats) == (alpha, targets)
        evaluation = config.evaluation
        assert (evaluation.protocol, evaluation.success_timing) == ("ogbench-singletask", "post")
        assert config.dataset.name.startswith(f"{family}-play-singletask-task")
        critic = config.critic.kind, config.critic.size
        is_larger = family == "cube-triple" and critic == ("transformer", "xl")
        assert config.optimizer.critic_lr == (4e-4 if is_larger else 1e-4), run.name
    modes = {(r.config.critic.kind, r.config.entropy.mode) for r in runs}
    assert (
        modes
        == {
            "scaling": {("transformer", "layerwise"), ("transformer", "none"), ("mlp", "none")}
            | {("perceiver", "none")},
            "ablation": {("transformer", m) for m in ("none", "fixed", "single", "layerwise")},
        }[name]
    )


def test_a_suite_is_a_file_or_comes_along(tmp_path, monkeypatch, capsys):
    assert find_suite(tmp_path / "x.toml") == tmp_path / "x.toml"
    code, output = command(["sweep", "scalin", "--list"], capsys)
    assert (code, "there is no suite 'scalin'" in output.err) == (2, True)
    assert "ablation, scaling" in output.err
    monkeypatch.chdir(tmp_path)
    Path("scaling").write_text("[axis.a.x]")
    assert find_suite(Path("scaling")) == Path("scaling"), "one's own file goes first"
    Path("ablation").mkdir()
    assert find_suite(Path("ablation")).is_file(), "a folder of runs may have the suite's name"


def test_a_sweep_takes_data_of_every_kind(suite, private_home):
    places = {
        "hopper-medium-v2": private_home / "d4rl" / "hopper_medium-v2.hdf5",
        "mujoco/hopper/medium-v0": private_home
        / "minari/mujoco/hopper/medium-v0/data/metadata.json",
        "minari:mine/own-v0": private_home / "minari" / "mine" / "own-v0" / "data/metadata.json",
        "cube-double-play-singletask-task1-v0": private_home / "ogbench/cube-double-play-v0.npz",
        str(private_home / "slices"): private_home / "slices" / "one.npz",
        str(private_home / "mine.hdf5"): private_home / "mine.hdf5",
    }
    for name, place in places.items():
        read = suite(f"[settings]\ndataset.name = '{name}'\nevaluation.protocol = 'quick'\n")
        (run,) = expand(read, {}, 1)
        with pytest.raises(
            InputError,
            match=r"grid\.toml, run s0: .*(not here|not there|neither|not a dataset name)",
        ):
            check_data(run, read)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        check_data(run, read)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("dataset.name = 'antmaze-umaze-v0'", "antmaze-umaze-v0 is broken"),
        ("dataset.name = 'cube-double-play-v0'", "has no rewards; name a task"),
        ("dataset = { name = 'a.npz', path = 'b.npz' }", "two data files are given"),
        ("dataset = { name = 'mujoco/hopper/medium-v0', path = '.' }", "no data/metadata.json"),
    ],
)
def test_data_that_no_run_could_load_are_refused_before_the_first(suite, settings, said):
    read = suite(f"[settings]\n{settings}\nevaluation.protocol = 'quick'\n")
    (run,) = expand(read, {}, 1)
    with pytest.raises(InputError, match=said):
        check_data(run, read)


def test_environments_that_cannot_be_made_are_refused_before_the_first(suite, tmp_path, capsys):
    text = (
        "[settings]\nevaluation.protocol = 'quick-return'\n[axis.env.a]\ndataset.env_id = 'A-v0'\n"
    )
    text += "[axis.env.b]\ndataset.env_id = 'CartPole-v1'\n"
    read = suite(text)
    with pytest.raises(InputError, match=r"grid\.toml, run a-s0: .*'A-v0' cannot be made"):
        check_environments(expand(read, {}, 1), read)
    code, output = command(["sweep", str(read.path), "--runs", str(tmp_path / "runs")], capsys)
    assert (code, "'A-v0' cannot be made" in " ".join(output.err.split())) == (2, True)
    assert not (tmp_path / "runs").exists()
    for env, said in (("IsNotFinite", "NaN or infinite"), ("FailsAtOnce", "no maze")):
        fails = suite(text.replace("A-v0", f"rollout_environments:{env}-v0"))
        with pytest.raises(InputError, match=said):
            check_environments(expand(fails, {}, 1), fails)
    unscored = suite(text + "[axis.not.scored]\nevaluation.enabled = false\n")
    check_environments(expand(unscored, {}, 1), unscored)


def test_a_setting_without_effect_is_no_other_run():
    """Such as Cal-QL's in an older config of TQL."""
    floor = {"conservative": {"after_cut": "nothing"}}
    assert first_difference(resolve({}), resolve(floor)) == ""
    assert first_difference(resolve({}, preset="cql"), resolve(floor, preset="cql")) == ""
    told = first_difference(resolve({}, preset="cal-ql"), resolve(floor, preset="cal-ql"))
    assert told == "conservative.after_cut 'worst' where the suite gives 'nothing'"
    assert first_difference(resolve({}), resolve({"n_step": 3})) != ""


def test_later_layers_win(suite):
    text = """
    [settings]
    steps = 1
    batch_size = 1
    n_step = 1
    log_every = 1
    [axis.a.x]
    batch_size = 2
    n_step = 2
    log_every = 2
    [axis.b.y]
    n_step = 3
    log_every = 3
    """
    (run,) = expand(suite(text), {"log_every": 4}, 1)
    config = run.config
    assert run.name == "x-y-s0"
    assert (config.steps, config.batch_size, config.n_step, config.log_every) == (1, 2, 3, 4)
    # Beneath all of them lies the preset of the dataset's family.
    assert (config.preset, config.discount) == ("pointmaze", 0.995)


def test_runs_at_once_share_the_cores_unless_the_suite_says_how(suite, monkeypatch):
    monkeypatch.setattr(suites, "usable_cores", lambda: 8)
    assert [cores_each(n) for n in (1, 3, 8, 20)] == [8, 2, 1, 1]
    (run,) = expand(suite("[axis.a.x]"), {}, 3)
    assert run.config.evaluation.processes == 2
    (run,) = expand(suite("[settings]\nevaluation.processes = 5"), {}, 3)
    assert run.config.evaluation.processes == 5


BAD = {
    "not TOML": ("seeds = [", "not valid TOML"),
    "unknown key": ("[axes.a.x]", "'axes'"),
    "axis without labels": ("[axis.a]", "axis 'a'.*no labels"),
    "axis that is no table": ("[axis]\na = 3", "'a'.*make it a table"),
    "label that is no table": ("[axis.a]\nx = 3", "'x'.*make it a table"),
    "label with a path": ('[axis.a."../x"]', "label '../x'"),
    "label that is hidden": ('[axis.a.".x"]', "label '.x'"),
    "label with a line": ('[axis.a."x\\n"]', r"label 'x\\n'"),
    "empty label": ('[axis.a.""]', "label ''"),
    "no seeds": ("seeds = []", "seeds of suite"),
    "no range of seeds": ('seeds = "7-0"', "'seeds' of suite"),
    "empty range of seeds": ('seeds = ""', "seeds of suite"),
    "seeds that are no list": ("seeds = 3", "seeds of suite"),
    "seed twice": ("seeds = [1, 1]", "seeds of suite"),
    "seed too large": ("seeds = [4294967296]", "seeds of suite"),
    "true seed": ("seeds = [true]", "seeds of suite"),
    "seed among the settings": ("[axis.a.x]\nseed = 3", "run x-s0: 'seed'"),
    "unknown setting": ("[axis.a.x]\nstepz = 3", "run x-s0: unknown setting 'stepz'"),
    "unknown nested setting": ("[settings]\nflow.beta = 3", r"'flow\.beta'"),
    "bad value": ("[axis.a.x]\n[axis.a.y]\nsteps = 0", "run y-s0: setting 'steps'"),
    "unknown preset": ('[axis.a.x]\npreset = "dqn"', "run x-s0: preset 'dqn'"),
    "unknown protocol": ('[axis.a.x]\nevaluation.protocol = "no"', "run x-s0:"),
    "same name": ("[axis.a.x]\n[axis.a.x-y]\n[axis.b.y-z]\n[axis.b.z]", "two runs.*x-y-z-s0"),
    "same name but for case": ("[axis.a.x]\n[axis.a.X]", "two runs.*X-s0"),
    "long name": (f"[axis.a.{'x' * 300}]", "303 characters"),
    "bad collection": ("[collect]\ncube-single-play-v0 = 0", r"\[collect\].*whole number"),
    "bad collected name": ("[collect]\ncube = 3", r"\[collect\].*'cube'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_suites_are_one_sentence_that_names_the_file(case, suite, tmp_path):
    text, words = BAD[case]
    with pytest.raises(InputError, match=words) as caught:
        expand(suite(text), {}, 1)
    assert str(tmp_path / "grid.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_runs_are_refused_before_they_are_made(suite):
    labels = "\n".join(f"[axis.{axis}.x{n}]" for axis in "abcdef" for n in range(10))
    with pytest.raises(InputError, match=r"1,000,000 runs.*100,000"):
        expand(suite(labels), {}, 1)


def written(runs, config, result=True):
    folder = RunFolder(runs / "x-s0")
    folder.path.mkdir(parents=True)
    folder.config.write_text(config.to_toml())
    if result:
        folder.result.write_text("{}")
    return folder


def test_a_run_with_more_updates_is_the_suites_finished_one(tmp_path):
    """Once it had as many as the suite asks for, and the same schedule of its rates."""
    run = PlannedRun(name="x-s0", config=resolve({"steps": 100}))
    longer = resolve({"steps": 300, "optimizer": {"schedule_steps": 100}})
    folder = written(tmp_path, longer, result=False)
    with pytest.raises(InputError, match="has steps 300 where the suite gives 100"):
        state_of(run, tmp_path)  # it was never finished
    (folder.path / "result-of-100.json").write_text("{}")
    assert state_of(run, tmp_path) == "extended"  # by a training that was stopped
    for file, state in (("ended", "ended"), ("result", "finished")):
        getattr(folder, file).write_text("{}")
        assert state_of(run, tmp_path) == state
    other = resolve({"steps": 300, "optimizer": {"schedule_steps": 100}, "batch_size": 3})
    folder.config.write_text(other.to_toml())
    with pytest.raises(InputError, match="has batch_size 3"):
        state_of(run, tmp_path)
    stretched = resolve({"steps": 300, "optimizer": {"schedule_steps": 200}})
    folder.config.write_text(stretched.to_toml())
    with pytest.raises(InputError, match="has steps 300"):
        state_of(run, tmp_path)


def test_states(tmp_path):
    run = PlannedRun(name="x-s0", config=resolve({}))
    assert state_of(run, tmp_path) == "to do"
    folder = written(tmp_path, run.config, result=False)
    assert state_of(run, tmp_path) == "unfinished"
    folder.result.write_text("{}")
    assert state_of(run, tmp_path) == "finished"
    folder.result.write_text("{")  # half of a copy
    assert state_of(run, tmp_path) == "damaged"
    discard(run, tmp_path)
    assert list(tmp_path.iterdir()) == []
    folder.path.mkdir()
    assert state_of(run, tmp_path) == "unfinished"
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"no config\.toml"):
        state_of(run, tmp_path)


@pytest.mark.parametrize("result", [True, False])
def test_folders_of_other_settings_are_refused(result, tmp_path):
    written(tmp_path, resolve({"flow": {"alpha": 3.0}}), result)
    run = PlannedRun(name="x-s0", config=resolve({"flow": {"alpha": 4.0}, "polyak": 0.02}))
    with pytest.raises(InputError, match=r"x-s0 has flow\.alpha 3\.0 where the suite gives 4\.0"):
        state_of(run, tmp_path)


def test_what_changes_no_result_is_the_same_run():
    configs = [resolve({"evaluation": {"processes": n}, "keep_checkpoints": n - 1}) for n in (1, 2)]
    assert first_difference(*configs) == ""


def test_sweeps_share_a_folder(tmp_path, monkeypatch):
    """Each takes what no other process trains, and leaves what others have finished meanwhile."""
    runs = [PlannedRun(name=f"x-s{seed}", config=resolve({"seed": seed})) for seed in range(4)]
    monkeypatch.setattr(sweep, "_command", lambda *_: [sys.executable, "-c", "print('trained')"])
    written(tmp_path, runs[1].config, result=False).path.rename(tmp_path / "x-s1")
    written(tmp_path, runs[2].config, result=True).path.rename(tmp_path / "x-s2")
    reporter = SilentSweep()
    with taken(runs[0], tmp_path), claimed(RunFolder(tmp_path / "x-s1")):
        assert [is_taken(run, tmp_path) for run in runs] == [True, True, False, False]
        train_runs(runs, tmp_path, processes=2, reporter=reporter)
    assert list(reporter.left) == ["x-s2", "x-s0", "x-s1"]  # busy ones are looked at twice
    assert "another process is training" in reporter.left["x-s1"]
    assert "finished" in reporter.left["x-s2"]
    assert [log.stem for log in tmp_path.glob("*.log")] == ["x-s3"]
    with taken(runs[3], tmp_path):  # free again
        pass


@pytest.mark.parametrize("in_training", [True, False])
def test_a_folder_that_turns_up_in_a_runs_place_stops_no_other_run(
    in_training, tmp_path, monkeypatch
):
    """While the first run trains, and before any does."""
    runs = [PlannedRun(name=f"x-s{seed}", config=resolve({"seed": seed})) for seed in range(3)]
    foreign = tmp_path / "x-s1" / "notes.txt"
    script = f"import time; from pathlib import Path; Path({str(foreign.parent)!r}).mkdir()"
    script += f"; Path({str(foreign)!r}).touch(); time.sleep(1)"
    if not in_training:
        foreign.parent.mkdir()
        foreign.touch()
        script = ""
    commands = {"x-s0": script}
    monkeypatch.setattr(
        sweep, "_command", lambda run, *_: [sys.executable, "-c", commands.get(run.name, "")]
    )
    begin = sweep._begin

    def waiting(run, *arguments):
        while run is runs[1] and not foreign.exists():
            time.sleep(0.01)
        return begin(run, *arguments)

    monkeypatch.setattr(sweep, "_begin", waiting)
    reporter = SilentSweep()  # fails if a process was ended
    assert train_runs(runs, tmp_path, processes=2, reporter=reporter) == []
    assert list(reporter.not_begun) == ["x-s1"]
    assert "x-s1 is not a run folder" in reporter.not_begun["x-s1"]
    assert sorted(log.stem for log in tmp_path.glob("*.log")) == ["x-s0", "x-s2"]


def test_a_run_that_cannot_be_begun_has_failed(small, tmp_path, capsys, monkeypatch):
    looks = []

    def state(run, runs):
        looks.append(run)
        if len(looks) == 1:  # by the command, before any run begins
            return "to do"
        raise InputError("its folder holds notes; move them")

    monkeypatch.setattr(sweep, "state_of", state)
    code, output = command(["sweep", small(TAME), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 1
    assert "tame-s0: failed\n" in output.out
    last = output.out.splitlines()[-1]
    assert last == "tame-s0 failed: its folder holds notes; move them"


@pytest.mark.parametrize("command_line", [["sweep", "--list"], ["sweep"], ["train"]])
@pytest.mark.parametrize("below", ["", "inside"])
@pytest.mark.parametrize(("place", "said"), [("file", "no folder"), ("link", "a link that leads")])
def test_runs_cannot_go_where_no_folder_can_be(
    command_line, below, place, said, small, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.setattr("tql_offline.cli.train.load_and_say", raising(AssertionError("loaded")))
    suite = [small(TAME)] if command_line[0] == "sweep" else []
    runs = tmp_path / place / below
    code, output = command([*command_line, *suite, "--runs", str(runs)], capsys)
    assert code == 2
    assert output.err.startswith(f"tql-offline: there can be no folder of runs {runs}, since ")
    assert f"{tmp_path / place} is {said}" in output.err
    assert output.err.count("\n") == 1


def test_a_sweep_into_a_folder_that_takes_nothing_is_refused_once(
    small, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(new_run, "TemporaryFile", raising(OSError(30, "Read-only file system")))
    arguments = ["sweep", small(WILD + TAME), "--runs", str(tmp_path / "runs")]
    assert command([*arguments, "--list"], capsys)[0] == 0
    code, output = command(arguments, capsys)
    assert (code, output.err.count("\n")) == (2, 1)
    assert "nothing can be written to the folder of runs" in output.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("finished", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_on_other_content_of_its_file_is_refused(finished, small, tmp_path, capsys):
    """A user who mends the file wants no results of the old one, nor seeds of both side by side."""
    path, runs = small(TAME), tmp_path / "runs"
    arguments = ["sweep", path, "--runs", str(runs)]
    assert command(arguments, capsys)[0] == 0
    if not finished:
        (runs / "tame-s0" / "result.json").unlink()
    data = tmp_path / "mine.npz"
    data.write_bytes(data.read_bytes() + b"x")
    for options in (["--list"], []):
        code, output = command([*arguments, *options], capsys)
        assert (code, output.out) == (2, "")
        assert f"run {runs / 'tame-s0'} was trained on other content than {data}" in output.err
    assert command([*arguments, "--runs", str(tmp_path / "other"), "--list"], capsys)[0] == 0
    data.unlink()  # on a machine without the data, its runs can still be listed
    assert command([*arguments, "--list"], capsys)[0] == 0


def test_a_run_on_other_slices_is_refused(tmp_path):
    slices = tmp_path / "slices"
    slices.mkdir()
    for name in ("a", "b"):
        (slices / f"{name}.npz").write_bytes(name.encode())
    run = PlannedRun(
        name="x-s0", config=resolve({"dataset": {"name": str(slices), "slices": 1}, "steps": 9})
    )
    folder = written(tmp_path, run.config)
    digest = slices_sha256([slices / "a.npz"])
    record = {"critic_parameters": 1, "environment": None, "dataset": {"sha256": digest}}
    write_json(folder.provenance, record)
    (slices / "b.npz").write_bytes(b"c")  # of which nothing is trained
    assert state_of(run, tmp_path) == "finished"
    (slices / "a.npz").write_bytes(b"c")
    with pytest.raises(InputError, match="trained on other content than .*slices has now"):
        state_of(run, tmp_path)


def test_the_digest_of_a_file_is_computed_once_for_all_runs(tmp_path, monkeypatch):
    data = write_own(tmp_path / "mine.npz", (9,), 3)
    record = {"critic_parameters": 1, "environment": None}
    record |= {"dataset": {"sha256": file_sha256(data)}}
    computed = []
    monkeypatch.setattr(
        sweep, "file_sha256", lambda path: computed.append(path) or file_sha256(path)
    )
    for seed in range(3):
        config = resolve({"dataset": {"name": str(data)}, "seed": seed})
        folder = written(tmp_path / str(seed), config)
        write_json(folder.provenance, record)
        run = PlannedRun(name="x-s0", config=config)
        assert state_of(run, tmp_path / str(seed)) == "finished"
    assert computed == [data]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[axis.a.x]\nstepz = 3", "stepz"),
        ('dataset.name = "none.npz"', "none.npz is not there"),
        ('dataset.name = "cube-single-play-singletask-task1-v0"', "tql-offline collect"),
        ('dataset.name = "cube-singel-play-singletask-task1-v0"', "cube-single-play"),
    ],
)
def test_bad_input_trains_and_writes_nothing(text, words, suite, tmp_path, capsys):
    read = suite(text if text.startswith("[") else f"[settings]\n{text}")
    runs = tmp_path / "runs"
    code, output = command(["sweep", str(read.path), "--runs", str(runs)], capsys)
    assert code == 2
    assert words in output.err
    assert output.err.count("\n") == 1
    assert not runs.exists()


def test_missing_data_are_collected_first_and_installed_ones_taken(
    suite, tmp_path, monkeypatch, capsys
):
    trained = []
    monkeypatch.setattr(sweep, "train_runs", lambda runs, *_, **__: trained.append(len(runs)))
    name = "pointmaze-medium-navigate"
    text = f"""
    [collect]
    {name}-v0 = 1
    [settings]
    dataset.name = "{name}-singletask-task2-v0"
    """
    arguments = ["sweep", str(suite(text).path), "--runs", str(tmp_path / "runs")]
    file = tmp_path / "collected" / f"{name}-v0.npz"
    for _ in range(2):
        assert command(arguments, capsys)[0] == 0
        assert file.is_file()
        # Without it `collect` would refuse the file; the sweep takes it as it is.
        file.with_suffix(".json").unlink(missing_ok=True)
    assert trained == [1, 1]


def test_a_dataset_collected_with_other_episodes_is_refused(suite, tmp_path, capsys):
    manifest = tmp_path / "collected" / "cube-single-play-v0.json"
    manifest.parent.mkdir(exist_ok=True)
    manifest.write_text('{"episodes": 100}')
    read = suite("[collect]\ncube-single-play-v0 = 1000\n")
    with pytest.raises(InputError, match="100 episodes.*1000.*TQL_OFFLINE_DATA"):
        suites.check_collected(read)
    suites.check_collected(suite("[collect]\ncube-single-play-v0 = 100\n"))


WILD = "[axis.rate.wild.optimizer]\ncritic_lr = 1e30\npolicy_lr = 1e30\nwarmup = 0\n"
TAME = "[axis.rate.tame]\n"


@pytest.fixture
def small(suite, tmp_path):
    """Writes a suite of runs of three updates on own data without an environment."""
    data = write_own(tmp_path / "mine.npz", (30,), 3)
    settings = f"""
    [settings]
    dataset.name = {str(data)!r}
    critic.size = "tiny"
    flow.hidden = [8]
    steps = 3
    batch_size = 4
    log_every = 1
    """
    return lambda axes: str(suite(settings + axes).path)


def test_a_sweep_from_end_to_end(small, tmp_path, capsys, monkeypatch):
    """The run that diverges stops no other; what is finished is not trained again."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    runs = tmp_path / "runs"
    arguments = ["sweep", small(WILD + TAME), "--runs", str(runs), "--processes", "2"]
    code, output = command([*arguments, "--list"], capsys)
    assert (code, output.out) == (0, "to do        wild-s0\nto do        tame-s0\n")
    assert not runs.exists()

    code, output = command(arguments, capsys)
    assert code == 1
    lines = output.out.splitlines()
    assert lines[0] == "0 of 2 runs are finished"
    said = " ".join(output.out.split())
    assert "2 of 2 runs (first wild-s0) use your own data without dataset.env_id" in said
    assert any(line.startswith("tame-s0: not scored, 0.") for line in lines)
    log = runs / "wild-s0.log"
    assert lines[-1].startswith("wild-s0 failed with exit code 2: tql-offline: ")
    assert last_words(log) in lines[-1]
    assert str(log) in lines[-1]
    folder = RunFolder(runs / "tame-s0")
    assert read_json(folder.provenance)["threads"] == cores_each(2)
    assert "run folder" in (runs / "tame-s0.log").read_text()

    # Another number of processes makes no other run; another setting does.
    code, output = command([*arguments, "--processes", "1", "--list"], capsys)
    assert (code, output.out) == (0, "ended        wild-s0\nfinished     tame-s0\n")
    code, output = command(arguments, capsys)
    assert (code, output.out.splitlines()[0]) == (0, "1 of 2 runs are finished")
    assert "note: 1 run ended without a score, by diverging or by a rule of watch" in output.out
    code, output = command([*arguments, "--set", "steps=4"], capsys)
    assert code == 2
    assert "wild-s0 has steps 3 where the suite gives 4" in output.err

    small(TAME)
    before = folder.result.stat().st_mtime_ns
    code, output = command(arguments, capsys)
    assert (code, output.out) == (0, "1 of 1 runs are finished\n")
    assert folder.result.stat().st_mtime_ns == before


@pytest.mark.parametrize("trained", [True, False])
def test_an_unfinished_run_goes_on_if_it_can(trained, small, tmp_path, capsys, monkeypatch):
    real = sweep._command
    monkeypatch.setattr(sweep, "_command", lambda *_: [sys.executable, "-c", ""])
    path = small(TAME)
    (run,) = expand(read_suite(Path(path)), {}, 1)
    folder = written(tmp_path, run.config, result=False).path.rename(tmp_path / "tame-s0")
    if trained:
        (folder / "provenance.json").write_text("{}")
    how = "goes on" if trained else "starts again from nothing"
    code, output = command(["sweep", path, "--runs", str(tmp_path)], capsys)
    assert code == 1  # nothing was trained
    assert f"tame-s0: was not finished, {how}" in output.out
    assert folder.exists() == trained
    commands = real(run, Path("c.toml"), tmp_path)
    assert ("--resume" in commands) == trained


@pytest.mark.slow
def test_a_damaged_result_is_called_so_and_written_again(small, tmp_path, capsys):
    arguments = ["sweep", small(TAME), "--runs", str(tmp_path / "runs")]
    assert command(arguments, capsys)[0] == 0
    result = tmp_path / "runs" / "tame-s0" / "result.json"
    before = result.read_bytes()
    result.write_bytes(before[:99])
    said = command([*arguments, "--list"], capsys)[1].out
    assert said.startswith("damaged      tame-s0\nnote: the result.json of damaged runs cannot be")
    code, output = command(arguments, capsys)
    assert code == 0
    assert "tame-s0: has a damaged result.json, which is written again" in output.out
    assert result.read_bytes() == before


def test_a_run_that_is_being_given_more_updates_is_named(small, tmp_path, capsys):
    """It has no result, so no report has it, and the sweep leaves it as it is."""
    runs = tmp_path / "runs"
    suite = small(TAME)
    (run,) = expand(read_suite(Path(suite)), {}, 1)
    optimizer = run.config.optimizer.model_copy(update={"schedule_steps": 3})
    folder = RunFolder(runs / run.name)
    folder.path.mkdir(parents=True)
    longer = run.config.model_copy(update={"steps": 9, "optimizer": optimizer})
    folder.config.write_text(longer.to_toml())
    (folder.path / "result-of-3.json").write_text("{}")
    for flags, how in (
        (["--list"], f"extended     {run.name}\n"),
        ([], "0 of 1 runs are finished\n"),
    ):
        code, output = command(["sweep", suite, "--runs", str(runs), *flags], capsys)
        assert code == 0
        assert output.out.startswith(
            f"{how}note: 1 run is being given more updates, and on no lead"
        )
        assert output.out.endswith(f"train --resume {folder.path}` ends: {run.name}\n")


def test_a_run_that_never_began_is_known_beside_what_a_file_browser_left(tmp_path):
    (tmp_path / "x-s0").mkdir()
    (tmp_path / "x-s0" / ".DS_Store").write_bytes(b"by macOS")
    assert state_of(NEW, tmp_path) == "unfinished"


SLEEP = [sys.executable, "-c", "import time; print('asleep', flush=True); time.sleep(60)"]


NEW = PlannedRun(name="x-s0", config=resolve({}))


@pytest.fixture
def sleepers(monkeypatch):
    """Replaces training by sleep; lists the processes started."""
    started = []
    real = subprocess.Popen

    def start(*arguments, **options):
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(sweep, "_command", lambda *_: SLEEP)
    monkeypatch.setattr(sweep.subprocess, "Popen", start)
    return started


@pytest.fixture
def python_signals():
    """Signals as Python has them by default: a shell starts background jobs deaf to Ctrl-C."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
        (signal.SIGUSR1, SystemExit),
    ],
)
def test_a_stopped_sweep_ends_its_processes(number, error, sleepers, tmp_path, python_signals):
    runs = [PlannedRun(name=f"x-s{seed}", config=resolve({"seed": seed})) for seed in range(3)]

    def stop():
        while len(sleepers) < 2 or not (tmp_path / "x-s1.log").stat().st_size:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    with pytest.raises(error):
        train_runs(runs, tmp_path, processes=2, reporter=SilentSweep())
    assert [process.returncode for process in sleepers] == [-signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_run_ends_with_its_sweep_even_if_that_is_killed(monkeypatch, tmp_path):
    """Its input is a pipe that the system closes with the sweep."""
    script = "import time; from tql_offline.training.stopping import end_with_input as end; end()"
    ends = [sys.executable, "-c", f"{script}; print('ready', flush=True); time.sleep(60)"]
    monkeypatch.setattr(sweep, "_command", lambda *_: ends)
    child = sweep._start(NEW, tmp_path, tmp_path, Share(threads=1), ExitStack())
    while not child.log.stat().st_size:
        assert child.process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    assert child.process.poll() is None
    child.process.stdin.close()
    assert child.process.wait(30) == -signal.SIGTERM


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, too
    try:
        with stopping.Stop().handling():
            assert signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stopping.Stop().handling():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes as Linux shows them")
def test_runs_of_a_killed_sweep_end(tmp_path):
    """Each alone holds the end of its own pipe, whatever sweeps start beside it."""
    script = """
import sys
from pathlib import Path
from stand_ins import SilentSweep
from tql_offline.config import resolve
from tql_offline.training import sweep
from tql_offline.training.suite import PlannedRun
child = "import os, time; from tql_offline.training.stopping import end_with_input as end; end()"
child += "; print(os.getpid(), flush=True); time.sleep(60)"
sweep._command = lambda *_: [sys.executable, "-c", child]
runs = [PlannedRun(name=f"x-s{seed}", config=resolve({"seed": seed})) for seed in (0, 1)]
sweep.train_runs(runs, Path(sys.argv[1]), processes=2, reporter=SilentSweep())
"""
    paths = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, env=environment) as process:
        logs = [tmp_path / f"x-s{seed}.log" for seed in (0, 1)]
        while not all(log.is_file() and log.read_text().strip() for log in logs):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    ends = time.monotonic() + 20
    for number in (int(log.read_text()) for log in logs):
        while is_alive(number):
            assert time.monotonic() < ends
            time.sleep(0.05)


def is_alive(number):
    """Whether a process runs; one that nobody waits for stays as a zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_stops_a_sweep_may_come_twice(tmp_path, monkeypatch, python_signals):
    """Its runs, which take it for one request, are still waited for."""
    slow = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), exit(7)))"
    slow += "; print('ready', flush=True); time.sleep(60)"
    monkeypatch.setattr(sweep, "_command", lambda *_: [sys.executable, "-c", slow])

    def stop():
        log = tmp_path / "x-s0.log"
        while not (log.is_file() and log.stat().st_size):
            time.sleep(0.01)
        for pause in (0.3, 0.0):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(pause)

    ended = []
    real = sweep._wait
    monkeypatch.setattr(sweep, "_wait", lambda child: ended.append(real(child)))
    threading.Thread(target=stop).start()
    with pytest.raises(SystemExit):
        train_runs([NEW], tmp_path, processes=1, reporter=SilentSweep())
    assert ended == [7]


def test_a_run_that_begins_anew_meanwhile_is_no_foreign_folder(tmp_path, monkeypatch):
    folder = written(tmp_path, NEW.config, result=False)
    folder.config.unlink()
    (folder.path / "metrics.jsonl").touch()
    monkeypatch.setattr(sweep.time, "sleep", lambda _: shutil.rmtree(folder.path))
    assert state_of(NEW, tmp_path) == "to do"


def test_a_folder_that_may_only_be_read_is_listed(tmp_path, monkeypatch):
    written(tmp_path, NEW.config, result=False)
    monkeypatch.setattr(sweep, "locked", raising(InputError("cannot be written")))
    assert not is_taken(NEW, tmp_path)


def test_a_stop_just_before_scores_are_begun_begins_none():
    stop, begun = stopping.Stop(), []
    stop.request()
    with pytest.raises(stopping.Stopped), stopping_at_once(stop):
        begun.append("scores")
    assert (begun, stop.at_once) == ([], False)


def test_one_stop_may_arrive_as_two_signals(monkeypatch):
    """Ctrl-C reaches a run and its sweep, which then ends the run."""
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stop = stopping.Stop()
    stop.request()
    now[0] += stopping.SAME_STOP_SECONDS / 2
    stop.request()
    assert stop.requested
    now[0] += stopping.SAME_STOP_SECONDS
    with pytest.raises(KeyboardInterrupt):
        stop.request()


@pytest.mark.parametrize(
    ("own", "threads"), [("", 4), ("2", 2), ("9", 4), ("none", 4), ("0", 4), ("-1", 4)]
)
def test_a_run_has_its_share_of_threads_and_no_more_than_the_user_set(own, threads, monkeypatch):
    monkeypatch.setattr(suites, "usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", own)
    assert threads_each(2) == threads


def started_environment(tmp_path, monkeypatch, threads, gpu=""):
    """What a run's process is given."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(sweep.subprocess, "Popen", lambda *_, env, **__: seen.append(env))
        sweep._start(NEW, tmp_path, tmp_path, Share(threads=threads, gpu=gpu), ExitStack())
    return seen[0]


@pytest.mark.parametrize("can", [True, False])
def test_a_run_ends_with_its_input_only_where_it_then_leaves_a_checkpoint(
    tmp_path, monkeypatch, can
):
    seen = {}
    monkeypatch.setattr(sweep, "CAN_END_WITH_INPUT", can)
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda *_, **options: seen.update(options))
    sweep._start(NEW, tmp_path, tmp_path, Share(threads=1), ExitStack())
    assert (ENDS_WITH_INPUT in seen["env"]) == can
    assert seen["stdin"] == (subprocess.PIPE if can else subprocess.DEVNULL)


def test_a_run_sees_the_gpu_of_its_share(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert started_environment(tmp_path, monkeypatch, 1)["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert started_environment(tmp_path, monkeypatch, 1, "5")["CUDA_VISIBLE_DEVICES"] == "5"


def test_runs_are_spread_over_gpus(tmp_path, monkeypatch):
    """Each takes the GPU that is free, or has the fewest runs."""
    says = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)"
    first = f"{says}; time.sleep(60)"
    monkeypatch.setattr(
        sweep,
        "_command",
        lambda run, *_: [sys.executable, "-c", first if run.name == "x-s0" else says],
    )
    runs = [PlannedRun(name=f"x-s{seed}", config=resolve({"seed": seed})) for seed in range(5)]

    class Reporter(SilentSweep):
        def ended(self, end):
            if end.run.name == "x-s4":
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train_runs(runs, tmp_path, processes=2, reporter=Reporter(), gpus=("4", "GPU-a1"))
    seen = [(tmp_path / f"x-s{seed}.log").read_text().split()[0] for seed in range(5)]
    assert seen == ["4", *["GPU-a1"] * 4]


@pytest.mark.parametrize(
    ("own", "numbers", "names"),
    [("", (0, 2), ("0", "2")), ("4, 5,MIG-7", (2, 0), ("MIG-7", "4")), ("", (), ())],
)
def test_gpus_are_those_that_the_process_sees(own, numbers, names, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert gpu_names(numbers) == names
    with pytest.raises(InputError, match="GPU 3 and PyTorch sees 3"):
        gpu_names((0, 3))


def test_a_sweep_runs_as_many_at_once_as_it_has_gpus(suite, tmp_path, monkeypatch, capsys):
    given = {}

    def trained(runs, folder, **options):
        given.update(options)
        return []

    monkeypatch.setattr(sweep, "train_runs", trained)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(suites, "check_environments", lambda *_: None)
    arguments = ["sweep", str(suite("seeds = '0-7'").path), "--runs", str(tmp_path / "runs")]
    for options, want in (
        (["--gpus", "0-2"], (3, ("0", "1", "2"))),
        (["--gpus", "1", "--processes", "2"], (2, ("1",))),
        ([], (1, ())),
    ):
        assert command([*arguments, *options], capsys)[0] == 0
        assert (given["processes"], given["gpus"]) == want


def test_an_unfinished_run_goes_on_with_the_threads_it_began_with(tmp_path, monkeypatch):
    assert started_environment(tmp_path, monkeypatch, 2)["OMP_NUM_THREADS"] == "2"
    folder = written(tmp_path, NEW.config, result=False)
    for recorded, want in ((5, "5"), (None, "2"), ("5", "2"), (0, "2")):
        write_json(folder.provenance, {"threads": recorded})
        assert started_environment(tmp_path, monkeypatch, 2)["OMP_NUM_THREADS"] == want


def test_a_run_records_the_sweep_that_repeats_it(tmp_path, monkeypatch):
    typed = ["tql-offline", "sweep", "my suite.toml", "--only", "x-*", "--only=y", "--runs", "r"]
    monkeypatch.setattr(sys, "argv", typed)
    monkeypatch.setenv(SWEEP_COMMAND, started_environment(tmp_path, monkeypatch, 1)[SWEEP_COMMAND])
    wanted = ["tql-offline", "sweep", "my suite.toml", "--runs", "r", "--only", "x-s0"]
    assert collect_provenance(torch.device("cpu"), {}, None)["command"] == wanted
    monkeypatch.delenv(SWEEP_COMMAND)
    monkeypatch.setattr(sys, "argv", ["/somewhere/tql_offline/__main__.py", "train"])
    assert collect_provenance(torch.device("cpu"), {}, None)["command"] == ["tql-offline", "train"]


def test_sigterm_says_how_to_go_on_too(small, tmp_path, capsys, monkeypatch):
    def ended(*_, **__):
        raise SystemExit(143)

    monkeypatch.setattr(sweep, "train_runs", ended)
    code, output = command(["sweep", small(TAME), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 143
    assert "stopped; finished runs are kept" in output.out


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(small, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "train_runs", interrupted)
    code, output = command(["sweep", small(TAME), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 130
    assert "stopped; finished runs are kept" in output.err


@pytest.mark.parametrize(
    ("log", "begin", "said"),
    [
        (b"one\n\xfftwo \n\n", 0, "�two"),
        (b"", 0, ""),
        (b"tql-offline: why\nupdate 3 of an orphan\n", 0, "tql-offline: why"),
        (b"tql-offline: long ago\nTraceback\n", 22, "Traceback"),
    ],
)
def test_what_a_process_said_last(log, begin, said, tmp_path):
    (tmp_path / "x.log").write_bytes(log)
    assert last_words(tmp_path / "x.log", begin) == said


def scored(folder, *evaluations):
    keys = ("policy", "step", "episodes", "success_rate", "return_mean")
    lines = [dict(zip(keys, evaluation, strict=True)) for evaluation in evaluations]
    folder.result.write_text(json.dumps({"evaluations": lines}))


@pytest.mark.parametrize(
    ("protocol", "code", "line"),
    [
        ("quick", 0, "x-s0: success 96 % (87-99), 1.5 min"),
        ("quick-return", 0, "x-s0: return -3.0, 1.5 min"),
        (
            "ogbench-singletask",
            0,
            "x-s0: success 96 % (87-99) in the last of the 3 evaluations that count, 1.5 min",
        ),
        ("quick", 1, "x-s0: failed, 1.5 min"),
    ],
)
def test_a_runs_line_has_the_learned_policys_last_score(protocol, code, line, tmp_path):
    run = PlannedRun(name="x-s0", config=resolve({"evaluation": {"protocol": protocol}}))
    end = Ended(
        run=run, folder=RunFolder(tmp_path), log=tmp_path / "x", said="", code=code, seconds=90.0
    )
    assert _outcome(end) == "x-s0: failed, 1.5 min"  # it has no result
    scored(
        end.folder,
        ("learned", 10, 50, 0.5, -5.0),
        ("learned", 20, 50, 0.96, -3.0),
        ("behaviour", 30, 50, 0.1, -9.0),
        ("learned", 5, 50, 0.2, -7.0),
    )
    assert _outcome(end) == line


def test_a_sweep_counts_what_it_will_cost(suite, tmp_path, capsys):
    read = suite(
        "seeds = [0, 1]\n[settings]\nsteps = 7\nbatch_size = 4\n"
        "[axis.size.tiny]\ncritic.size = 'tiny'\n[axis.size.small]\ncritic.size = 'small'\n"
        "[axis.method.tql]\n[axis.method.bc]\npreset = 'bc'\n[axis.data.maze]\n"
        "dataset.name = 'pointmaze-medium-navigate-singletask-task1-v0'\n"
        "[axis.data.own]\ndataset.name = 'mine.npz'\n"
    )
    runs = expand(read, {}, 1)
    found = {(cost.method, cost.size): cost for cost in costs(runs)}
    assert {key: (c.runs, c.updates, c.uncounted) for key, c in found.items()} == {
        ("TQL", "tiny"): (4, 28, 2),
        ("TQL", "small"): (4, 28, 2),
        ("BC", ""): (8, 56, 4),
    }
    first = next(run for run in runs if run.name == "tiny-tql-maze-s0")
    assert found["TQL", "tiny"].flops == 2 * 7 * flops_per_update(first.config, 2, 2)
    assert found["TQL", "small"].flops > found["TQL", "tiny"].flops

    only = ["--only", "tiny-*-s0", "--cost", "--runs", str(tmp_path / "runs")]
    code, output = command(["sweep", str(read.path), *only], capsys)
    said = " ".join(output.out.split())
    assert code == 0
    assert "What 4 unfinished runs cost" in said
    assert "2 runs are left out of the FLOPs, as their data cannot be loaded" in said
    assert f"in all {found['TQL', 'tiny'].flops / 2 + found['BC', ''].flops / 4:.3g} FLOPs" in said
    assert not (tmp_path / "runs").exists()


def test_what_runs_on_ones_own_data_will_cost_is_counted(suite, tmp_path):
    own = write_own(tmp_path / "mine.npz", (9, 9), 3)
    read = suite(
        f"seeds = [0, 1]\n[settings]\nsteps = 7\ncritic.size = 'tiny'\ndataset.name = '{own}'\n"
        "[axis.method.tql]\n"
    )
    runs = expand(read, {}, 1)
    (cost,) = costs(runs)
    assert (cost.runs, cost.uncounted) == (2, 0)
    assert cost.flops == 2 * 7 * flops_per_update(runs[0].config, 3, 2)


@pytest.mark.slow
def test_a_run_goes_on_with_data_that_were_moved(small, tmp_path, capsys):
    """To scratch space of another job, say: the same bytes under the same name."""
    path, runs = small(TAME), tmp_path / "runs"
    arguments = ["sweep", path, "--runs", str(runs)]
    code, _ = command(arguments, capsys)
    assert code == 0
    (runs / "tame-s0" / "result.json").unlink()
    (tmp_path / "scratch").mkdir()
    data = (tmp_path / "mine.npz").rename(tmp_path / "scratch" / "mine.npz")
    moved = [*arguments, "--set", f"dataset.name={data}"]
    code, output = command(moved, capsys)
    assert code == 0
    assert "tame-s0: was not finished, goes on" in output.out
    assert command([*moved, "--list"], capsys)[1].out == "finished     tame-s0\n"

    data.write_bytes(data.read_bytes() + b"x")
    code, output = command([*moved, "--list"], capsys)
    assert code == 2
    assert "has dataset.name" in output.err
