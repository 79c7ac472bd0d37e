"""Averages of metrics between log steps, and the stop at a NaN or an infinity."""

import pytest
import torch

from tql_offline.agents.base import on_device
from tql_offline.errors import InputError
from tql_offline.files import append_jsonl, read_jsonl
from tql_offline.training.metrics import MetricsWindow, check_finite


def test_a_metric_is_averaged_over_the_updates_that_give_it():
    window = MetricsWindow()
    for step in range(1, 5):
        given = {"critic_loss": torch.tensor(float(step)), "entropy": torch.full((2, 2), step / 2)}
        if step % 2 == 0:
            given["policy_loss"] = torch.tensor(10.0 * step)
        window.add(given)
    assert window.flush() == {
        "critic_loss": 2.5,
        "entropy": [[1.25, 1.25], [1.25, 1.25]],
        "policy_loss": 30.0,
    }
    window.add({"critic_loss": torch.tensor(7.0)})
    assert window.flush() == {"critic_loss": 7.0}


def test_an_update_does_not_change_what_was_added():
    window, loss = MetricsWindow(), torch.tensor(1.0)
    window.add({"loss": loss})
    window.add({"loss": torch.tensor(2.0)})
    assert loss.item() == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_inside_a_list_stops_the_run(bad):
    line = {"step": 7, "loss": 1.0, "entropy": [[1.0, bad]], "none": []}
    with pytest.raises(InputError, match=r"entropy became (nan|inf) by update 7"):
        check_finite(line, 7, "", "stop")
    check_finite(line | {"entropy": [[1.0, 2.0]]}, 7, "", "stop")


def test_a_log_line_has_seven_digits(tmp_path):
    """Half a unit of the seventh is at most 5e-7 of a number; float32 itself adds 6e-8."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, generator=generator) * 10 ** torch.randn(1000, generator=generator)
    window = MetricsWindow()
    window.add({"loss": values})
    append_jsonl(tmp_path / "metrics.jsonl", window.flush())
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    torch.testing.assert_close(torch.tensor(line["loss"]), values, rtol=5.7e-7, atol=0)


@pytest.mark.parametrize("value", [True, 0.3, 200])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float16])
def test_means_of_metrics_of_few_bits_are_means(value, dtype):
    """Sums in their own type would round: of 1,000 ones in bfloat16 the mean is 0.256."""
    window, metric = MetricsWindow(), torch.tensor(value).to(dtype)
    for _ in range(1000):
        window.add(on_device({"m": metric}, torch.device("cpu")))
    assert window.means()["m"] == pytest.approx(float(metric), rel=1e-5)
