"""How updates are run changes speed and rounding alone; several seeds are each their own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agent_cases import build
from torch.utils._python_dispatch import TorchDispatchMode

from tql_offline.config import resolve
from tql_offline.datasets.buffer import Buffer, make_buffer
from tql_offline.datasets.episodes import Episodes
from tql_offline.errors import InputError
from tql_offline.files import read_json, read_jsonl
from tql_offline.networks import attention, cpu_kernels
from tql_offline.runs import RunFolder
from tql_offline.training import compile as execution
from tql_offline.training import evaluation
from tql_offline.training import run as runs
from tql_offline.training.arithmetic import flops_per_update
from tql_offline.training.loop import next_event
from tql_offline.training.metrics import MetricsWindow
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.resume import resume
from tql_offline.training.run import run, run_seeds

pytestmark = pytest.mark.usefixtures("short_protocols")

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
SETTINGS = {
    "critic": {"size": "tiny"},
    "flow": {"hidden": [16, 16], "flow_steps": 2},
    "steps": 12,
    "batch_size": 16,
    "log_every": 5,
    "checkpoint_every": 7,
    "evaluation": {"processes": 1},
    "dataset": {"name": TASK},
}
CPU = torch.device("cpu")
ONE_EACH = ("flow", "implicit awr", "conservative", "rebrac", "cloning flow")
TRACED = ("cloning flow", *(pytest.param(m, marks=pytest.mark.slow) for m in ONE_EACH[:-1]))
"""Tracing a critic takes half a minute."""


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Seeds 0, 1 and 2, each trained by itself."""
    folder = tmp_path_factory.mktemp("alone")
    return [train(data, folder, seed=seed) for seed in range(3)]


def settings(**over):
    evaluation = SETTINGS["evaluation"] | over.pop("evaluation", {})
    return resolve(SETTINGS | over | {"evaluation": evaluation})


def train(data, folder, **over):
    return run(settings(**over), data, folder, "", SilentReporter())


def numbers(folder):
    """Every byte of metrics, evaluations and last checkpoint."""
    files = [folder.metrics, folder.evaluations, *sorted((folder.checkpoints / "12").iterdir())]
    return {file.name: file.read_bytes() for file in files}


def test_seeds_at_once_are_each_what_it_is_alone(data, alone, tmp_path):
    started = time.perf_counter()
    folders = run_seeds(settings(), (0, 1, 2), data, tmp_path, "", SilentReporter())
    passed = time.perf_counter() - started
    spent = [line["seconds"] for folder in folders for line in read_jsonl(folder.timing)]
    assert sum(spent) < passed  # each seed's own time, though they took turns
    for one, other in zip(alone, folders, strict=True):
        assert numbers(one) == numbers(other)
        assert one.config.read_bytes() == other.config.read_bytes()
        assert read_json(other.result)["seed"] == read_json(one.result)["seed"]
    assert numbers(folders[0]) != numbers(folders[1])


def test_seeds_share_one_copy_of_the_data(data, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "tql_offline.training.setup.make_buffer",
        lambda *a, **k: made.append(make_buffer(*a, **k)) or made[-1],
    )
    run_seeds(settings(steps=1), (0, 1), data, tmp_path, "mine", SilentReporter())
    assert len(made) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"mine-s0", "mine-s1"}


def test_a_seed_that_diverges_does_not_stop_the_others(data, alone, tmp_path, monkeypatch):
    class Spoilt(execution._OneByOne):
        def __call__(self, step, most):
            if self.config.seed == 1 and step == 6:
                next(iter(self.agent.networks["critic"].parameters())).data.fill_(float("nan"))
            return super().__call__(step, most)

    monkeypatch.setattr(execution, "_OneByOne", Spoilt)
    with pytest.raises(InputError, match="became nan"):
        run_seeds(settings(), (0, 1, 2), data, tmp_path, "mine", SilentReporter())
    for seed in (0, 2):
        assert numbers(RunFolder(tmp_path / f"mine-s{seed}")) == numbers(alone[seed])
        assert (tmp_path / f"mine-s{seed}" / "result.json").is_file()
    assert not (tmp_path / "mine-s1" / "result.json").exists()


class StopAt(SilentReporter):
    """Ctrl-C while a seed is at a step."""

    def __init__(self, step):
        self.left = step

    def advanced(self, step, title="training"):
        if title.endswith("training") and step == self.left:
            self.left = None
            os.kill(os.getpid(), signal.SIGINT)


def test_seeds_that_were_stopped_go_on_one_by_one(data, alone, tmp_path):
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_seeds(settings(), (0, 1, 2), data, tmp_path, "mine", StopAt(8))
    assert all(f"mine-s{seed}" in stopped.value.__notes__[0] for seed in range(3))
    for seed in range(3):
        folder = resume(tmp_path / f"mine-s{seed}", lambda _config: data, SilentReporter())
        assert numbers(folder) == numbers(alone[seed])


@pytest.mark.parametrize("objective", ["flow", pytest.param("implicit", marks=pytest.mark.slow)])
def test_scoring_beside_training_changes_no_number(data, tmp_path, objective):
    """Also for best-of-n, which asks the critic."""
    over = {"objective": objective, "implicit": {"extraction": "best-of-n", "samples": 4}}
    plain = train(data, tmp_path / "plain", **over)
    beside = train(data, tmp_path / "beside", **over, evaluation={"overlap": "on"})
    assert numbers(plain) == numbers(beside)


def test_scoring_beside_training_is_of_the_weights_of_its_step(data, tmp_path, monkeypatch):
    """Training runs to its end before the first episode is played."""
    trained, real = threading.Event(), evaluation.Evaluator.score
    plain = train(data, tmp_path / "plain")

    def late(self, *arguments):
        assert trained.wait(60)
        real(self, *arguments)

    class Reporter(SilentReporter):
        def advanced(self, step, title="training"):
            if title == "training" and step == 5:  # the next evaluation waits for this one
                trained.set()

    monkeypatch.setattr(evaluation.Evaluator, "score", late)
    config = settings(evaluation={"overlap": "on"})
    beside = run(config, data, tmp_path / "beside", "", Reporter())
    assert numbers(plain) == numbers(beside)


def test_a_score_that_a_stop_cut_off_is_made_of_its_own_checkpoint(data, alone, tmp_path):
    """Killed with the scores of steps 3 and 6 not written, at a checkpoint of step 7."""
    config = settings(evaluation={"overlap": "on"})
    folder = run(config, data, tmp_path, "mine", SilentReporter())
    for file in (folder.result, *(folder.checkpoints / "9").iterdir()):
        file.unlink()
    for file in (folder.checkpoints / "12").iterdir():
        file.unlink()
    folder.evaluations.write_text("")
    resumed = resume(folder.path, lambda _config: data, SilentReporter())
    assert numbers(resumed) == numbers(alone[0])


def test_a_failing_score_beside_training_ends_the_run(data, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise InputError("the environment fell over")

    monkeypatch.setattr(evaluation, "evaluate", fail)
    with pytest.raises(InputError, match="fell over"):
        train(data, tmp_path, evaluation={"overlap": "on"})


# Memory, compilation and precision.


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_an_updates_memory_is_not_taken_anew_by_the_next_one():
    """In a process of its own, as it holds for the process: page faults of 64 MiB, ten times."""
    script = """
import resource, sys, torch
from tql_offline.training.memory import keep_freed_memory
told = sys.argv[1] == "kept" and keep_freed_memory()
for turn in range(20):
    torch.ones(2**24)
    if turn == 9:  # the first ones find the heap without a block of that size
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for way in ("kept", "given back"):
        done = subprocess.run(
            [sys.executable, "-c", script, way], capture_output=True, text=True, check=True
        )
        told, faults[way] = map(int, done.stdout.split())
        if way == "kept" and not told:
            pytest.skip("another C library")
    assert faults["kept"] < 1000
    assert faults["given back"] > 2 * faults["kept"]


def agent_and_buffer(method="flow", **over):
    rng = np.random.default_rng(0)
    episodes = Episodes(
        observations=rng.standard_normal((42, 3), dtype=np.float32),
        actions=rng.uniform(-0.9, 0.9, (40, 2)).astype(np.float32),
        rewards=-np.ones(40, dtype=np.float32),
        masks=np.ones(40, dtype=np.float32),
        lengths=np.array([20, 20]),
    )
    buffer = make_buffer(episodes, n_step=1, discount=0.9, device=CPU)
    small = {"flow": {"hidden": [16, 16], "flow_steps": 2}, "batch_size": 16}
    return build(method, **small | over), buffer


def three_updates(agent, buffer):
    window, generator = MetricsWindow(), torch.Generator().manual_seed(0)
    one = execution._OneByOne(agent.config, agent, buffer, generator, window)
    for step in (1, 2, 3):
        assert one(step, 1) == 1
    return window.flush()


def test_every_update_on_data_in_main_memory_draws_a_batch_of_its_own(monkeypatch):
    agent, buffer = agent_and_buffer(seed=5, execution={"data": "host"})
    real, seen = Buffer.sample_on_host, []

    def sample(self, size, *seeds):
        seen.append((size, *seeds))
        return real(self, size, *seeds)

    monkeypatch.setattr(Buffer, "sample_on_host", sample)
    three_updates(agent, buffer)
    assert seen == [(16, 5, step) for step in (1, 2, 3)]


@pytest.mark.parametrize("method", TRACED)
def test_compiled_losses_are_whole_graphs_of_the_same_numbers(method):
    """Captured with their backward passes, run operation by operation: without a C++ compiler."""
    want = three_updates(*agent_and_buffer(method))
    agent, buffer = agent_and_buffer(method)
    seconds, reason = execution.compile_losses(agent, buffer, 16, backend="aot_eager")
    assert (seconds > 0, reason) == (True, "")
    assert_close(three_updates(agent, buffer), want, rtol=1e-4)


def assert_close(have, want, rtol):
    assert have.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, rtol=rtol, atol=1e-5, err_msg=name)


def test_what_cannot_be_compiled_runs_eagerly_and_says_why(monkeypatch):
    want = three_updates(*agent_and_buffer())
    agent, buffer = agent_and_buffer()

    def broken(*_arguments):
        raise RuntimeError("no compiler\nat all")

    _, reason = execution.compile_losses(agent, buffer, 16, backend=broken)
    assert "torch.compile failed" in reason
    assert three_updates(agent, buffer) == want


def test_losses_that_are_compiled_anew_at_every_update_are_named(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "cache_size_limit", 2)
    agent, buffer = agent_and_buffer()
    agent.calls = 0

    def loss(x):
        agent.calls += 1
        return agent.calls * x

    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="eager")
    agent.update = lambda *_: {"loss": compiled(torch.ones(()))}
    with pytest.raises(
        InputError, match=r"^the losses of FlowQ were compiled .* execution\.compile"
    ):
        three_updates(agent, buffer)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flow", "implicit awr"])
def test_eager_equals_compiled(method):
    """By Inductor's C++: minutes the first time, then from its cache."""
    want = three_updates(*agent_and_buffer(method))
    agent, buffer = agent_and_buffer(method)
    assert execution.compile_losses(agent, buffer, 16)[1] == ""
    assert_close(three_updates(agent, buffer), want, rtol=1e-3)


@pytest.mark.parametrize("method", ONE_EACH)
def test_bfloat16_keeps_weights_targets_entropies_and_losses_in_float32(method):
    want = three_updates(*agent_and_buffer(method))
    agent, buffer = agent_and_buffer(method)
    execution.set_precision(agent, "bfloat16", "cpu")
    dtypes = set()

    def note(function):
        def noting(*arguments):
            loss, metrics = function(*arguments)
            dtypes.update(value.dtype for value in (loss, *metrics.values()))
            return loss, metrics

        return noting

    for name in agent.losses:
        setattr(agent, name, note(getattr(agent, name)))
    have = three_updates(agent, buffer)
    assert dtypes == {torch.float32}
    weights = {p.dtype for network in agent.networks.values() for p in network.parameters()}
    assert weights == {torch.float32}
    assert have != want  # it does compute in another precision
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, rtol=0.1, atol=0.05, err_msg=name)


def test_bfloat16_casts_weights_anew_where_no_gradients_were_wanted_before():
    """In older releases of PyTorch the cast that is kept has no history."""
    weight = torch.ones(2, 2, requires_grad=True)
    casts = []

    class Agent:
        losses = ("loss",)

        def loss(self):
            with torch.no_grad():
                weight @ weight
            casts.append(torch.is_autocast_cache_enabled())
            return (weight @ weight).sum()

    agent = Agent()
    execution.set_precision(agent, "bfloat16", "cpu")
    agent.loss().backward()
    assert casts == [False]
    assert weight.grad is not None


@pytest.mark.parametrize(
    "how", [{"precision": "bfloat16"}, {"compile": "on"}], ids=["bfloat16", "compiled"]
)
def test_a_run_whose_losses_were_replaced_trains_and_counts_its_arithmetic(
    how, data, alone, tmp_path, monkeypatch
):
    """What is counted is the method's arithmetic, however it is run."""
    for module in ("new_run", "resume"):  # on a CPU without bfloat16, too
        monkeypatch.setattr(f"tql_offline.training.{module}.check_execution", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda loss, **_: lambda *arguments: loss(*arguments))
    folder = train(data, tmp_path, execution=how)
    recorded = json.loads(folder.provenance.read_text())
    assert recorded["execution"]["mode"] == ("compiled" if "compile" in how else "eager")
    counted = json.loads(alone[0].provenance.read_text())["flops_per_update"]
    assert recorded["flops_per_update"] == counted
    assert read_json(folder.result)["updates"] == 12


def test_bfloat16_is_refused_on_a_cpu_without_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(InputError, match=r"bfloat16.*slower.*float32"):
        train(data, tmp_path, device="cpu", execution={"precision": "bfloat16"})


def test_bfloat16_is_refused_where_pytorch_cannot_tell_of_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())  # as on macOS
    with pytest.raises(InputError, match=r"bfloat16.*slower.*float32"):
        train(data, tmp_path, device="cpu", execution={"precision": "bfloat16"})


def test_tf32_is_refused_on_a_cpu(data, tmp_path):
    with pytest.raises(InputError, match=r"tf32.*float32"):
        train(data, tmp_path, device="cpu", execution={"precision": "tf32"})
    assert not list(tmp_path.iterdir())


def test_the_seconds_of_updates_end_when_the_device_has_done_them(data, tmp_path, monkeypatch):
    """On a GPU a launch returns at once, and what waits for it is the reading of the metrics."""
    real, waited = MetricsWindow.flush, [0.0]

    def waiting(window):
        waited[0] += 1000
        return real(window)

    clocked = partial(runs.Training, clock=lambda: time.perf_counter() + waited[0])
    monkeypatch.setattr(runs, "Training", clocked)
    monkeypatch.setattr(MetricsWindow, "flush", waiting)
    folder = train(data, tmp_path)
    assert all(1000 < line["seconds"] < 2000 for line in read_jsonl(folder.timing))


@pytest.mark.parametrize(
    ("log_every", "wanted", "most"), [(100, 10, 10), (100, 64, 50), (15, 10, 7), (1000, 300, 250)]
)
def test_launches_fill_what_lies_between_two_lines(log_every, wanted, most):
    launch = {"updates_per_launch": wanted}
    config = settings(log_every=log_every, checkpoint_every=10_000, execution=launch)
    assert execution.updates_of_a_launch(config) == most


def test_a_launch_is_no_longer_than_what_lies_between_two_lines():
    config = settings(log_every=5, checkpoint_every=7, execution={"updates_per_launch": 200})
    assert execution.updates_of_a_launch(config) == 5
    config = settings(log_every=50, checkpoint_every=70, execution={"updates_per_launch": 10})
    assert execution.updates_of_a_launch(config) == 10


def test_kernels_in_c_are_for_eager_float32_on_a_cpu():
    wants = execution.wants_c_kernels
    assert wants(CPU, "eager", "float32")
    assert not wants(CPU, "compiled", "float32")
    assert not wants(CPU, "eager", "bfloat16")
    assert not wants(torch.device("cuda"), "eager", "float32")


def test_without_triton_attention_is_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(attention, "triton_enabled", True)
    agent, buffer = agent_and_buffer()
    execution._try_triton(agent, buffer, 16)
    assert attention.triton_enabled

    def no_compiler(*_):
        raise RuntimeError("Failed to find C compiler")

    agent.critic_loss = no_compiler
    execution._try_triton(agent, buffer, 16)
    assert not attention.triton_enabled


class Accelerator:
    """A machine with a GPU, whose optimizers look at it before each step."""

    type = "cuda"
    is_available = staticmethod(lambda: True)
    current_accelerator = staticmethod(lambda **_: Accelerator)
    current_stream = staticmethod(lambda: Accelerator)
    is_capturing = staticmethod(lambda: False)


def test_arithmetic_is_counted_without_a_warning_where_a_gpu_is(monkeypatch):
    monkeypatch.setattr(torch, "accelerator", Accelerator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert flops_per_update(settings(batch_size=3), 3, 2) > 0


class CountSyncs(TorchDispatchMode):
    """Counts the operations that make a host wait for a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "_to_copy", "equal", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name in self.WAITING and not (name == "_to_copy" and _stays(keywords or {})):
            self.seen.append(name)
        return function(*arguments, **(keywords or {}))


def _stays(keywords):
    return keywords.get("device") is None


@pytest.mark.parametrize("method", ONE_EACH)
def test_no_update_waits_for_the_device(method):
    agent, buffer = agent_and_buffer(method)
    window, generator = MetricsWindow(), torch.Generator().manual_seed(0)
    one = execution._OneByOne(agent.config, agent, buffer, generator, window)
    with CountSyncs() as syncs:
        for step in range(1, 5):
            one(step, 1)
        assert syncs.seen == []
        window.flush()
        assert set(syncs.seen) <= {"_local_scalar_dense"}


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_schedule_on_the_device_is_that_of_the_host(schedule):
    agent, _ = agent_and_buffer()
    optimizer = agent.config.optimizer.model_copy(update={"schedule": schedule})
    config = agent.config.model_copy(update={"steps": 300, "optimizer": optimizer})
    table = execution.rate_table(config, agent)
    assert table.shape == (300, 2)
    for step in (0, 10, 29, 30, 150, 299):
        execution.set_learning_rate(
            agent.optimizers, agent.learning_rates, step, optimizer.warmup, 300, schedule
        )
        rates = [o.param_groups[0]["lr"] for o in agent.optimizers.values()]
        np.testing.assert_allclose(table[step], rates, rtol=1e-6)
    assert (table[299] == table[30]).all() == (schedule == "constant")


def test_a_launch_ends_where_there_is_more_to_do():
    class Training:
        config = settings(steps=23)
        evaluation_steps = frozenset({11, 23})

    stops, step = [], 0
    while step < 23:
        step = next_event(Training, step)
        stops.append(step)
    assert stops == [5, 7, 10, 11, 14, 15, 20, 21, 23]


def test_the_way_updates_are_run_is_recorded(alone):
    recorded = json.loads(alone[0].provenance.read_text())["execution"]
    want = {"mode": "eager", "precision": "float32", "compile_seconds": 0.0, "reason": ""}
    assert recorded == want | {"c_kernels": cpu_kernels.usable()}
