"""The learned policy as `policy.onnx`, for programs without PyTorch.

Inputs `observation` `(batch, n_s)`, raw as the environment gives it, and for a stochastic policy
`noise` `(batch, noise_dim)`, standard normal; output `action` `(batch, n_a)` in [-1, 1]; float32.
The graph is `Agent.act` itself, traced: normaliser, flow steps and best-of-n's critic included.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tql_offline.agents import numpy_policy
from tql_offline.errors import InputError
from tql_offline.files import writing
from tql_offline.networks import VelocityField
from tql_offline.sharing.acting import Acting

POLICY = "learned"
TOLERANCE = 1e-5
ROWS = 128
"""Actions computed for the comparison, all samples of best-of-n counted."""

NUDGE, NUDGES = 1e-6, 16
"""A rounding error's relative size, and how many are tried to see whether one moves an action."""

MAX_BYTES = 2**31 - 2**20
"""A Protocol Buffers file holds no more than 2 GiB."""

MAX_FLOW_STEPS = 1000
"""Each is a copy of the network's operations in the graph."""

MEND = "give --no-onnx to export without policy.onnx"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far the actions of `policy.onnx` are from the original's.

    Attributes:
        rows: observations compared; 0 if onnxruntime is not installed.
        difference: the largest difference in any dim of any action.
        ties: rows left out, at which a rounding error moves the original's own action as far, by
            changing the choice between two samples of best-of-n, for instance.
    """

    rows: int
    difference: float = 0.0
    ties: int = 0


def check_onnx() -> None:
    """Check that policies can be written as ONNX.

    Raises:
        InputError: a package is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"policy.onnx needs {' and '.join(missing)}; install them with "
            f"`pip install 'tql-offline[onnx]'`, or {MEND}"
        )


def export_onnx(acting: Acting, flow_steps: int, path: Path) -> Comparison:
    """Write the learned policy and compare its actions with the original's.

    Args:
        acting: the policies, on the CPU.
        flow_steps: steps of the flow, if there is one.
        path: the file.

    Raises:
        InputError: the policy is too large, its actions differ by more than `TOLERANCE`, or the
            file cannot be written.
    """
    size = sum(t.nbytes for n in acting.networks.values() for t in n.state_dict().values())
    if size > MAX_BYTES:
        raise InputError(f"its {size:,} bytes of weights are too many for an ONNX file; {MEND}")
    has_flow = any(isinstance(network, VelocityField) for network in acting.networks.values())
    if has_flow and flow_steps > MAX_FLOW_STEPS:
        raise InputError(f"a flow of {flow_steps} steps makes too large an ONNX graph; {MEND}")
    data = _traced(acting)
    with writing(path):
        path.write_bytes(data)
    return _compare(acting, path)


class _Policy(nn.Module):
    """`Agent.act` as a module of the networks it runs."""

    def __init__(self, acting: Acting) -> None:
        super().__init__()
        self.acting = acting
        self.networks = nn.ModuleDict(dict(acting.networks))

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        agent = self.acting.agent
        if noise is None:
            noise = observation.new_zeros(observation.shape[0], agent.noise_dim(POLICY))
        return agent.act(POLICY, observation, noise).clamp(-1, 1)


def _traced(acting: Acting) -> bytes:
    """The model's bytes: the same for the same weights."""
    dims = [("observation", len(acting.agent.normaliser.mean))]
    dims += [("noise", dim)] if (dim := acting.noise_dims[POLICY]) else []
    batch = torch.export.Dim("batch")
    with _quiet(), torch.no_grad():
        # Traced here: `torch.onnx.export` would fall back to a batch of constant size.
        traced = torch.export.export(
            _Policy(acting).eval(),
            tuple(torch.zeros(2, dim) for _, dim in dims),
            dynamic_shapes={name: {0: batch} for name, _ in dims},
            strict=False,
        )
        program = torch.onnx.export(
            traced,
            input_names=[name for name, _ in dims],
            output_names=["action"],
            dynamic_shapes={name: {0: batch} for name, _ in dims},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _forget_origin(model: Any) -> None:
    """Remove the exporter's notes on the source lines of nodes, which hold a machine's paths."""
    parts = [model, model.graph, *model.functions]
    for holder in (model.graph, *model.functions):
        parts += [*holder.node, *holder.value_info]
    parts += [*model.graph.input, *model.graph.output, *model.graph.initializer]
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's remarks about itself from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # About PyTorch's own use of its pytree module.
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
        # Both inputs share one batch, which has one name.
        warnings.filterwarnings("ignore", r"# The axis name: batch will not be used", UserWarning)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _compare(acting: Acting, path: Path) -> Comparison:
    """Compare a file's actions with the original's, for a single observation and for many.

    Raises:
        InputError: they differ.
    """
    if find_spec("onnxruntime") is None:
        return Comparison(rows=0)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    original = numpy_policy(acting.agent, POLICY, torch.device("cpu"))
    observations, noise = _samples(acting)

    def exported(first: int, last: int) -> NDArray[np.float32]:
        inputs = {"observation": observations[first:last], "noise": noise[first:last]}
        names = [each.name for each in session.get_inputs()]
        actions: NDArray[np.float32] = session.run(None, {name: inputs[name] for name in names})[0]
        return actions

    single, many = exported(0, 1), exported(0, len(observations))
    wanted = original(observations, noise).clip(-1, 1)
    apart = np.abs(np.concatenate([many - wanted, single - wanted[:1]])).max(axis=1)
    apart = np.where(np.isfinite(apart), apart, np.inf)
    far = np.flatnonzero(apart > TOLERANCE) % len(observations)
    ties = [
        row for row in dict.fromkeys(far.tolist()) if _is_tie(original, observations, noise, row)
    ]
    if len(ties) < len(set(far.tolist())) or len(ties) > len(observations) // 4:
        raise InputError(
            f"the actions of policy.onnx differ from the original's by up to {apart.max():.2g} "
            f"where {TOLERANCE:g} is allowed; {MEND}"
        )
    close = apart[apart <= TOLERANCE]
    return Comparison(rows=len(observations), difference=float(close.max()), ties=len(ties))


def _samples(acting: Acting) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Observations drawn from the normaliser's statistics, and noise."""
    generator, normaliser = np.random.default_rng(0), acting.agent.normaliser
    noise_dim = acting.agent.noise_dim(POLICY)
    rows = max(4, ROWS * acting.agent.action_dim // noise_dim)
    standard = generator.standard_normal((rows, len(normaliser.mean)), dtype=np.float32)
    mean, std = (t.numpy().astype(np.float32) for t in (normaliser.mean, normaliser.std))
    observations = mean + std * standard
    return observations, generator.standard_normal((rows, noise_dim), dtype=np.float32)


def _is_tie(original: Any, observations: NDArray[Any], noise: NDArray[Any], row: int) -> bool:
    """Whether a rounding error in its inputs moves the original's own action as far."""
    generator = np.random.default_rng(0)

    def nudged(values: NDArray[Any]) -> NDArray[Any]:
        errors = generator.standard_normal((NUDGES, values.shape[1])) * NUDGE
        errors[0] = 0
        near: NDArray[Any] = (values[row] * (1 + errors)).astype(np.float32)
        return near

    actions = original(nudged(observations), nudged(noise))
    return bool(np.abs(actions - actions[0]).max() > TOLERANCE)
