"""The counted arithmetic of an update: by PyTorch's counter, by the method, and by nothing else."""

import json

import pytest
import torch
from agent_cases import METHODS, build, make_batch
from own_data import write_own
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tql_offline.bench.ours import pytorch_operations
from tql_offline.config import resolve
from tql_offline.networks import SIZES, attention, cpu_kernels, kernels
from tql_offline.training import arithmetic
from tql_offline.training.arithmetic import flops_per_update

CUBE_DOUBLE = (37, 5)
TINY = {"critic": {"size": "tiny"}, "flow": {"hidden": [8], "flow_steps": 1}}
SHORT = {"flow": {"hidden": [16, 16], "flow_steps": 2}}


@pytest.mark.parametrize("method", list(METHODS))
def test_count_is_that_of_a_real_agents_updates(method):
    assert_counts_alike(build(method, **SHORT))


@pytest.mark.parametrize("mode", ["none", "fixed", "single"])
def test_count_is_that_of_a_real_agents_updates_in_every_entropy_mode(mode):
    assert_counts_alike(build("flow", entropy=mode, **SHORT))


def test_count_is_that_of_a_real_agents_updates_with_mlps():
    assert_counts_alike(build("implicit awr", "mlp", **SHORT))


def assert_counts_alike(agent):
    """With the updates of a period on a CPU, whose fused attention has no formula."""
    period = agent.policy_delay
    config = agent.config.model_copy(update={"batch_size": 16})
    plain = sdpa_kernel(SDPBackend.MATH)
    with pytorch_operations(), plain, FlopCounterMode(display=False) as counter:
        for step in range(1, period + 1):
            agent.update(make_batch(16), torch.Generator(), step)
    assert flops_per_update(config, 3, 2) * period == counter.get_total_flops()


def test_a_flow_update_costs_what_the_method_says():
    """Every product of a small critic's and 4×512 policies' update, in multiply-adds.

    B rows of L tokens of width d, H heads, E members; tables for P and R are 2·L·d·3d per batch,
    and so is the shift's d·3d.

        attention     B·(2·L²·d)          scores and mixture of the first block
        block         B·L·9·d²            its output projection and MLP
        value         B·9·d²              those of the last block, for [VALUE] alone
        keys          B·(L·2·d² + L²·d)   queries, keys, scores of the last block, for entropy
        query         B·(2·d² + H·L·d)    or, without entropy, q, Wₖᵀq, and its product with h
        context       B·(H·L·d + d²)      weighted mean of h, projected
        heads         B·E·(d²/2 + d/2)

    A backward pass takes two products for each of the forward pass, one where a factor is a frozen
    weight and none for what the action does not reach.
    """
    rows, tokens, d, n_heads, members = 256, 43, 128, 4, 2
    tables = 2 * tokens * d * 3 * d + d * 3 * d
    attention_products = rows * 2 * tokens**2 * d
    block, value = rows * tokens * 9 * d**2, rows * 9 * d**2
    keys = rows * (tokens * 2 * d**2 + tokens**2 * d)
    scores = rows * n_heads * tokens * d
    query, mean, projected = rows * 2 * d**2, scores, rows * d**2
    heads = rows * members * (d**2 + d) // 2

    with_entropy = tables + attention_products + block + keys + mean + projected + value + heads
    between_tensors = attention_products + scores + mean
    by_weights = block + query + projected + value + heads
    target = tables + between_tensors + by_weights
    policy_q = target + 2 * between_tensors + by_weights

    def policy(inputs, learns):
        first, rest = inputs * 512, 3 * 512**2 + 512 * 5
        return rows * (3 * (first + rest) - first if learns else first + rest)

    one_step = policy(42, learns=False) + policy(42, learns=True)
    flow = 10 * policy(43, learns=False) + policy(43, learns=True)

    settings = {"critic": {"size": "small"}, "flow": {"hidden": [512] * 4}, "batch_size": rows}
    counted = flops_per_update(resolve(settings), *CUBE_DOUBLE)
    assert counted == 2 * (3 * with_entropy + target + policy_q + one_step + flow)


def test_attention_counts_with_entropy_and_without():
    """Of rows of L tokens of width d: what grows as L², left by three lengths in equal steps.

    A score or a mixture is 2·L²·d, and twice that backward. With entropy, for the critic's loss:
    both in the first block, scores in the last. Without, in the first block: the target forward,
    Q of the policy's action forward and back.
    """
    rows, d, step = 8, SIZES["tiny"].width, 20
    with_entropy = 3 * (4 + 2)
    without = 4 + 3 * 4
    one, two, three = (
        flops_per_update(resolve(TINY | {"batch_size": rows}), length, 1)
        for length in (10, 10 + step, 10 + 2 * step)
    )
    assert three - 2 * two + one == rows * d * (with_entropy + without) * 2 * step**2


def test_many_tokens_count_though_their_weights_are_never_formed():
    rows, d, tokens = 2, SIZES["tiny"].width, attention.LONG + 10
    counted = flops_per_update(resolve(TINY | {"batch_size": rows}), tokens - 2, 1)
    assert counted > rows * d * (3 * (4 + 2) + 16) * tokens**2 + 2 * 60 * rows * tokens * d**2


def test_a_flow_updates_count_is_the_methods_60_d2_per_token():
    """Multiply-adds of critic, target and policy passes with both exact savings (two blocks).

    What grows as d² is left by three widths, each double the last: the rest is linear in d. Of a
    token it is 60 d²; what only the [VALUE] token passes, and the heads, is one of 101 tokens.
    """
    shape, rows = (97, 3), 100_000
    counts = []
    for size in ("tiny", "small", "medium"):
        settings = TINY | {"critic": {"size": size}, "batch_size": rows}
        counted = flops_per_update(resolve(settings), *shape)
        counts.append(counted / 2 / rows / (1 + sum(shape)))
    one, two, four = counts
    d = SIZES["tiny"].width
    # f = a d² + b d + c: f(4d) - f(2d) - 2 (f(2d) - f(d)) = 6 a d².
    per_token = (four - two - 2 * (two - one)) / (6 * d**2)
    assert per_token == pytest.approx(60, rel=0.03)


def test_no_machine_has_a_say(monkeypatch):
    """With a C compiler or without, with Triton or without, in any precision: one count."""
    counted = flops_per_update(resolve(TINY), 3, 1)

    def refuse(*_):
        raise AssertionError("a kernel was called")

    for piece in (kernels.AffineProjection, kernels.FeedForward, kernels.Gelu):
        monkeypatch.setattr(piece, "apply", refuse)
    monkeypatch.setattr(cpu_kernels, "_call", refuse)
    monkeypatch.setattr(attention, "triton_enabled", not attention.triton_enabled)
    arithmetic._counted.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert flops_per_update(resolve(TINY), 3, 1) == counted


def test_settings_without_products_have_no_say():
    """For these a count is remembered, so they had better be without."""
    agent = build("flow", **SHORT)
    changed = agent.config.model_copy(
        update={
            "seed": 7,
            "steps": 3,
            "optimizer": agent.config.optimizer.model_copy(update={"weight_decay": 0.0}),
            "execution": agent.config.execution.model_copy(update={"precision": "bfloat16"}),
        }
    )
    counts = {flops_per_update(config, 3, 2) for config in (agent.config, changed)}
    counts |= {arithmetic._counted(config, 3, 2) for config in (agent.config, changed)}
    assert len(counts) == 1


def test_counting_draws_no_number():
    drawn = torch.get_rng_state()
    flops_per_update(resolve(TINY), 5, 1)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_run_records_it(tmp_path):
    """As provenance and result, by the sizes of its own data."""
    from tql_offline.datasets.load import load
    from tql_offline.training.reporters import SilentReporter
    from tql_offline.training.run import run

    path = write_own(tmp_path / "mine.npz", (11,), 3)
    small = {"critic": {"size": "tiny"}, "flow": {"hidden": [16, 16]}, "steps": 1, "batch_size": 16}
    config = resolve(small | {"dataset": {"name": str(path)}})
    folder = run(config, load(str(path)), tmp_path / "runs", "a", SilentReporter())
    counted = flops_per_update(config, 3, 2)
    result = json.loads(folder.result.read_text())
    assert result["flops_per_update"] == result["provenance"]["flops_per_update"] == counted
