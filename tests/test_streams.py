"""Output that nobody reads any more: it ends no run, and other commands quietly."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from marks import slowly
from own_data import write_own

from tql_offline.cli.streams import outliving_output

PROGRAM = [sys.executable, "-m", "tql_offline"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
SETTINGS = ("flow.hidden=[8]", "log_every=1")


def train(tmp_path: Path) -> list[str]:
    data = write_own(tmp_path / "own.npz", (5, 5), observation_dim=3)
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    options = ["--size", "tiny", "--batch-size", "4", "--steps", "3", "--device", "cpu", *sets]
    runs = str(tmp_path / "runs")
    return [*PROGRAM, "train", "--dataset", str(data), "--runs", runs, "--name", "r", *options]


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def lost_terminal() -> int:
    ours, theirs = os.openpty()
    os.close(ours)
    return theirs


@pytest.mark.skipif(os.name != "posix", reason="pipes and terminals of POSIX")
@pytest.mark.parametrize(
    ("output", "stderr_too"),
    [
        (closed_pipe, True),
        slowly(lost_terminal, True),
        slowly(closed_pipe, False),
        slowly(lost_terminal, False),
    ],
)
def test_a_run_outlives_its_output(tmp_path, output, stderr_too):
    writer = output()
    stderr = writer if stderr_too else subprocess.PIPE
    done = subprocess.run(
        train(tmp_path), stdout=writer, stderr=stderr, env=ENVIRONMENT, timeout=120
    )
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "r" / "result.json").read_text())["updates"] == 3
    if not stderr_too:
        assert done.stderr.decode().count("the output was closed; training goes on without it") == 1


class FailingDisk(io.StringIO):
    """A file on a disk that fails."""

    def write(self, _text):
        raise OSError(errno.EIO, "Input/output error")


def test_a_log_on_a_disk_that_fails_is_an_error(monkeypatch, tmp_path):
    """Nobody would learn that it is cut short."""
    with (tmp_path / "log").open("w") as log:
        for fileno in (None, log.fileno):
            disk = FailingDisk()
            if fileno is not None:
                disk.fileno = fileno
            monkeypatch.setattr(sys, "stdout", disk)
            with outliving_output(), pytest.raises(OSError, match="Input/output"):
                sys.stdout.write("a line")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("arguments", [("datasets", "list"), ("train", "--print-config")])
def test_other_commands_end_quietly_where_nobody_reads(arguments):
    writer = closed_pipe()
    done = subprocess.run(
        [*PROGRAM, *arguments], stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=120
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
