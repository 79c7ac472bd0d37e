"""Launches of several updates on a machine without a GPU: recorded and replayed as CUDA graphs are.

What a graph replays are operations on fixed memory. All that Python decided while they were
recorded (a number that it read or counted, a branch that it took) is the same in every replay.
"""

import gc
from contextlib import contextmanager

import pytest
import torch
from agent_cases import METHODS
from marks import slowly
from stand_ins import raising
from test_execution import agent_and_buffer, assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tql_offline.errors import InputError
from tql_offline.networks import cpu_kernels
from tql_offline.training.compile import WARM_UP, Graphed, _OneByOne
from tql_offline.training.metrics import MetricsWindow


class Recording(TorchDispatchMode):
    """In place of `torch.cuda.CUDAGraph`, on a CPU, where recording has to run what it records."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.own = [], {}, set()

    def register_generator_state(self, generator):
        self.generator = generator

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "reads a number"
        given = storages((arguments, keywords))
        for key, storage in given.items():
            if key not in self.own and key not in self.before:
                self.before[key] = (storage, storage.clone())
        result = function(*arguments, **(keywords or {}))
        self.own |= storages(result).keys() - self.before.keys()
        self.calls.append((function, arguments, keywords or {}, result))
        return result

    @contextmanager
    def recording(self):
        """Record what runs, and undo it."""
        state = self.generator.get_state()
        with self:
            yield
        self.generator.set_state(state)
        for storage, bytes_ in self.before.values():
            storage.copy_(bytes_)

    @torch.no_grad()
    def replay(self):
        """Run every operation again, its results into the memory that they had."""
        for function, arguments, keywords, result in self.calls:
            again = function(*arguments, **keywords)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def storages(tree):
    """The memory of all tensors in a tree, by its address."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.numel()}


@pytest.fixture(autouse=True)
def recorded_graphs(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "usable", lambda: False)  # these would not be recorded
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_options: graph.recording())
    for name in ("current_stream", "default_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _device: None)


def graphed_of(method, updates):
    """Launches of four updates of a new agent; rates as on a GPU."""
    settings = {"steps": updates, "execution": {"updates_per_launch": 4}}
    agent, buffer = agent_and_buffer(method, **settings)
    for optimizer in agent.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"])
    window, generator = MetricsWindow(), torch.Generator().manual_seed(0)
    return Graphed(agent.config, agent, buffer, generator, window)


def run_all(graphed, updates, *, launches=True):
    step = 0
    while step < updates:
        step += graphed(step + 1, updates - step if launches else 1)
    assert (graphed.graph is not None) == launches


def trained(method, updates, *, launches):
    """Weights, optimizer states and metrics after so many updates."""
    graphed = graphed_of(method, updates)
    run_all(graphed, updates, launches=launches)
    return graphed.agent, graphed.window.flush(), graphed.generator.get_state()


def test_no_garbage_is_collected_while_launches_are_recorded(monkeypatch):
    """A dead run's graph, destroyed meanwhile, would end the recording (pytorch#161037)."""
    seen = []
    real = Graphed._update

    def update(self, step):
        seen.append(gc.isenabled())
        return real(self, step)

    monkeypatch.setattr(Graphed, "_update", update)
    trained("cloning flow", WARM_UP + 4, launches=True)
    assert seen == [True] * WARM_UP + [False] * 4
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("number", "most"),
    [
        (lambda step: step, 2),
        (lambda step: min(1.0, step / 100), 2),
        (lambda step: max(0, step - 6), 7),  # in the recording
        (lambda step: min(step, 0), None),
        (lambda step: step > 0, None),  # set by the first update
    ],
)
def test_a_python_number_that_changes_is_named_where_a_launch_would_repeat_it(number, most):
    graphed = graphed_of("cloning flow", 16)
    agent, done, real = graphed.agent, [], graphed.agent.update
    agent.beta = number(0)

    def update(batch, generator, step):
        agent.beta = number(step)
        done.append(step)
        return real(batch, generator, step)

    agent.update = update
    if most is None:
        run_all(graphed, 16)
        return
    with pytest.raises(
        InputError, match=r"^\w+\.beta is a Python number .* and execution\.compile"
    ):
        run_all(graphed, 16)
    assert done[-1] == most


def test_what_a_recording_cannot_hold_is_a_sentence(monkeypatch):
    graphed, recording = graphed_of("cloning flow", WARM_UP + 4), []

    @contextmanager
    def broken(_graph, **_options):
        recording.append(True)
        try:
            yield
        finally:
            raise RuntimeError("capture was invalidated")

    monkeypatch.setattr(torch.cuda, "graph", broken)
    real = graphed.agent.update

    def update(*arguments):
        if recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        return real(*arguments)

    graphed.agent.update = update
    with pytest.raises(InputError, match=r"\(operation not permitted .*updates_per_launch to 0$"):
        run_all(graphed, WARM_UP + 4)


@pytest.mark.parametrize("kind", [_OneByOne, Graphed])
def test_losses_compiled_anew_at_every_update_are_a_sentence(kind):
    graphed = graphed_of("cloning flow", 4)
    graphed.__class__ = kind

    graphed.agent.update = raising(type("FailOnRecompileLimitHit", (Exception,), {})())
    with pytest.raises(InputError, match="were compiled 64 times"):
        graphed(1, 1)


def test_all_updates_between_lines_but_a_rest_are_launched():
    """64 a launch and a line each 100: two launches of 50, not one and 36 updates one by one."""
    graphed = graphed_of("cloning flow", 200)
    graphed.count, done, step = 4, [], 0
    while step < 20:
        done.append(graphed(step + 1, min(5 - step % 5, 20 - step)))
        step += done[-1]
    assert done == [1, 1, 1, 1, 1, 4, 1, 4, 1, 4, 1]


# What it does is done by its variants, in one or the other.
@pytest.mark.parametrize("method", [slowly(m) if m == "conservative" else m for m in METHODS])
def test_replayed_updates_are_the_updates_one_by_one(method):
    """Two launches of four between single ones, the first of them while it warms up."""
    updates = WARM_UP + 1 + 4 + 4 + 1
    want, metrics, state = trained(method, updates, launches=False)
    have, launched, drawn = trained(method, updates, launches=True)
    assert_close(launched, metrics, rtol=1e-5)  # sums of sums
    assert torch.equal(drawn, state)
    for name, network in want.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(have.networks[name].state_dict()[key], value), (name, key)
