"""How updates are run: the only place for torch.compile, CUDA graphs and precision.

An update takes tensors and returns tensors, without looking at a value, so it can be run in three
ways that differ only in speed and rounding:

    eager      operation by operation; what a CPU does best (docs/speed.md)
    compiled   losses and their backward passes through torch.compile
    graphed    on a GPU: K whole updates (sampling, losses, optimizers, target networks, learning
               rates) captured once as a CUDA graph and launched as one

What cannot be compiled runs the slower way, and a note says why.
"""

import gc
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from tql_offline import native
from tql_offline.agents import Agent
from tql_offline.agents.optimizers import learning_rate, set_learning_rate
from tql_offline.batch import Batch
from tql_offline.config import Config, Schedule
from tql_offline.datasets.buffer import Buffer
from tql_offline.errors import InputError, first_line
from tql_offline.networks import attention, cpu_kernels, kernels
from tql_offline.training.memory import keep_freed_memory
from tql_offline.training.metrics import MetricsWindow

RECOMPILES = 64
WARM_UP = 3
"""Updates before a capture: libraries pick their kernels and workspaces in the first ones."""


Updates = Callable[[int, int], int]
"""Runs update `step` (from 1) of one agent and perhaps some after it, `most` in all.

Takes `step` and `most`, adds metrics to a window, and returns how many updates were run.
"""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run's updates are run, for its provenance.

    Attributes:
        mode: eager or compiled; with `graphed`, many updates to a launch.
        precision: float32, tf32 or bfloat16.
        compile_seconds: seconds spent compiling or reading what an earlier run compiled; 0 if
            eager.
        reason: why it is not the requested mode; empty if it is.
        c_kernels: whether passes on a CPU use the kernels of networks/cpu_kernels.c.
    """

    mode: str
    precision: str
    compile_seconds: float = 0.0
    reason: str = ""
    c_kernels: bool = False


def check_execution(config: Config, device: torch.device) -> None:
    """Refuse what can be refused before data are loaded.

    Raises:
        InputError: TF32, which only GPUs have, is requested on a CPU, or bfloat16 on a CPU without
            it.
    """
    if (
        config.execution.precision == "bfloat16"
        and device.type == "cpu"
        and not _has_bfloat16_products()
    ):
        raise InputError(
            "precision bfloat16 would be hundreds of times slower than float32 on this CPU, which "
            "has no products of it that PyTorch uses; set execution.precision to float32"
        )
    if config.execution.precision == "tf32" and device.type != "cuda":
        raise InputError(
            "precision tf32 is a mode of NVIDIA GPUs and training is on a CPU; "
            "set execution.precision to float32 or bfloat16"
        )


def _has_bfloat16_products() -> bool:
    # PyTorch has no public name for it, and on macOS no such operation.
    is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return bool(is_supported())


def prepare(
    config: Config,
    agent: Agent,
    buffer: Buffer,
    generator: torch.Generator,
    window: MetricsWindow,
) -> tuple[Updates, Execution]:
    """Set up a run's updates as its settings ask.

    Args:
        config: `execution` says how; `auto` compiles on a GPU.
        agent: its losses are replaced by ones in the requested precision, perhaps compiled.
        buffer: where batches come from.
        generator: draws batches and noise.
        window: where metrics go.
    """
    settings, on_gpu = config.execution, generator.device.type == "cuda"
    if not on_gpu:
        keep_freed_memory()
    set_precision(agent, settings.precision, generator.device.type)
    mode, seconds, reason = "eager", 0.0, ""
    if settings.compile == "on" or (settings.compile == "auto" and on_gpu):
        seconds, reason = compile_losses(agent, buffer, config.batch_size)
        if reason and on_gpu and attention.triton_enabled:
            # A kernel of ours that this GPU cannot launch must not cost the rest.
            attention.triton_enabled = False
            more, again = compile_losses(agent, buffer, config.batch_size)
            seconds, reason, attention.triton_enabled = seconds + more, again, bool(again)
        mode = "eager" if reason else "compiled"
    if on_gpu and mode == "eager" and attention.triton_enabled:
        _try_triton(agent, buffer, config.batch_size)
    one = _OneByOne(config, agent, buffer, generator, window)
    updates: Updates = one
    if on_gpu and settings.updates_per_launch and settings.data == "device":
        mode = f"{mode}, graphed"
        updates = Graphed(config, agent, buffer, generator, window)
    return updates, Execution(
        mode=mode,
        precision=settings.precision,
        compile_seconds=seconds,
        reason=reason,
        c_kernels=wants_c_kernels(generator.device, mode, settings.precision)
        and kernels.enabled
        and cpu_kernels.usable(),
    )


def wants_c_kernels(device: torch.device, mode: str, precision: str) -> bool:
    """Whether updates that run this way would use the C kernels, if available."""
    return (device.type, mode, precision) == ("cpu", "eager", "float32")


# Precision.


def set_precision(agent: Agent, precision: str, device_type: str) -> None:
    """Have an agent's losses computed in a precision; weights and optimizers stay float32.

    `bfloat16` means autocast: matrix products are in bfloat16; the networks' results, and with them
    targets, entropies and losses, are in float32.
    """
    set_matrix_precision(precision)
    if precision != "bfloat16":
        return
    for name in agent.losses:
        setattr(agent, name, _autocast(getattr(agent, name), device_type))


def set_matrix_precision(precision: str) -> None:
    """Set whether this process computes float32 matrix products in TF32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def _autocast(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    @wraps(function)
    def in_bfloat16(*arguments: Any) -> Any:
        # Without its cache, whose casts have no history where a network was used without gradients
        # before: until PyTorch 2.12 it would silently get none afterwards (pytorch#165068).
        with torch.autocast(device_type, torch.bfloat16, cache_enabled=False):
            return function(*arguments)

    return in_bfloat16


# Compilation.


def compile_losses(
    agent: Agent, buffer: Buffer, batch_size: int, backend: str = "inductor"
) -> tuple[float, str]:
    """Compile an agent's losses, forward and backward, for one batch size.

    What is compiled is kept on disk, where the next run with the same shapes reads it.

    Returns:
        The seconds it took, and why it failed (the losses are then unchanged), or "".
    """
    plain = {name: getattr(agent, name) for name in agent.losses}
    started = time.perf_counter()
    try:
        folder = native.compiled_folder()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
        # Per function in one process; a bench of all sizes needs more than the default of 8.
        torch._dynamo.config.cache_size_limit = RECOMPILES  # its only name in 2.6
        for name, loss in plain.items():
            setattr(
                agent, name, torch.compile(loss, fullgraph=True, dynamic=False, backend=backend)
            )
        with warnings.catch_warnings():
            # Not using TF32 for float32 is deliberate.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            # PyTorch's compiler still calls functions that PyTorch has deprecated.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            _try_losses(agent, buffer, batch_size)
    except Exception as error:  # anything that a compiler or its tool chain raises
        for name, loss in plain.items():
            setattr(agent, name, loss)
        return time.perf_counter() - started, f"torch.compile failed: {_first_line(error)}"
    return time.perf_counter() - started, ""


def _try_losses(agent: Agent, buffer: Buffer, batch_size: int) -> None:
    """Run both passes of the losses once, changing no weights and no random state of the run."""
    device = buffer.device
    index = torch.arange(batch_size, device=device) % buffer.num_transitions
    batch = buffer.take(index)
    noise = agent.draw_noise(batch.actions, torch.Generator(device).manual_seed(0))
    for name in agent.losses:
        getattr(agent, name)(batch, noise)[0].backward()
    for network in agent.networks.values():
        network.zero_grad()


def _try_triton(agent: Agent, buffer: Buffer, batch_size: int) -> None:
    """Disable the attention kernel if Triton cannot build it; it, too, needs a C compiler."""
    try:
        _try_losses(agent, buffer, batch_size)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # anything that Triton or its tool chain raises
        attention.triton_enabled = False


def _first_line(error: BaseException) -> str:
    """The root cause of a compiler's chain of errors, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.endswith(" raised:")]
    return f"{type(error).__name__}: {told[0] if told else ''}"


# Running.


@dataclass
class _OneByOne:
    """Runs one update at a time, with the learning-rate schedule in Python."""

    config: Config
    agent: Agent
    buffer: Buffer
    generator: torch.Generator
    window: MetricsWindow

    def __call__(self, step: int, most: int) -> int:
        """Run one update."""
        del most
        warmup, schedule = self.config.optimizer.warmup, self.config.optimizer.schedule
        course = (step - 1, warmup, self.config.schedule_steps, schedule)
        set_learning_rate(self.agent.optimizers, self.agent.learning_rates, *course)
        self.window.add(self._updated(step))
        return 1

    def _updated(self, step: int) -> dict[str, Tensor]:
        """The metrics of one update of the agent.

        Raises:
            InputError: its losses are compiled anew at every update.
        """
        try:
            return self.agent.update(self._sample(step), self.generator, step)
        except Exception as error:
            if "RecompileLimit" not in type(error).__name__:  # its name goes by the release
                raise
            raise InputError(
                f"the losses of {type(self.agent).__name__} were compiled {RECOMPILES} times, as "
                "they read a Python value that changes from update to update; keep it in a tensor "
                "that is changed in place, or set execution.compile to off"
            ) from error

    def _sample(self, step: int) -> Batch:
        size, seed = self.config.batch_size, self.config.seed
        if self.config.execution.data == "host":
            return self.buffer.sample_on_host(size, seed, step)
        return self.buffer.sample(size, self.generator)


@dataclass
class Graphed(_OneByOne):
    """Runs K updates per launch as one CUDA graph; single ones where fewer are asked for.

    The position in the schedule lives on the device, so that a launch needs nothing from the host.

    Raises:
        InputError: the agent has a Python number that changes from update to update, which would be
            the same in every launch.
    """

    def __post_init__(self) -> None:
        delay, device = self.agent.policy_delay, self.generator.device
        most = updates_of_a_launch(self.config)
        self.count = max(delay, most // delay * delay)
        self.rates = rate_table(self.config, self.agent).to(device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.warm = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream: torch.cuda.Stream | None = None
        self.captured = MetricsWindow()

    def __call__(self, step: int, most: int) -> int:
        """Launch K updates if as many are wanted and their pattern begins at `step`, or run one."""
        self.position.fill_(step - 1)
        if most < self.count or (step - 1) % self.agent.policy_delay or self.warm < WARM_UP:
            self.warm += 1
            self.window.add(self._update(step))
            return 1
        if self.graph is None:
            self.graph = self._capture(step)
        self.graph.replay()
        self.window.merge(self.captured)
        return self.count

    def _update(self, step: int) -> dict[str, Tensor]:
        before = python_numbers(self.agent)
        rates = self.rates.index_select(0, self.position)[0]
        for rate, optimizer in zip(rates, self.agent.optimizers.values(), strict=True):
            for group in optimizer.param_groups:
                group["lr"].copy_(rate)
        self.position.add_(1)
        metrics = self._updated(step)
        # The first ones may set what stays. The next mostly tell, before a recording fails because
        # the losses would be compiled anew in it.
        if self.warm > self.agent.policy_delay and (changed := changed_numbers(self.agent, before)):
            raise InputError(
                f"{changed[0]} is a Python number that changes from update to update, which a CUDA "
                "graph does not see; keep it in a tensor that is changed in place, or set "
                "execution.updates_per_launch to 0 and execution.compile to off"
            )
        return metrics

    def _capture(self, step: int) -> torch.cuda.CUDAGraph:
        """Record K updates; recording runs none of them.

        Raises:
            InputError: they do what a recording cannot hold, as reading a number on the host.
        """
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        # On a stream of its own: graphs of one stream share a workspace for products, which goes
        # with the first of them, and several are launched at once (pytorch#193402).
        here = torch.cuda.current_stream(self.generator.device)
        shared = here == torch.cuda.default_stream(self.generator.device)
        self.stream = torch.cuda.Stream(self.generator.device) if shared else here
        # Another thread may score policies meanwhile, which must not break the recording.
        recording = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
        try:
            with _no_collection(), recording:
                for offset in range(self.count):
                    self.captured.add(self._update(step + offset))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # after it, CUDA cannot go on in this process
            raise InputError(
                f"updates of {type(self.agent).__name__} cannot be recorded as a CUDA graph "
                f"({first_line(error.__context__ or error)}); keep the host from reading tensors "
                "in them, or set execution.updates_per_launch to 0"
            ) from error
        return graph


def python_numbers(agent: Agent) -> dict[str, Real]:
    """An agent's attributes that are Python's numbers, which no checkpoint and no graph holds."""
    return {name: value for name, value in vars(agent).items() if isinstance(value, Real)}


def changed_numbers(agent: Agent, before: dict[str, Real]) -> list[str]:
    """Which of an agent's numbers are others than before, as `Class.attribute`."""
    changed = before.items() - python_numbers(agent).items()
    return sorted(f"{type(agent).__name__}.{name}" for name, _ in changed)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage first and not meanwhile: a dead run's graph, destroyed, ends a recording."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def updates_of_a_launch(config: Config) -> int:
    """Updates per launch: at most as configured, and such that launches fill what lies between.

    That is what lies between two log or checkpoint steps; the rest of it runs one by one.
    """
    every = min(config.log_every, config.checkpoint_every)
    return every // math.ceil(every / config.execution.updates_per_launch)


def rate_table(config: Config, agent: Agent) -> Tensor:
    """Learning rates of every update `(steps, optimizers)`, in the optimizers' order."""
    peaks = [agent.learning_rates[name] for name in agent.optimizers]
    warmup, schedule = config.optimizer.warmup, config.optimizer.schedule
    shares = _shares(config.steps, warmup, config.schedule_steps, schedule)
    shape = torch.tensor(shares, dtype=torch.float64)
    return shape.outer(torch.tensor(peaks, dtype=torch.float64)).float()


@lru_cache(maxsize=1)
def _shares(updates: int, warmup: int, steps: int, schedule: Schedule) -> list[float]:
    """Each update's share of the peak; the seeds of one run have the same."""
    return [learning_rate(step, 1.0, warmup, steps, schedule) for step in range(updates)]
