"""From a file to the buffer a block at a time: the same bits as by whole arrays, in bounded memory.

What the reader refuses besides, tests/test_load.py tells; the equations, tests/test_buffer.py.
"""

import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tql_offline import native
from tql_offline.datasets import blocks, buffer, reading, returns
from tql_offline.datasets import hdf5 as hdf5_reader
from tql_offline.datasets import npz as npz_reader
from tql_offline.datasets.buffer import make_buffer
from tql_offline.datasets.columns import read_columns
from tql_offline.datasets.episodes import Episodes, drop_last_rows
from tql_offline.datasets.load import load
from tql_offline.datasets.returns import targets
from tql_offline.errors import InputError

CPU = torch.device("cpu")
ROW_BLOCKS = blocks.row_blocks
BOUND = np.float32(1 - 1e-5)


TINY = (7, 2, 2, 2)
"""Sides of a chunk that is narrower than a row, and whose rows divide no column's."""


def hdf5(chunks=None, user_block=0, **options):
    def write(path, data):
        with h5py.File(path, "w", userblock_size=user_block) as file:
            for name, column in data.items():
                sides = chunks
                if chunks is TINY:
                    sides = tuple(map(min, TINY, column.shape))
                stored = {"chunks": sides, **options} if column.size > 1 else {}
                file.create_dataset(name, data=column, **stored)

    return write


def by_dims(data):
    """Columns whose dims lie one behind the other."""
    return {name: np.asfortranarray(column) for name, column in data.items()}


KINDS = {
    "npz": (".npz", lambda path, data: np.savez(path, **data)),
    "npz by dims": (".npz", lambda path, data: np.savez(path, **by_dims(data))),
    "packed npz": (".npz", lambda path, data: np.savez_compressed(path, **data)),
    "hdf5": (".hdf5", hdf5()),
    "hdf5 behind a user block": (".h5", hdf5(user_block=512)),
    "chunks": (".hdf5", hdf5(TINY)),
    "gzip": (".hdf5", hdf5(TINY, compression="gzip", shuffle=True)),
    "checksums": (".hdf5", hdf5(TINY, fletcher32=True)),
}
FLOATS = ("<f4", "<f8", "<f2", ">f4", ">f8")


def written(kind, folder, data):
    suffix, write = KINDS[kind]
    path = Path(folder) / f"mine{suffix}"
    write(path, data)
    return path


def whole_arrays(path):
    """The file by the library that wrote it."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    with h5py.File(path) as file:
        return {name: np.asarray(file[name][()]) for name in file}


@contextmanager
def blocks_of(num_bytes):
    """Every block of so many bytes; of None as large as they are."""
    with pytest.MonkeyPatch.context() as patch:
        if num_bytes is not None:

            def small(rows, row_bytes, *, multiple=1, block_bytes=0):
                return ROW_BLOCKS(rows, row_bytes, multiple=multiple, block_bytes=num_bytes)

            for module in (blocks, buffer, returns, hdf5_reader, npz_reader, reading):
                patch.setattr(module, "row_blocks", small)
            for module in (hdf5_reader, npz_reader, reading):
                patch.setattr(module, "TASK_BYTES", num_bytes)
        yield


def made_columns(seed, lengths, dims=(3, 2), dtype="<f4", marks="?", with_masks=True):
    random = np.random.default_rng(seed)
    rows = sum(lengths) + len(lengths)
    terminals = np.zeros(rows, marks)
    terminals[np.cumsum(np.array(lengths) + 1) - 1] = 1
    observations = random.standard_normal((rows, dims[0]))
    observations[random.random(observations.shape) < 0.1] = -0.0
    observations[random.random(observations.shape) < 0.1] = 1e-42  # less than float32's normal ones
    data = {
        "observations": observations.astype(dtype),
        "actions": random.uniform(-1, 1, (rows, dims[1])).round(1).astype(dtype),
        "terminals": terminals,
        "rewards": random.choice([-1, -0.0, 0.1, 3], rows).astype(dtype),
        "times": random.standard_normal(rows),
        "masks": (random.random(rows) < 0.9).astype(dtype),
    }
    if not with_masks:
        del data["masks"]
    return data


def slow_buffer(data, n, discount):
    """The buffer's columns from whole arrays, one transition at a time."""
    is_last = data["terminals"] != 0
    starts = np.flatnonzero(~is_last)
    observations, actions, rewards = (
        data[name].astype(np.float32) for name in ("observations", "actions", "rewards")
    )
    masks = data.get("masks", np.ones(len(rewards))).astype(np.float32)
    want = {name: [] for name in ("returns", "discounts", "end_rows")}
    for row in starts:
        total = np.float64(0)
        for k in range(n):
            total += np.float32(discount**k) * rewards[row + k]
            if masks[row + k] == 0 or is_last[row + k + 1]:
                break
        want["returns"].append(total)
        want["discounts"].append(discount ** (k + 1) * masks[row + k])
        want["end_rows"].append(row + k + 1)
    cut = min(np.float64(rewards[starts].min()), 0) * (1 / (1 - discount)) or 0.0
    to_go = np.zeros(len(rewards))
    for row in starts[::-1]:
        to_go[row] = rewards[row]
        if masks[row]:
            to_go[row] += discount * (cut if is_last[row + 1] else to_go[row + 1])
    return {
        "observations": observations,
        "actions": np.clip(actions[starts], -BOUND, BOUND),
        "returns": np.array(want["returns"], np.float32),
        "discounts": np.array(want["discounts"], np.float32),
        "returns_to_go": to_go[starts].astype(np.float32),
        "start_rows": starts.astype(np.int32),
        "end_rows": np.array(want["end_rows"], np.int32),
    }


def assert_same_bits(have, want, name=""):
    have = have.numpy() if isinstance(have, torch.Tensor) else have
    assert (have.dtype, have.shape) == (want.dtype, want.shape), name
    assert have.tobytes() == want.tobytes(), name


# The same bits.


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    kind=st.sampled_from(list(KINDS)),
    block_bytes=st.one_of(st.none(), st.integers(20, 1500)),
    lengths=st.lists(st.one_of(st.integers(1, 40), st.just(1)), min_size=1, max_size=9),
    even=st.booleans(),
    dtype=st.sampled_from(FLOATS),
    marks=st.sampled_from(["?", "u1", "<f4", ">f8", "<i8"]),
    with_masks=st.booleans(),
    targets=st.sampled_from([(1, 0.99), (3, 0.9), (7, 0.5)]),
    seed=st.integers(0, 1000),
)
def test_buffer_has_the_bits_of_a_plain_slow_load(
    kind, block_bytes, lengths, even, dtype, marks, with_masks, targets, seed
):
    lengths = lengths[:1] * len(lengths) if even else lengths
    data = made_columns(seed, lengths, dtype=dtype, marks=marks, with_masks=with_masks)
    n, discount = targets
    with tempfile.TemporaryDirectory() as folder:
        path = written(kind, folder, data)
        want = slow_buffer(whole_arrays(path), n, discount)
        with blocks_of(block_bytes):
            dataset = load(str(path))
            have = make_buffer(dataset.episodes, n_step=n, discount=discount, device=CPU)
        dataset.digest.result()  # no thread reads what is about to be removed
    assert dataset.episodes.lengths.tolist() == lengths
    for name, column in want.items():
        assert_same_bits(getattr(have, name), column, name)


def test_rows_are_dropped_without_a_second_copy():
    rows = 200_000
    for column in (np.ones((rows, 8), np.float32), np.ones((8, rows), np.float32).T):
        tracemalloc.start()
        drop_last_rows(column, [5, rows - 7])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < column.nbytes / 20


def odd_columns():
    """Types and shapes beside those that training reads."""
    random = np.random.default_rng(0)
    numbers = {
        f"of {dtype}": random.integers(0, 100, (53, 3)).astype(dtype)
        for dtype in ("<f2", ">f4", "<f8", ">i2", "<u8", "?", "<c8", "S5")
    }
    return numbers | {
        "columns first": np.asfortranarray(random.standard_normal((53, 4))),
        "images": random.integers(0, 255, (53, 2, 3, 3)).astype("u1"),
        "no rows": np.zeros((0, 3)),
        "no dims": np.zeros((53, 0)),
        "number": np.array(3.5),
        "not finite": np.array([0, np.inf, np.nan]),
        "pairs": np.zeros(53, [("x", "<f4"), ("y", "<i2")]),
    }


@pytest.mark.parametrize("block_bytes", [None, 40, 1000])
@pytest.mark.parametrize("kind", list(KINDS))
def test_columns_keep_their_bits_and_types(tmp_path, kind, block_bytes):
    data = odd_columns()
    path = written(kind, tmp_path, data)
    with blocks_of(block_bytes):
        have = read_columns(path)
    assert list(have) == list(whole_arrays(path))
    for name, column in whole_arrays(path).items():
        assert_same_bits(have[name], column, name)
        assert (name in have.finite) <= (column.dtype.kind == "f" and np.isfinite(column).all())
    assert "of <f8" in have.finite


def test_large_arrays_of_arrays_read_as_small_ones_do(tmp_path):
    path = tmp_path / "mine.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vectors", shape=(200_000,), dtype=np.dtype(("<f4", (3,))))
        file["vectors"][150_000:] = np.full((50_000, 3), 2.5, np.float32)
    assert_same_bits(read_columns(path)["vectors"], whole_arrays(path)["vectors"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_episodes_may_end_on_both_sides_of_every_border(tmp_path, kind):
    """Blocks of 8 rows; row 7 ends one, row 8 begins one, and an episode spans two of them."""
    lengths = [7, 8, 7, 5, 20, 1, 1, 9]
    data = made_columns(0, lengths, dims=(1, 1))
    rows = len(data["terminals"])
    data["observations"] = np.arange(rows, dtype=np.float32)[:, None]
    data["masks"] = np.ones(rows, np.float32)
    ends = np.flatnonzero(data["terminals"])
    assert {int(end) % 8 for end in ends} >= {6, 7, 0}
    with blocks_of(32):
        episodes = load(str(written(kind, tmp_path, data))).episodes
        made = make_buffer(episodes, n_step=3, discount=0.9, device=CPU)
    starts = [row for row in range(rows) if row not in ends]
    assert episodes.lengths.tolist() == lengths
    assert [starts[i] + 1 for i in episodes.last_transitions()] == ends.tolist()
    assert made.start_rows.tolist() == starts
    assert made.end_rows.tolist() == [min(row + 3, min(ends[ends > row])) for row in starts]
    batch = made.take(torch.arange(len(starts)))
    assert batch.observations[:, 0].tolist() == starts
    assert batch.next_observations[:, 0].tolist() == made.end_rows.tolist()


# What is wrong in a late block is named by its row in the file.


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(
    ("column", "row", "bad", "dtype"),
    [
        ("observations", 187, np.nan, "<f4"),
        ("actions", 100, -np.inf, "<f4"),
        ("rewards", 199, np.nan, "<f8"),  # the last row, which no transition reads
        ("observations", 96, 1e39, "<f8"),  # infinite as float32
    ],
)
def test_number_that_is_not_finite_is_placed(tmp_path, kind, column, row, bad, dtype):
    data = made_columns(0, [19] * 10, dtype=dtype)
    data[column][row] = bad
    data[column][-1] = bad  # the first is named
    with blocks_of(96), pytest.raises(InputError) as caught:
        load(str(written(kind, tmp_path, data)))
    assert f"column '{column}' of {tmp_path}" in str(caught.value)
    assert str(caught.value).endswith(f"is not finite at row {row}; remove that episode")


@pytest.mark.parametrize(
    ("column", "index", "bad", "named"),
    [
        ("actions", (187, 1), -1.5, "has -1.5 at row 187, dim 1, outside [-1, 1]"),
        ("actions", (20, 0), 7, "has 7 at row 20, dim 0, outside [-1, 1]"),
        ("masks", 158, 0.5, "has 0.5 at row 158; write 0"),
    ],
)
def test_number_out_of_bounds_is_placed(tmp_path, column, index, bad, named):
    data = made_columns(0, [19] * 10)
    data[column][index] = bad
    path = written("hdf5", tmp_path, data)
    with blocks_of(96), pytest.raises(InputError) as caught:
        load(str(path))
    assert f"column '{column}' of {path} {named}" in str(caught.value)


# Files that are not whole.


def not_whole(path):
    kind = "npz" if path.suffix == ".npz" else "HDF5"
    return rf"{path.name} is not a whole {kind} file of plain arrays \(.+\); write it again"


@pytest.mark.parametrize("kind", list(KINDS))
def test_file_that_was_cut_off_is_named(tmp_path, kind):
    path = written(kind, tmp_path, made_columns(0, [50] * 10))
    whole = path.read_bytes()
    for keep in (0, 99, len(whole) // 2, len(whole) * 95 // 100, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with blocks_of(500), pytest.raises(InputError, match=not_whole(path)):
            load(str(path))


@pytest.mark.parametrize("kind", ["npz", "packed npz", "checksums"])
@pytest.mark.parametrize("column", ["observations", "rewards", "times"])  # the last is not kept
def test_changed_byte_is_noticed(tmp_path, kind, column):
    """By the checksums of zip and of HDF5 files that have some."""
    data = made_columns(0, [50] * 10, dims=(9, 2))
    path = written(kind, tmp_path, data)
    changed = bytearray(path.read_bytes())
    if kind == "checksums":
        with h5py.File(path) as file:
            chunks = file[column].id.get_num_chunks()
            start = file[column].id.get_chunk_info(chunks - 1).byte_offset
        changed[start + 5] ^= 1
    else:
        start = changed.index(f"{column}.npy".encode())
        changed[start + 400] ^= 1  # beyond the header of the array
    path.write_bytes(changed)
    for block_bytes in (None, 500):
        with blocks_of(block_bytes), pytest.raises(InputError, match=not_whole(path)):
            load(str(path))


# Memory.

MEASURE = """
import os, sys
from pathlib import Path
import torch
from tql_offline.datasets.buffer import make_buffer
from tql_offline.datasets.load import load

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def loaded(path):
    dataset = load(path)
    buffer = make_buffer(dataset.episodes, n_step=3, discount=0.99, device=torch.device("cpu"))
    dataset.digest.result()
    return dataset, buffer

def measure(way, path):
    loaded(path.replace("large-", "small-"))  # no library's first use counts
    before = resident("VmRSS")
    dataset, buffer = loaded(path)
    if way == "twice":
        dataset.episodes.observations.copy()
    size = buffer.nbytes
    ratio = (resident("VmHWM") - before) / size
    # At once: the children write to one pipe.
    os.write(1, f"{way} {Path(path).name} {ratio}\\n".encode())

children = []
for path in sys.stdin.read().splitlines():
    for way in ("once", "twice") if path.endswith("plain.npz") else ("once",):
        children.append(os.fork())  # whose highest size begins at what it has
        if not children[-1]:
            measure(way, path)
            os._exit(0)
assert not any(os.waitpid(child, 0)[1] for child in children)
"""


def write_packed_fast(path, data):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, column in data.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, column)


@pytest.mark.parametrize("chunks", [(5000, 1), (333, 2), (12_001, 3), (1000, 7), (40, 1)])
@pytest.mark.parametrize("packing", [{}, {"compression": "gzip", "compression_opts": 1}])
def test_chunks_of_some_of_a_rows_numbers_come_into_place(tmp_path, chunks, packing):
    column = np.random.default_rng(0).standard_normal((12_001, 7))
    column[11_999, 6] = 1e300
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("a", data=np.ones((12_001, 7), np.float32), chunks=chunks, **packing)
        file.create_dataset("b", data=column, chunks=chunks, **packing)
        file.create_dataset("c", data=column, chunks=chunks, **packing)
    read = read_columns(tmp_path / "a.hdf5", floats=("b",))
    with np.errstate(over="ignore"):
        assert np.array_equal(read["b"], column.astype(np.float32))
    assert np.array_equal(read["c"], column)
    assert read.finite == {"a", "c"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_loading_takes_a_tenth_more_than_the_columns(tmp_path):
    """100 MB, of which a second copy of any part that counts would be seen."""
    kinds = {
        "plain.npz": lambda path, data: np.savez(path, **data),
        "packed.npz": write_packed_fast,
        "plain.hdf5": hdf5(),
        "chunks.hdf5": hdf5(chunks=True),
        "gzip.hdf5": hdf5(compression="gzip", compression_opts=1),
    }
    command = [sys.executable, "-c", MEASURE]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as process:  # imports while files are made
        for size, rows in (("small", 1000), ("large", 100_000)):
            terminals = np.zeros(rows, bool)
            terminals[[*range(400, rows - 2, 501), -1]] = True
            data = {
                "observations": np.zeros((rows, 200), np.float32),
                "actions": np.zeros((rows, 50), np.float32),
                "rewards": np.arange(rows, dtype=np.float32),
                "terminals": terminals,
            }
            for name, write in kinds.items():
                write(tmp_path / f"{size}-{name}", data)
        out, errors = process.communicate("".join(f"{tmp_path}/large-{name}\n" for name in kinds))
    assert process.returncode == 0, errors
    ratios = {tuple(line.split()[:2]): float(line.split()[2]) for line in out.splitlines()}
    assert ratios.pop(("twice", "large-plain.npz")) > 1.5
    assert len(ratios) == len(kinds)
    assert all(0.9 < ratio <= 1.1 for ratio in ratios.values()), ratios


def test_targets_of_unlike_episodes_by_numpy_take_blocks_of_memory(monkeypatch):
    """One episode is as long as there are others: a table of both would be 9M numbers."""
    monkeypatch.setattr(native, "library", lambda *_: native.UnavailableError("none"))
    lengths = np.array([1] * 1500 + [3000] + [1] * 1500)
    count = int(lengths.sum())
    data = Episodes(
        observations=np.zeros((count + len(lengths), 1), np.float32),
        actions=np.zeros((count, 1), np.float32),
        rewards=np.ones(count, np.float32),
        masks=np.ones(count, np.float32),
        lengths=lengths,
    )
    tracemalloc.start()
    try:
        returns = targets(data, 1, 0.5).returns_to_go
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * blocks.BLOCK_BYTES
    assert returns[[0, 1499, 1500, 4499, 4500, -1]].tolist() == [1, 1, 2, 1, 1, 1]


# To the device.


def test_on_a_cpu_the_file_s_columns_are_the_buffer_s(tmp_path):
    data = load(str(written("npz", tmp_path, made_columns(0, [9, 5])))).episodes
    made = make_buffer(data, n_step=1, discount=0.9, device=CPU)
    assert np.shares_memory(made.observations.numpy(), data.observations)
    assert np.shares_memory(made.actions.numpy(), data.actions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.uint8])
@pytest.mark.parametrize("shape", [(1,), (53,), (53, 3), (16, 2, 2)])
@pytest.mark.parametrize("stage_bytes", [1, 37, 64, 2**24])
def test_column_is_copied_through_small_stages(monkeypatch, dtype, shape, stage_bytes):
    monkeypatch.setattr(buffer, "_STAGING_BYTES", stage_bytes)
    host = torch.randint(0, 200, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    there = torch.zeros_like(host)
    buffer._copy_in_blocks(host, there, pinned=False)
    assert torch.equal(there, host)


def test_device_that_cannot_hold_the_columns_gets_none(monkeypatch):
    """A billion bytes that are one zero here: the size is known before anything is copied."""
    count, dims = 1000, (249_000, 1000)
    data = Episodes(
        observations=np.broadcast_to(np.float32(0), (count + 2, dims[0])),
        actions=np.broadcast_to(np.float32(0), (count, dims[1])),
        rewards=np.zeros(count, np.float32),
        masks=np.ones(count, np.float32),
        lengths=np.array([400, 600]),
    )
    # Returns, discounts, returns-to-go, first and last row: 20 bytes a transition.
    need = 4 * ((count + 2) * dims[0] + count * dims[1]) + 20 * count
    free = [int(need / 0.9) - 10]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free[0], 2 * free[0]))
    copied = []
    monkeypatch.setattr(buffer, "_on_device", lambda column, _device: copied.append(column.nbytes))
    device = torch.device("cuda")
    with pytest.raises(InputError) as caught:
        make_buffer(data, n_step=1, discount=0.9, device=device)
    assert str(caught.value) == (
        "the dataset needs 0.9 GiB on cuda, which has 1.0 GiB free; keep it in main memory "
        "(training: --set execution.data=host), or use a device with more memory"
    )
    assert not copied
    make_buffer(data, n_step=1, discount=0.9, device=device, on_host=True)
    assert sum(copied) == need
    copied.clear()
    free[0] += 20
    make_buffer(data, n_step=1, discount=0.9, device=device)
    assert sum(copied) == need


@pytest.mark.parametrize(
    ("count", "dtype"), [(10**8, "int32"), (2**31 - 2, "int32"), (2**31 - 1, "int64")]
)
def test_rows_are_counted_in_the_smallest_type_that_can(count, dtype):
    """A hundred million rows still in four bytes; the columns are one zero each."""
    zeros = np.broadcast_to(np.float32(0), (count + 1,))
    data = Episodes(
        observations=zeros[:, None],
        actions=zeros[:-1, None],
        rewards=zeros[:-1],
        masks=zeros[:-1],
        lengths=np.array([count]),
    )
    assert data.row_dtype == dtype
    assert np.iinfo(dtype).max >= len(data.observations)
