"""The page of counted costs is what its script prints."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def cost():
    spec = importlib.util.spec_from_file_location("cost", ROOT / "benchmarks" / "cost.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_parameter_counts(cost):
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    table = list(cost.size_table())
    assert len(table) == 2 + 6
    for row in table:
        assert row in page.splitlines(), "run `python benchmarks/cost.py > docs/cost.md`"


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_the_page_has_the_costs_of_an_update(cost, kind):
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8").splitlines()
    pages = {line.split("|")[1].strip(): line.split("|")[2] for line in _section(page, kind)}
    for row in list(cost.cost_table(kind, ["tiny"]))[2:]:
        _, name, cell, _ = row.split("|")
        assert pages[name.strip()] == cell, "run `python benchmarks/cost.py > docs/cost.md`"


def test_conservative_cost_grows_by_the_sampled_actions_alone(cost):
    """The critic at 3n more actions, forward and backward: each of them costs the same."""
    counts = {}
    for samples in (1, 2, 4):
        settings = {"objective": "conservative", "conservative": {"samples": samples}}
        counts[samples] = cost.cost(settings, "transformer", "tiny").multiply_adds
    assert counts[4] - counts[2] == pytest.approx(2 * (counts[2] - counts[1]), rel=1e-6)


def _section(page, kind):
    start = next(i for i, line in enumerate(page) if line.startswith(f"| {kind} |"))
    for line in page[start + 2 :]:
        if not line.startswith("|"):
            return
        yield line
