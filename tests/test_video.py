"""Videos: the right episodes, played again to the bit, in whole files or none."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import pytest
from own_data import write_own
from PIL import Image
from stand_ins import shortened

from tql_offline.cli import main
from tql_offline.config import resolve
from tql_offline.datasets.load import load
from tql_offline.errors import InputError
from tql_offline.eval import drawing as drawings
from tql_offline.eval import encoders, protocol, video
from tql_offline.eval.drawing import Drawing
from tql_offline.eval.environments import SeededEnvironment, make
from tql_offline.eval.rollout import evaluate
from tql_offline.eval.workers import EnvironmentPool
from tql_offline.files import read_jsonl
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

DRAWN = "rollout_environments:Drawn-v0"
SLOTS, EPISODES = 3, 8


def named(name):
    return f"rollout_environments:{name}-v0"


def row_policy(observations, noise):
    """Rows differ by their place: an episode in another row than it was scored in shows."""
    places = np.arange(len(observations))[:, None]
    return np.tanh(observations[:, :2] - noise + places / 8)


def scored(env_id):
    """A line of evaluations.jsonl, and the environment's description."""
    short = replace(protocol.get("quick"), episodes=EPISODES, slots=SLOTS)
    with EnvironmentPool(env_id, slots=SLOTS, processes=1) as pool:
        line = evaluate(row_policy, pool, short, step=40, policy_name="learned", noise_dim=2)
        return line, pool.description


def film(env_id, folder, *, step_timeout=60.0, **changed):
    """Score and film; returns the line and what `film` does."""
    line, description = scored(env_id)
    with Drawing(env_id, step_timeout=step_timeout) as drawing:
        settings = {"policy": row_policy, "slots": SLOTS, "noise_dim": 2} | changed
        player = video.Player(drawing=drawing, description=description, **settings)
        return line, video.film(player, line, folder)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def episode(return_, success, seed):
    return {"return": return_, "success": success, "seed": seed}


# Which episodes.


def test_best_median_and_worst_by_hand():
    episodes = [
        episode(2.0, False, 5),
        episode(9.0, False, 1),
        episode(9.0, True, 8),  # best: as high as the one before, and a success
        episode(9.0, True, 9),
        episode(1.0, True, 2),
        episode(1.0, False, 7),
        episode(1.0, False, 4),  # worst: the lowest seed of the failures at 1
        episode(3.0, False, 6),  # sorted: 1 1 1 2 | 3 9 9 9
    ]
    assert video.chosen(episodes) == {"best": 2, "median": 0, "worst": 6}
    assert video.chosen(episodes[:3]) == {"best": 2, "median": 1, "worst": 0}
    assert video.chosen(episodes[:1]) == {"best": 0, "median": 0, "worst": 0}
    equal = [episode(-5.0, False, seed) for seed in (3, 2, 4)]
    assert video.chosen(equal) == {"best": 1, "median": 1, "worst": 1}


# What is written.


def test_films_are_whole_and_described(tmp_path):
    folder = tmp_path / "videos"
    line, differences = film(DRAWN, folder)
    assert differences == []
    files = [f"40-learned-{role}.mp4" for role in video.ROLES]
    assert names(folder) == sorted([*files, "40-learned.json"])
    document = json.loads((folder / "40-learned.json").read_text())
    returns = sorted(episode["return"] for episode in line["episodes"])
    filmed = [document["videos"][role] for role in video.ROLES]
    assert [f["return"] for f in filmed] == [returns[-1], returns[3], returns[0]]
    for name, told in zip(files, filmed, strict=True):
        assert told.pop("file") == name
        assert told in line["episodes"]
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(folder / name)
        assert frames == told["length"] + 1
        assert seconds == pytest.approx(frames / 10)
    assert (document["step"], document["policy"]) == (40, "learned")
    assert document["protocol"] == line["protocol"]
    assert document["encoder"].startswith("imageio-ffmpeg ")
    assert document["versions"]["gymnasium"] == line["versions"]["gymnasium"]


def test_without_ffmpeg_it_is_a_gif_of_every_state(tmp_path, monkeypatch):
    (tmp_path / "40-learned-best.mp4").write_bytes(b"of an earlier evaluation")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    film(DRAWN, tmp_path)
    files = [f"40-learned-{role}.gif" for role in video.ROLES]
    assert names(tmp_path) == sorted([*files, "40-learned.json"])
    document = json.loads((tmp_path / "40-learned.json").read_text())
    assert max(document["videos"][role]["length"] for role in video.ROLES) == 60
    for told in document["videos"].values():
        with Image.open(tmp_path / told["file"]) as gif:
            assert gif.n_frames == told["length"] + 1
            assert (gif.size, gif.info["duration"], gif.info["loop"]) == ((21, 15), 100, 0)
            for steps in range(gif.n_frames):
                gif.seek(steps)
                assert np.array_equal(np.unique(gif.convert("RGB")), [4 * steps])


def test_a_differing_episode_is_told_and_has_no_video(tmp_path):
    line, differences = film(named("DrawnOtherwise"), tmp_path)
    chosen = {role: line["episodes"][k] for role, k in video.chosen(line["episodes"]).items()}
    # Of this environment those that succeed differ; there are some of each kind.
    kept = {role: told["seed"] for role, told in chosen.items() if not told["success"]}
    assert 0 < len(kept) < 3
    document = json.loads((tmp_path / "40-learned.json").read_text())
    assert {role: told["seed"] for role, told in document["videos"].items()} == kept
    assert len(list(tmp_path.glob("*.mp4"))) == len(kept)
    different = {told["seed"] for told in chosen.values() if told["success"]}
    assert len(differences) == len(different)
    for sentence in differences:
        assert any(f"episode of seed {seed} came to return" in sentence for seed in different)


@pytest.mark.parametrize("changed", [{"policy": lambda o, z: row_policy(o, z) / 2}, {"slots": 2}])
def test_another_policy_or_batch_is_noticed(tmp_path, changed):
    old = tmp_path / "40-learned-best.mp4"
    old.write_bytes(b"of an earlier evaluation")
    _line, differences = film(DRAWN, tmp_path, **changed)
    assert differences
    assert not old.exists() or old.stat().st_size > 100


def test_an_episode_that_does_not_end_is_given_up(tmp_path):
    _line, differences = film(named("DrawnLonger"), tmp_path / "videos")
    assert len(differences) == 3
    assert not (tmp_path / "videos").exists()


# What cannot be written.


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_failing_encoder_leaves_everything_as_it_was(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(video, "suffix", lambda: suffix)
    writer = {".mp4": encoders.Mp4, ".gif": encoders.Gif}[suffix]
    add, added = writer.add, []

    def add_some(self, frame):
        added.append(frame)
        if len(added) == 12:
            raise OSError(28, "No space left on device")
        add(self, frame)

    monkeypatch.setattr(writer, "add", add_some)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); make"):
        film(DRAWN, tmp_path / "videos")
    assert len(added) == 12
    assert not (tmp_path / "videos").exists()
    kept = tmp_path / "40-learned-best.mp4"
    kept.write_bytes(b"of an earlier evaluation")
    added.clear()
    with pytest.raises(InputError):
        film(DRAWN, tmp_path)
    assert kept.read_bytes() == b"of an earlier evaluation"
    assert names(tmp_path) == [kept.name]


def test_what_ffmpeg_did_not_write_is_noticed(tmp_path):
    path = tmp_path / "missing" / "x.mp4"
    with pytest.raises(InputError, match="x.mp4 cannot be written"):  # noqa: SIM117
        with encoders.writing_video(path, 10.0) as writer:
            writer.add(np.zeros((16, 16, 3), dtype=np.uint8))


def test_frames_of_two_sizes_are_no_video(tmp_path):
    with pytest.raises(InputError, match=r"\(a frame of \(8, 16, 3\) after one of \(16, 8, 3\)\)"):  # noqa: SIM117
        with encoders.writing_video(tmp_path / "x.mp4", 10.0) as writer:
            writer.add(np.zeros((16, 8, 3), dtype=np.uint8))
            writer.add(np.zeros((8, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("DrawnUntilItDies", r"its process died \(exit code 11\)"),
        ("DrawnUntilItHangs", "it hung for 1 s"),
    ],
)
def test_a_process_lost_while_it_draws_is_told(tmp_path, name, how):
    with pytest.raises(InputError, match=f"failed while it was drawn .*{how}"):
        film(named(name), tmp_path / "videos", step_timeout=1.0)
    assert not (tmp_path / "videos").exists()


# Renderers.


@pytest.fixture
def no_choice(monkeypatch):
    """The user has not said what draws."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(drawings.platform, "system", lambda: "Linux")


def test_egl_comes_first_then_osmesa(no_choice):
    with Drawing(DRAWN) as drawing:
        assert drawing.renderer == "egl"
    with Drawing(named("DrawnByOsmesa")) as drawing:
        assert drawing.renderer == "osmesa"


def test_a_users_own_renderer_is_the_only_one_tried(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with Drawing(DRAWN) as drawing:
        assert drawing.renderer == "glfw"
    with pytest.raises(InputError, match=r"here \(MUJOCO_GL=glfw: its process died"):
        Drawing(named("DrawnByOsmesa"))


def test_without_a_renderer_it_is_said_what_to_install(no_choice):
    with pytest.raises(InputError) as refusal:
        Drawing(named("Undrawable"))
    why = "AttributeError: 'NoneType' object has no attribute 'glGetError'"
    assert f"(MUJOCO_GL=egl: {why}; MUJOCO_GL=osmesa: {why})" in str(refusal.value)
    assert "install libegl1 or libosmesa6" in str(refusal.value)


def test_renderers_of_linux_are_advised_on_linux_alone(no_choice, monkeypatch):
    monkeypatch.setattr(drawings.platform, "system", lambda: "Darwin")
    with pytest.raises(InputError, match=r"\); leave MUJOCO_GL unset, or leave --video out$"):
        Drawing(named("Undrawable"))


def test_a_package_that_is_missing_is_the_one_to_install(no_choice):
    with pytest.raises(InputError) as refusal:
        Drawing(named("LacksPackage"))
    assert str(refusal.value) == (
        f"environment {named('LacksPackage')!r} cannot be drawn here (pygame is not installed, run "
        "`pip install`); install what is missing, or leave --video out"
    )


@pytest.mark.parametrize("name", ["Uneven", "DrawsNothing", "HasNoRender"])
def test_an_environment_without_frames_is_told(name, no_choice):
    with pytest.raises(InputError, match=f"^environment '[^']*{name}-v0' draws no frames"):
        Drawing(named(name))


@pytest.fixture(scope="module")
def display():
    """This machine draws by EGL or OSMesa."""
    refusals = []
    for name in ("egl", "osmesa"):
        code = f"from mujoco.{name} import GLContext; GLContext(64, 64).make_current()"
        settings = os.environ | {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
        tried = subprocess.run(
            [sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False
        )
        if tried.returncode == 0:
            return
        refusals.append(f"{name}: {tried.stderr.strip().rpartition(chr(10))[2]}")
    pytest.skip("; ".join(refusals))


@pytest.mark.parametrize(
    ("env_id", "fps"),
    [
        ("pointmaze-medium-singletask-v0", 10),
        pytest.param("cube-single-singletask-v0", 20, marks=pytest.mark.slow),
    ],
)
def test_the_simulator_plays_the_same_where_it_is_drawn(env_id, fps, display, no_choice):
    plain = SeededEnvironment(make(env_id))
    with Drawing(env_id) as drawing:
        shots = [drawing.reset(5)]
        assert np.array_equal(shots[0].observation, plain.reset(5))
        for _ in range(2):
            action = np.full(plain.action_dim, 0.7, dtype=np.float32)
            shots.append(drawing.step(action))
            observation, reward, *_ = plain.step(action)
            assert np.array_equal(shots[-1].observation, observation)
            assert shots[-1].reward == reward
        assert drawing.fps == fps
    assert {shot.frame.shape for shot in shots} == {(200, 200, 3)}
    assert len(np.unique(shots[0].frame)) > 20
    assert not np.array_equal(shots[0].frame, shots[-1].frame)


# The command.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on random rows, without scores, whose environment is named afterwards."""
    folder = tmp_path_factory.mktemp("drawn")
    name = str(write_own(folder / "rows.npz", (19,) * 3, 4))
    config = resolve(
        {
            "critic": {"size": "tiny"},
            "flow": {"hidden": [8, 8], "flow_steps": 2},
            "steps": 2,
            "batch_size": 8,
            "log_every": 2,
            "checkpoint_every": 2,
            "dataset": {"name": name},
            "evaluation": {"processes": 1, "protocol": "quick"},
        }
    )
    return run(config, load(name), folder, "", SilentReporter())


@pytest.fixture
def short(monkeypatch):
    real = protocol.get
    monkeypatch.setattr(protocol, "get", shortened(real, episodes=EPISODES, slots=SLOTS))


def evaluate_in(folder, env_id, *options):
    provenance = json.loads(folder.provenance.read_text())
    provenance["environment"] = {"env_id": env_id}
    folder.provenance.write_text(json.dumps(provenance))
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(folder.path), "--device", "cpu", *options])
    return stop.value.code


def test_eval_films_every_policy_and_scores_as_without(trained, short, capsys):
    before = len(list(read_jsonl(trained.evaluations)))
    assert evaluate_in(trained, DRAWN) == 0
    assert not trained.videos.exists()
    assert evaluate_in(trained, DRAWN, "--video") == 0
    lines = list(read_jsonl(trained.evaluations))[before:]
    assert len(lines) == 4
    assert lines[:2] == lines[2:]
    stems = ["2-behaviour", "2-learned"]
    ends = ["-best.mp4", "-median.mp4", "-worst.mp4", ".json"]
    assert names(trained.videos) == [stem + end for stem in stems for end in ends]
    printed = capsys.readouterr().out.replace("\n", "")
    assert "2-learned-median.mp4" in printed
    assert "2-behaviour-worst.mp4" in printed


def test_eval_refuses_before_it_plays_and_tells_of_what_differed(trained, short, capsys):
    before = trained.evaluations.read_bytes() if trained.evaluations.exists() else b""
    assert evaluate_in(trained, named("DrawsNothing"), "--video") == 2
    after = trained.evaluations.read_bytes() if trained.evaluations.exists() else b""
    assert after == before
    assert evaluate_in(trained, named("DrawnLonger"), "--video", "--policy", "learned") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith("tql-offline: environment 'rollout_environments:DrawsNothing-v0'")
    assert told[1].startswith("tql-offline: played again, the episode of seed ")
    assert trained.evaluations.read_bytes().startswith(before)
    assert len(trained.evaluations.read_bytes()) > len(before)
    assert not list(trained.videos.glob("2-learned*"))
