"""Runs that were stopped, diverged or damaged: one sentence, no traceback, no false claim."""

import builtins
import errno
import json
import shutil

import pytest
import torch
from command_line import command
from safetensors import SafetensorError
from stand_ins import raising

from tql_offline.agents import make_agent
from tql_offline.cli import main
from tql_offline.config import resolve
from tql_offline.errors import InputError
from tql_offline.eval import protocol as protocols
from tql_offline.eval.workers import EnvironmentFailedError
from tql_offline.files import append_jsonl, read_json, read_jsonl, write_atomic, write_json
from tql_offline.runs import RunFolder
from tql_offline.training import checkpoint, evaluation, loop
from tql_offline.training.device import pick_device
from tql_offline.training.metrics import MetricsWindow
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.result import write_result
from tql_offline.training.run import run

pytestmark = pytest.mark.usefixtures("short_protocols")

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
TINY = {
    "critic": {"size": "tiny"},
    "flow": {"hidden": [16, 16], "flow_steps": 2},
    "dataset": {"name": TASK},
    "evaluation": {"processes": 1},
    "steps": 8,
    "batch_size": 16,
    "log_every": 8,
    "checkpoint_every": 3,
}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return run(resolve(TINY), data, tmp_path_factory.mktemp("runs"), "", SilentReporter())


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to damage."""
    return RunFolder(shutil.copytree(whole.path, tmp_path / "run"))


def fails_in_one_sentence(arguments, capsys):
    code, output = command(arguments, capsys)
    assert code == 2
    assert output.err.startswith("tql-offline: ")
    assert output.err.count("\n") == 1
    return output.err


def test_an_unfinished_run_gets_no_result(folder, capsys):
    shutil.rmtree(folder.checkpoints / "8")
    folder.result.unlink()
    before = len(list(read_jsonl(folder.evaluations)))
    code, _ = command(["eval", str(folder.path), "--policy", "learned"], capsys)
    assert code == 0
    assert len(list(read_jsonl(folder.evaluations))) == before + 1
    assert not folder.result.exists()


def test_a_complete_run_is_summed_up_again(folder, capsys):
    folder.result.unlink()
    code, _ = command(["eval", str(folder.path), "--policy", "learned"], capsys)
    assert code == 0
    assert read_json(folder.result)["updates"] == 8


def test_updates_are_those_of_the_last_checkpoint(folder):
    shutil.rmtree(folder.checkpoints / "8")
    write_result(folder)
    assert read_json(folder.result)["updates"] == 6


def spoil_parameter(training):
    next(iter(training.agent.networks["critic"].parameters())).data.fill_(float("nan"))


def spoil_metric(training):
    training.window._sums["critic_loss"].fill_(float("nan"))


@pytest.mark.parametrize(
    ("spoil", "named"), [(spoil_parameter, r"parameter critic\."), (spoil_metric, "critic_loss")]
)
def test_a_checkpoint_is_never_saved_with_nan(data, tmp_path, monkeypatch, spoil, named):
    real = loop.update

    def update(training, step, most):
        count = real(training, step, most)
        if step == 5:
            # The last update before a checkpoint: no metric of the log sees it in time.
            spoil(training)
        if step == 6 and spoil is spoil_parameter:
            training.window.flush()
        return count

    monkeypatch.setattr(loop, "update", update)
    monkeypatch.setattr(evaluation, "evaluate", raising(AssertionError("played")))
    monkeypatch.setattr(protocols, "evaluation_steps", lambda _protocol, steps: [steps])
    with pytest.raises(InputError, match=rf"{named}.* by update 6; .*checkpoints/3"):
        run(resolve(TINY), data, tmp_path, "mine", SilentReporter())
    assert RunFolder(tmp_path / "mine").checkpoint_steps() == [3]


def test_unknown_devices_are_refused(folder, capsys):
    with pytest.raises(InputError, match=r"'tpu'.*auto, cpu, cuda"):
        pick_device("tpu")
    assert "'tpu'" in fails_in_one_sentence(["eval", str(folder.path), "--device", "tpu"], capsys)


def edit_json(path, **changes):
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))


def edit_line(folder, **changes):
    first, *rest = folder.evaluations.read_text().splitlines()
    line = {k: v for k, v in (json.loads(first) | changes).items() if v is not ...}
    folder.evaluations.write_text("\n".join([*rest, json.dumps(line)]) + "\n")


def state_of(folder):
    return folder.checkpoints / "8" / "state.json"


DAMAGES = {
    "evaluations are not UTF-8": (
        lambda f: f.evaluations.write_bytes(f.evaluations.read_bytes() + b'{"a": "\xff\xfe"}\n'),
        "evaluations.jsonl line ",
    ),
    "line without policy": (lambda f: edit_line(f, policy=...), "evaluations.jsonl line "),
    "line without step": (lambda f: edit_line(f, step=...), "evaluations.jsonl line "),
    "line without protocol": (lambda f: edit_line(f, protocol=...), "evaluations.jsonl line "),
    "line with a text as protocol": (lambda f: edit_line(f, protocol="quick"), "'protocol'"),
    "line with a list as policy": (lambda f: edit_line(f, policy=[]), "'policy'"),
    "line without score": (lambda f: edit_line(f, score=...), "'score'"),
    "line with NaN": (lambda f: edit_line(f, return_mean=float("nan")), "'return_mean'"),
    "line with a huge number": (lambda f: edit_line(f, score=10**400), "'score'"),
    "no parameters": (
        lambda f: edit_json(f.provenance, critic_parameters=...),
        "provenance.json has no usable 'critic_parameters'",
    ),
    "no dataset": (lambda f: edit_json(f.provenance, dataset=...), "'dataset'"),
    "dataset without hash": (lambda f: edit_json(f.provenance, dataset={}), "'dataset'"),
    "environment is a text": (lambda f: edit_json(f.provenance, environment="x"), "'environment'"),
    "huge dims": (
        lambda f: edit_json(state_of(f), observation_dim=10**9 - 1),
        "'observation_dim' in ",
    ),
    "huge actions": (lambda f: edit_json(state_of(f), action_dim=10_001), "'action_dim' in "),
    "true as dim": (lambda f: edit_json(state_of(f), action_dim=True), "'action_dim' in "),
    "other environment": (
        lambda f: edit_json(f.provenance, environment={"env_id": "rollout_environments:Even-v0"}),
        "observation dims",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.usefixtures("panels_drawn_once")
def test_damaged_runs_are_named_before_an_episode_is_played(damage, folder, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", raising(AssertionError("played")))
    break_it, named = DAMAGES[damage]
    break_it(folder)
    assert named in fails_in_one_sentence(["eval", str(folder.path)], capsys)
    code, _ = command(["report", str(folder.path), "--out", str(folder.path / "report")], capsys)
    assert code == 0


@pytest.mark.parametrize(
    "arguments", [["eval"], ["eval", "--ope", "fqe"], ["inspect"], ["export", "--out", "model"]]
)
def test_a_run_whose_settings_were_changed_is_used_for_nothing(
    arguments, folder, capsys, monkeypatch
):
    monkeypatch.chdir(folder.path.parent)
    text = folder.config.read_text()
    folder.config.write_text(text.replace("discount = 0.995", "discount = 0.9"))
    assert folder.config.read_text() != text
    before = sorted(folder.path.parent.rglob("*"))
    command, *rest = arguments
    assert fails_in_one_sentence([command, str(folder.path), *rest], capsys) == (
        f"tql-offline: run {folder.path} began with discount 0.995 where its config.toml has 0.9 "
        "now; restore that setting, or train a new run with it\n"
    )
    assert sorted(folder.path.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["²", "٣", "six"])
def test_foreign_checkpoint_names_are_passed_over(name, folder):
    shutil.copytree(folder.checkpoints / "8", folder.checkpoints / name)
    assert folder.checkpoint_steps() == [2, 3, 4, 6, 8]


def test_numbers_that_json_lacks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"a\.json"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.glob("*.json")) == []


def test_unwritable_files_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "lines.jsonl").mkdir()
    with pytest.raises(InputError, match=r"lines\.jsonl cannot be written .*directory"):
        append_jsonl(tmp_path / "lines.jsonl", {})
    with pytest.raises(InputError, match=r"a\.json cannot be written to .*file"):
        write_atomic(tmp_path / "file" / "a.json", "{}")


def test_a_full_disk_leaves_no_part_of_a_checkpoint(tmp_path, monkeypatch):
    full = SafetensorError("Error while serializing: IoError(No space left on device)")
    monkeypatch.setattr(checkpoint, "save_file", raising(full))
    agent = make_agent(resolve(TINY), 2, 2, torch.device("cpu"))
    state = checkpoint.State(step=3, observation_dim=2, action_dim=2)
    with pytest.raises(InputError, match="3 cannot be written to .*No space left"):
        checkpoint.save(tmp_path / "checkpoints", agent, torch.Generator(), state, MetricsWindow())
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (EnvironmentFailedError("the process died; use fewer slots"), "the process died"),
        (
            EnvironmentFailedError("environment 'e' failed: ValueError: 3 of 4\nTraceback\n"),
            "environment 'e' failed: ValueError: 3 of 4; add --debug to see where",
        ),
    ],
)
def test_errors_of_the_machine_are_one_sentence(error, said, folder, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", raising(error))
    assert said in fails_in_one_sentence(["eval", str(folder.path)], capsys)


def test_a_mistake_of_ours_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", raising(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        main(["eval", str(folder.path)])


def test_debug_shows_the_traceback_of_an_error_of_the_machine(folder, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", raising(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        main(["--debug", "eval", str(folder.path)])


def test_ctrl_c_is_said(folder, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", raising(KeyboardInterrupt()))
    code, output = command(["eval", str(folder.path)], capsys)
    assert code == 130
    assert output.err == "tql-offline: stopped\n"


def test_ctrl_c_while_libraries_are_imported_is_one_sentence(monkeypatch, capsys):
    from tql_offline.__main__ import main

    def interrupted(name, *arguments, **options):
        if name == "tql_offline.cli":
            raise KeyboardInterrupt
        return imported(name, *arguments, **options)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "tql-offline: stopped\n"


def test_ctrl_c_in_training_names_the_run_and_its_last_checkpoint(
    data, short_maze, tmp_path, capsys, monkeypatch
):
    real = loop.update

    def update(training, step, most):
        if step == 5:
            raise KeyboardInterrupt
        return real(training, step, most)

    monkeypatch.setattr(loop, "update", update)
    sizes = ["--size", "tiny", "--steps", "8", "--batch-size", "16"]
    networks = ["--set", "flow.hidden=[16,16]", "--set", "flow.flow_steps=2"]
    settings = [*networks, "--set", "checkpoint_every=3", "--set", "evaluation.processes=1"]
    place = ["--path", str(data.path), "--runs", str(tmp_path), "--name", "mine"]
    code, output = command(["train", "--dataset", TASK, *sizes, *settings, *place], capsys)
    assert code == 130
    last = tmp_path / "mine" / "checkpoints" / "4"
    assert output.err == (
        f"tql-offline: stopped; last checkpoint {last}, "
        f"`tql-offline train --resume {tmp_path / 'mine'}` goes on\n"
    )


@pytest.mark.parametrize("arguments", [[], ["datasets"]])
def test_a_bare_command_prints_its_help_only(arguments, capsys):
    code, output = command(arguments, capsys)
    assert code in (0, 2)
    assert "Usage" in output.out
    assert output.err == ""
