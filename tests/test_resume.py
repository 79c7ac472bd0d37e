"""A run that was stopped at any moment goes on to the same bits as one that never was."""

import errno
import json
import os
import re
import shutil
import signal
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import pytest
import tomli_w
from filelock import FileLock, SoftFileLock
from marks import slowly
from stand_ins import Noting, raising

from tql_offline import files, locks
from tql_offline.cli import main
from tql_offline.config import read_toml, resolve
from tql_offline.errors import InputError
from tql_offline.files import append_jsonl, read_json, read_jsonl, rewind_jsonl, write_json
from tql_offline.runs import RunFolder, claimed
from tql_offline.training import checkpoint
from tql_offline.training.evaluation import Evaluator
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.resume import resume
from tql_offline.training.run import run, run_seeds

pytestmark = pytest.mark.usefixtures("short_protocols")

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
SETTINGS = {
    "critic": {"size": "tiny"},
    "flow": {"hidden": [16, 16], "flow_steps": 2},
    "steps": 12,
    "batch_size": 16,
    "log_every": 5,
    "checkpoint_every": 7,
    "evaluation": {"processes": 1},
    "dataset": {"name": TASK},
}


class Killed(BaseException):
    """Stands for a kill: nothing of the package catches it."""


class At(SilentReporter):
    """Does something whenever the run reports a certain thing for the n-th time."""

    def __init__(self, acts):
        self.acts, self.counts = acts, Counter()

    def _count(self, event):
        self.counts[event] += 1
        if act := self.acts.get((event, self.counts[event])):
            act()

    def advanced(self, _step, title="training"):
        self._count("advanced")
        self._count(f"advanced_{title}")

    def logged(self, _line, _updates_per_second):
        self._count("logged")

    def evaluated(self, _line):
        self._count("evaluated")

    def started(self, _title, _steps):
        self._count("started")


def kill():
    raise Killed


def killing(event, count):
    return At({(event, count): kill})


FIRST = ("advanced", 2)
"""Before the first checkpoint, that of update 3, as it is scored."""
KILLS = [
    ("advanced_training", 7),  # after an update, before its checkpoint
    ("advanced_training", 8),  # with a log window half full
    ("advanced_scoring learned policy", 1),
    ("logged", 2),
    ("started", 3),  # an evaluation begins
    ("evaluated", 1),
    ("evaluated", 4),  # the learned policy is scored, the behaviour not yet
    ("evaluated", 5),  # all is done but the result
]


@pytest.fixture(scope="module")
def looks(data, tmp_path_factory):
    """A run, and folders by event with what a kill at that moment leaves of it."""
    runs, at = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("at")
    left = {kill: at / f"{kill[0]}-{kill[1]}" for kill in (FIRST, *KILLS)}
    copies = {kill: partial(shutil.copytree, runs / "r", to) for kill, to in left.items()}
    return run(resolve(SETTINGS), data, runs, "r", At(copies)), left


@pytest.fixture(scope="module")
def whole(looks):
    """The run that was never stopped."""
    return looks[0]


@pytest.fixture
def killed(looks, tmp_path):
    """A copy of what a kill at an event leaves."""
    return lambda *event: RunFolder(shutil.copytree(looks[1][event], tmp_path / "r"))


def whole_and_killed(settings, data, tmp_path):
    """A run, and what a kill after its eighth update leaves of it."""
    copy = partial(shutil.copytree, tmp_path / "whole", tmp_path / "r")
    acts = {("advanced_training", 8): copy}
    whole = run(resolve(settings), data, tmp_path, "whole", At(acts))
    assert RunFolder(tmp_path / "r").checkpoint_steps() == [3, 6, 7]
    return whole, RunFolder(tmp_path / "r")


def contents(folder):
    """Every byte that a run must repeat."""
    files = [folder.metrics, folder.evaluations]
    files += sorted((folder.checkpoints / str(folder.checkpoint_steps()[-1])).iterdir())
    return {file.name: file.read_bytes() for file in files}


def go_on(data, path):
    return resume(path, lambda _config: data, SilentReporter())


def test_a_run_from_before_policies_decayed_goes_on_without(data, tmp_path):
    """Its settings do not say so, as its version had no such setting."""
    without = SETTINGS | {"optimizer": {"policy_weight_decay": 0.0}}
    whole, folder = whole_and_killed(without, data, tmp_path)
    text = folder.config.read_text()
    folder.config.write_text(text.replace("policy_weight_decay = 0.0\n", ""))
    assert folder.config.read_text() != text
    assert contents(go_on(data, folder.path)) == contents(whole)


@pytest.mark.parametrize(("event", "count"), KILLS)
def test_a_killed_run_goes_on_to_the_same_bits(data, whole, killed, event, count):
    folder = go_on(data, killed(event, count).path)
    assert contents(folder) == contents(whole)
    assert folder.result.is_file()


def test_a_run_with_two_controlled_transformers_goes_on_to_the_same_bits(data, tmp_path):
    whole, folder = whole_and_killed(SETTINGS | {"objective": "implicit"}, data, tmp_path)
    assert "value_control.safetensors" in contents(whole)
    assert contents(go_on(data, folder.path)) == contents(whole)


def test_a_run_on_data_in_main_memory_goes_on_to_the_same_bits(data, whole, tmp_path):
    settings = SETTINGS | {"execution": {"data": "host"}}
    there, folder = whole_and_killed(settings, data, tmp_path)
    assert contents(go_on(data, folder.path)) == contents(there)
    assert contents(there)["metrics.jsonl"] != contents(whole)["metrics.jsonl"]


def test_a_run_may_be_killed_again_and_again(data, whole, tmp_path):
    with pytest.raises(Killed):
        run(resolve(SETTINGS), data, tmp_path, "r", killing("advanced_training", 7))
    for count in (3, 4, 1):
        with pytest.raises(Killed):
            resume(tmp_path / "r", lambda _config: data, killing("advanced", count))
    assert contents(go_on(data, tmp_path / "r")) == contents(whole)


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_the_newest_checkpoints_are_kept(data, whole, tmp_path, overlap):
    evaluation = {"processes": 1, "overlap": overlap}
    config = resolve(SETTINGS | {"keep_checkpoints": 2, "evaluation": evaluation})
    with pytest.raises(Killed):
        run(config, data, tmp_path, "r", killing("logged", 3))
    assert RunFolder(tmp_path / "r").checkpoint_steps()[-2:] == [7, 9]
    folder = go_on(data, tmp_path / "r")
    assert contents(folder) == contents(whole)
    assert len(folder.checkpoint_steps()) == 2
    assert not list(folder.checkpoints.glob(".*"))


def test_the_checkpoint_of_a_score_to_be_made_is_kept(data, whole, tmp_path, monkeypatch):
    """Scores that overlap are behind: a kill leaves them to be made of what was saved."""
    settings = SETTINGS | {"keep_checkpoints": 1, "checkpoint_every": 4}
    config = resolve(settings | {"evaluation": {"processes": 1, "overlap": "on"}})
    begin = Evaluator.begin

    def never_ending(self, *arguments):
        return Future() if arguments[2] == 6 else begin(self, *arguments)

    monkeypatch.setattr(Evaluator, "begin", never_ending)
    with pytest.raises(Killed):
        run(config, data, tmp_path, "r", killing("advanced_training", 9))
    assert RunFolder(tmp_path / "r").checkpoint_steps() == [6, 8]
    monkeypatch.undo()
    folder = go_on(data, tmp_path / "r")
    assert contents(folder) == contents(whole)
    assert folder.checkpoint_steps() == [12]


def test_a_checkpoint_half_deleted_is_none(data, tmp_path, monkeypatch):
    config = resolve(SETTINGS | {"keep_checkpoints": 1})
    monkeypatch.setattr(files, "remove", lambda _path: kill())
    with pytest.raises(Killed):
        run(config, data, tmp_path, "r", SilentReporter())
    folder = RunFolder(tmp_path / "r")
    assert folder.checkpoint_steps() == [6]
    assert list(folder.checkpoints.glob(".3.*.part"))
    monkeypatch.undo()
    assert not list(go_on(data, folder.path).checkpoints.glob(".*"))


def test_a_checkpoint_that_cannot_be_deleted_ends_no_run(data, whole, tmp_path, monkeypatch):
    noted = []
    reporter = SilentReporter()
    reporter.noted = noted.append
    refusal = raising(OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY)))
    monkeypatch.setattr(files, "remove", refusal)
    folder = run(resolve(SETTINGS | {"keep_checkpoints": 1}), data, tmp_path, "r", reporter)
    assert contents(folder) == contents(whole)
    assert folder.checkpoint_steps() == [12]
    (note, *_) = [sentence for sentence in noted if "cannot be deleted" in sentence]
    assert "checkpoints/3 cannot be deleted whole (Directory not empty)" in note


def test_each_of_several_seeds_keeps_its_newest_checkpoints(data, tmp_path):
    config = resolve(SETTINGS | {"keep_checkpoints": 2})
    folders = run_seeds(config, (0, 1), data, tmp_path, "r", SilentReporter())
    assert [folder.checkpoint_steps() for folder in folders] == [[9, 12], [9, 12]]


@pytest.mark.parametrize(
    ("number", "event", "step"),
    [
        (signal.SIGINT, "logged", 10),
        (signal.SIGTERM, "started", 6),
        (signal.SIGUSR1, "logged", 10),
        slowly(signal.SIGTERM, "logged", 10),
        slowly(signal.SIGINT, "started", 6),
    ],
)
def test_a_signal_leaves_a_checkpoint_of_its_step(data, whole, tmp_path, number, event, step):
    count = {"logged": 2, "started": 3}[event]  # the third stage is the evaluation after 6
    reporter = At({(event, count): lambda: os.kill(os.getpid(), number)})
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as stop:
        run(resolve(SETTINGS), data, tmp_path, "r", reporter)
    assert signal.getsignal(number) is before
    assert RunFolder(tmp_path / "r").checkpoint_steps()[-1] == step
    assert "--resume" in stop.value.__notes__[0]
    folder = go_on(data, tmp_path / "r")
    assert contents(folder) == contents(whole)


def test_lines_cut_by_a_kill_go(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for step in (5, 10, 15):
        append_jsonl(file, {"step": step, "loss": 1.5})
    whole = file.read_text()
    file.write_text(whole + '{"step": 20, "lo')
    rewind_jsonl(file, 15)
    assert file.read_text() == whole
    rewind_jsonl(file, 12)
    assert [line["step"] for line in read_jsonl(file)] == [5, 10]
    file.write_text("[]\n")
    with pytest.raises(InputError, match="line 1"):
        rewind_jsonl(file, 12)
    rewind_jsonl(tmp_path / "none.jsonl", 3)


def test_what_cannot_be_resumed_is_refused(data, whole, killed, tmp_path):
    with pytest.raises(InputError, match="finished"):
        go_on(data, whole.path)
    with pytest.raises(InputError, match="not a run folder"):
        go_on(data, tmp_path)
    folder, other = killed("advanced_training", 8), Future()
    other.set_result("0" * 64)
    with pytest.raises(InputError, match="sha256"):
        go_on(replace(data, digest=other), folder.path)
    with claimed(folder), pytest.raises(InputError, match="another process"):
        go_on(data, folder.path)
    for file in folder.checkpoints.rglob("critic.safetensors"):
        file.write_bytes(b"\x00" * 9)
    with pytest.raises(InputError, match=r"/7/critic\.safetensors is damaged.*train the run anew"):
        go_on(data, folder.path)
    assert folder.checkpoint_steps() == [3, 6, 7]


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """A run killed when the learned policy of its last update was scored; to be copied."""
    path = tmp_path_factory.mktemp("stopped")
    config = resolve(SETTINGS | {"keep_checkpoints": 3})
    with pytest.raises(Killed):
        run(config, data, path, "r", killing("evaluated", 4))
    assert RunFolder(path / "r").checkpoint_steps() == [7, 9, 12]
    return path / "r"


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def renamed(file):
    """One byte of a tensor's name changed."""
    file.write_bytes(file.read_bytes().replace(b"final_norm.weight", b"final_norn.weight"))


def without_dims(file):
    write_json(file, read_json(file) | {"observation_dim": 0})


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("critic.safetensors", cut),
        ("optimizers.safetensors", cut),
        ("optimizers.safetensors", lambda file: file.unlink()),
        ("random.safetensors", cut),
        ("window.safetensors", cut),
        ("state.json", cut),
        ("state.json", without_dims),
        ("critic.safetensors", renamed),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    data, whole, stopped, tmp_path, name, damage
):
    folder = RunFolder(shutil.copytree(stopped, tmp_path / "r"))
    for step in (9, 12):
        damage(folder.checkpoints / str(step) / name)
    reporter = Noting()
    resume(folder.path, lambda _config: data, reporter)
    assert contents(folder) == contents(whole)
    assert folder.checkpoint_steps() == [7, 9, 12]
    assert not list(folder.checkpoints.glob("*.damaged"))
    for step, note in zip((12, 9), reporter.sentences[:2], strict=True):
        assert f"goes on from {folder.checkpoints}/7, because {folder.checkpoints}/{step}" in note
        assert note.endswith(f"kept as {folder.checkpoints}/{step}.damaged")


def test_a_run_without_a_checkpoint_says_that_it_begins_again(data, whole, killed):
    noting = Noting()
    folder = resume(killed(*FIRST).path, lambda _config: data, noting)
    assert f"note: run {folder.path} has no checkpoint yet, so it begins again" in noting.sentences
    assert contents(folder) == contents(whole)
    assert folder.result.is_file()


def forget_settings(folder):
    """Leave a run's provenance as a version wrote it that did not record settings."""
    facts = read_json(folder.provenance)
    del facts["settings"]
    write_json(folder.provenance, facts)


@pytest.mark.parametrize(
    ("table", "changed", "said"),
    [
        ("flow", {"alpha": 3.0}, "began with flow.alpha 10.0 where its config.toml has 3.0 now"),
        ("", {"seed": 5}, "began with seed 0 where its config.toml has 5 now"),
        ("critic", {"size": "small"}, "began with critic.size 'tiny' where its"),
        ("dataset", {"reward_scale": 2.0}, "began with dataset.reward_scale 1.0 where"),
        ("", {"steps": 32}, "began with steps 12 where its config.toml has 32 now; restore that "
         "setting, or give it more updates by `train --resume --steps`"),
    ],
)  # fmt: skip
def test_a_run_does_not_go_on_with_settings_that_it_did_not_begin_with(
    data, stopped, tmp_path, table, changed, said
):
    folder = RunFolder(shutil.copytree(stopped, tmp_path / "r"))
    document = read_toml(folder.config)
    (document[table] if table else document).update(changed)
    folder.config.write_text(tomli_w.dumps(document))
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=re.escape(said)):
        go_on(data, folder.path)
    after = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    assert after == before


def test_a_run_goes_on_with_other_settings_that_change_no_policy(data, whole, stopped, tmp_path):
    folder = RunFolder(shutil.copytree(stopped, tmp_path / "r"))
    document = read_toml(folder.config)
    document["watch"] |= {"collapsed_entropy": "off", "patience": 5}
    document["rebrac"]["smoothing"] = 0.5  # of another objective
    document |= {"keep_checkpoints": 0, "device": "cpu"}
    folder.config.write_text(tomli_w.dumps(document))
    assert contents(go_on(data, folder.path)) == contents(whole)


def test_a_run_from_before_settings_were_recorded_goes_on_with_those_it_has(
    data, stopped, tmp_path
):
    folder = RunFolder(shutil.copytree(stopped, tmp_path / "r"))
    folder.config.write_text(folder.config.read_text().replace("alpha = 10.0", "alpha = 3.0"))
    forget_settings(folder)
    go_on(data, folder.path)
    assert read_json(folder.result)["settings"]["flow"]["alpha"] == 3.0


def test_where_no_checkpoint_fits_the_settings_may_be_wrong(data, stopped, tmp_path):
    folder = RunFolder(shutil.copytree(stopped, tmp_path / "r"))
    config = resolve(SETTINGS | {"keep_checkpoints": 3, "flow": {"hidden": [9]}})
    folder.config.write_text(config.to_toml())
    forget_settings(folder)
    with pytest.raises(
        InputError, match="does not fit the run's config.toml .*; restore both from the same"
    ):
        go_on(data, folder.path)
    assert folder.checkpoint_steps() == [7, 9, 12]


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), MemoryError()])
def test_a_checkpoint_that_cannot_be_read_at_the_moment_is_not_damaged(
    data, whole, stopped, tmp_path, monkeypatch, error
):
    folder = RunFolder(shutil.copytree(stopped, tmp_path / "r"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load_file", raising(error))
        with pytest.raises(InputError, match="cannot be read .*; see that it can, and try again"):
            go_on(data, folder.path)
    assert folder.checkpoint_steps() == [7, 9, 12]
    assert contents(go_on(data, folder.path)) == contents(whole)


def test_a_damaged_checkpoint_does_not_count_among_the_newest(data, whole, stopped, tmp_path):
    """Killed again before its step, with one checkpoint to keep."""
    folder = RunFolder(shutil.copytree(stopped, tmp_path / "r"))
    settings = resolve(SETTINGS | {"keep_checkpoints": 1})
    folder.config.write_text(settings.to_toml())
    for step in (9, 12):
        cut(folder.checkpoints / str(step) / "optimizers.safetensors")
    with pytest.raises(Killed):
        resume(folder.path, lambda _config: data, killing("advanced_training", 3))
    assert folder.checkpoint_steps() == [9]
    assert (folder.checkpoints / "12.damaged" / "critic.safetensors").is_file()
    assert contents(go_on(data, folder.path)) == contents(whole)


@pytest.mark.parametrize("left", [b"", b'{"schema": "tql-', b"\0" * 40])
def test_a_result_cut_short_is_written_anew(data, whole, tmp_path, left):
    folder = RunFolder(shutil.copytree(whole.path, tmp_path / whole.path.name))
    folder.result.write_bytes(left)
    assert not folder.is_finished()
    assert go_on(data, folder.path).result.read_bytes() == whole.result.read_bytes()
    assert contents(folder) == contents(whole)
    assert folder.is_finished()


def test_a_result_cut_short_without_a_checkpoint_costs_no_score(data, whole, tmp_path):
    folder = RunFolder(shutil.copytree(whole.path, tmp_path / "r"))
    folder.result.write_text("{")
    shutil.rmtree(folder.checkpoints)
    with pytest.raises(InputError, match=r"result\.json cannot be read.*copy the whole run"):
        go_on(data, folder.path)
    assert folder.evaluations.read_bytes() == whole.evaluations.read_bytes()


def test_a_lock_that_does_without_the_systems_is_known_by_its_holders_number(tmp_path):
    """The library may change a lock's class where the system has none, or may not."""
    assert locks._is_soft(SoftFileLock(tmp_path / "soft"))
    assert not locks._is_soft(FileLock(tmp_path / "own"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_no_run_begins(data, tmp_path, no_flock, number):
    no_flock(number)
    with pytest.raises(InputError, match=r"has no locks.*another folder for --runs, or mount"):
        run(resolve(SETTINGS), data, tmp_path, "r", SilentReporter())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("4711\nnode7?pidns-f0000001\n9\n", "process 4711 on host 'node7' is gone"),
        ("", "no other process is at work there"),  # left by a lock of the system's
    ],
)
def test_without_locks_the_holder_is_named(data, whole, killed, no_flock, held, said):
    folder = killed("evaluated", 4)
    lock = folder.path / ".lock"
    lock.write_text(held)
    no_flock(errno.ENOSYS)
    with pytest.raises(InputError) as caught:
        go_on(data, folder.path)
    assert str(caught.value).endswith(f"wait for its end, or delete {lock} if {said}")
    lock.unlink()
    assert contents(go_on(data, folder.path)) == contents(whole)
    assert not lock.exists()


@pytest.mark.parametrize("mode", ["layerwise", slowly("none"), slowly("single")])
def test_an_mlp_critic_goes_on_in_every_entropy_mode(data, tmp_path, mode):
    """It has no attention to control: a temperature without a gradient has no moments to save."""
    critic = {"size": "tiny", "kind": "mlp"}
    settings = SETTINGS | {"critic": critic, "entropy": {"mode": mode}}
    whole, folder = whole_and_killed(settings, data, tmp_path)
    assert contents(go_on(data, folder.path)) == contents(whole)


@pytest.mark.parametrize(("recorded", "was", "here"), [("NVIDIA H100", "GPU", "CPU")])
def test_a_run_of_another_kind_of_device_is_refused(data, killed, recorded, was, here):
    folder = killed("advanced_training", 8)
    facts = json.loads(folder.provenance.read_text()) | {"device": recorded}
    folder.provenance.write_text(json.dumps(facts))
    before = folder.metrics.read_bytes()
    with pytest.raises(InputError, match=f"trained on a {was}, whose .* a {here} does not draw"):
        go_on(data, folder.path)
    assert folder.metrics.read_bytes() == before


# More updates.


@pytest.mark.parametrize("schedule", ["cosine", slowly("constant")])
def test_a_finished_run_goes_on_as_one_of_more_updates(data, tmp_path, schedule):
    """Its rates stay at the last of their schedule; the first result is kept."""
    rates = {"schedule": schedule, "warmup": 2, "schedule_steps": 12}
    settings = SETTINGS | {"optimizer": rates, "steps": 16, "log_every": 4}
    whole = run(resolve(settings), data, tmp_path, "whole", SilentReporter())
    first = settings | {"optimizer": rates | {"schedule_steps": 0}, "steps": 12}
    folder = run(resolve(first), data, tmp_path, "r", SilentReporter())
    result = folder.result.read_bytes()
    scores = folder.evaluations.read_bytes()
    with pytest.raises(Killed):
        resume(folder.path, lambda _c: data, killing("advanced_training", 3), steps=16)
    assert not folder.result.exists()
    assert (folder.path / "result-of-12.json").read_bytes() == result
    # The same command again, as from a queue that restarts jobs.
    assert resume(folder.path, lambda _c: data, SilentReporter(), steps=16) == folder
    assert folder.config.read_bytes() == whole.config.read_bytes()
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    for file in (whole.checkpoints / "16").iterdir():
        assert (folder.checkpoints / "16" / file.name).read_bytes() == file.read_bytes()
    assert read_json(folder.result)["updates"] == 16
    assert folder.evaluations.read_bytes().startswith(scores)
    last = [line for line in read_jsonl(whole.evaluations) if line["step"] == 16]
    assert [line for line in read_jsonl(folder.evaluations) if line["step"] == 16] == last


def test_an_unfinished_run_may_get_more_updates(data, whole, killed):
    folder = killed("logged", 2)
    resume(folder.path, lambda _config: data, SilentReporter(), steps=17)
    before, after = (list(read_jsonl(there.metrics)) for there in (whole, folder))
    assert [line["step"] for line in after] == [5, 10, 15, 17]
    assert after[:2] == before[:2]
    assert max(folder.checkpoint_steps()) == 17


@pytest.mark.parametrize(
    ("steps", "said"),
    [(12, "one of 12 updates, and 12 are no more"), (7, "no more"), (10**10, "--steps")],
)
def test_no_more_updates_or_too_many_are_refused(data, whole, tmp_path, steps, said):
    shutil.copytree(whole.path, tmp_path / "r")
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=said):
        resume(tmp_path / "r", lambda _config: data, SilentReporter(), steps=steps)
    after = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    assert after | before == after == {**before, **{p: b"" for p in after if p.name == ".lock"}}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_finished_run_without_its_last_checkpoint_does_not_go_on(data, whole, tmp_path, is_there):
    """From an older one it would lose updates and scores that it had."""
    folder = RunFolder(tmp_path / "r")
    shutil.copytree(whole.path, folder.path)
    last = folder.checkpoints / "12"
    if is_there:
        (last / "critic.safetensors").write_bytes(b"")
    else:
        shutil.rmtree(last)
    scores, lines = folder.evaluations.read_bytes(), folder.metrics.read_bytes()
    with pytest.raises(InputError, match="no sound checkpoint of its last update, 12"):
        resume(folder.path, lambda _config: data, SilentReporter(), steps=16)
    assert folder.is_finished()
    assert (folder.evaluations.read_bytes(), folder.metrics.read_bytes()) == (scores, lines)


@pytest.mark.parametrize("steps", [None, 16])
def test_a_result_that_cannot_be_read_without_checkpoints_is_no_run_to_begin_anew(
    data, whole, tmp_path, steps
):
    folder = RunFolder(tmp_path / "r")
    shutil.copytree(whole.path, folder.path)
    shutil.rmtree(folder.checkpoints)
    folder.result.write_text("{")
    lines = folder.metrics.read_bytes()
    with pytest.raises(InputError, match="cannot be read, and the run has no checkpoint"):
        resume(folder.path, lambda _config: data, SilentReporter(), steps=steps)
    assert folder.metrics.read_bytes() == lines


def test_resume_takes_no_other_settings(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(tmp_path), "--size", "xl"])
    assert stop.value.code == 2
    assert "leave all other flags out" in capsys.readouterr().err
