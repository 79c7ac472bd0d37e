"""Files of strangers: each is refused in one sentence, soon, in little memory, and changes nothing.

The readers' fuzz test is `benchmarks/fuzz.py`; what it or its authors found is here, one test each.
"""

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from marks import slowly
from safetensors.torch import load_file, save_file
from stand_ins import raising

from benchmarks import fuzz
from tql_offline.agents import make_agent
from tql_offline.cli import main
from tql_offline.config import Config, read_toml, resolve, validate
from tql_offline.datasets import reading
from tql_offline.datasets.check_dataset import check_dataset
from tql_offline.datasets.collect import _read_part, collect
from tql_offline.datasets.columns import read_columns
from tql_offline.datasets.convert import convert
from tql_offline.datasets.load import load
from tql_offline.documents import (
    MAX_DEPTH,
    MAX_DOCUMENT_BYTES,
    MAX_KEYS,
    flatten,
    parse_json,
    parse_toml,
)
from tql_offline.errors import InputError, shown
from tql_offline.eval.report import write_report
from tql_offline.eval.rows import natural
from tql_offline.eval.run_records import read_run as read_for_report
from tql_offline.files import append_jsonl, read_json, read_jsonl, rewind_jsonl
from tql_offline.runs import RunFolder, find_results, find_runs
from tql_offline.training import checkpoint, suite, sweep
from tql_offline.training.metrics import MetricsWindow
from tql_offline.training.new_run import check
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.result import open_run
from tql_offline.training.resume import resume

pytestmark = pytest.mark.timeout(60)
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run as training leaves it."""
    folder = tmp_path_factory.mktemp("run")
    fuzz.write_run(folder)
    return folder / "run"


@pytest.fixture
def run(whole, tmp_path):
    """A copy to damage."""
    return RunFolder(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def saved(run):
    return run.checkpoints / "8"


def refused(call, *arguments, match=None):
    """The one line that a call is refused with."""
    with pytest.raises(InputError, match=match) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000 + len(str(Path.cwd()))
    return text


def all_lines(path):
    return list(read_jsonl(path))


def tensors_of(path):
    return load_networks(path.parent)


def agent_of_run():
    return make_agent(fuzz._settings(Path("mine.npz")), 2, 1, torch.device("cpu"))


def load_networks(folder):
    checkpoint.load_networks(folder, agent_of_run())


def load_training(folder):
    checkpoint.load_training_state(folder, agent_of_run(), torch.Generator(), MetricsWindow())


# What is no plain file.

READERS = {
    "a.json": read_json,
    "a.toml": read_toml,
    "a.jsonl": all_lines,
    "a.npz": read_columns,
    "a.hdf5": read_columns,
    "critic.safetensors": tensors_of,
}


def test_a_setting_of_a_long_name_makes_no_long_sentence(run):
    facts = read_json(run.provenance)
    facts["settings"]["own." + "k" * 100_000] = {"deeper": 1}
    run.provenance.write_text(json.dumps(facts))
    said = [*read_for_report(run).warnings, refused(resume_run, run)]
    assert sum("own.kkk" in line for line in said) == 2
    assert max(map(len, said)) < 1000


def resume_run(run):
    (run.path / "result.json").unlink()
    resume(run.path, raising(AssertionError("loaded")), SilentReporter())


@needs_pipes
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "a pipe" in refused(READERS[name], tmp_path / name)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="the system has no such device")
@pytest.mark.parametrize("name", READERS)
def test_a_device_is_refused_and_not_read(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/zero")
    assert "a device" in refused(READERS[name], tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_folder_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    assert "a folder" in refused(READERS[name], tmp_path / name)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf{}", b"\xff\xfe\x00", bytes(100)], ids=["BOM", "UTF-16", "zeros"]
)
def test_what_is_no_text_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(READERS[name], tmp_path / name)


@pytest.mark.parametrize("name", [n for n in READERS if n not in ("a.toml", "a.jsonl")])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    refused(READERS[name], tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_gigabyte_is_refused_unread(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**30)
    tracemalloc.start()
    refused(READERS[name], tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_DOCUMENT_BYTES


@pytest.mark.parametrize("path", ["a\0b.npz", "x" * 300 + ".npz", "y" * 9000 + ".h5"])
def test_paths_that_no_file_can_have_are_refused(path):
    with pytest.raises(InputError, match="does not exist"):
        load(path)


# Documents.


def nested(depth, begin, end):
    return begin * depth + b"1" + end * depth


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 940, 100_000])
def test_deep_documents_are_refused_before_anything_follows_them(depth):
    for text in (nested(depth, b"[", b"]"), nested(depth, b'{"a":', b"}")):
        with pytest.raises(ValueError, match="nested deeper"):
            parse_json(text)
    with pytest.raises(ValueError, match=r"nested deeper|more than \d+ dots"):
        parse_toml(b"a." * depth + b"a = 1")
    with pytest.raises(ValueError, match="nested deeper"):
        parse_toml(b"a = " + nested(depth, b"[", b"]"))


def test_documents_as_deep_as_ours_pass():
    assert parse_json(nested(MAX_DEPTH, b"[", b"]"))
    assert parse_toml(b"a = " + nested(MAX_DEPTH - 1, b"[", b"]"))
    assert len(parse_json(b"[" + b"{}," * 1000 + b"{}]")) == 1001


def test_an_integer_that_python_cannot_print_is_no_toml():
    """10^4300 needs 14,285 bits; `tomllib` takes it in hexadecimal."""
    with pytest.raises(ValueError, match="more than 64 bits"):
        parse_toml(b"a = [{b = 0x" + b"f" * 4000 + b"}]")
    assert parse_toml(b"a = 0x7fffffffffffffff") == {"a": 2**63 - 1}


def test_a_key_of_very_many_parts_takes_no_time(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"a." * 100_000 + b"a = 1")
    begin = time.process_time()
    refused(read_toml, path, match="dots")
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    "text",
    [
        "seed = " + "9" * 5000,
        "seed = 0x" + "f" * 5000,
        "critic.size = ['small']",
        "critic.size = {}",
        "critic = 3",
        "preset = 0x" + "f" * 5000,
        "preset = ['iql']",
        "dataset.name = 0x" + "f" * 5000,
        'dataset.name = "a\\u0000b.npz"',
        "seed.a.b.c.d = 1",
        "steps = 1000000001",
        "batch_size = 1099511627776",
        "flow.hidden = [16384, 16384, 16384, 16384, 16384, 16384]",
        f"flow.hidden = {[1] * 33}",
        "flow.hidden = [1000000]",
        "flow.flow_steps = 100000000",
        "critic.depth = 65",
        "critic.ensemble = 1000000",
        "implicit.samples = 100000",
        "conservative.samples = 100000",
        "optimizer.weight_decay = inf",
        "optimizer.warmup = 10000000000",
        "evaluation.processes = 5000",
        '"\\u001b[2J" = 1',
        "x = " + repr("y" * 100_000),
    ],
)
def test_configs_beyond_sense_are_refused(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    said = refused(lambda: resolve({}, file=path))
    assert said.isprintable()


def test_widest_config_in_bounds_passes():
    assert validate({"flow": {"hidden": [16384] * 4}}, "here").flow.hidden[0] == 16384


def test_values_are_shown_in_one_short_line():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "a\nb" * 9999, 2**20000, list(range(10**6)), {"a" * 9999: 1}):
        assert len(shown(value)) < 300
        assert "\n" not in shown(value)


def test_control_characters_of_a_file_reach_no_terminal(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text('objective = "\\u001b[31mred"\n', encoding="utf-8")
    for name in (path, tmp_path / "a\x1b[31mb\n.toml"):
        with pytest.raises(SystemExit):
            main(["train", "--config", str(name)])
        said = capsys.readouterr().err
        assert "\x1b" not in said
        assert said.count("\n") == 1


# Run folders.


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b", ".", "..", ".hidden", "a\0b", "a\nb", "a\x1b", "é" * 200]
)
def test_run_names_stay_in_their_folder(tmp_path, name):
    refused(check, Config(device="cpu"), tmp_path, name, match="one plain folder name")


LINKS = ("config.toml", "evaluations.jsonl", "metrics.jsonl", ".lock", "checkpoints", "result.json")


@pytest.mark.parametrize("name", LINKS)
def test_a_run_with_a_link_is_refused_before_anything_is_written(run, tmp_path, name):
    outside = tmp_path / "outside"
    if (run.path / name).exists():
        (run.path / name).rename(outside)
    else:
        outside.write_text("mine")
    (run.path / name).symlink_to(outside)
    refused(open_run, run.path, match="is a link")


def test_a_link_among_checkpoints_is_refused(run, tmp_path):
    (run.checkpoints / "12").symlink_to(tmp_path)
    refused(open_run, run.path, match="is a link")


@needs_pipes
def test_a_run_with_a_pipe_is_refused(run):
    os.mkfifo(run.path / "odd")
    refused(open_run, run.path, match="a pipe")


def test_a_link_to_a_run_is_followed(run, tmp_path):
    (tmp_path / "link").symlink_to(run.path)
    assert open_run(tmp_path / "link")[1].steps == 8


def test_lines_are_never_appended_through_a_link(tmp_path):
    (tmp_path / "lines.jsonl").symlink_to(tmp_path / "outside")
    refused(append_jsonl, tmp_path / "lines.jsonl", {"a": 1}, match="cannot be written")
    assert not (tmp_path / "outside").exists()


def test_a_report_shows_no_file_behind_a_link(run, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text(
        '{"step": 1, "policy": "swordfish", "a": "swordfish", "schema": "swordfish"}\n'
    )
    for file in (run.config, run.provenance, run.metrics, run.evaluations, run.result):
        file.unlink()
        file.symlink_to(secret)
    files = write_report([run], tmp_path / "report")
    for file in (files.html, files.markdown):
        assert "swordfish" not in file.read_text(encoding="utf-8")
    assert len(read_for_report(run).warnings) == 5


def test_results_behind_links_are_not_merged(run, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "a-result.json").symlink_to(run.result)
    refused(find_results, [folder], match="no file named like result")
    assert find_results([folder / "a-result.json"])


def test_folders_as_deep_as_the_system_allows_are_walked(tmp_path):
    home = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        os.chdir(home)
        refused(find_runs, [tmp_path], match="no run folder")
        refused(find_results, [tmp_path], match="no file named like")
    finally:
        os.chdir(home)
        remove_deep(tmp_path / "d")


def remove_deep(folder):
    """One level at a time: it is too deep for shutil, and for pytest's own cleaning."""
    aside = folder.with_name("x")
    while folder.exists():
        folder.rename(aside)
        if (aside / folder.name).exists():
            (aside / folder.name).rename(folder)
        aside.rmdir()


@pytest.mark.parametrize("step", ["1e999", "NaN", "[1]", '{"a": 1}', "null", '"x"'])
def test_lines_without_a_number_of_a_step_are_named_when_a_run_goes_on(run, step):
    run.metrics.write_text(f'{{"step": {step}}}\n', encoding="utf-8")
    refused(rewind_jsonl, run.metrics, 8, match="line 1 has no step")


def test_a_result_without_evaluations_is_named(run):
    for evaluations in (None, 3, [3], [{"policy": "learned"}], [{"step": 1}]):
        run.result.write_text(json.dumps({"evaluations": evaluations}), encoding="utf-8")
        refused(sweep.last_evaluation, run, match="no usable 'evaluations'")


# Reports.


@pytest.mark.parametrize("step", ["[1]", '{"a": 1}', "1e999", "-1", '"x"'])
def test_a_timing_of_no_step_harms_no_report(run, step):
    run.timing.write_text(f'{{"step": {step}, "seconds": 1}}\n', encoding="utf-8")
    assert read_for_report(run).seconds == 1


def test_keys_that_grow_when_they_are_joined_are_cut(run):
    table = {"k" * 10**6: {str(i): {} for i in range(10**5)}}
    tracemalloc.start()
    flat = flatten(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20
    assert len(flatten({str(i): i for i in range(10**5)})) == MAX_KEYS
    assert max(map(len, flat)) <= 200


def test_a_result_of_very_many_rows_is_compared_in_time(run):
    line = json.loads(run.evaluations.read_text(encoding="utf-8").splitlines()[0])
    lines = [{**line, "step": i} for i in range(3000)]
    text = "\n".join(map(json.dumps, lines))
    run.evaluations.write_text(text, encoding="utf-8")
    result = json.loads(run.result.read_text(encoding="utf-8"))
    row = {"policy": "learned", "success_rate": 0.1}
    result["evaluations"] = [{**row, "step": i % 3000} for i in range(60_000)]
    run.result.write_text(json.dumps(result), encoding="utf-8")
    begin = time.process_time()
    found = read_for_report(run)
    assert time.process_time() - begin < 10
    assert len(found.warnings) == 1000
    assert len(found.evaluations) == 3000


def test_curves_of_very_many_names_are_cut(run):
    with run.metrics.open("a", encoding="utf-8") as file:
        for step in range(20):
            names = {f"m{step}_{i}" + "x" * 500: 1.0 for i in range(100)}
            file.write(json.dumps({"step": 100 + step, **names}) + "\n")
    curves = read_for_report(run).curves
    assert len(curves) <= 500
    assert max(map(len, curves)) <= 200


def test_tasks_are_sorted_whatever_their_names_hold():
    names = ["a10", "a9", "²", "9" * 5000, "", "1", "a٣", "a", "a9b", "1a", "007", "7"]
    ordered = sorted(names, key=natural)
    assert ordered.index("a9") < ordered.index("a10")
    assert set(ordered) == set(names)


# Npz.


def npz(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(array):
    from io import BytesIO

    out = BytesIO()
    np.save(out, array)
    return out.getvalue()


GOOD = [(f"{name}.npy", npy(column)) for name, column in fuzz.own_columns().items()]
ROW = npy(np.zeros(7, np.float32))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["rewards.npy", "rewards"])
def test_two_members_of_one_name_are_refused(tmp_path, name):
    path = npz(tmp_path / "a.npz", [*GOOD, (name, ROW)])
    refused(load, str(path), match="'rewards' twice")


@pytest.mark.parametrize("name", ["../a.npy", "/a.npy", "b/../a.npy", "c:\\a.npy", "a\x1b[2J.npy"])
def test_members_named_like_ways_out_are_refused(tmp_path, name):
    path = npz(tmp_path / "a.npz", [*GOOD, (name, ROW)])
    refused(load, str(path), match="no name of a column")


def test_a_name_with_nul_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz", [*GOOD, ("rewards.npyXX", ROW)])
    path.write_bytes(path.read_bytes().replace(b"rewards.npyXX", b"rewards.npy\0X"))
    refused(load, str(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packers_without_bounds_are_refused(tmp_path, method):
    refused(load, str(npz(tmp_path / "a.npz", GOOD, method)), match="packed by a method")


HEADERS = {
    "code": "__import__('os').abort()",
    "nested": "(" * 9000,
    "lists": "[" * 9000,
    "very long": "{'descr': '<f4', 'fortran_order': False, 'shape': (7,), }" + " " * 20_000,
    "many dims": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 2000 + "7), }",
    "true as dim": "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 7), }",
    "negative dims": "{'descr': '<f4', 'fortran_order': False, 'shape': (-7, -1), }",
    "no bytes": "{'descr': '|V0', 'fortran_order': False, 'shape': (2**62,), }",
    "no rows": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, 0), }}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (7,), }",
    "objects inside": "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (7,), }",
    "wide": "{'descr': '|V99999999999', 'fortran_order': False, 'shape': (7,), }",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("version", [1, 2])
def test_headers_that_lie_are_refused(tmp_path, kind, version):
    text = HEADERS[kind].encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    member = b"\x93NUMPY" + bytes([version, 0]) + size + text + bytes(28)
    path = npz(tmp_path / "a.npz", [GOOD[0], GOOD[1], GOOD[2], ("rewards.npy", member)])
    refused(load, str(path))


def test_a_member_that_claims_more_than_the_file_could_hold_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz", [("observations.npy", bytes(2**20))], zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    lie = whole.replace(struct.pack("<I", 2**20), struct.pack("<I", 2**31))
    assert lie != whole
    path.write_bytes(lie)
    refused(load, str(path), match="more than its .* bytes can hold")


def test_members_over_one_another_are_refused(tmp_path):
    """A bomb whose directory names the same packed bytes very often."""
    path = npz(tmp_path / "a.npz", [("a0.npy", bytes(2**25))], zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    begin, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = [data[begin:end].replace(b"a0.npy", b"a%d.npy" % i) for i in range(10)]
    directory = b"".join(entries)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 10, 10, len(directory), begin, 0)
    path.write_bytes(data[:begin] + directory + tail)
    refused(load, str(path))


def test_columns_beyond_the_machine_are_refused_before_memory_is_filled(tmp_path, monkeypatch):
    path = npz(tmp_path / "a.npz", GOOD)
    monkeypatch.setattr(reading, "machine_bytes", lambda: 60)
    refused(load, str(path), match="do not fit into memory")


# HDF5.


def hdf5(path, **other):
    with h5py.File(path, "w") as file:
        for name, column in (fuzz.own_columns() | other).items():
            if callable(column):
                column(file, name)
            else:
                file[name] = column
    return path


def direct_chunk(content, mask=0, **settings):
    """Rewards in one packed chunk that holds something else."""

    def make(file, name):
        settings_ = {"chunks": (7,), "dtype": "f4", "compression": "gzip"} | settings
        file.create_dataset(name, shape=(7,), **settings_)
        file[name].id.write_direct_chunk((0,), content, mask)

    return make


def virtual(file, name):
    layout = h5py.VirtualLayout(shape=(7,), dtype="f4")
    layout[...] = h5py.VirtualSource("/etc/passwd", name, shape=(7,))
    file.create_virtual_dataset(name, layout)


def external(file, name):
    file.create_dataset(name, shape=(7,), dtype="f4", external=[("/etc/passwd", 0, 28)])


def foreign_filter(file, name):
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((7,))
    made.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((7,))
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, made)


def chunked(shape, chunks, dtype="f4"):
    return lambda file, name: file.create_dataset(
        name, shape=shape, chunks=chunks, maxshape=(None,) * len(shape), dtype=dtype
    )


HDF5 = {
    "virtual": (virtual, "not a plain array of its own"),
    "external storage": (external, "not a plain array of its own"),
    "soft link": (lambda f, n: f.__setitem__(n, h5py.SoftLink("/actions")), "'rewards', a link"),
    "references": (
        lambda f, n: f.create_dataset(n, shape=(7,), dtype=h5py.ref_dtype),
        "not an array of numbers",
    ),
    "strings": (
        lambda f, n: f.create_dataset(n, shape=(7,), dtype=h5py.string_dtype()),
        "not an array of numbers",
    ),
    "a filter that would be loaded": (foreign_filter, "packed by filter 32001"),
    "a filter that trusts lengths": (
        lambda f, n: f.create_dataset(n, data=np.zeros(7, "f4"), chunks=(7,), compression="lzf"),
        "packed by filter 32000",
    ),
    "a product that overflows": (chunked((2**40, 2**40), (1, 1)), "claims .* bytes of columns"),
    "terabytes that are not there": (chunked((2**40,), (2**20,)), "claims .* bytes of columns"),
    "a gigabyte that is not there": (chunked((2**28,), (2**20,)), "can hold"),
    "a chunk beyond its rows": (chunked((7,), (2**29,)), "chunks of 2147483648 bytes"),
    "very many chunks": (chunked((2**26,), (1,), "u1"), "claims 67108864 chunks"),
    "a bomb": (direct_chunk(zlib.compress(bytes(10**8), 9)), "too large|more than a chunk is"),
    "a shuffled bomb": (
        direct_chunk(zlib.compress(bytes(10**6), 9), shuffle=True),
        "too large|more than a chunk is",
    ),
    "a chunk too short": (direct_chunk(zlib.compress(bytes(4))), "4 bytes instead of 28"),
    "a chunk cut off": (direct_chunk(zlib.compress(bytes(28))[:-5]), "cut off"),
    "a raw chunk too short": (direct_chunk(bytes(4), mask=1), "4 bytes instead of 28"),
    "a wrong checksum": (
        direct_chunk(bytes(28) + b"\1\0\0\0", compression=None, fletcher32=True),
        "checksum",
    ),
}


@pytest.mark.parametrize("kind", HDF5)
def test_hostile_datasets_are_refused(tmp_path, kind):
    make, said = HDF5[kind]
    path = hdf5(tmp_path / "a.hdf5", rewards=make)
    tracemalloc.start()
    begin = time.process_time()
    refused(load, str(path), match=said)
    assert time.process_time() - begin < 5
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["a bomb", "a chunk too short", "a chunk cut off"])
def test_columns_that_are_not_kept_are_seen_to_be_whole(tmp_path, kind):
    refused(load, str(hdf5(tmp_path / "a.hdf5", other=HDF5[kind][0])), match="not a whole HDF5")


@pytest.mark.parametrize("name", ["rewards", "masks", "timeouts", "next_observations", "done"])
@pytest.mark.parametrize("to", ["/actions", "/nowhere", "other.hdf5", "group"])
def test_no_link_and_no_group_takes_a_columns_place(tmp_path, name, to):
    """Without such a column, which may be optional, other data would be read from the rest."""
    other = hdf5(tmp_path / "other.hdf5")
    kinds = {"other.hdf5": h5py.ExternalLink(str(other), "rewards"), "group": None}

    def put(file, column):
        link = kinds.get(to, h5py.SoftLink(to))
        file.create_group(column) if link is None else file.__setitem__(column, link)

    path = hdf5(tmp_path / "a.hdf5", **{name: put})
    refused(load, str(path), match=rf"a.hdf5 h.* '{name}'")
    refused(check_dataset, str(path), match=rf"a.hdf5 h.* '{name}'")
    refused(convert, path, tmp_path / "b.npz", match=rf"a.hdf5 h.* '{name}'")


def test_links_and_groups_of_other_names_are_passed_over(tmp_path):
    def link(file, name):
        file[name] = h5py.SoftLink("/actions")

    timeouts = np.arange(7) == 6
    group = {"timeouts": timeouts, "infos": lambda file, name: file.create_group(name)}
    plain = load(str(hdf5(tmp_path / "plain.hdf5", timeouts=timeouts)))
    data = load(str(hdf5(tmp_path / "a.hdf5", other=link, **group)))
    np.testing.assert_array_equal(data.episodes.actions, plain.episodes.actions)
    refused(convert, tmp_path / "a.hdf5", tmp_path / "b.npz", match="holds 'other', a link, which")


def test_links_are_counted_among_the_columns(tmp_path):
    """As no more names are read, later columns would be ignored."""
    path = hdf5(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        for number in range(70):
            file[f"a{number}"] = h5py.SoftLink("/actions")
    refused(load, str(path), match="more than 64 columns")


def test_a_name_that_leads_through_a_link_is_refused(tmp_path):
    """A name with a slash, which the library reads as a way, is in no honest file."""
    hdf5(tmp_path / "other.hdf5")
    path = hdf5(tmp_path / "a.hdf5", xxxxrewards=np.zeros(7, np.float32))
    with h5py.File(path, "a") as file:
        file["link"] = h5py.ExternalLink("other.hdf5", "/")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"xxxxrewards", b"lin/rewards"))
    refused(load, str(path), match="no name of a column")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_no_library_is_loaded_for_a_filter_that_a_file_names(tmp_path):
    path = hdf5(tmp_path / "a.hdf5", rewards=foreign_filter)
    (tmp_path / "filter.c").write_text(
        '#include <stdio.h>\n__attribute__((constructor)) void f(void) { puts("LOADED"); }\n'
    )
    build = ["cc", "-shared", "-fPIC", "-o", "libfilter.so", "filter.c"]
    subprocess.run(build, cwd=tmp_path, check=True)
    code = "from tql_offline.datasets.load import load; load('a.hdf5')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HDF5_PLUGIN_PATH": ".", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert path.name in done.stderr
    assert "packed by filter 32001" in done.stderr
    assert "LOADED" not in done.stdout


def test_very_many_columns_and_attributes_are_no_work(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w", libver="latest") as file:
        for i in range(2000):
            file.attrs[f"a{i}"] = i
            file[f"c{i}"] = i
    refused(load, str(tmp_path / "a.hdf5"), match="more than 64 columns")


PACKED: list[dict] = [{}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}]


@pytest.mark.parametrize(
    "packed", [*PACKED, {"fletcher32": True}, {**PACKED[2], "fletcher32": True}]
)
@pytest.mark.parametrize("dtype", ["f4", ">f8", "i2", "u1", "?"])
def test_chunks_unpack_as_the_library_unpacks_them(tmp_path, packed, dtype):
    column = (np.random.default_rng(0).normal(size=(37, 5)) * 50).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=column, chunks=(8, 2), **packed)
        item = file.create_dataset("b", shape=(9,), chunks=(2,), dtype=dtype, fillvalue=1, **packed)
        item[3] = 0
    read = read_columns(tmp_path / "a.h5")
    assert read["a"].dtype == column.dtype
    np.testing.assert_array_equal(read["a"], column)
    assert read["b"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 1]


# Checkpoints.


def with_header(change):
    def damage(path):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return damage


def with_tensors(change):
    def damage(path):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def first(table):
    return next(iter(table))


def retyped(tensors):
    tensors[first(tensors)] = tensors[first(tensors)].double()


def spoilt(tensors):
    tensors[first(tensors)].view(-1)[0] = float("nan")


NETWORK = {
    "length beyond the file": lambda p: p.write_bytes(b"\xff" * 7 + b"\x00" + p.read_bytes()[8:]),
    "huge header": lambda p: p.write_bytes((2**26).to_bytes(8, "little") + b" " * 2**20),
    "no header": lambda p: p.write_bytes(b"\x02" + bytes(7) + b"[]"),
    "deep header": lambda p: p.write_bytes((9000).to_bytes(8, "little") + b"[" * 9000),
    "overlap": with_header(lambda h: [t.update(data_offsets=[0, 4]) for t in h.values()]),
    "offset beyond": with_header(lambda h: h[first(h)].update(data_offsets=[0, 2**62])),
    "huge shape": with_header(lambda h: h[first(h)].update(shape=[2**62, 4])),
    "shape of nothing": with_header(lambda h: h[first(h)].update(shape=[None])),
    "foreign type": with_header(lambda h: h[first(h)].update(dtype="F8_E4M3")),
    "unknown type": with_header(lambda h: h[first(h)].update(dtype="X9")),
    "missing": with_tensors(lambda t: t.pop(first(t))),
    "extra": with_tensors(lambda t: t.update(extra=torch.zeros(3))),
    "other type": with_tensors(retyped),
    "not finite": with_tensors(spoilt),
    "long name": with_header(lambda h: h.update({"x" * 10**6: h.pop(first(h))})),
}


@pytest.mark.parametrize("kind", NETWORK)
def test_hostile_networks_are_refused(saved, kind):
    NETWORK[kind](saved / "critic.safetensors")
    said = refused(load_networks, saved, match="critic.safetensors")
    assert "damaged" in said or "does not fit" in said or "not finite" in said


def narrower(tensors):
    name = next(n for n, t in tensors.items() if n.endswith("exp_avg") and t.ndim == 2)
    tensors[name] = tensors[name][:1].clone()


STATES = {
    "moments of another shape": ("optimizers", narrower),
    "moments of another type": ("optimizers", retyped),
    "moments that are not finite": ("optimizers", lambda t: t.update(_spoilt(t, "exp_avg_sq"))),
    "moments missing": ("optimizers", lambda t: t.pop(first(t))),
    "odd index": ("optimizers", lambda t: t.update({"critic.x.step": torch.zeros(())})),
    "no generator": ("random", lambda t: t.pop("generator")),
    "short generator": ("random", lambda t: t.update(generator=t["generator"][:9].clone())),
    "generator of numbers": ("random", lambda t: t.update(generator=torch.zeros(5056))),
    "endless count": ("window", lambda t: t.update({"count.q_mean": torch.tensor(float("inf"))})),
    "no count": ("window", lambda t: t.update({"sum.a": torch.tensor(1.0)})),
    "count of zero": (
        "window",
        lambda t: t.update({"sum.a": torch.tensor(1.0), "count.a": torch.tensor(0)}),
    ),
    "sum that is not finite": (
        "window",
        lambda t: t.update({"sum.a": torch.tensor(float("nan")), "count.a": torch.tensor(1)}),
    ),
}


def _spoilt(tensors, ending):
    name = next(n for n in tensors if n.endswith(ending))
    return {name: torch.full_like(tensors[name], float("inf"))}


@pytest.mark.parametrize("kind", STATES)
def test_hostile_training_states_are_refused(saved, kind):
    name, change = STATES[kind]
    if kind == "endless count":
        inner, change = change, lambda t: (t.update({"sum.q_mean": torch.tensor(1.0)}), inner(t))
    with_tensors(change)(saved / f"{name}.safetensors")
    refused(load_training, saved, match="lacks part of the training state")


def test_untouched_checkpoints_are_read(saved):
    load_networks(saved)
    load_training(saved)


# Sweeps and collections.


@pytest.mark.parametrize(
    "text",
    [
        "seeds = [{" + "a." * 200 + "a = 1}]",
        "seeds = 0x" + "f" * 5000,
        "seeds = [0x" + "f" * 5000 + "]",
        "seeds = [[]]",
        "settings = " + repr("x" * 10_000),
        "[collect]\ncube-single-play-v0 = 0x" + "f" * 5000,
        "[collect]\n'../x' = 3",
        "[axis.a.'../x']\nseed = 1",
        "[axis.a.b.critic]\nsize = []",
        f"{'x' * 10_000!r} = 1",
        "[axis]\n" + "\n".join(f"a{i}.x.seed = 1\na{i}.y.seed = 2" for i in range(40)),
    ],
)
def test_hostile_suites_are_refused(tmp_path, text):
    path = tmp_path / "suite.toml"
    path.write_text(text, encoding="utf-8")
    refused(lambda: suite.expand(suite.read_suite(path), {}, 2))


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    return collect(fuzz.TASK, out=folder, episodes=1, steps=20, processes=1)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": [[1]] * 1000},
        {"settings": {"seed": "x" * 10_000}},
        {"sha256": {fuzz.FILE: 1, fuzz.FILE.replace("v0", "v0-val"): []}},
        {"sha256": "x", "bytes": None},
    ],
)
def test_hostile_manifests_are_refused(collected, tmp_path, change):
    shutil.copytree(collected.train.parent, tmp_path / "copy")
    manifest = tmp_path / "copy" / collected.manifest.name
    document = json.loads(manifest.read_text(encoding="utf-8")) | change
    manifest.write_text(json.dumps(document), encoding="utf-8")
    again = {"out": tmp_path / "copy", "episodes": 1, "steps": 20, "processes": 1}
    refused(lambda: collect(fuzz.TASK, **again), match="collect .*--force")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HEADERS)
def test_hostile_parts_are_refused(tmp_path, kind):
    text = HEADERS[kind].encode() + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    if kind in ("no rows", "no bytes"):
        member = member[:-3]
    refused(_read_part, npz(tmp_path / "train-000000.npz", [("a.npy", member)]), match="damaged")


# Fuzz.

INPUTS = {
    **{"dataset-npz": 12, "dataset-hdf5": 12, "checkpoint": 6, "config": 10, "suite": 10},
    **{"run": 5, "report": 2, "merged": 3},
}


def test_the_documented_table_has_every_target():
    page = (Path(__file__).parent.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = page.split(fuzz.HEAD + "\n")[1].split("\n\n")[0].splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(fuzz.TARGETS)


@pytest.mark.timeout(600)  # a reading process's start takes seconds, beside others many more
@pytest.mark.parametrize("share", [0.2, slowly(1)])
def test_spoiled_files_give_nothing_but_input_errors(tmp_path, share):
    counts = {name: math.ceil(share * count) for name, count in INPUTS.items()}
    chosen = [(fuzz.TARGETS[name], range(count)) for name, count in counts.items()]
    for summary in fuzz.fuzz(chosen, seed=1, out=tmp_path):
        assert [outcome.finding for outcome in summary.findings] == []
        assert summary.inputs == counts[summary.name]
        assert summary.accepted < summary.inputs or summary.name in ("report", "merged")


def _crash(_folder, file):
    os.abort() if file.read_bytes() != b"good" else None


def _careless(_folder, file):
    if file.read_bytes() != b"good":
        raise KeyError("mine")


CARELESS = {
    "crash": fuzz.Target(
        name="crash", write=lambda f: (f / "a").write_bytes(b"good"), spoil="a", read=_crash
    ),
    "careless": fuzz.Target(
        name="careless", write=lambda f: (f / "a").write_bytes(b"good"), spoil="a", read=_careless
    ),
}


@pytest.mark.parametrize("name", CARELESS)
def test_a_finding_is_found_and_kept(tmp_path, name):
    target = CARELESS[name]
    good = tmp_path / "good"
    good.mkdir()
    target.write(good)
    file = fuzz.spoil(target, good, 0, 0)
    if name == "careless":
        assert "KeyError: 'mine'" in fuzz.judge(target, good, file, 0).finding
    again = tmp_path / "again"
    again.mkdir()
    target.write(again)
    assert fuzz.spoil(target, again, 0, 0).read_bytes() == file.read_bytes()
