"""Runs that are killed, stopped or refused by the system at the worst moments lose nothing.

Kills between two updates are in tests/test_resume.py; here are those inside a write, signals to a
command of its own, and disks that take no more.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rollout_environments
from stand_ins import raising

from tql_offline import files
from tql_offline.config import resolve
from tql_offline.errors import InputError
from tql_offline.files import remove_parts
from tql_offline.runs import RunFolder
from tql_offline.training import checkpoint, loop
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.resume import resume
from tql_offline.training.run import run

TESTS = Path(__file__).parent
STEPS = 12


class Killed(BaseException):
    """Stands for a kill: nothing of the package catches it."""


def at_the(count, function, act):
    """A function that acts instead of (or before) its count-th call."""
    calls = 0

    def counting(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            act(*arguments)
        return function(*arguments, **options)

    return counting


@pytest.fixture(scope="module")
def unscored(data):
    from dataclasses import replace

    return replace(data, env_id=None)


@pytest.fixture(scope="module")
def config():
    return resolve(
        {
            "critic": {"size": "tiny"},
            "flow": {"hidden": [8]},
            "steps": STEPS,
            "batch_size": 4,
            "log_every": 2,
            "checkpoint_every": 3,
            "keep_checkpoints": 2,
            "device": "cpu",
            # Nothing scores it, so that checkpoints of the updates to be scored later would stay.
            "evaluation": {"protocol": f"quick-return@{STEPS}"},
        }
    )


@pytest.fixture(scope="module")
def whole(unscored, config, tmp_path_factory):
    return run(config, unscored, tmp_path_factory.mktemp("whole"), "r", SilentReporter())


def contents(folder, step=STEPS):
    """Every byte that a run must repeat."""
    files = [folder.metrics, *sorted((folder.checkpoints / str(step)).iterdir())]
    return {file.name: file.read_bytes() for file in files}


def parts(folder):
    return sorted(path.name for path in folder.path.rglob(".*.part"))


def half_a_line(path, document):
    """What a kill in the middle of a write leaves."""
    with path.open("a") as file:
        file.write(str(document)[:20])
    raise Killed


INSTANTS = {
    "the first network of a checkpoint": (checkpoint, "save_file", 1),
    "the last file of a checkpoint": (checkpoint, "write_json", 2),
    "a later checkpoint": (checkpoint, "save_file", 15),
    "before a checkpoint is renamed": (Path, "rename", 2),
    "before an old checkpoint is taken away": (Path, "rename", 4),
    "before one on its way out is deleted": (files, "remove", 1),
    "before settings are renamed": (Path, "replace", 1),
    "before provenance is renamed": (Path, "replace", 2),
    "before state.json is renamed": (Path, "replace", 4),
    "in a line of metrics": (loop, "append_jsonl", 5),
    "before the result": (Path, "replace", 3 + STEPS // 3),
}


@pytest.mark.parametrize("instant", INSTANTS)
@pytest.mark.parametrize(
    "cleans_up",
    [
        pytest.param(True, marks=pytest.mark.slow, id="unwound"),
        pytest.param(False, id="as SIGKILL"),
    ],
)
def test_a_kill_inside_a_write_loses_nothing(
    unscored, config, whole, tmp_path, monkeypatch, instant, cleans_up
):
    owner, name, count = INSTANTS[instant]
    act = half_a_line if name == "append_jsonl" else raising(Killed())
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at_the(count, getattr(owner, name), act))
        if not cleans_up:  # SIGKILL runs no `finally`
            patch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
            patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            run(config, unscored, tmp_path, "r", SilentReporter())
    folder = RunFolder(tmp_path / "r")
    if not (folder.config.is_file() and folder.provenance.is_file()):
        with pytest.raises(InputError, match=r"has no config\.toml|provenance\.json"):
            resume(folder.path, lambda _: unscored, SilentReporter())
        return
    if not cleans_up and name != "append_jsonl" and "taken away" not in instant:
        assert parts(folder), "something lies half-written"
        for part in sorted(folder.path.rglob(".*.part"), reverse=True):  # of a process no more
            part.rename(part.with_name(part.name.replace(str(os.getpid()), "1")))
    resume(folder.path, lambda _: unscored, SilentReporter())
    assert contents(folder) == contents(whole)
    assert folder.result.is_file()
    assert parts(folder) == []


@pytest.mark.parametrize("replaced", [False, True], ids=["between the renamings", "after them"])
def test_what_a_kill_left_of_a_replaced_folder_goes_back_or_away(tmp_path, replaced):
    for name in [".100.1.old", *(["100"] if replaced else [])]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(name)
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["100"]
    assert (tmp_path / "100" / "state.json").read_text() == ("100" if replaced else ".100.1.old")


def test_a_checkpoint_is_written_once(unscored, config, tmp_path, monkeypatch):
    """A stop at the step of a checkpoint asks for it a second time."""
    written, original = [], checkpoint.save

    def save(folder, agent, generator, state, window):
        written.append(state.step)
        os.kill(os.getpid(), signal.SIGINT)
        return original(folder, agent, generator, state, window)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        run(config, unscored, tmp_path, "r", SilentReporter())
    assert written == [3]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are Linux's")
def test_a_checkpoint_is_on_the_disk_before_an_older_one_is_deleted(
    unscored, config, tmp_path, monkeypatch
):
    synced, fsync, delete = set(), os.fsync, loop.discard_folder

    def noting(number):
        synced.add(Path(f"/proc/self/fd/{number}").readlink().name)
        fsync(number)

    def checking(path):
        assert {file.name for file in path.iterdir()} <= synced | {"state.json"}
        synced.clear()
        delete(path)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(loop, "discard_folder", checking)
    folder = run(config, unscored, tmp_path, "r", SilentReporter())
    assert folder.checkpoint_steps() == [9, 12]


REFUSALS = {
    "a checkpoint": (checkpoint, "save_file", 9),
    "the renaming of a checkpoint": (Path, "rename", 2),
    "a line of metrics": (os, "open", 5),
    "a sync": (os, "fsync", 5),
}


@pytest.mark.parametrize(
    ("refusal", "number"),
    [*((refusal, errno.ENOSPC) for refusal in REFUSALS), ("a line of metrics", errno.EROFS)],
)
def test_a_disk_that_refuses_ends_the_run_in_a_sentence(
    unscored, config, whole, tmp_path, monkeypatch, refusal, number
):
    owner, name, count = REFUSALS[refusal]
    error = OSError(number, os.strerror(number))
    original = getattr(owner, name)
    if name == "open":  # of the package's files alone
        jsonl = at_the(count, original, raising(error))

        def refused(path, *arguments, **options):
            is_line = str(path).endswith(".jsonl")
            return (jsonl if is_line else original)(path, *arguments, **options)
    else:
        refused = at_the(count, original, raising(error))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refused)
        with pytest.raises(InputError, match=os.strerror(number)) as end:
            run(config, unscored, tmp_path, "r", SilentReporter())
    assert "cannot be written to" in str(end.value)
    assert "\n" not in str(end.value)
    folder = RunFolder(tmp_path / "r")
    assert parts(folder) == []
    resume(folder.path, lambda _: unscored, SilentReporter())
    assert contents(folder) == contents(whole)


def test_a_kill_of_a_short_run_without_scores_loses_a_tenth(unscored, config, whole, tmp_path):
    """Its only checkpoint would be the last; those at tenths change no bit of it."""
    short = config.model_copy(update={"checkpoint_every": 50_000, "keep_checkpoints": 0})
    folder = run(short, unscored, tmp_path, "r", SilentReporter())
    assert folder.checkpoint_steps() == [2, 4, 6, 8, 10, 12]  # of lines of metrics
    assert contents(folder) == contents(whole)
    assert folder.timing.read_text().count("\n") == STEPS // 2
    several = short.model_copy(update={"checkpoint_every": 6})
    assert run(several, unscored, tmp_path, "s", SilentReporter()).checkpoint_steps() == [6, 12]
    few = short.model_copy(update={"keep_checkpoints": 1, "log_every": 3})
    assert run(few, unscored, tmp_path, "t", SilentReporter()).checkpoint_steps() == [12]


def test_a_read_only_folder_is_named_before_anything_is_done(unscored, config, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", raising(OSError(errno.EROFS, os.strerror(errno.EROFS))))
        with pytest.raises(InputError, match=r"run folder .*Read-only file system.*--runs"):
            run(config, unscored, tmp_path, "r", SilentReporter())
    assert list(tmp_path.iterdir()) == []


# Commands of their own.


def own_file(path):
    rows, rng = 60, np.random.default_rng(0)
    np.savez(
        path,
        observations=rng.standard_normal((rows, 4)),
        actions=rng.uniform(-1, 1, (rows, 2)),
        rewards=np.ones(rows),
        terminals=np.arange(rows) % 30 == 29,
    )
    return str(path)


def command(*arguments, **settings):
    """`tql-offline train` as a process of its own."""
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    places = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen(
        [sys.executable, "-m", "tql_offline", "train", *arguments, *sets],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def training(tmp_path, runs, steps, environment="rollout_environments:Uneven-v0", **settings):
    """A small run whose policies are scored four times."""
    data = tmp_path / "own.npz"
    if not data.exists():
        own_file(data)
    arguments = ["--dataset", str(data), "--env", environment, "--protocol", "quick-return"]
    arguments += ["--size", "tiny", "--batch-size", "8", "--steps", str(steps)]
    settings = {"flow.hidden": "[8]", "evaluation.processes": 1, "log_every": 2} | settings
    return command(*arguments, "--runs", str(runs), "--name", "r", **settings)


def wait_until(condition, process, seconds=120, may_end=False):
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            assert may_end, process.communicate()[1]
            return
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


PHASES = {
    "training": lambda folder: len(list(read_whole_lines(folder.metrics))) > 3,
    "scoring": lambda folder: bool(folder.checkpoint_steps()),
}
"""When a run whose only checkpoint is written as its first scoring begins is in a phase."""


def read_whole_lines(path):
    return (
        [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")]
        if (path.exists())
        else []
    )


@pytest.mark.parametrize(
    ("phase", "number", "overlap"),
    [
        pytest.param("training", signal.SIGINT, "off", marks=pytest.mark.slow),
        ("scoring", signal.SIGTERM, "on"),
        pytest.param("training", signal.SIGTERM, "on", marks=pytest.mark.slow),
        pytest.param("scoring", signal.SIGINT, "on", marks=pytest.mark.slow),
        pytest.param("scoring", signal.SIGTERM, "off", marks=pytest.mark.slow),
        pytest.param("scoring", signal.SIGINT, "off", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_command_in_five_seconds(tmp_path, monkeypatch, phase, number, overlap):
    """Of an environment whose every step takes long, so that a score does, too."""
    played = tmp_path / "played"
    monkeypatch.setenv(rollout_environments.MARKER, str(played))
    folder = RunFolder(tmp_path / "runs" / "r")
    settings = {"checkpoint_every": 40 if phase == "scoring" else 10**6}
    steps = 160 if phase == "scoring" else 10**6
    process = training(
        tmp_path,
        folder.path.parent,
        steps,
        "rollout_environments:Lasting-v0",
        **{"evaluation.overlap": overlap},
        **settings,
    )
    wait_until(lambda: PHASES[phase](folder), process)
    wait_until(lambda: phase == "training" or played.exists(), process)
    sent = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 5
    assert process.returncode == 130
    last = folder.checkpoint_steps()[-1]
    assert f"last checkpoint {folder.checkpoints / str(last)}" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_fifty_kills_lose_nothing(tmp_path, overlap, capsys):
    """SIGKILL at 50 random moments of one run: at its start, in checkpoints, scores and between."""
    rng, settings = np.random.default_rng(0), {"checkpoint_every": 3, "evaluation.overlap": overlap}
    process = training(tmp_path, tmp_path / "whole", KILLED_STEPS, **settings)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    folder = RunFolder(tmp_path / "runs" / "r")
    kills = dict.fromkeys(("at the start", "while scoring", "while training"), 0)
    left_parts = 0
    while not folder.result.is_file():
        if folder.config.is_file() and folder.provenance.is_file():
            process = command("--resume", str(folder.path))
        else:  # killed before it was a run
            shutil.rmtree(folder.path, ignore_errors=True)
            process = training(tmp_path, folder.path.parent, KILLED_STEPS, **settings)
        moment = next_moment(kills, folder)
        wait_for(moment, folder, process, rng)
        if moment and process.poll() is None:
            process.kill()
            kills[moment] += 1
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        left_parts += bool(parts(folder))
    with capsys.disabled():
        sys.stdout.write(f"\nkills: {kills}; {left_parts} left something half-written\n")
    assert sum(kills.values()) == 50
    whole = RunFolder(tmp_path / "whole" / "r")
    assert contents(folder, KILLED_STEPS) == contents(whole, KILLED_STEPS)
    assert folder.evaluations.read_bytes() == whole.evaluations.read_bytes()
    assert parts(folder) == []


KILLED_STEPS = 1800  # enough for 50 kills on fast machines, too


def next_moment(kills, folder):
    """When the next process is to be killed; empty if no more is."""
    total = sum(kills.values())
    if total == 50:
        return ""
    if kills["at the start"] < 10 and total % 5 == 0:
        return "at the start"
    scores = scores_written(folder)
    if kills["while scoring"] >= 3 * (scores + 1) or kills["while training"] < 7 * (scores + 1):
        return "while training"
    return "while scoring"


def wait_for(moment, folder, process, rng):
    """Wait until a process is where it is to be killed, or at its end."""
    before = folder.checkpoint_steps()
    if moment == "at the start":
        time.sleep(rng.uniform(0, 6))
    elif moment == "while training":
        wait_until(lambda: folder.checkpoint_steps() != before, process, may_end=True)
        time.sleep(rng.uniform(0, 0.3))
    elif moment == "while scoring":
        wait_until(lambda: is_scoring(folder), process, may_end=True)
        time.sleep(rng.uniform(0, 6))


def scores_written(folder):
    return len(read_whole_lines(folder.evaluations)) // 2  # of the learned policy and the behaviour


def is_scoring(folder):
    """Whether a score is begun and not written, as the files tell."""
    last = max(folder.checkpoint_steps(), default=0)
    return last >= KILLED_STEPS // 4 * (scores_written(folder) + 1)
