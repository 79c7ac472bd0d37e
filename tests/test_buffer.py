"""The buffer against an independent loop, and at every kind of boundary."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tql_offline import native
from tql_offline.datasets import returns
from tql_offline.datasets.buffer import make_buffer
from tql_offline.datasets.episodes import Episodes
from tql_offline.datasets.returns import targets
from tql_offline.errors import InputError


def make_episodes(lengths, done_at=(), dims=1):
    """Reward of transition i is i + 1, observation row r is r: a failure can be read off."""
    transitions = sum(lengths)
    rows = transitions + len(lengths)
    masks = np.ones(transitions, dtype=np.float32)
    masks[list(done_at)] = 0
    return Episodes(
        observations=np.repeat(np.arange(rows, dtype=np.float32)[:, None], dims, axis=1),
        actions=np.arange(transitions, dtype=np.float32)[:, None] / transitions,
        rewards=np.arange(1, transitions + 1, dtype=np.float32),
        masks=masks,
        lengths=np.array(lengths),
    )


@pytest.fixture(params=["C", "NumPy"])
def language(request, monkeypatch):
    """Targets are computed in C, and by NumPy as without a compiler."""
    if request.param == "NumPy":
        refused = native.UnavailableError("there is no C compiler (gcc)")
        monkeypatch.setattr(native, "library", lambda *_: refused)
    elif isinstance(why := native.library(returns.SOURCE, *returns.FLAGS), Exception):
        pytest.skip(str(why))


def slow_n_step(episodes, transition, n, discount):
    """The definition, one transition at a time: (return, discount, observation row)."""
    ends = set(episodes.last_transitions().tolist())
    row = int(episodes.start_rows()[transition])
    total, weight = 0.0, 1.0
    for k in range(n):
        i = transition + k
        total += weight * float(episodes.rewards[i])
        weight *= discount
        if episodes.masks[i] == 0:
            return total, 0.0, row + k + 1
        if i in ends:
            return total, weight, row + k + 1
    return total, weight, row + n


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize("done_at", [(), (2,), (0, 4), (5, 6, 7)])
@pytest.mark.usefixtures("language")
def test_n_step_equals_the_definition(n, done_at):
    episodes = make_episodes([3, 1, 5, 2], done_at)
    buffer = make_buffer(episodes, n_step=n, discount=0.9, device=torch.device("cpu"))
    batch = buffer.take(torch.arange(episodes.num_transitions))
    for i in range(episodes.num_transitions):
        want_return, want_discount, want_row = slow_n_step(episodes, i, n, 0.9)
        assert batch.rewards[i].item() == pytest.approx(want_return, rel=1e-6)
        assert batch.discounts[i].item() == pytest.approx(want_discount, rel=1e-6)
        assert batch.next_observations[i, 0].item() == want_row or want_discount == 0
        assert batch.observations[i, 0].item() == episodes.start_rows()[i]


@pytest.mark.parametrize("n", [1, 2, 10])
@pytest.mark.parametrize("done_at", [(), (2,), (0, 4), (5, 6, 7)])
def test_next_action_is_the_datas_own_at_the_next_observation(n, done_at):
    episodes = make_episodes([3, 1, 5, 2], done_at)
    buffer = make_buffer(episodes, n_step=n, discount=0.9, device=torch.device("cpu"))
    batch = buffer.take(torch.arange(episodes.num_transitions))
    rows = episodes.start_rows().tolist()
    for i in range(episodes.num_transitions):
        _, _, row = slow_n_step(episodes, i, n, 0.9)
        assert batch.next_action_mask[i].item() == (row in rows)
        if row in rows:
            assert batch.next_actions[i].item() == episodes.actions[rows.index(row)].item()


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("done_at", [(), (2,), (0, 4), (5, 6, 7)])
@pytest.mark.parametrize("shift", [0.0, -20.0])
@pytest.mark.parametrize("after_cut", ["worst", "last", "nothing"])
@pytest.mark.usefixtures("language")
def test_returns_to_go_go_on_as_assumed_after_a_cut(discount, done_at, shift, after_cut):
    """Rewards 1 to 11, or -19 to -9."""
    episodes = make_episodes([3, 1, 5, 2], done_at)
    episodes.rewards[:] += shift
    forever = 1 / (1 - discount) if discount < 1 else np.inf
    ends = set(episodes.last_transitions().tolist())
    have = targets(episodes, 1, discount, after_cut).returns_to_go
    for start in range(episodes.num_transitions):
        total, weight = 0.0, 1.0
        for i in range(start, episodes.num_transitions):
            total += weight * float(episodes.rewards[i])
            weight *= discount
            if episodes.masks[i] == 0:
                break
            if i in ends:
                follows = {
                    "worst": -19 if shift else 0,
                    "last": float(episodes.rewards[i]),
                    "nothing": 0,
                }[after_cut]
                total += weight * follows * forever if follows else 0
                break
        assert have[start] == pytest.approx(total, rel=1e-5)


def test_next_observation_is_the_next_row_inside_episodes():
    episodes = make_episodes([4, 3])
    buffer = make_buffer(episodes, n_step=1, discount=0.9, device=torch.device("cpu"))
    batch = buffer.take(torch.arange(7))
    assert (batch.next_observations - batch.observations == 1).all()


def test_truncated_episode_bootstraps_and_ended_task_does_not():
    episodes = make_episodes([2, 2], done_at=[3])
    buffer = make_buffer(episodes, n_step=1, discount=0.9, device=torch.device("cpu"))
    discounts = buffer.take(torch.arange(4)).discounts
    torch.testing.assert_close(discounts, torch.tensor([0.9, 0.9, 0.9, 0.0]))


def test_observations_are_stored_once():
    episodes = make_episodes([50] * 20, dims=37)
    buffer = make_buffer(episodes, n_step=3, discount=0.9, device=torch.device("cpu"))
    assert buffer.observations.shape == (50 * 20 + 20, 37)


def test_sampling_is_uniform_and_seeded():
    episodes = make_episodes([10] * 10)
    buffer = make_buffer(episodes, n_step=1, discount=0.9, device=torch.device("cpu"))
    draws = [
        buffer.sample(20_000, torch.Generator().manual_seed(seed)).rewards for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    counts = torch.bincount(draws[0].long(), minlength=101)[1:]
    # 100 cells of expected count 200: chi-square of 99 degrees, 5 sigma above its mean.
    chi_square = ((counts - 200.0) ** 2 / 200).sum()
    assert chi_square < 99 + 5 * np.sqrt(2 * 99)


def test_data_in_main_memory_give_the_rows_of_the_buffer():
    """On PyTorch's device without memory: batches alone go there, columns stay."""
    episodes = make_episodes([10] * 10, dims=3)
    cpu, meta = torch.device("cpu"), torch.device("meta")
    here = make_buffer(episodes, n_step=2, discount=0.9, device=cpu, on_host=True)
    there = make_buffer(episodes, n_step=2, discount=0.9, device=meta, on_host=True)
    index = torch.from_numpy(np.random.default_rng((7, 3)).integers(100, size=16))
    batches = [b.sample_on_host(16, 7, 3) for b in (here, there)]
    for have, sent, want in zip(*batches, here.take(index), strict=True):
        assert torch.equal(have, want)
        assert (sent.device, sent.shape) == (meta, want.shape)
    assert there.observations.device == cpu
    assert there.sample(16, torch.Generator().manual_seed(0)).actions.device == meta


def test_sampling_in_main_memory_is_uniform_over_updates():
    buffer = make_buffer(
        make_episodes([10] * 10), n_step=1, discount=0.9, device=torch.device("cpu")
    )
    draws = [buffer.sample_on_host(20, seed, step) for seed in (0, 1) for step in range(500)]
    drawn = torch.cat([batch.rewards for batch in draws]).long()
    counts = torch.bincount(drawn, minlength=101)[1:]
    # 100 cells of expected count 200: chi-square of 99 degrees, 5 sigma above its mean.
    assert ((counts - 200.0) ** 2 / 200).sum() < 99 + 5 * np.sqrt(2 * 99)
    assert not torch.equal(drawn[:10_000], drawn[10_000:])


@pytest.mark.usefixtures("language")
def test_a_long_window_stays_inside_the_episode():
    table = targets(make_episodes([3, 3]), n=100, discount=1.0)
    assert table.steps.tolist() == [3, 2, 1, 3, 2, 1]
    assert table.returns.tolist() == [6, 5, 3, 15, 11, 6]


@pytest.mark.usefixtures("language")
def test_windows_over_several_blocks_are_the_definition():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 900, 300)
    done = random.choice(int(lengths.sum()), 500, replace=False)
    episodes = make_episodes(lengths.tolist(), done)
    table, rows = targets(episodes, n=5, discount=0.97), episodes.start_rows()
    assert episodes.num_transitions > 2 * 2**14, "more than two blocks"
    near_seams = [i + k for i in (0, 2**14, 2**15) for k in range(-6, 7)]
    some = [*random.integers(0, episodes.num_transitions, 2000), *done, *near_seams]
    for i in (i for i in some if 0 <= i < episodes.num_transitions):
        want_return, want_discount, want_row = slow_n_step(episodes, i, 5, 0.97)
        assert table.returns[i] == pytest.approx(want_return, rel=1e-6)
        assert table.discounts[i] == pytest.approx(want_discount, rel=1e-6)
        assert rows[i] + table.steps[i] == want_row


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    n=st.integers(1, 12),
    discount=st.sampled_from([0.9, 0.99, 0.995, 1.0]),
    after_cut=st.sampled_from(["worst", "last", "nothing"]),
    seed=st.integers(0, 1000),
)
def test_targets_in_c_and_by_numpy_are_the_same_bits(lengths, n, discount, after_cut, seed):
    random = np.random.default_rng(seed)
    episodes = make_episodes(lengths)
    episodes.rewards[:] = random.standard_normal(len(episodes.rewards))
    episodes.rewards[random.random(len(episodes.rewards)) < 0.1] = -0.0
    episodes.masks[random.random(len(episodes.masks)) < 0.1] = 0
    found = [targets(episodes, n, discount, after_cut)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda *_: native.UnavailableError("none"))
        found.append(targets(episodes, n, discount, after_cut))
    for have, want in zip(*(vars(each).values() for each in found), strict=True):
        assert have.tobytes() == want.tobytes()


@pytest.mark.usefixtures("language")
def test_columns_may_be_parts_of_others():
    """As those of a file whose columns were read together."""
    table = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    whole = make_episodes([4, 5])
    parts = replace(whole, rewards=table[:, 1], masks=np.ones((9, 2), np.float32)[:, 0])
    packed = replace(parts, rewards=table[:, 1].copy(), masks=np.ones(9, np.float32))
    for have, want in zip(
        *(vars(targets(e, 3, 0.9)).values() for e in (parts, packed)), strict=True
    ):
        np.testing.assert_array_equal(have, want)


@pytest.mark.usefixtures("language")
def test_targets_do_not_depend_on_the_number_of_threads():
    episodes = make_episodes(np.random.default_rng(0).integers(1, 50, 500).tolist())
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append([column.tobytes() for column in vars(targets(episodes, 5, 0.99)).values()])
    torch.set_num_threads(threads)
    assert found[0] == found[1]


@pytest.mark.parametrize("wrong", [{"n_step": 0}, {"discount": 2.0}, {"discount": math.nan}])
def test_a_horizon_that_is_none_is_refused(wrong):
    episodes = make_episodes([3, 2])
    with pytest.raises(InputError, match="least 1 step, and a discount above 0 and up to 1"):
        make_buffer(episodes, **({"n_step": 1, "discount": 0.9, "device": "cpu"} | wrong))
