"""benchmarks/gpu.sh without a GPU: what it runs, for how long, and what it says of what failed."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"
STAND_INS = {
    "nvidia-smi": "",
    "timeout": 'echo "$@" >> "$CALLS"\nwhile [ "$1" != python3 ]; do shift; done\nexec "$@"',
    "python3": '[ "$1" = -c ] && exit\ncase "$*" in *"${FAILS:-nothing}"*) exit 3;; esac\n'
    'echo "a row PASSED"; echo a row',
}


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Run the script with stand-ins for programs; returns its code, its output and all calls."""
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/sh\n{body}\n")
        command.chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(calls))

    def run(*sections, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        command = ["bash", SCRIPT, tmp_path / "out", *sections]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, calls.read_text().splitlines()

    return run


def seconds_of(call):
    words = call.split()
    return int(words[words.index("python3") - 1])


@pytest.mark.parametrize(
    ("fails", "failing"),
    [
        ("--size xl --ways bfloat16", ["xl"]),
        ("tests/test_triton_attention.py", ["triton_tests"]),
        ("--size xl --way bfloat16", ["profile"]),
        ("precision.py train", ["precision"]),
        ("modes none", ["collapse"]),
        ("nothing", []),
    ],
)
def test_what_fails_is_said_and_the_others_run(script, fails, failing):
    code, output, calls = script(FAILS=fails)
    assert code == bool(failing)
    took = [line.split()[0] for line in output.splitlines() if " took " in line]
    assert [line.split()[0] for line in output.splitlines() if " failed after " in line] == failing
    assert len(took) == 13 - len(failing)
    assert len(calls) == 17
    assert all("-k 5" in call for call in calls)


def test_a_section_that_there_is_none_of_is_named_and_the_others_run(script, tmp_path):
    code, output, calls = script("tset", "bench", "xl")
    assert code == 1
    assert output.splitlines()[:2] == ["there is no section tset", "there is no section bench"]
    assert "xl took" in output
    assert len(calls) == 1
    assert (tmp_path / "out" / "seconds.txt").read_text().startswith("there is no section tset")


def test_no_section_takes_longer_than_what_is_left(script):
    code, _, calls = script(LIMIT="200", COLLAPSE_UPDATES="6000")
    assert code == 0
    assert max(map(seconds_of, calls)) <= 185
    ways = [call for call in calls if "collapse.py train" in call]
    assert all(80 <= seconds_of(call) <= 83 and "--updates 6000" in call for call in ways)
    assert len(ways) == 2


def test_without_a_limit_a_way_of_collapse_takes_what_it_is_given(script):
    _, _, calls = script("collapse", COLLAPSE_SECONDS="100")
    assert [seconds_of(call) for call in calls] == [100, 100, 60]


def test_where_no_time_is_left_sections_are_left_out(script):
    code, output, calls = script("xl", "collapse", LIMIT="29")
    assert (code, calls) == (1, [])
    assert output.splitlines() == ["xl: no time left", "collapse: no time left"]


def test_what_is_packed_has_no_checkpoints(script, tmp_path):
    run = tmp_path / "out" / "precision" / "float32" / "float32-0"
    (run / "checkpoints" / "1").mkdir(parents=True)
    for name in ("checkpoints/1/critic.safetensors", "metrics.jsonl"):
        (run / name).touch()
    archive = tmp_path / "out.tgz"
    assert script("attention", ARCHIVE=str(archive))[0] == 0
    with tarfile.open(archive) as packed:
        names = {Path(name).name for name in packed.getnames()}
    assert {"metrics.jsonl", "attention.md", "seconds.txt"} <= names
    assert not names & {"checkpoints", "critic.safetensors"}
