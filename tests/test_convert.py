"""Conversions keep every bit, and leave nothing behind when they cannot."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import command
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tql_offline.cli import app
from tql_offline.cli.train import assign
from tql_offline.config import resolve
from tql_offline.datasets import convert as module
from tql_offline.datasets.convert import convert, read_any
from tql_offline.datasets.load import load
from tql_offline.errors import InputError

minari = pytest.importorskip("minari")


def made(seed=0, lengths=(3, 2), dtype="f4", dim=2):
    rng = np.random.default_rng(seed)
    rows = sum(lengths) + len(lengths)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(np.array(lengths) + 1) - 1] = True
    bits = rng.integers(0, 256, (rows, dim * np.dtype(dtype).itemsize), np.uint8)
    return {
        "terminals": terminals,
        "observations": bits.view(dtype),  # any bits, NaN's of all kinds included
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows),
        "masks": rng.integers(0, 2, rows).astype(np.float32),
        "qpos": rng.normal(size=(rows, 4)),
        "button_states": rng.integers(0, 2, (rows, 3)),
    }


def assert_same(have, want):
    assert list(have) == list(want)
    for name, column in want.items():
        assert have[name].dtype == column.dtype, name
        assert have[name].shape == column.shape, name
        assert have[name].tobytes() == column.tobytes(), name


def test_a_relative_minari_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("here.npz", **made())
    convert(Path("here.npz"), Path("sub/there"))
    assert_same(read_any(tmp_path / "sub" / "there"), made())
    with pytest.raises(InputError, match=r"there\.csv ends in \.csv; name a"):
        convert(Path("here.npz"), Path("there.csv"))


TARGETS = ["there.npz", "there.hdf5", "there"]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    dtype=st.sampled_from(["f4", "f8", "f2", "i8", "u1"]),
    dim=st.integers(1, 3),
    between=st.sampled_from(TARGETS),
    packed=st.booleans(),
    left_out=st.sets(st.sampled_from(["rewards", "masks", "qpos"])),
)
def test_there_and_back_is_the_same_bits(seed, lengths, dtype, dim, between, packed, left_out):
    columns = made(seed, lengths, dtype, dim)
    columns = {name: column for name, column in columns.items() if name not in left_out}
    with tempfile.TemporaryDirectory() as folder:
        source, there, back = (Path(folder) / name for name in ("a.npz", between, "b.npz"))
        np.savez(source, **columns)
        convert(source, there, packed=packed)
        convert(there, back)
        with np.load(back) as archive:
            assert_same(dict(archive), columns)


def test_minari_reads_what_was_written(tmp_path):
    columns = made(lengths=(3, 2))
    columns["masks"][:] = [1, 1, 0, 1, 1, 1, 1]
    np.savez(tmp_path / "a.npz", **columns)
    convert(tmp_path / "a.npz", tmp_path / "mine-v0")
    dataset = minari.MinariDataset(tmp_path / "mine-v0" / "data")
    assert dataset.total_episodes == 2
    assert dataset.total_steps == 5
    first, second = dataset.iterate_episodes()
    np.testing.assert_array_equal(first.observations, columns["observations"][:4])
    np.testing.assert_array_equal(second.actions, columns["actions"][4:6])
    np.testing.assert_array_equal(second.rewards, columns["rewards"][4:6])
    np.testing.assert_array_equal(first.infos["qpos"], columns["qpos"][:4])
    assert first.terminations.tolist() == [False, False, True]
    assert not first.truncations.any()
    assert second.truncations.tolist() == [False, True]
    assert not second.terminations.any()


def test_images_go_to_minari_without_jpeg(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    columns = made() | {"observations": images}
    np.savez(tmp_path / "a.npz", **columns)
    convert(tmp_path / "a.npz", tmp_path / "mine")
    assert_same(read_any(tmp_path / "mine"), columns)


def foreign(folder, observations, infos, high=(1.0,)):
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    episodes = [
        EpisodeBuffer(
            observations=np.full((3, 2), number, np.float64),
            actions=np.full((2, len(high)), number, np.float32),
            rewards=[1.0, number],
            terminations=[False, number == 0],
            truncations=[False, number == 1],
            infos=infos,
        )
        for number in range(2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of who made it, and for which environment
        minari.create_dataset_from_buffers(
            "made/mine-v0",
            episodes,
            observation_space=observations,
            action_space=Box(-np.array(high, np.float32), np.array(high, np.float32)),
        )
    return folder / "minari" / "made" / "mine-v0"


def test_a_minari_dataset_of_others(tmp_path):
    from gymnasium.spaces import Box

    infos = {"speed": np.arange(3), "state": {"x": np.ones((3, 2))}}
    folder = foreign(tmp_path, Box(-9, 9, (2,), np.float64), infos)
    convert(folder, tmp_path / "mine.npz")
    columns = dict(np.load(tmp_path / "mine.npz"))
    assert columns["observations"].tolist() == [[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 3
    assert columns["actions"].tolist() == [[0.0]] * 3 + [[1.0], [1.0], [0.0]]
    assert columns["rewards"].tolist() == [1, 0, 0, 1, 1, 0]
    assert columns["masks"].tolist() == [1, 0, 1, 1, 1, 1]
    assert columns["terminals"].tolist() == [False, False, True] * 2
    assert columns["speed"].tolist() == [0, 1, 2] * 2
    assert columns["state.x"].shape == (6, 2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("high", [2.0, 1.1])
def test_the_bounds_of_a_minari_dataset_are_told_and_taken(tmp_path, capsys, target, high):
    """Numbers stay as they are; training reads the target by the setting that is printed."""
    from gymnasium.spaces import Box

    source = foreign(tmp_path, Box(-9, 9, (2,), np.float64), {}, (high, high))
    code, output = command(["datasets", "convert", str(source), str(tmp_path / target)], capsys)
    assert code == 0
    manifest = json.loads((tmp_path / f"{target}.json").read_text())
    stored = np.float64(np.float32(high))
    assert manifest["action_bounds"] == [[-stored] * 2, [stored] * 2]
    assert read_any(tmp_path / target)["actions"].max() == 1
    flags = {}
    assign(flags, re.search("--set '(.*)'", output.out)[1])
    have = load(str(tmp_path / target), action_bounds=resolve(flags).dataset.action_bounds)
    want = load(str(source))
    np.testing.assert_allclose(have.episodes.actions, want.episodes.actions, rtol=1e-6)
    np.testing.assert_allclose(have.action_bounds, want.action_bounds)


def test_bounds_that_differ_by_dim_or_are_none(tmp_path, capsys):
    from gymnasium.spaces import Box

    space = Box(-9, 9, (2,), np.float64)
    for high, said in (((1, 2), True), ((1, 1), False), ((1, np.inf), False)):
        source = foreign(tmp_path, space, {}, high)
        to = str(tmp_path / "mine.npz")
        code, output = command(["datasets", "convert", str(source), to, "--force"], capsys)
        assert code == 0
        assert len(output.out.splitlines()) == 1 + said
        assert ("train with --set 'dataset.action_bounds=[-1,-2,1,2]'" in output.out) == said
        assert ("action_bounds" in json.loads((tmp_path / "mine.npz.json").read_text())) == said
        shutil.rmtree(source)


def test_bounds_that_nobody_can_read_keep_no_numbers_back(tmp_path):
    from gymnasium.spaces import Box

    folder = foreign(tmp_path, Box(-9, 9, (2,), np.float64), {}, (2.0,))
    metadata = json.loads((folder / "data/metadata.json").read_text())
    metadata["action_space"] = json.dumps({"type": "Box"})
    (folder / "data/metadata.json").write_text(json.dumps(metadata))
    assert "action_bounds" not in convert(folder, tmp_path / "mine.npz")


def test_an_older_minari_folder_that_names_no_storage_is_hdf5(tmp_path):
    from gymnasium.spaces import Box

    folder = foreign(tmp_path, Box(-9, 9, (2,), np.float64), {})
    convert(folder, tmp_path / "named.npz")
    metadata = json.loads((folder / "data/metadata.json").read_text())
    assert metadata.pop("data_format") == "hdf5"
    (folder / "data/metadata.json").write_text(json.dumps(metadata))
    convert(folder, tmp_path / "mine.npz")
    assert_same(read_any(tmp_path / "mine.npz"), read_any(tmp_path / "named.npz"))


def test_spaces_that_are_no_box_and_infos_of_no_number_are_refused(tmp_path):
    from gymnasium.spaces import Box

    folder = foreign(tmp_path, Box(-9, 9, (2,), np.float64), {"how": ["a", "b", "c"]})
    with pytest.raises(InputError, match="--without-infos"):
        convert(folder, tmp_path / "mine.npz")
    convert(folder, tmp_path / "mine.npz", infos=False)
    metadata = json.loads((folder / "data/metadata.json").read_text())
    metadata["observation_space"] = json.dumps({"type": "Dict", "subspaces": {}})
    (folder / "data/metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="observation_space of type 'Dict'"):
        convert(folder, tmp_path / "other.npz")
    metadata["data_format"] = "arrow"
    (folder / "data/metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="stored as 'arrow'"):
        convert(folder, tmp_path / "other.npz")


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_replaced_by_force_alone(tmp_path, target):
    np.savez(tmp_path / "a.npz", **made(0))
    np.savez(tmp_path / "b.npz", **made(1))
    convert(tmp_path / "a.npz", tmp_path / target)
    with pytest.raises(InputError, match="give --force"):
        convert(tmp_path / "b.npz", tmp_path / target)
    assert_same(read_any(tmp_path / target), made(0))
    convert(tmp_path / "b.npz", tmp_path / target, force=True)
    assert_same(read_any(tmp_path / target), made(1))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("holds", ["thesis.txt", "data/x/thesis.txt", "data/thesis.txt"])
def test_a_folder_of_other_things_is_not_replaced(tmp_path, holds):
    np.savez(tmp_path / "a.npz", **made(0))
    kept = tmp_path / "mine" / holds
    kept.parent.mkdir(parents=True)
    kept.write_text("years of work")
    with pytest.raises(InputError, match="mine"):
        convert(tmp_path / "a.npz", tmp_path / "mine", force=True)
    assert kept.read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "mine"]


def test_a_file_in_the_manifests_place_is_kept(tmp_path):
    np.savez(tmp_path / "a.npz", **made(0))
    other = tmp_path / "b.npz.json"
    other.write_text('{"schema": "mine"}')
    for force, said in ((False, "give --force"), (True, "no manifest of an earlier conversion")):
        with pytest.raises(InputError, match=said):
            convert(tmp_path / "a.npz", tmp_path / "b.npz", force=force)
    assert other.read_text() == '{"schema": "mine"}'
    assert not (tmp_path / "b.npz").exists()


def test_what_a_killed_conversion_left_goes_with_the_next_one(tmp_path):
    np.savez(tmp_path / "a.npz", **made(0))
    gone = 2**22 + 1  # no process has such a number
    left, others = tmp_path / f".{gone}.part.b.npz", tmp_path / f".{gone}.part.c.npz"
    at_work = tmp_path / f".{os.getppid()}.part.b.npz"
    for path in (left, others, at_work):
        path.write_text("half a file")
    convert(tmp_path / "a.npz", tmp_path / "b.npz")
    assert not left.exists()
    assert others.exists()
    assert at_work.exists()


@pytest.mark.parametrize("target", TARGETS)
def test_a_loss_leaves_the_old_target(tmp_path, target, monkeypatch):
    np.savez(tmp_path / "a.npz", **made(0))
    np.savez(tmp_path / "b.npz", **made(1))
    convert(tmp_path / "a.npz", tmp_path / target)
    digests = iter(range(1000))
    monkeypatch.setattr(module, "_digest", lambda _: str(next(digests)))
    with pytest.raises(InputError, match="not kept whole"):
        convert(tmp_path / "b.npz", tmp_path / target, force=True)
    assert_same(read_any(tmp_path / target), made(0))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


LIMITED = """
import os, resource, sys
import tql_offline.datasets.convert
from tql_offline.cli import main
for most in (1, 2000, 50_000):
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        main(["datasets", "convert", *sys.argv[1:]])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *os.listdir(), flush=True)
    print("----", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("target", [*TARGETS, "packed.hdf5"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, target):
    """HDF5 ends the process where a file cannot be closed."""
    pytest.importorskip("resource")
    np.savez(tmp_path / "a.npz", **made(lengths=(200,) * 20))
    packed = ["--packed"] if target == "packed.hdf5" else []
    words = ["a.npz", target, *packed]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2 a.npz\n" * 3, done.stderr
    *said, rest = done.stderr.split("----\n")
    assert (len(said), rest) == (3, "")
    for sentence in said:
        assert f"{target} cannot be written" in sentence
        assert sentence.count("\n") == 1


def test_the_manifest_names_source_and_target(tmp_path):
    np.savez(tmp_path / "a.npz", **made())
    convert(tmp_path / "a.npz", tmp_path / "b.hdf5")
    manifest = json.loads((tmp_path / "b.hdf5.json").read_text())
    for key, name in (("source", "a.npz"), ("target", "b.hdf5")):
        assert manifest[key]["name"] == name
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert manifest[key]["sha256"] == digest
    assert list(manifest["columns"]) == list(made())


def test_what_a_format_has_no_place_for_is_refused(tmp_path):
    np.savez(tmp_path / "words.npz", **made(), names=np.array(["a", "b"]))
    with pytest.raises(InputError, match="'names'"):
        convert(tmp_path / "words.npz", tmp_path / "b.hdf5")
    np.savez(tmp_path / "short.npz", **made(), extra=np.arange(3))
    with pytest.raises(InputError, match="'extra'"):
        convert(tmp_path / "short.npz", tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["short.npz", "words.npz"]


def test_targets_that_contradict(tmp_path):
    np.savez(tmp_path / "a.npz", **made())
    with pytest.raises(InputError, match="names npz and --to hdf5"):
        convert(tmp_path / "a.npz", tmp_path / "b.npz", "hdf5")
    with pytest.raises(InputError, match="onto itself"):
        convert(tmp_path / "a.npz", tmp_path / "a.npz", force=True)


def link(file):
    del file["episode_0"]["observations"]
    file["episode_0"]["observations"] = h5py.ExternalLink("other.hdf5", "x")


def shorten(file):
    file["episode_1"]["observations"].resize(2, axis=0)


def forget(file):
    del file["episode_1"].attrs["last_actions"]


def lose(file):
    del file["episode_0"]


@pytest.mark.parametrize("spoil", [link, shorten, forget, lose])
def test_a_spoiled_minari_file_is_one_sentence(tmp_path, spoil):
    np.savez(tmp_path / "a.npz", **made())
    convert(tmp_path / "a.npz", tmp_path / "mine")
    with h5py.File(tmp_path / "mine/data/main_data.hdf5", "a") as file:
        spoil(file)
    with pytest.raises(InputError) as caught:
        read_any(tmp_path / "mine")
    assert "\n" not in str(caught.value)


def test_names_are_converted_as_other_commands_take_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "theirs"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("OGBENCH_DATA", str(tmp_path / "ogbench"))
    (tmp_path / "ogbench").mkdir()
    np.savez(tmp_path / "ogbench" / "cube-single-play-v0.npz", **made())
    convert(tmp_path / "ogbench" / "cube-single-play-v0.npz", tmp_path / "theirs/odd/arm-v0")
    to = str(tmp_path / "b.npz")
    for name in ("minari:odd/arm-v0", "cube-single-play-v0"):
        code, output = command(["datasets", "convert", name, to, "--force"], capsys)
        assert code == 0, output.err
        assert_same(read_any(Path(to)), made())
    for name, said in (
        ("minari:odd/leg-v0", "'odd/leg-v0' is not here"),
        ("hopper-medium-v2", "hopper-medium-v2"),
        ("cube-double-play-v0", "`tql-offline download cube-double-play-v0`"),
        ("nothing", "data file nothing does not exist"),
    ):
        code, output = command(["datasets", "convert", name, to, "--force"], capsys)
        assert (code, said in output.err) == (2, True), output.err


def test_a_folder_of_slices_is_not_converted_as_a_whole(tmp_path):
    (tmp_path / "slices").mkdir()
    np.savez(tmp_path / "slices" / "0.npz", **made())
    with pytest.raises(InputError, match="slices is a folder of npz slices, which is not conv"):
        convert(tmp_path / "slices", tmp_path / "b.npz")


def test_the_command(tmp_path):
    np.savez(tmp_path / "a.npz", **made())
    arguments = [
        "datasets",
        "convert",
        str(tmp_path / "a.npz"),
        str(tmp_path / "b"),
        "--to",
        "minari",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    shutil.rmtree(tmp_path / "b/data")
    assert json.loads((tmp_path / "b.json").read_text())["source"]["name"] == "a.npz"
