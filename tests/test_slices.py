"""Folders of slices equal one file of all their rows; images stay bytes."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from tql_offline.config import resolve
from tql_offline.datasets import slices
from tql_offline.datasets.buffer import make_buffer
from tql_offline.datasets.collect import collect
from tql_offline.datasets.load import load
from tql_offline.datasets.slices import read_slices, slice_paths
from tql_offline.errors import InputError
from tql_offline.training.new_run import check
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

TASK = "pointmaze-medium-navigate-singletask-task1-v0"


def made(seed, lengths, dim=3):
    rng = np.random.default_rng(seed)
    rows = sum(lengths) + len(lengths)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(np.array(lengths) + 1) - 1] = True
    return {
        "observations": rng.normal(size=(rows, dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 2)),
        "terminals": terminals,
        "rewards": rng.normal(size=rows).astype(np.float32),
        "times": np.arange(rows),
    }


PARTS = [made(0, (3, 2)), made(1, (5,)), made(2, (1, 1, 4))]


@pytest.fixture
def folder(tmp_path):
    """Three slices of different rows, one packed, and validation data."""
    folder = tmp_path / "mine-100m"
    folder.mkdir()
    np.savez(folder / "mine-000.npz", **PARTS[0])
    np.savez_compressed(folder / "mine-001.npz", **PARTS[1])
    np.savez(folder / "mine-002.npz", **PARTS[2])
    np.savez(folder / "mine-000-val.npz", **made(9, (2,)))
    (folder / "notes.txt").write_text("not data")
    (folder / "._mine-000.npz").write_bytes(b"by macOS")
    return folder


def joined(path, parts):
    np.savez(path, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return load(str(path)).episodes


def assert_same(ours, theirs):
    for name in ("observations", "actions", "rewards", "masks", "lengths"):
        have, want = getattr(ours, name), getattr(theirs, name)
        assert have.dtype == want.dtype
        assert have.tobytes() == want.tobytes()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_slices_are_the_same_bits_as_one_file(folder, tmp_path, count):
    ours = load(str(folder), slices=count).episodes
    assert_same(ours, joined(tmp_path / "one.npz", PARTS[: count or None]))


def test_columns_stored_dim_by_dim_are_the_same_bits(folder, tmp_path):
    columns = PARTS[1] | {"observations": np.asfortranarray(PARTS[1]["observations"])}
    np.savez(folder / "mine-001.npz", **columns)
    assert_same(load(str(folder)).episodes, joined(tmp_path / "one.npz", PARTS))


def test_a_name_takes_a_folder(tmp_path):
    whole = collect(TASK, out=tmp_path, episodes=4, steps=50, processes=1).train
    columns = dict(np.load(whole))
    folder = tmp_path / "slices"
    folder.mkdir()
    for number, rows in enumerate((slice(0, 51), slice(51, 204))):
        np.savez(folder / f"{number:03}.npz", **{name: c[rows] for name, c in columns.items()})
    assert_same(load(TASK, folder).episodes, load(TASK, whole).episodes)


def test_the_digest_names_the_slices_that_were_taken(folder):
    listing = subprocess.run(
        ["sha256sum", "mine-000.npz", "mine-001.npz"], cwd=folder, capture_output=True, check=True
    )
    want = subprocess.run(["sha256sum"], input=listing.stdout, capture_output=True, check=True)
    assert load(str(folder), slices=2).sha256 == want.stdout.decode().split()[0]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (made(1, (5,), dim=4), "has rows"),
        (PARTS[1] | {"rewards": PARTS[1]["rewards"].astype(np.float16)}, None),
        ({k: v for k, v in PARTS[1].items() if k != "rewards"}, "the same columns"),
        (PARTS[1] | {"terminals": np.zeros(6, bool)}, "ends inside an episode"),
        (PARTS[1] | {"actions": np.full((6, 2), np.nan)}, "not finite at row 7"),
        (PARTS[1] | {"actions": PARTS[1]["actions"][:5]}, "different lengths"),
    ],
)
def test_a_slice_that_does_not_fit_is_one_sentence(folder, columns, says):
    np.savez(folder / "mine-001.npz", **columns)
    with pytest.raises(InputError, match=says or "has rows") as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


def test_memory_is_compared_before_it_is_taken(folder, monkeypatch):
    monkeypatch.setattr(slices, "available_bytes", lambda: 500)
    monkeypatch.setattr(slices, "empty_vector", None)  # would be called to take it
    with pytest.raises(
        InputError, match=r"3 slices of .* GiB are free; take fewer with --slices 1"
    ):
        load(str(folder))


def test_too_few_slices_and_none(folder, tmp_path):
    with pytest.raises(InputError, match="holds 3 slices where 4"):
        slice_paths(folder, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds 0 npz files"):
        load(str(tmp_path / "empty"))


def test_slices_of_one_file_are_refused(folder):
    with pytest.raises(InputError, match="--slices"):
        load(str(folder / "mine-000.npz"), slices=1)


PEAK = """
import sys
from pathlib import Path
from marks import highest_memory
from tql_offline.datasets.slices import read_slices, slice_paths
paths = slice_paths(Path(sys.argv[1]))
kept = ("observations", "actions", "terminals", "rewards")
read_slices(paths[:1], only=kept, floats=kept[:2])
before = highest_memory()
whole = read_slices(paths, only=kept, floats=kept[:2])
print(sum(column.nbytes for column in whole.values()), highest_memory() - before)
"""


@pytest.mark.skipif(find_spec("resource") is None, reason="no memory is told")
def test_nothing_is_held_twice(tmp_path):
    for number in range(4):
        np.savez(tmp_path / f"{number}.npz", **made(number, (1000,) * 400, dim=15))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    columns, taken = map(int, done.stdout.split())
    assert columns > 100e6
    assert taken < 1.1 * columns


def images(lengths=(3, 2)):
    rows = sum(lengths) + len(lengths)
    columns = made(0, lengths)
    rng = np.random.default_rng(1)
    return columns | {"observations": rng.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)}


@pytest.fixture
def seen(tmp_path):
    np.savez_compressed(tmp_path / "seen.npz", **images())
    return load(str(tmp_path / "seen.npz"))


def test_images_stay_bytes_until_they_are_sampled(seen):
    assert seen.episodes.observations.dtype == np.uint8
    np.testing.assert_array_equal(seen.episodes.observations, images()["observations"])
    buffer = make_buffer(seen.episodes, n_step=1, discount=0.99, device=torch.device("cpu"))
    assert buffer.observations.dtype == torch.uint8
    assert buffer.observations.nbytes == 7 * 8 * 8 * 3
    batch = buffer.take(torch.tensor([0, 4]))
    want = images()["observations"][[0, 5]].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch.observations.numpy(), want)
    after = images()["observations"][[1, 6]].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch.next_observations.numpy(), after)


def test_bytes_that_are_no_images_are_numbers(tmp_path):
    columns = made(0, (3, 2)) | {"observations": np.arange(14, dtype=np.uint8).reshape(7, 2)}
    np.savez(tmp_path / "mine.npz", **columns)
    observations = load(str(tmp_path / "mine.npz")).episodes.observations
    assert observations.dtype == np.float32
    np.testing.assert_array_equal(observations, columns["observations"])


def test_slices_of_images_stay_bytes(tmp_path):
    folder = tmp_path / "seen"
    folder.mkdir()
    for number in range(2):
        np.savez(folder / f"{number}.npz", **images())
    observations = load(str(folder)).episodes.observations
    assert observations.dtype == np.uint8
    np.testing.assert_array_equal(observations[7:], images()["observations"])


def test_training_on_images_is_refused(seen, tmp_path):
    config = resolve({"dataset": {"name": str(seen.path)}})
    with pytest.raises(InputError, match="holds images of 8x8x3, for which there is no encoder"):
        run(config, seen, tmp_path / "runs", "", SilentReporter())
    assert not (tmp_path / "runs").exists()


def test_images_are_refused_before_they_are_looked_for(tmp_path):
    for name in ("visual-scene-play-singletask-task1-v0", "powderworld-easy-play-v0"):
        with pytest.raises(InputError, match=f"{name} holds images, for which there is no encoder"):
            check(resolve({"dataset": {"name": name}}), tmp_path, "")


def test_reading_gives_what_it_is_asked_for(folder):
    columns = read_slices(slice_paths(folder), only=("times",))
    assert list(columns) == ["times"]
    np.testing.assert_array_equal(columns["times"], np.concatenate([p["times"] for p in PARTS]))
