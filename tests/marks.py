"""Marks of tests."""

import pytest


def slowly(*values):
    """A case of a parametrized test that `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)
