"""Marks of tests, and what decides on them."""

import sys

import pytest


def slowly(*values):
    """A case of a parametrized test that `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def highest_memory():
    """Most bytes that this process has had in memory so far; skips a test where none are told."""
    resource = pytest.importorskip("resource")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
