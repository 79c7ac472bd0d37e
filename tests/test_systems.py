"""What other systems do otherwise than Linux with UTF-8, simulated."""

import ast
import errno
import os
import subprocess
import sys
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from marks import highest_memory

from tql_offline import __main__ as program
from tql_offline.datasets import convert
from tql_offline.files import append_jsonl, rewind_jsonl, write_json
from tql_offline.training import checkpoint


@pytest.fixture
def lines_of_windows(monkeypatch):
    """Text whose ends of lines are not chosen has Windows' ends."""

    def with_its_ends(open_it):
        def opened(file, mode="r", *arguments, **options):
            ends = {} if "b" in mode or "newline" in options else {"newline": "\r\n"}
            return open_it(file, mode, *arguments, **options, **ends)

        return opened

    monkeypatch.setattr(Path, "open", with_its_ends(Path.open))
    monkeypatch.setattr(os, "fdopen", with_its_ends(os.fdopen))


def test_text_is_the_same_bytes_everywhere(tmp_path, lines_of_windows):
    write_json(tmp_path / "a.json", {"a": 1})
    append_jsonl(tmp_path / "a.jsonl", {"step": 1})
    rewind_jsonl(tmp_path / "a.jsonl", 1)
    append_jsonl(tmp_path / "a.jsonl", {"step": 2})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "a": 1\n}\n'
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@pytest.fixture
def fsync_of_windows(monkeypatch):
    """A file that is open for reading alone cannot be flushed to disk."""
    fcntl = pytest.importorskip("fcntl")
    real, flushed = os.fsync, []

    def fsync(number):
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flushed.append(number)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    return flushed


def test_tensors_are_flushed_by_a_file_open_for_writing(tmp_path, fsync_of_windows):
    checkpoint._save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert fsync_of_windows


def test_an_hdf5_file_is_flushed_by_a_file_open_for_writing(tmp_path, fsync_of_windows):
    convert._write_hdf5({"x": np.zeros(2)}, tmp_path / "x.hdf5", packed=False)
    assert fsync_of_windows


def test_a_character_that_an_output_cannot_take_ends_no_command():
    """A path in Japanese, as settings show it."""
    train = [sys.executable, "-m", "tql_offline", "train", "--print-config"]
    done = subprocess.run(
        [*train, "--set", "dataset.name=データ.npz"],
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert b'name = "???.npz"' in done.stdout


def test_streams_print_what_they_can_encode(monkeypatch):
    stream = TextIOWrapper(BytesIO(), encoding="ascii", line_buffering=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)  # as without a console
    program._print_what_can_be_encoded()
    sys.stdout.write("43 % – of 1\n")
    assert stream.buffer.getvalue().strip() == b"43 % ? of 1"  # at once, as a terminal gets it
    monkeypatch.setattr(sys, "stdout", StringIO())
    program._print_what_can_be_encoded()


def test_highest_memory_is_in_bytes_on_macos_too(monkeypatch):
    resource = pytest.importorskip("resource")
    told = SimpleNamespace(ru_maxrss=5000)
    monkeypatch.setattr(resource, "getrusage", lambda _: told)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert highest_memory() == 5000
    monkeypatch.setattr(sys, "platform", "linux")
    assert highest_memory() == 5000 * 1024


def test_no_module_of_tests_needs_at_its_top_what_windows_lacks():
    lacking = {"fcntl", "resource", "pwd", "termios"}
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                assert lacking.isdisjoint(name.name for name in node.names), path
