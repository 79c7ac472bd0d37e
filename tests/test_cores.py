"""Cores and memory that a process may use: by affinity, and by its control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tql_offline import cores
from tql_offline.datasets import reading, slices


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of 8 cores; files of control groups are written by path."""
    monkeypatch.setattr(cores, "_runs_on", lambda: 8)
    monkeypatch.setattr(cores, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "membership")

    def write(membership, **files):
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    return write


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"job/step/cpu.max": "300000 100000"}, 3),
        ({"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ({"job/cpu.max": "500000 100000", "cpu.max": "400000 100000"}, 4),
        ({"other/cpu.max": "100000 100000"}, 8),
        *(({"cpu.max": text}, 8) for text in ("", "1", "one two", "1 0", "-1 100000")),
    ],
)
def test_a_group_and_those_above_it_limit(system, files, usable):
    system("0::/job/step\n", **files)
    assert cores.usable_cores() == usable


OLDER = "9:memory:/job\n4:cpu,cpuacct:/job\n3:cpuset:/job\n0::/job\n"


@pytest.mark.parametrize(
    ("folder", "quota", "usable"),
    [
        ("cpu,cpuacct/job", "250000", 3),
        ("cpu,cpuacct/job", "-1", 8),
        ("cpu,cpuacct", "100000", 1),  # a container's own, whose path is the host's
        ("cpuset/job", "100000", 8),
    ],
)
def test_the_older_interface_limits(system, folder, quota, usable):
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    system(OLDER, **files)
    assert cores.usable_cores() == usable


@pytest.mark.parametrize("membership", ["", "nothing\n", "0:\n", "\xff"])
def test_what_is_not_understood_limits_nothing(system, membership):
    system(membership)
    assert cores.usable_cores() == 8


def test_without_control_groups_affinity_counts(system):
    assert cores.usable_cores() == 8


@pytest.mark.parametrize(
    ("quota", "given", "threads"), [("200000", "", "2"), ("200000", "5", "5"), ("max", "", None)]
)
def test_threads_are_limited_where_time_is(system, monkeypatch, quota, given, threads):
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": given} if given else {})
    system("0::/\n", **{"cpu.max": f"{quota} 100000"})
    cores.limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/job/step\n", {"memory.max": "max", "job/memory.max": "2000", "job/step/x": ""}, 2000),
        ("0::/job/step\n", {"job/memory.max": "2000", "job/step/memory.max": "1000"}, 1000),
        ("0::/\n", {"memory.max": "3000"}, 3000),
        ("0::/job\n", {"memory.max": "max", "other/memory.max": "1000"}, None),
        ("4:cpu:/job\n9:memory:/job\n", {"memory/job/memory.limit_in_bytes": "4000"}, 4000),
        ("", {}, None),
    ],
)
def test_memory_is_limited_by_a_group_and_those_above_it(system, membership, files, limit):
    system(membership, **files)
    assert cores.memory_limit() == limit


@pytest.mark.parametrize("limit", [None, 1000, 2**60])
def test_readers_take_no_more_memory_than_a_container_or_job_may(system, limit):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system("0::/job\n", **{"memory.max": str(limit)})
    reading.machine_bytes.cache_clear()  # it is looked up once
    try:
        assert reading.machine_bytes() == min(limit or machine, machine)
        assert slices.available_bytes() <= reading.machine_bytes()
    finally:
        reading.machine_bytes.cache_clear()


@pytest.mark.parametrize(
    ("told", "usable"),
    [("4\n", 4), ("", 10), ("sysctl: unknown oid\n", 10), (FileNotFoundError(), 10)],
)
def test_on_apple_silicon_performance_cores_count(monkeypatch, tmp_path, told, usable):
    """PyTorch takes no others; an Intel Mac has no such number."""

    def run(command, **_):
        assert command == ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
        if isinstance(told, Exception):
            raise told
        return subprocess.CompletedProcess(command, 0, stdout=told)

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "none")
    monkeypatch.setattr(cores.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(cores.subprocess, "run", run)
    cores._performance_cores.cache_clear()
    try:
        assert cores.usable_cores() == usable
    finally:
        cores._performance_cores.cache_clear()


JOIN = """
import os, sys
from pathlib import Path
from tql_offline import cores
before = cores.usable_cores()
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
print(before, cores.usable_cores())
"""


@pytest.fixture
def real_group():
    """A control group of a tenth of a core, where the system lets us make one."""
    for root, name, text in (
        ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "10000"),
        ("/sys/fs/cgroup", "cpu.max", "10000 100000"),
    ):
        group = Path(root, f"tql-offline-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(text)
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("the system lets us make no control group")


def test_a_real_group_limits(real_group):
    done = subprocess.run(
        [sys.executable, "-c", JOIN, str(real_group)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[1] == "1"
