"""Findings of `inspect` on a run, as read from its inspect.json (docs/inspect.md).

A report reads the numbers and draws them anew: no image from a foreign folder gets into the page.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_offline.documents import is_whole
from tql_offline.errors import InputError
from tql_offline.files import read_json

SCHEMA = "tql-offline/inspect/1"
DOCUMENT = "inspect.json"

MAX_DOCUMENT_BYTES = 32 * 2**20
"""Largest document that `inspect` writes and that is read."""

MAX_STATES, MAX_LAYERS, MAX_TOKENS, MAX_GRID = 64, 32, 1024, 101
"""Most that a document of ours has of each; drawing a larger one could exhaust memory."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Q over one or two action dims, the others held.

    Attributes:
        dims: one or two action dims.
        grid: `(G,)` values of each of these dims.
        mean: `(G,)` or `(G, G)` mean over the ensemble; the first axis is the first dim's.
        spread: standard deviation over the ensemble, of the same shape.
        data_action: `(A,)` action in the data.
        policy_action: `(A,)` action of the learned policy.
        held: whose action the other dims are held at, `data` or `policy`.
    """

    dims: tuple[int, ...]
    grid: Floats
    mean: Floats
    spread: Floats
    data_action: Floats
    policy_action: Floats
    held: str


@dataclass(frozen=True, kw_only=True)
class InspectedState:
    """One transition of the data.

    Attributes:
        transition: its index.
        episode: the episode it belongs to.
        episode_step: its step in the episode.
        attention: `(N, L, L)` weights, means over heads; N = 0 for a critic without attention.
    """

    transition: int
    episode: int
    episode_step: int
    attention: Floats
    landscape: Landscape

    @property
    def title(self) -> str:
        """Name of the state in headings."""
        return f"transition {self.transition:,} (episode {self.episode}, step {self.episode_step})"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An inspection of one checkpoint's critic.

    Attributes:
        step: step of the checkpoint.
        observation_dim: S.
        tokens: L; 0 for a critic without attention.
        sampled: number of transitions over which `entropy` is a mean.
        mode: how the run controls its entropies.
        entropy: `(N, 2)` nats, over the sampled transitions and all heads.
        target: `(N, 2)` nats.
        temperature: `(N, 2)`.
        states: the inspected states, in the order asked for.
    """

    step: int
    observation_dim: int
    tokens: int
    sampled: int
    mode: str
    entropy: Floats
    target: Floats
    temperature: Floats
    states: tuple[InspectedState, ...]


def read_inspection(folder: Path) -> Inspection:
    """Read the inspect.json of a folder.

    Raises:
        InputError: it is missing, damaged, too large, or of another schema.
    """
    path = folder / DOCUMENT
    document = read_json(path, MAX_DOCUMENT_BYTES)
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has schema {str(document.get('schema'))[:80]!r} where {SCHEMA!r} is known; "
            "run `tql-offline inspect` again"
        )
    try:
        return parse_inspection(document)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} does not hold an inspection; run `tql-offline inspect` again"
        ) from error


def parse_inspection(document: Mapping[str, Any]) -> Inspection:
    """Check a document and convert its lists to arrays.

    Raises:
        ValueError: (or another conversion error) the document is not one of ours.
    """
    observation_dim = _count(document["observation_dim"], MAX_TOKENS)
    action_dim = _count(document["action_dim"], MAX_TOKENS)
    layers, tokens = _count(document["layers"], MAX_LAYERS), len(document["tokens"])
    if layers and tokens != 1 + observation_dim + action_dim:
        raise ValueError("tokens")
    if len(document["states"]) > MAX_STATES or tokens > MAX_TOKENS:
        raise ValueError("size")
    entropy = document["entropy"]
    return Inspection(
        step=_count(document["step"], 10**9),
        observation_dim=observation_dim,
        tokens=tokens,
        sampled=_count(entropy["transitions"], 10**9),
        mode=str(entropy["mode"]),
        entropy=_array(entropy["nats"], (layers, 2)),
        target=_array(entropy["target"], (layers, 2)),
        temperature=_array(entropy["temperature"], (layers, 2)),
        states=tuple(_state(raw, layers, tokens, action_dim) for raw in document["states"]),
    )


def _state(raw: Mapping[str, Any], layers: int, tokens: int, action_dim: int) -> InspectedState:
    return InspectedState(
        transition=_count(raw["transition"], 2**53),
        episode=_count(raw["episode"], 2**53),
        episode_step=_count(raw["episode_step"], 2**53),
        attention=_array(raw["attention"], (layers, tokens, tokens)),
        landscape=_landscape(raw["landscape"], raw, action_dim),
    )


def _landscape(raw: Mapping[str, Any], state: Mapping[str, Any], action_dim: int) -> Landscape:
    dims = tuple(_count(dim, action_dim - 1) for dim in raw["dims"])
    points = len(raw["grid"])
    if not 1 <= len(dims) <= 2 or not 2 <= points <= MAX_GRID:
        raise ValueError("landscape")
    shape = (points,) * len(dims)
    grid = _array(raw["grid"], (points,))
    if not (np.diff(grid) > 0).all():
        raise ValueError("grid")
    return Landscape(
        dims=dims,
        grid=grid,
        mean=_array(raw["q_mean"], shape),
        spread=_array(raw["q_spread"], shape),
        data_action=_array(state["action"], (action_dim,)),
        policy_action=_array(state["policy_action"], (action_dim,)),
        held="policy" if raw["held"] == "policy" else "data",
    )


def _count(value: Any, most: int) -> int:
    if not is_whole(value, 0, most):
        raise ValueError("count")
    return value


def _array(value: Any, shape: tuple[int, ...]) -> Floats:
    """Check that numbers have a shape and are small enough to draw, and return their array."""
    array = np.asarray(value, dtype=np.float64)
    if math.prod(shape) == 0 and array.size == 0:
        return np.zeros(shape)
    if array.shape != shape or not (np.abs(array) < 1e30).all():
        raise ValueError("array")
    return array
