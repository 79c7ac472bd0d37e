"""The page of counted costs is what its script prints."""

from pathlib import Path

import pytest

from benchmarks import cost
from tql_offline.training.arithmetic import flops_per_update

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_has_the_parameter_counts():
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    table = list(cost.size_table())
    assert len(table) == 2 + 6
    for row in table:
        assert row in page.splitlines(), "run `python benchmarks/cost.py > docs/cost.md`"


@pytest.mark.parametrize("kind", ["transformer", "mlp", "perceiver"])
def test_the_page_has_the_costs_of_an_update(kind, monkeypatch):
    some = ("flow", "implicit", "conservative, n = 1")
    monkeypatch.setattr(cost, "OBJECTIVES", {name: cost.OBJECTIVES[name] for name in some})
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8").splitlines()
    pages = {line.split("|")[1].strip(): line.split("|")[2] for line in _section(page, kind)}
    for row in list(cost.cost_table(kind, ["tiny"]))[2:]:
        _, name, cell, _ = row.split("|")
        assert pages[name.strip()] == cell, "run `python benchmarks/cost.py > docs/cost.md`"


def test_the_page_has_what_a_run_records():
    """`flops_per_update` of cube-double's default run, of the method's size of 0.4M."""
    config = cost.config_of({}, "transformer", "small")
    recorded = flops_per_update(config, cost.OBSERVATION_DIM, cost.ACTION_DIM)
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    (flow,) = (line for line in _section(page.splitlines(), "transformer") if "| flow |" in line)
    assert "batch of 256" in page
    assert flow.split("|")[3].startswith(f" {recorded / 2 / 256 / 1e6:,.0f}M ")


def test_kept_memory_is_affine_in_the_batch():
    config = cost.config_of({}, "transformer", "tiny")
    two, four, eight = (cost.kept_bytes(config, rows) for rows in (2, 4, 8))
    assert eight - four == 2 * (four - two)


def test_conservative_cost_grows_by_the_sampled_actions_alone():
    """The critic at 3n more actions, forward and backward: each of them costs the same."""
    counts = []
    for samples in (1, 2, 4):
        settings = {"objective": "conservative", "conservative": {"samples": samples}}
        config = cost.config_of(settings, "transformer", "tiny")
        counts.append(flops_per_update(config, cost.OBSERVATION_DIM, cost.ACTION_DIM))
    one, two, four = counts
    assert four - two == 2 * (two - one)


def _section(page, kind):
    start = next(i for i, line in enumerate(page) if line.startswith(f"| {kind} |"))
    for line in page[start + 2 :]:
        if not line.startswith("|"):
            return
        yield line
