"""`bench`: what is compared is the same update, and its figures are what they say."""

import errno
import json
import mmap
import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from stand_ins import raising
from torch.utils.flop_counter import FlopCounterMode

from tql_offline import bench, files
from tql_offline.bench import compare, memory, ours
from tql_offline.bench.workload import (
    Contender,
    Unavailable,
    Workload,
    make_peer,
    peers_of,
    random_transitions,
)
from tql_offline.cli import main
from tql_offline.networks import TransformerCritic, cpu_kernels, kernels
from tql_offline.training.arithmetic import flops_per_update

pytestmark = pytest.mark.usefixtures("same_threads")

SMALL = Workload(objective="flow", size="tiny", batch_size=4)


def test_those_whose_critic_can_be_a_transformer_are_timed():
    assert bench.OBJECTIVES == ("flow", "implicit", "conservative", "rebrac", "floq")


@pytest.mark.parametrize("objective", bench.OBJECTIVES)
def test_the_plain_path_is_the_same_update(objective):
    workload = replace(SMALL, objective=objective)
    data = random_transitions(workload, episodes=2, length=5)
    ways = (ours.Way(), ours.Way(plain=True))
    trainers = [ours.Trainer(workload, config(workload), data, way, 0) for way in ways]
    for trainer in trainers:
        for _ in range(2):
            trainer.step()
    mine, plain = (trainer.updates.agent.networks for trainer in trainers)
    for name, network in mine.items():
        for key, parameter in network.state_dict().items():
            # Adam's first steps turn a rounding difference in a tiny gradient into one of the rate.
            torch.testing.assert_close(
                parameter, plain[name].state_dict()[key], rtol=1e-3, atol=2e-5, msg=f"{name} {key}"
            )


def config(workload):
    return ours.config_of(workload, ours.Way())


def test_the_plain_path_takes_no_shortcut(monkeypatch):
    def refuse(*_):
        raise AssertionError("a shortcut was taken")

    data = random_transitions(SMALL, episodes=2, length=5)
    trainer = ours.Trainer(SMALL, config(SMALL), data, ours.Way(plain=True), 0)
    for piece in (kernels.AffineProjection, kernels.FeedForward, kernels.Gelu):
        monkeypatch.setattr(piece, "apply", refuse)
    monkeypatch.setattr(cpu_kernels, "_call", refuse)
    monkeypatch.setattr(TransformerCritic, "forward", refuse)
    trainer.step()
    with pytest.raises(AssertionError, match="shortcut"):
        ours.Trainer(SMALL, config(SMALL), data, ours.Way(), 0).step()


def test_without_c_no_kernel_in_c_is_called(monkeypatch):
    data = random_transitions(SMALL, episodes=2, length=5)
    trainer = ours.Trainer(SMALL, config(SMALL), data, ours.WAYS["without C"], 0)
    assert not trainer.execution.c_kernels
    monkeypatch.setattr(cpu_kernels, "_call", None)
    trainer.step()
    assert cpu_kernels.enabled


def test_the_hand_written_passes_come_back_after_an_error():
    with pytest.raises(ZeroDivisionError), ours.pytorch_operations():
        assert not kernels.by_hand(torch.ones(1))
        raise ZeroDivisionError
    assert kernels.by_hand(torch.ones(1))


def test_a_whole_update_spares_more_than_half_of_the_critics_arithmetic():
    """Depth 2, width 128, L = 43: at most 0.45 of the plain path's multiply-adds."""
    workload = Workload(objective="flow", size="small", batch_size=32)
    assert critic_flops(workload, plain=False) <= 0.45 * critic_flops(workload, plain=True)


def critic_flops(workload, plain):
    """Of the target's pass, the critic's two with entropy, and the policy's two."""
    agent = ours.agent_of(workload, config(workload), plain)
    s, a = torch.randn(workload.batch_size, 37), torch.rand(workload.batch_size, 5)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            agent.target_critic(s, a)
        q, entropy = agent.critic(s, a, return_entropy=True)
        (q.sum() + entropy.sum()).backward()
        agent.policy_q(s, a.requires_grad_()).sum().backward()
    return counter.get_total_flops()


def test_counted_flops_are_a_runs_own_and_the_plain_paths_grow_with_the_batch():
    workloads = [replace(SMALL, objective="implicit", batch_size=size) for size in (4, 8)]
    recorded = flops_per_update(config(workloads[0]), 37, 5)
    assert ours.counted_flops(workloads[0], plain=False) == recorded
    small, large = (ours.counted_flops(workload, plain=True) for workload in workloads)
    assert large == 2 * small  # the plain path computes nothing once per batch


@pytest.mark.parametrize("objective", ["implicit", "conservative"])
def test_flops_of_mlps_of_given_widths_are_counted(objective):
    workload = replace(SMALL, objective=objective, hidden=(8, 8))
    wider = replace(workload, hidden=(16, 16))
    assert 0 < ours.counted_flops(workload, False) < ours.counted_flops(wider, False)


def sleeper(clock, seconds, updates=1, flops=0):
    def step():
        clock["now"] += seconds
        return updates

    return Contender(version="1", step=step, synchronise=lambda: None, flops=flops, warm_up=1)


@pytest.fixture
def clock(monkeypatch):
    now = {"now": 0.0}
    monkeypatch.setattr(compare.time, "perf_counter", lambda: now["now"])
    monkeypatch.setattr(compare.time, "process_time", lambda: 2 * now["now"])
    return now


def test_figures_of_known_contenders(clock, monkeypatch):
    made = {"ours": sleeper(clock, 0.5, flops=30), "JAX/Flax": sleeper(clock, 4.0, updates=4)}

    def make(name, workload, data):
        if name in ("d3rlpy", "eager"):
            raise RuntimeError("no kernel\nimage")
        if name not in made:
            raise Unavailable("not here")
        return made[name]

    monkeypatch.setattr(compare, "make_contender", make)
    monkeypatch.setattr(compare, "matrix_product", lambda *_: sleeper(clock, 0.25, flops=20))
    kept = []
    names = ["ours", "absent", "d3rlpy", "JAX/Flax"]
    result = compare.compare(SMALL, names, 8.0, 2, keep=lambda found: kept.append(deepcopy(found)))
    assert [len(found["rows"][1]["rounds_per_second"]) for found in kept] == [1, 2]
    assert kept[-1] == result
    with pytest.raises(RuntimeError):  # a fault of ours is one
        compare.compare(SMALL, ["ours", "eager"], 8.0, 2)
    mine, jax = result["rows"]
    assert mine["updates_per_second"] == 2.0
    assert mine["updates_per_cpu_second"] == 1.0
    assert jax["updates_per_second"] == 1.0
    assert (mine["first_over_it"], jax["first_over_it"]) == (1.0, 2.0)
    assert mine["flops_per_second"] == 60.0
    assert mine["peak_flops_per_second"] == 80.0
    assert mine["ratio_to_peak"] == 0.75
    assert jax["flops_per_second"] is None
    assert result["left_out"] == {"absent": "not here", "d3rlpy": "it failed: no kernel"}


@pytest.mark.parametrize("objective", ["implicit", "conservative"])
def test_a_corl_style_update_trains_mlps_of_our_widths(objective):
    workload = replace(SMALL, objective=objective, hidden=(16, 8))
    data = random_transitions(workload, episodes=2, length=5)
    assert make_peer("CORL-style", workload, data).step() == 1
    agent = ours.agent_of(workload, config(workload))
    widths = [p.shape[0] for p in agent.critic.members[0].parameters() if p.ndim == 2]
    assert widths == [16, 8, 1]
    assert ours.make_ours("ours", workload, data).step() == 1


def test_tf32_is_set_for_whom_it_is_and_has_a_peak_of_its_own(monkeypatch):
    used = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", used.append)

    def contender(tf32):
        return Contender(version="", step=lambda: 1, synchronise=lambda: None, flops=1, tf32=tf32)

    monkeypatch.setattr(compare, "make_contender", lambda name, *_: contender(name == "tf32"))
    kinds = []
    monkeypatch.setattr(
        compare, "matrix_product", lambda _, *kind: kinds.append(kind) or contender(kind[1])
    )
    compare.compare(SMALL, ["ours", "tf32"], seconds=1e-6, rounds=2)
    assert sorted(kinds, key=str) == [(torch.float32, False), (torch.float32, True)]
    for turn in (used[:4], used[4:8], used[8:]):  # the warm-up, and two rounds
        assert turn == ["highest", "high", *turn[2:]]
        assert set(turn[2:]) == {"highest", "high"}


def test_who_takes_part():
    assert peers_of(SMALL) == [
        "JAX/Flax",
        "JAX/Flax, scan of 10",
        "JAX/Flax, scan of 10, TF32",
    ]
    assert peers_of(replace(SMALL, objective="implicit")) == []  # nobody else's is a transformer
    mlp = replace(SMALL, objective="implicit", hidden=(8,))
    assert peers_of(mlp) == ["CORL-style", "d3rlpy", "d3rlpy, graph"]
    with pytest.raises(Unavailable, match="no other path"):
        ours.make_ours("plain path", mlp, random_transitions(mlp, 2, 5))
    with pytest.raises(Unavailable, match="tf32"):
        ours.make_ours("tf32", SMALL, random_transitions(SMALL, 2, 5))


def test_many_seeds_count_all_their_updates():
    data = random_transitions(SMALL, episodes=2, length=5)
    assert ours.make_ours("2 seeds", SMALL, data).step() == 2


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="peaks of memory are Linux's")
def test_memory_sees_a_contenders_tensors(monkeypatch):
    held = []

    def make(name, workload, data):
        def step():
            pages = mmap.mmap(-1, 2**26 if workload.batch_size > 2 else 4096)  # no memory kept
            held.append(torch.frombuffer(pages, dtype=torch.uint8).fill_(1))
            return 3

        return Contender(version="1", step=step, synchronise=lambda: None)

    monkeypatch.setattr(compare, "make_contender", make)
    found = memory.measure(SMALL, "any")
    assert 2 * 2**26 <= found <= 2.2 * 2**26


def test_rates_are_written_before_memory_is_measured(tmp_path, monkeypatch):
    file = tmp_path / "bench.json"
    result = {"title": "x", "rows": [{"name": "ours"}]}
    monkeypatch.setattr(compare, "compare", lambda *_: result)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "add_memory", interrupted)
    with pytest.raises(SystemExit):
        main(["bench", "--size", "tiny", "--device", "cpu", "--no-peers", "--out", str(file)])
    assert json.loads(file.read_text())["results"] == [result]


def test_an_earlier_file_outlives_a_full_disk(tmp_path, monkeypatch):
    file = tmp_path / "bench.json"
    file.write_text("figures\n")
    monkeypatch.setattr(compare, "compare", lambda *_: {"title": "x", "rows": []})
    monkeypatch.setattr(files, "flush", raising(OSError(errno.ENOSPC, "no space")))
    with pytest.raises(SystemExit):
        main(["bench", "--size", "tiny", "--device", "cpu", "--no-peers", "--out", str(file)])
    assert file.read_text() == "figures\n"


@pytest.mark.slow
def test_rounds_are_written_when_a_later_one_is_killed(tmp_path, monkeypatch):
    file, flags = tmp_path / "bench.json", ["--size", "tiny", "--device", "cpu", "--no-peers"]
    run_round, rounds = compare.Timing.run_round, []

    def third(timing):
        rounds.append(timing)
        if len(rounds) == 5:  # of two contenders and their products
            raise KeyboardInterrupt
        run_round(timing)

    monkeypatch.setattr(compare.Timing, "run_round", third)
    flags += ["--ways", "ours,plain path", "--batch-size", "4", "--seconds", "0.2", "--rounds", "3"]
    with pytest.raises(SystemExit):
        main(["bench", *flags, "--no-memory", "--out", str(file)])
    (result,) = json.loads(file.read_text())["results"]
    assert [len(row["rounds_per_second"]) for row in result["rows"]] == [1, 1]


def test_a_peer_that_fails_in_a_round_is_left_out(clock, monkeypatch):
    def failing():
        if clock["now"] > 20:
            raise RuntimeError("out of memory")
        clock["now"] += 1
        return 1

    made = {"ours": sleeper(clock, 0.5), "JAX/Flax": replace(sleeper(clock, 1), step=failing)}
    monkeypatch.setattr(compare, "make_contender", lambda name, *_: made[name])
    monkeypatch.setattr(compare, "matrix_product", lambda *_: sleeper(clock, 0.25, flops=20))
    result = compare.compare(SMALL, [*made], 20.0, 4)
    assert result["left_out"] == {"JAX/Flax": "it failed: out of memory"}
    assert [len(row["rounds_per_second"]) for row in result["rows"]] == [4]


def test_the_command_writes_its_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(compare.PEAK_SIDES, "cpu", 256)
    file = tmp_path / "bench.json"
    flags = ["--objective", "implicit", "--size", "tiny", "--batch-size", "4,8", "--rounds", "1"]
    flags += ["--no-memory", "--no-peers"]
    with pytest.raises(SystemExit) as stop:
        main(["bench", *flags, "--seconds", "0.1", "--device", "cpu", "--out", str(file)])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert [r["workload"]["batch_size"] for r in document["results"]] == [4, 8]
    for result in document["results"]:
        assert result["title"] in printed
        assert [row["name"] for row in result["rows"]] == ["ours", "plain path"]
        for row in result["rows"]:
            assert row["updates_per_second"] > 0
            assert row["ratio_to_peak"] > 0
    assert document["device"].startswith("cpu")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--size", "huge"], "there is no size 'huge'; choose of tiny"),
        (["--objective", "flow,sarsa"], "there is no objective 'sarsa'"),
        (["--objective", "pac"], "there is no objective 'pac'; choose of flow, implicit"),
        (["--ways", "fast"], "there is no way 'fast'; choose of ours, plain path"),
        (["--batch-size", "0"], "--batch-size '0' is not of positive numbers"),
        (["--batch-size", "9" * 5000], "99' is not of positive numbers"),
        (["--hidden", "256x"], "--hidden '256x' is not of positive numbers"),
        (["--hidden", "8x8"], "--hidden is for implicit and conservative, not flow"),
        (["--out", "/nowhere/bench.json"], "its folder is not there"),
        (["--device", "tpu"], "there is no device 'tpu'"),
    ],
)
def test_bad_flags_are_one_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"tql-offline: [^\n]*\n", error)
    assert sentence in error


@pytest.mark.parametrize("earlier", [None, "figures\n"])
def test_a_refusal_leaves_the_file_as_it_was(tmp_path, earlier):
    file = tmp_path / "bench.json"
    if earlier:
        file.write_text(earlier)
    with pytest.raises(SystemExit):
        main(["bench", "--size", "huge", "--out", str(file)])
    assert (file.read_text() if file.exists() else None) == earlier


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "compare", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--size", "tiny", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "(Is a directory)" in capsys.readouterr().err


def test_where_nobody_can_take_part_it_is_said_why(tmp_path, capsys):
    flags = ["--ways", "tf32", "--no-peers", "--size", "tiny", "--device", "cpu", "--rounds", "1"]
    with pytest.raises(SystemExit) as end:
        main(["bench", *flags, "--seconds", "0.1", "--out", str(tmp_path / "b.json")])
    assert end.value.code == 0
    assert "tf32 is left out" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "b.json").read_text())["results"]
    assert found["rows"] == []
