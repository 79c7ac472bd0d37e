"""Fixtures for every test: a home of its own, so that no test reads or writes the user's data."""

import os

import pytest

os.environ.setdefault("MUJOCO_GL", "disable")
# Two test processes with two threads each spin against one another on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def private_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TQL_OFFLINE_DATA", str(tmp_path / "collected"))
    monkeypatch.setenv("OGBENCH_DATA", str(tmp_path / "ogbench"))
    return tmp_path
